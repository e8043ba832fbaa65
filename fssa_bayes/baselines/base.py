r"""What the heterogeneous model is compared with: the baselines of the field, one interface.

Every baseline has `fit(data, *, seed, progress_bar)`, which returns itself, and `predict(context)`,
which returns something with `choice_prob(target)` and `log_score(target)`, as a
:class:`fssa_bayes.Posterior` has. Those that are models of all choices of a person have
`log_evidence(data)` as well, so that :func:`fssa_bayes.comparison.leave_users_out` can score them
beside a heterogeneous model.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm.auto import tqdm

from fssa_bayes._random import seeded
from fssa_bayes.comparison import compare, leave_users_out
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.data.chunks import user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import FitResult, fit
from fssa_bayes.inference.objectives import PredictiveLikelihood
from fssa_bayes.kernels.plackett_luce import Rankings
from fssa_bayes.model import HeterogeneousBTL, LinearUtility
from fssa_bayes.model.agreement import check_data, check_same_people
from fssa_bayes.model.distributions import BradleyTerry, Outcomes
from fssa_bayes.model.nn import ItemLinear, tower
from fssa_bayes.population import PopulationMixture, mixture_table
from fssa_bayes.posterior import (
    ChoiceProbability,
    Posterior,
    describe_choices,
    score_choices,
)
from fssa_bayes.posterior.posterior import Likelihoods

__all__ = [
    "Baseline",
    "DeterministicNeuralProcess",
    "DistributionalBTL",
    "HomogeneousBTL",
    "MixtureBTL",
    "OneModelPerLabel",
    "Predictions",
    "choose_num_classes",
]

_LEAST_PEOPLE = 20  # People below whom none are held out to stop a network early.
_SHORT_RUN = 15  # EM iterations of a restart, of which the best goes on.
_STEPS_OF_M = 10  # L-BFGS iterations of an M-step; EM needs it to climb, not to arrive.
_CONCENTRATION = 0.3  # Of the Dirichlet draws that EM starts from: people are almost in a class.
_SEPARATED = 15.0  # Nats per standard deviation above which a coefficient may have no maximum.
# Where nobody disagrees σ would go to 0 and the slopes with it to infinity; μ is free, so that any
# probability is still possible.
_LARGEST_LOG_SD = 3.0
_FAR = 30.0  # Standard deviations from which the series is exact to the digits of a float32.
_NO_SPREAD = (
    "of a DistributionalBTL would take the mean utilities for the utilities, which it does not "
    "know: see item_table(data) for means and standard deviations, choice_prob(target) for pairs"
)


class Baseline(ABC):
    """Defines what a baseline can do."""

    @abstractmethod
    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits to the comparisons of the training people and returns itself.

        Args:
            data: The comparisons.
            seed: Seed of initial weights and of whatever else is drawn.
            progress_bar: Whether to show progress.
        """

    @abstractmethod
    def predict(self, context: Preferences) -> Posterior | Predictions | _PredictionsByLabel:
        """Returns predictions for people of whom `context` is known.

        Args:
            context: The people and their known choices; empty contexts are allowed.
        """


class Predictions:
    """Predicts a person's unseen choices by the weighted mean over a few points z.

    Args:
        model: What evaluates choices at a point.
        context: The people.
        z: Points with shape (S, U, K).
        log_weights: Their normalised log-weights for each person, (S, U).
    """

    def __init__(
        self,
        model: HeterogeneousBTL | PopulationMixture,
        context: Preferences,
        z: Tensor,
        log_weights: Tensor,
    ) -> None:
        self.model, self.context, self.z, self.log_weights = model, context, z, log_weights

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Describes each person's probability of preferring left, as `Posterior.choice_prob`."""
        return describe_choices(self.likelihoods(target), target)

    def log_score(self, target: Preferences) -> Tensor:
        """Scores each person's unseen choices, (U,), in nats, as `Posterior.log_score`."""
        return score_choices(self.likelihoods(target))

    def likelihoods(self, target: Preferences) -> Iterator[Likelihoods]:
        """Iterates over the target, a few people at a time, as `Posterior.likelihoods`."""
        first = self.model.models[0] if isinstance(self.model, PopulationMixture) else self.model
        check_data(first, target)
        check_same_people(self.context, target)
        for people, batch in user_batches(target, len(self.z), self.model.device):
            z, log_weights = self.z[:, people], self.log_weights[:, people]
            yield people, batch, self.model.choice(batch, z), log_weights


# ---------------------------------------------------------------------- one utility for everybody


class HomogeneousBTL(Baseline):
    r"""Gives everybody the same utilities, :math:`p(y) = \sigma(r(x_l) - r(x_r))`.

    Maximum likelihood by L-BFGS; a network is stopped early on held-out people.

    Args:
        utility: `"linear"`, `"bilinear"` or `"mlp"` (a network of the item), or a module as in
            :class:`HeterogeneousBTL`, which is copied for every fit.
        hidden_dim: Width of the networks.
        ties: As in :class:`HeterogeneousBTL`, like the next two.
        position_bias: Whether what stands on the left may have an advantage.
        lapses: Whether answers may be careless.

    Attributes:
        model: The fitted model, `latent_dim=0`.
        result: What the fit can say, such as :meth:`FitResult.ranking`.

    References:
        Bradley & Terry (1952), Rank analysis of incomplete block designs.

    Example:
        >>> from fssa_bayes.datasets import two_mode
        >>> data = two_mode.simulate(50, 8).data
        >>> HomogeneousBTL().fit(data, progress_bar=False).coefficients().index.tolist()
        ['x']
    """

    model: HeterogeneousBTL
    result: FitResult

    def __init__(
        self,
        utility: str | nn.Module = "linear",
        hidden_dim: int = 64,
        *,
        ties: str | None = None,
        position_bias: bool = False,
        lapses: bool = False,
    ) -> None:
        self.options = {
            "utility": utility,
            "hidden_dim": hidden_dim,
            "ties": ties,
            "position_bias": position_bias,
            "lapses": lapses,
        }
        with seeded(0):  # Complains of an option now, and not in a loop of fits.
            HeterogeneousBTL(1, 0, **self.options)

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits by maximum likelihood, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If the data do not fit the model, as ties where it has none.
        """
        with seeded(seed):
            model = self._build(data)
        result = _fit_homogeneous(model, data, seed, progress_bar)
        self.model, self.result = model, result  # A fit that fails leaves the last one.
        return self

    def _build(self, data: Preferences) -> HeterogeneousBTL:
        return HeterogeneousBTL(_num_features(data), 0, **copy.deepcopy(self.options))

    def predict(self, context: Preferences) -> Posterior:
        """Returns a posterior of one point: what is known of a person changes nothing."""
        return Posterior(_fitted(self, "model"), None, context)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return _log_prob(_fitted(self, "model"), data)

    def coefficients(self) -> pd.DataFrame:
        """Tabulates the coefficients of a linear utility with three standard errors.

        Returns:
            One row a feature (index `term`), in nats per unit as given, and one for each parameter
            of the answers. Columns: `estimate`; `se_hessian`, the classical error, from the inverse
            Hessian, which takes a person's choices for independent; `se_outer_product`; and
            `se_sandwich`, with people as clusters, right where they are not.

        Raises:
            ValueError: If the utility is not linear.

        References:
            White (1982), Maximum likelihood estimation of misspecified models.
            Liang & Zeger (1986), Longitudinal data analysis using generalized linear models.
        """
        utility = _fitted(self, "model").utility
        if not isinstance(utility, LinearUtility):
            raise ValueError(
                "coefficients() needs utility='linear', whose coefficients are identified, got "
                f"{self.options['utility']!r}"
            )
        return self.result.population().droplevel("quantity")


def _fit_homogeneous(
    model: HeterogeneousBTL, data: Preferences, seed: int, progress_bar: bool
) -> FitResult:
    few = isinstance(model.utility, LinearUtility) or len(data) < _LEAST_PEOPLE
    validation = None if few else 0.1
    return fit(model, None, data, seed=seed, validation=validation, progress_bar=progress_bar)


# ---------------------------------------------------------------------- uncertain utilities


class DistributionalBTL(Baseline):
    r"""Gives every item a distribution of utilities: distributional preference learning.

    Whoever judges an item draws its utility, a normal variable, afresh:

    .. math:: p(y) = \Phi\!\left(\frac{\mu(x_l) - \mu(x_r)}
        {\sqrt{\sigma^2(x_l) + \sigma^2(x_r)}}\right).

    σ is kept between 1/20 and 20. Rankings have to be broken into pairs. The model shows where
    people disagree and does not know who is who: a context changes nothing.

    Args:
        utility: `"mlp"`, a network of the item with a head for each parameter, or `"linear"`.
        hidden_dim: Width of the network.

    Attributes:
        model: The fitted model.
        result: What the fit can say.

    References:
        Siththaranjan, Laidlaw & Hadfield-Menell (2024), Distributional preference learning,
        arXiv 2312.08358.
    """

    model: _DistributionalModel
    result: FitResult

    def __init__(self, utility: str = "mlp", hidden_dim: int = 64) -> None:
        if utility not in ("mlp", "linear"):
            raise ValueError(f"utility must be 'mlp' or 'linear', got {utility!r}")
        if not isinstance(hidden_dim, int) or hidden_dim < 1:
            raise ValueError(f"hidden_dim must be an integer of at least 1, got {hidden_dim!r}")
        self.utility, self.hidden_dim = utility, hidden_dim

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits by maximum likelihood, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If the data keep ties, of which the model knows none, or hold rankings.
        """
        with seeded(seed):
            features = _num_features(data)
            hidden_dim = None if self.utility == "linear" else self.hidden_dim
            model = _DistributionalModel(features, _NormalHead(features, hidden_dim))
        result = _fit_homogeneous(model, data, seed, progress_bar)
        self.model, self.result = model, result  # A fit that fails leaves the last one.
        return self

    def predict(self, context: Preferences) -> Posterior:
        """Returns a posterior of one point: what is known of a person changes nothing.

        Its `utility` are the means; it has neither `rank_prob` nor `differences`, see `item_table`.
        """
        return _PosteriorOfMeans(_fitted(self, "model"), None, context)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return _log_prob(_fitted(self, "model"), data)

    @torch.no_grad()
    def item_table(self, data: Preferences) -> pd.DataFrame:
        """Tabulates mean and standard deviation of the items' utilities.

        Choices tell utilities up to origin and unit: the mean over the items is 0, and the
        geometric mean of the standard deviations 1.

        Args:
            data: Comparisons with the item table.

        Returns:
            One row an item (index `item`). Columns: `mean` and `sd`.
        """
        model = _fitted(self, "model")
        check_data(model, data)
        items = torch.arange(data.num_items) if data.items is None else data.items
        mean, log_sd = model.head.moments(model.standardise(items))
        unit = log_sd.mean()
        columns = {"mean": (mean - mean.mean()) / unit.exp(), "sd": (log_sd - unit).exp()}
        index = data.item_names.rename("item")
        return pd.DataFrame({key: value.numpy() for key, value in columns.items()}, index=index)


class _PosteriorOfMeans(Posterior):
    """Knows the items' mean utilities alone, and so says nothing that depends on their spread."""

    def rank_prob(self, *_args: object, **_options: object) -> Tensor:
        """Raises a ValueError."""
        raise ValueError(f"rank_prob() {_NO_SPREAD}")

    def differences(self, *_args: object, **_options: object) -> pd.DataFrame:
        """Raises a ValueError."""
        raise ValueError(f"differences() {_NO_SPREAD}")


class _NormalHead(nn.Module):
    """Gives items normal utilities, N(μ(x), σ²(x)).

    Args:
        num_features: Number of item features D.
        hidden_dim: Width of the network; None for a linear map that starts at 0.
    """

    def __init__(self, num_features: int, hidden_dim: int | None) -> None:
        super().__init__()
        if hidden_dim is None:
            self.net = ItemLinear(num_features, 2)
            nn.init.zeros_(self.net.weight)
            nn.init.zeros_(self.net.bias)
        else:
            self.net = tower(num_features, hidden_dim, hidden_dim, 2)

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns the mean utilities, which are the same for all z: (*, U, M)."""
        mean, _ = self.moments(items)
        return mean.expand(*z.shape[:-2], len(mean))

    def moments(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Returns μ and log σ, each with shape (M,)."""
        mean, raw = self.net(items).unbind(-1)
        return mean, _LARGEST_LOG_SD * torch.tanh(raw / _LARGEST_LOG_SD)

    def margin(self, items: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Evaluates logit Φ(…) = log Φ(t) − log Φ(−t) with shape (U, N), exact in both tails."""
        mean, log_sd = self.moments(items)
        log_scale = torch.logaddexp(2 * log_sd[left], 2 * log_sd[right]) / 2
        return _probit_logit((mean[left] - mean[right]) * torch.exp(-log_scale))


def _probit_logit(t: Tensor) -> Tensor:
    """Evaluates logit Φ(t), exact in both tails, with gradients that are.

    Far out log Φ(−t) is −t²/2 − log t − log √(2π) − 1/t² + …, and log Φ(t) is 0.
    """
    far = t.abs() > _FAR
    near = t.masked_fill(far, 0.0)  # Neither form may spoil the other's gradient.
    size = t.abs().masked_fill(~far, 1.0)
    tail = size.square() / 2 + size.log() + math.log(2 * math.pi) / 2 + size.square().reciprocal()
    inner = torch.special.log_ndtr(near) - torch.special.log_ndtr(-near)
    return torch.where(far, t.sign() * tail, inner)


class _DistributionalModel(HeterogeneousBTL):
    """Puts an item's distribution of utility where the homogeneous model has a number.

    A choice has the probability σ(m) of any margin m that is its logit; so everything that fits
    and scores a homogeneous model does so with this one.
    """

    def __init__(self, num_features: int, head: _NormalHead) -> None:
        super().__init__(num_features, 0, utility=head)

    def check_rankings(self, has_rankings: bool) -> None:
        """Raises a ValueError if there are rankings, of which the model has no likelihood."""
        if has_rankings:
            raise ValueError(
                "DistributionalBTL knows the probability of a pair, not that of a ranking, got "
                "rankings: break them into pairs (method='pairs', as_pairs())"
            )

    @property
    def head(self) -> _NormalHead:
        """Maps items to the parameters of their distributions."""
        return self.utility.module

    def choice(
        self, batch: Batch, z: Tensor, prepared: tuple[Tensor, Tensor] | None = None
    ) -> BradleyTerry:
        """Returns p(choices), the same for all z (*, U, 0), with batch shape (*, U)."""
        self.check_items(batch.items)
        self.check_z(z)
        self.check_rankings(batch.rankings is not None)
        batch = batch.clean()
        margin = self.head.margin(self.standardise(batch.items), batch.left, batch.right)
        return BradleyTerry.from_margin(margin.expand(*z.shape[:-2], *margin.shape), batch.mask)


# ---------------------------------------------------------------------- classes of people


class MixtureBTL(Baseline):
    r"""Divides people into C classes, each with utilities of its own: a latent class model,

    .. math:: p(y_u) = \sum_c π_c \prod_n \sigma(r_c(x_{un}^l) - r_c(x_{un}^r)).

    EM from several starts: short runs, of which the best goes on. The E-step computes everybody's
    class probabilities; the M-step takes a few L-BFGS iterations of weighted maximum likelihood a
    class, each of which climbs, so the likelihood never falls. A linear utility ends with L-BFGS on
    the likelihood itself, which arrives where EM crawls. Classes are numbered from the largest.

    A ranking has the probability of Plackett and Luce in every class; `coefficients()` alone needs
    comparisons. Nothing but the likelihood is maximised: a network, or items without features,
    needs many people in every class.

    Args:
        num_classes: Number of classes C; one is the homogeneous model.
        utility: As in :class:`HomogeneousBTL`, like the next four.
        hidden_dim: Width of the networks.
        ties: `"davidson"` for a model with ties; every class has its own ν, bias and lapse rate.
        position_bias: Whether what stands on the left may have an advantage.
        lapses: Whether answers may be careless.
        num_restarts: Number of starts.
        max_iterations: Largest number of EM iterations of the run that goes on.
        tolerance: Gain of the log-likelihood in nats a person at which EM ends.

    Attributes:
        models: The classes' models, the largest class first.
        weights: Shares π of the classes, with shape (C,).
        history: One row an EM iteration: `restart`, `iteration`, `log_likelihood` in nats. The last
            row of a linear utility, whose `iteration` is one more, is that of the final L-BFGS.
        log_likelihood: The largest log-likelihood, of all training people together, in nats.
        data: The comparisons it was fitted to.

    Raises:
        ValueError: If an option is out of range.

    References:
        Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM
        algorithm, JRSS B 39(1).
        Greene & Hensher (2003), A latent class model for discrete choice analysis, Transportation
        Research B 37(8).
        Biernacki, Celeux & Govaert (2003), Choosing starting values for the EM algorithm for
        getting the highest likelihood in multivariate Gaussian mixture models, CSDA 41.
    """

    models: list[HeterogeneousBTL]
    weights: Tensor
    history: pd.DataFrame
    log_likelihood: float
    data: Preferences

    def __init__(
        self,
        num_classes: int,
        utility: str | nn.Module = "linear",
        hidden_dim: int = 64,
        *,
        ties: str | None = None,
        position_bias: bool = False,
        lapses: bool = False,
        num_restarts: int = 8,
        max_iterations: int = 300,
        tolerance: float = 1e-5,
    ) -> None:
        for argument, value in (
            ("num_classes", num_classes),
            ("num_restarts", num_restarts),
            ("max_iterations", max_iterations),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} must be an integer of at least 1, got {value!r}")
        if not isinstance(tolerance, int | float) or not tolerance > 0:
            raise ValueError(f"tolerance must be a positive number, got {tolerance!r}")
        self._everybody = HomogeneousBTL(
            utility, hidden_dim, ties=ties, position_bias=position_bias, lapses=lapses
        )
        self.num_classes, self.num_restarts = num_classes, num_restarts
        self.max_iterations, self.tolerance = max_iterations, tolerance

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits by EM, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If there are fewer people than classes, or the data do not fit the model,
                as ties where it has none.

        Warns:
            UserWarning: If EM has not settled after `max_iterations`, or a class's coefficients
                suggest that its choices are separated.
        """
        if isinstance(data, Preferences) and len(data) < self.num_classes:
            raise ValueError(
                f"data must have at least num_classes={self.num_classes} people, got {len(data)}"
            )
        start = self._everybody.fit(data, seed=seed, progress_bar=False).model
        em = _EM(start, data, self.num_classes, seed)
        restarts = self.num_restarts if self.num_classes > 1 else 1
        runs, short = [], min(_SHORT_RUN, self.max_iterations)
        for restart in tqdm(range(restarts), desc="EM starts", disable=not progress_bar):
            runs.append(em.run(em.start(), restart, short, self.tolerance))
        best = max(range(restarts), key=lambda number: runs[number].log_likelihood)
        rest = self.max_iterations - len(runs[best].history)
        final = em.run(runs[best], best, rest, self.tolerance)
        settled = final.settled or self.num_classes == 1
        if isinstance(start.utility, LinearUtility):
            final, settled = em.polish(final, best)
        if not settled:
            warnings.warn(
                f"EM has not settled after max_iterations={self.max_iterations}: the last "
                f"iteration gained more than tolerance={self.tolerance} nats a person",
                stacklevel=2,
            )
        rows = [row for number, run in enumerate(runs) if number != best for row in run.history]
        self._keep(em, final, pd.DataFrame(rows + final.history), data)
        return self

    def _keep(self, em: _EM, state: _State, history: pd.DataFrame, data: Preferences) -> None:
        order = state.log_weights.argsort(descending=True)
        self.weights = state.log_weights[order].exp()
        self.models = [em.model_of(state.parameters[int(c)]) for c in order]
        self.history, self.data = history, data
        self.log_likelihood = state.log_likelihood
        utility = [m.utility for m in self.models if isinstance(m.utility, LinearUtility)]
        largest = max((u.mean.abs().max().item() for u in utility), default=0.0)
        if largest > _SEPARATED:
            warnings.warn(
                f"a coefficient of {largest:.0f} nats per standard deviation suggests that the "
                "choices of a class are separated (an item that never lost in it, say): the "
                "maximum of the likelihood may lie at infinity. Fewer classes may do",
                stacklevel=3,
            )

    def predict(self, context: Preferences) -> Predictions:
        """Returns predictions that average over the classes, given what is known of a person."""
        log_weights = self._log_class_posterior(context).T.float()
        labels = torch.arange(self.num_classes, dtype=torch.float32)
        z = labels[:, None, None].expand(-1, len(context), 1)
        return Predictions(PopulationMixture(self.models), context, z, log_weights)

    def class_posterior(self, context: Preferences) -> pd.DataFrame:
        """Computes the probability that a person belongs to a class, given their known choices.

        Args:
            context: The people and their known choices.

        Returns:
            One row a person (index `user`), one column a class from 1.
        """
        prob = self._log_class_posterior(context).exp().numpy()
        columns = pd.RangeIndex(1, self.num_classes + 1, name="class")
        return pd.DataFrame(prob, index=context.user_names.rename("user"), columns=columns)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return self._log_joint(data).logsumexp(-1)

    def coefficients(self) -> pd.DataFrame:
        """Tabulates every class's coefficients and share with standard errors.

        See :func:`fssa_bayes.population.mixture_table` for columns, errors and sources.
        """
        responsibility = self._log_class_posterior(_fitted(self, "data")).exp()
        return mixture_table(self.models, self.weights, responsibility, self.data)

    def _log_class_posterior(self, data: Preferences) -> Tensor:
        return self._log_joint(data).log_softmax(-1)

    def _log_joint(self, data: Preferences) -> Tensor:
        """Evaluates log π_c p(choices | class c), (U, C), in nats."""
        columns = [_log_prob(model, data) for model in _fitted(self, "models")]
        return torch.stack(columns, -1) + self.weights.log()


class _State:
    """Holds parameters of a mixture and how they were reached.

    Attributes:
        parameters: One vector a class, with shape (C, P).
        log_weights: Log π, with shape (C,).
        responsibility: Probability of each person's class under the parameters, (U, C).
        log_likelihood: Of all people, in nats.
        history: One row an iteration.
        settled: Whether the last iteration gained less than the tolerance.
    """

    def __init__(self, parameters: Tensor, log_weights: Tensor, responsibility: Tensor) -> None:
        self.parameters, self.log_weights = parameters, log_weights
        self.responsibility = responsibility
        self.log_likelihood = -math.inf
        self.history: list[dict] = []
        self.settled = False


class _EM:
    """Runs EM in double precision.

    Args:
        model: The homogeneous model, fitted to everybody, where classes start.
        data: The comparisons.
        num_classes: Number of classes C.
        seed: Seed of the starts.
    """

    def __init__(
        self, model: HeterogeneousBTL, data: Preferences, num_classes: int, seed: int
    ) -> None:
        self.template = model
        self.model = copy.deepcopy(model).double()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.comparisons = _Comparisons(self.model, data)
        self.num_people, self.num_classes = len(data), num_classes
        self.rng = np.random.default_rng(seed)

    def start(self) -> _State:
        """Draws a start: people almost in a class each, all classes at the homogeneous model."""
        alpha = np.full(self.num_classes, _CONCENTRATION)
        responsibility = torch.from_numpy(self.rng.dirichlet(alpha, size=self.num_people))
        vector = parameters_to_vector(self.parameters).detach()
        log_weights = responsibility.mean(0).log()
        return _State(vector.repeat(self.num_classes, 1), log_weights, responsibility)

    def run(self, state: _State, restart: int, iterations: int, tolerance: float) -> _State:
        """Alternates M- and E-steps until one gains less than the tolerance a person."""
        for _ in range(iterations):
            if state.settled:
                break
            before = state.log_likelihood
            for number in range(self.num_classes):
                weight = state.responsibility[:, number]
                state.parameters[number] = self._climb(state.parameters[number], weight)
            state.log_weights = state.responsibility.mean(0).log()
            self._expect(state)
            self._record(state, restart)
            state.settled = state.log_likelihood - before < tolerance * self.num_people
        return state

    def polish(self, state: _State, restart: int) -> tuple[_State, bool]:
        """Maximises the likelihood itself by L-BFGS; returns whether it has arrived."""
        classes, size = state.parameters.shape
        start = torch.cat([state.parameters.flatten(), state.log_weights.clamp(min=-30)])

        def loss(vector: Tensor) -> tuple[float, Tensor]:
            parameters, logits = vector[: classes * size].reshape(classes, size), vector[-classes:]
            trial = _State(parameters, logits.log_softmax(0), state.responsibility)
            self._expect(trial)
            slopes = [
                self._gradient(parameters[c], trial.responsibility[:, c])[1] for c in range(classes)
            ]
            share = trial.responsibility.sum(0) - self.num_people * trial.log_weights.exp()
            gradient = torch.cat([*slopes, -share / self.num_people])
            return -trial.log_likelihood / self.num_people, gradient

        vector, slope = _minimise(loss, start, 2000)
        end = _State(
            vector[: classes * size].reshape(classes, size).clone(),
            vector[-classes:].log_softmax(0),
            state.responsibility,
        )
        self._expect(end)
        if end.log_likelihood < state.log_likelihood:
            end = state
        end.history = state.history
        self._record(end, restart)
        return end, slope < 1e-5

    def model_of(self, vector: Tensor) -> HeterogeneousBTL:
        """Returns a model with a class's parameters, in the precision of the first."""
        twin = copy.deepcopy(self.template)
        trained = [p for p in twin.parameters() if p.requires_grad]
        with torch.no_grad():
            vector_to_parameters(vector.to(trained[0].dtype), trained)
        return twin.eval()

    def _record(self, state: _State, restart: int) -> None:
        row = {"restart": restart, "iteration": len(state.history) + 1}
        state.history.append(row | {"log_likelihood": state.log_likelihood})

    @torch.no_grad()
    def _expect(self, state: _State) -> None:
        """Computes everybody's class probabilities and the likelihood of all."""
        columns = []
        for vector in state.parameters:
            self._set(vector)
            columns.append(self.comparisons.log_prob(self.model))
        log_joint = torch.stack(columns, -1) + state.log_weights
        state.responsibility = log_joint.softmax(-1)
        state.log_likelihood = log_joint.logsumexp(-1).sum().item()

    def _climb(self, vector: Tensor, weight: Tensor) -> Tensor:
        """Takes a few L-BFGS iterations of weighted maximum likelihood."""
        start, _ = self._gradient(vector, weight)
        end, _ = _minimise(lambda v: self._gradient(v, weight), vector, _STEPS_OF_M)
        return end if self._gradient(end, weight)[0] <= start else vector

    def _gradient(self, vector: Tensor, weight: Tensor) -> tuple[float, Tensor]:
        """Returns the weighted loss of a class, in nats a person, and its gradient."""
        self._set(vector)
        self.model.zero_grad()
        loss = -(weight @ self.comparisons.log_prob(self.model)) / self.num_people
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return loss.item(), parameters_to_vector(gradients)

    def _set(self, vector: Tensor) -> None:
        with torch.no_grad():
            vector_to_parameters(vector, self.parameters)


class _Comparisons:
    """Lists all comparisons without padding: EM evaluates one model on them a thousand times.

    Args:
        model: A homogeneous model in double precision, on the CPU.
        data: The comparisons.
    """

    def __init__(self, model: HeterogeneousBTL, data: Preferences) -> None:
        used, pairs = np.unique(np.stack([data.left, data.right]), return_inverse=True)
        used = torch.from_numpy(used.astype(np.int64))
        items = used if data.items is None else data.items[used].double()
        self.items = model.standardise(items)
        self.left, self.right = torch.from_numpy(pairs.reshape(2, -1))
        self.choice = torch.from_numpy(data.choice).double()
        self.person = torch.from_numpy(np.repeat(np.arange(len(data)), data.counts))
        self.num_people = len(data)
        self.rankings = self._rankings(data)

    def _rankings(self, data: Preferences) -> Rankings | None:
        if data.ranking is None:
            return None
        # All comparisons as if of one person: numbers of rankings differ between people.
        mask = torch.ones(1, data.num_comparisons, dtype=torch.bool)
        rows = (self.left[None], self.right[None], self.choice[None], mask)
        return Rankings.find(*rows, torch.from_numpy(data.ranking)[None])

    def log_prob(self, model: HeterogeneousBTL) -> Tensor:
        """Evaluates log p(choices of a person), in nats, with shape (U,)."""
        utility = model.utility(self.items, self.choice.new_zeros(1, 0)).squeeze(0)
        margin = utility[self.left] - utility[self.right]
        margin = margin if model.bias is None else margin + model.bias
        if self.rankings is None:
            each = Outcomes.of(margin, model.log_tie, model.lapse_logit).log_prob(self.choice)
        else:
            answers = BradleyTerry.from_margin(margin[None], rankings=self.rankings)
            each = answers.log_prob_each(self.choice[None]).squeeze(0)
        return self.choice.new_zeros(self.num_people).index_add(0, self.person, each)


def _minimise(
    loss: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, iterations: int
) -> tuple[Tensor, float]:
    """Runs L-BFGS; returns where it ends and the largest slope there."""
    from scipy.optimize import minimize

    def evaluate(vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(torch.from_numpy(vector))
        return value, gradient.numpy()

    options = {"maxiter": iterations, "maxfun": 4 * iterations, "ftol": 1e-15, "gtol": 1e-9}
    result = minimize(evaluate, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(result.x.copy()), float(np.abs(result.jac).max(initial=0.0))


def choose_num_classes(
    build: Callable[[int], MixtureBTL],
    data: Preferences,
    num_classes: Sequence[int] = (1, 2, 3, 4),
    num_folds: int = 5,
    *,
    seed: int = 0,
) -> tuple[int, pd.DataFrame]:
    """Chooses the number of classes by how well other people's choices are predicted.

    Args:
        build: Takes a number of classes and returns a mixture, not yet fitted.
        data: The comparisons of all people.
        num_classes: Numbers to choose from, at least two.
        num_folds: Folds of :func:`fssa_bayes.comparison.leave_users_out`.
        seed: Seed of folds and fits.

    Returns:
        The smallest number whose score lies within one standard error of the difference from the
        best, and the comparison, see :func:`fssa_bayes.comparison.compare`, by `num_classes`. The
        score of a number that was chosen for it is too good to be reported as its own.

    Raises:
        ValueError: If there are fewer than two different numbers.

    References:
        Hastie, Tibshirani & Friedman (2009), The elements of statistical learning, section 7.10.
    """
    numbers = sorted(set(num_classes))
    if len(numbers) < 2 or numbers[0] < 1:
        raise ValueError(f"num_classes must be at least 2 numbers from 1 up, got {num_classes}")
    scores = {
        number: leave_users_out(lambda number=number: build(number), data, num_folds, seed=seed)
        for number in numbers
    }
    table = compare(scores).rename_axis("num_classes")
    close = table["elpd_diff"] <= table["dse"].fillna(0)
    return int(min(table.index[close])), table


# ---------------------------------------------------------------------- labels that are known


class OneModelPerLabel(Baseline):
    """Fits a model of its own to the people of each label: an oracle, which knows who is who.

    Args:
        labels: The label of every person, in training and later, by their name.
        build: Returns a baseline, not yet fitted, for the people of one label.

    Attributes:
        members: The fitted baseline of each label.

    Raises:
        TypeError: If `labels` is no mapping or Series.
    """

    members: dict[object, Baseline]

    def __init__(
        self, labels: Mapping | pd.Series, build: Callable[[], Baseline] = HomogeneousBTL
    ) -> None:
        if not isinstance(labels, Mapping | pd.Series):
            raise TypeError(
                "labels must be a mapping, or a Series indexed by user name, got "
                f"{type(labels).__name__}"
            )
        self.labels, self.build = pd.Series(labels), build

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits one model a label, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If a person has no label.
        """
        self.members = {
            label: self.build().fit(data.subset(people), seed=seed, progress_bar=progress_bar)
            for label, people in self._people(data).items()
        }
        return self

    def predict(self, context: Preferences) -> _PredictionsByLabel:
        """Returns the predictions of each person's own model.

        Raises:
            ValueError: If a person has no label, or one that was not trained.
        """
        people = self._known(context)
        parts = [
            (where, self.members[label].predict(context.subset(where)))
            for label, where in people.items()
        ]
        return _PredictionsByLabel(context, parts)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        out = torch.empty(len(data), dtype=torch.float64)
        for label, where in self._known(data).items():
            out[where] = self.members[label].log_evidence(data.subset(where)).double()
        return out

    def coefficients(self) -> pd.DataFrame:
        """Tabulates the coefficients of each label's model, with `label` first in the index."""
        members = _fitted(self, "members").items()
        return pd.concat({label: m.coefficients() for label, m in members}, names=["label"])

    def _known(self, data: Preferences) -> dict[object, np.ndarray]:
        members, people = _fitted(self, "members"), self._people(data)
        unknown = [label for label in people if label not in members]
        if unknown:
            raise ValueError(
                "labels must be among those of the training people, "
                f"{pd.Index(members).tolist()}, got {pd.Index(unknown).tolist()[0]!r}"
            )
        return people

    def _people(self, data: Preferences) -> dict[object, np.ndarray]:
        """Lists the positions of the people of each label."""
        if not isinstance(data, Preferences):
            raise TypeError(f"data must be Preferences, got {type(data).__name__}")
        labels = self.labels.reindex(data.user_names)
        if labels.isna().any():
            first = data.user_names[labels.isna().to_numpy()].tolist()[0]
            raise ValueError(
                f"labels must have one for every person, got none for user {first!r} "
                f"({int(labels.isna().sum())} such people)"
            )
        return pd.Series(np.arange(len(data))).groupby(labels.to_numpy()).indices


class _PredictionsByLabel:
    """Puts together what each label's model predicts of its people."""

    def __init__(self, context: Preferences, parts: list[tuple[np.ndarray, Posterior]]) -> None:
        self.context, self.parts = context, parts

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Describes each person's probability of preferring left, as `Posterior.choice_prob`."""
        check_same_people(self.context, target)
        width = int(target.counts.max(initial=0))
        names = [field.name for field in fields(ChoiceProbability)]
        out = {name: torch.full((len(target), width), math.nan) for name in names}
        for where, predictions in self.parts:
            part = predictions.choice_prob(target.subset(where))
            for name, table in out.items():
                value = getattr(part, name)
                table[where, : value.shape[1]] = value
        return ChoiceProbability(**out)

    def log_score(self, target: Preferences) -> Tensor:
        """Scores each person's unseen choices, (U,), in nats, as `Posterior.log_score`."""
        check_same_people(self.context, target)
        out = torch.empty(len(target))
        for where, predictions in self.parts:
            out[where] = predictions.log_score(target.subset(where))
        return out


# ---------------------------------------------------------------------- the published signal


class DeterministicNeuralProcess(Baseline):
    """Trains utility and encoder to predict, at one point z a context: the published signal.

    `PredictiveLikelihood(deterministic=True)` alone: no prior, no draws, no `Sleep`. A context is
    mapped to z, the guide's location, and predictions are those of somebody with this z, however
    little is known; there is no posterior.

    Args:
        latent_dim: Number of latent dimensions K.
        utility: As in :class:`HeterogeneousBTL`.
        hidden_dim: Width of all networks.
        steps: Number of optimisation steps; None for the objective's default.
        learning_rate: Peak learning rate.

    Attributes:
        model: The fitted model.
        guide: The fitted encoder.
        result: What the fit can say.

    References:
        Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998.
        Garnelo et al. (2018), Conditional neural processes, arXiv 1807.01613.
    """

    model: HeterogeneousBTL
    guide: NeuralProcessGuide
    result: FitResult

    def __init__(
        self,
        latent_dim: int = 2,
        utility: str | nn.Module = "mlp",
        hidden_dim: int = 64,
        *,
        steps: int | None = None,
        learning_rate: float = 3e-3,
    ) -> None:
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise ValueError(f"latent_dim must be an integer of at least 1, got {latent_dim!r}")
        self.objective = PredictiveLikelihood(deterministic=True, steps=steps)
        with seeded(0):
            HeterogeneousBTL(1, latent_dim, utility, hidden_dim=hidden_dim)
        self.latent_dim, self.utility, self.hidden_dim = latent_dim, utility, hidden_dim
        self.learning_rate = learning_rate

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits for a fixed number of steps, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If the data do not fit the model, as ties where it has none.
        """
        with seeded(seed):
            utility = copy.deepcopy(self.utility)
            model = HeterogeneousBTL(
                _num_features(data), self.latent_dim, utility, hidden_dim=self.hidden_dim
            )
            guide = NeuralProcessGuide(model, "normal", self.hidden_dim)
        result = fit(
            model,
            guide,
            data,
            objective=self.objective,
            learning_rate=self.learning_rate,
            validation=None,
            seed=seed,
            progress_bar=progress_bar,
        )
        self.model, self.guide, self.result = model, guide, result
        return self

    @torch.no_grad()
    def predict(self, context: Preferences) -> Predictions:
        """Returns the predictions of people with z at the guide's location."""
        model = _fitted(self, "model")
        check_data(model, context)
        batches = user_batches(context, 1, model.device)
        z = torch.cat([self.guide.location(batch.clean()) for _, batch in batches]).unsqueeze(0)
        return Predictions(model, context, z, z.new_zeros(z.shape[:2]))


# ---------------------------------------------------------------------- shared


def _num_features(data: Preferences) -> int:
    if not isinstance(data, Preferences):
        raise TypeError(f"data must be Preferences, got {type(data).__name__}")
    return data.num_features


def _fitted(baseline: Baseline, attribute: str) -> object:
    if not hasattr(baseline, attribute):
        raise ValueError(f"{type(baseline).__name__} must be fitted first: call fit(data)")
    return getattr(baseline, attribute)


@torch.no_grad()
def _log_prob(model: HeterogeneousBTL, data: Preferences) -> Tensor:
    """Evaluates log p(choices of a person) under a homogeneous model, (U,), in nats."""
    check_data(model, data)
    twin, parts = copy.deepcopy(model).double(), []
    for _, batch in user_batches(data, 1, model.device):
        items = batch.items if data.items is None else batch.items.double()
        batch = batch.replace(items=items, choice=batch.choice.double())
        z = batch.choice.new_zeros(batch.num_users, 0)
        parts.append(twin.choice(batch, z).log_prob(batch.choice).cpu())
    return torch.cat(parts)
