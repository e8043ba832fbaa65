"""Classes of people, each with utilities of its own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm.auto import tqdm

from fssa_bayes.baselines.base import Baseline, Predictions, fitted_attribute, log_prob_of_people
from fssa_bayes.baselines.homogeneous import HomogeneousBTL
from fssa_bayes.comparison import compare, leave_users_out
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.kernels.plackett_luce import Rankings
from fssa_bayes.model import HeterogeneousBTL, log_prob_of_choices, require_linear
from fssa_bayes.population import (
    answer_estimates,
    check_num_parameters,
    feature_differences,
    label_parameters,
    with_standard_errors,
)
from fssa_bayes.posterior import PopulationMixture

__all__ = ["MixtureBTL", "choose_num_classes", "mixture_table"]


_SMALL_CLASS = (
    "as where a class has few people or its choices are separated; standard errors leave these "
    "out. Fewer classes may do"
)


def mixture_table(
    models: Sequence[HeterogeneousBTL],
    weights: Tensor,
    responsibility: Tensor,
    data: Preferences,
) -> pd.DataFrame:
    """Estimates the coefficients and the shares of the classes of a mixture.

    By Louis' identity the observed information is the mean of the complete-data information less
    the covariance of the complete-data score, both over a person's possible classes.

    Args:
        models: The classes' fitted models, with linear utility and `latent_dim=0`.
        weights: Shares of the classes, with shape (C,).
        responsibility: Probability of every person's class given all their choices, (U, C).
        data: The comparisons the mixture was fitted to.

    Returns:
        One row for each class's coefficients, in units of the features given (items without
        features are centred over all items), parameters of the answers, and `share` (index
        `class`, from 1, and `term`). Columns as in :func:`population_table`.

    Raises:
        ValueError: If a utility is not linear, some comparisons are rankings, or there are too many
            parameters for a dense information matrix.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    for model in models:
        require_linear(model, "coefficients()")
    if data.ranking is not None:
        raise ValueError(
            "coefficients() of a mixture needs plain comparisons, got rankings: fit it to "
            "data.as_pairs()"
        )
    first, size = models[0], models[0].num_features
    each = size + len(answer_estimates(first))
    check_num_parameters("coefficients()", len(models) * (each + 1) - 1)
    outer, information = _mixture_moments(models, weights.double(), responsibility.double(), data)
    scale = first.feature_scale.double().cpu()

    def quantities(theta: Tensor) -> Tensor:
        logits = torch.cat([theta.new_zeros(1), theta[len(models) * each :]])
        share, rows = logits.softmax(0), []
        for number in range(len(models)):
            own = theta[number * each : (number + 1) * each]
            mean = own[:size] / scale
            mean = mean - mean.mean() if data.items is None else mean
            rate = [] if first.lapse_logit is None else [own[-1:].sigmoid()]
            rows += [mean, own[size:], *rate, share[number : number + 1]]
        return torch.cat(rows)

    means = [model.utility.mean.detach().double().cpu() for model in models]
    answers = [
        torch.tensor(list(answer_estimates(m).values()), dtype=torch.float64) for m in models
    ]
    logits = weights.double().clamp(min=1e-300).log()
    own = [part for pair in zip(means, answers, strict=True) for part in pair]
    theta = torch.cat([*own, logits[1:] - logits[0]])
    expected_null = len(models) if data.items is None else 0
    columns = with_standard_errors(
        quantities,
        theta,
        outer,
        information,
        expected_null,
        num_people=int((data.counts > 0).sum()),
        advice=_SMALL_CLASS,
    )
    terms = [term for _, term in label_parameters(data, 0, [], answer_estimates(first))] + ["share"]
    index = [(number + 1, term) for number in range(len(models)) for term in terms]
    return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(index, names=["class", "term"]))


@torch.no_grad()
def _mixture_moments(
    models: Sequence[HeterogeneousBTL], weights: Tensor, responsibility: Tensor, data: Preferences
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and their observed information.

    Parameters are those of the classes, one class after another, and log π_c / π_1 for c > 1.
    """
    each = models[0].num_features + len(answer_estimates(models[0]))
    size = len(models) * (each + 1) - 1
    outer, information = torch.zeros(2, size, size, dtype=torch.float64)
    of_shares = slice(len(models) * each, size)
    is_class = torch.eye(len(models), dtype=torch.float64) - weights
    for people, batch in user_batches(data, max(4, size), models[0].device):
        prob = responsibility[people]
        mean_score = torch.zeros(batch.num_users, size, dtype=torch.float64)
        for number, model in enumerate(models):
            own = slice(number * each, (number + 1) * each)
            share = prob[:, number : number + 1]
            score = torch.zeros_like(mean_score)
            score[:, own], complete = _class_moments(model, batch, share.squeeze(-1))
            score[:, of_shares] = is_class[number, 1:]
            information[own, own] += complete
            information -= score.T @ (share * score)
            mean_score += share * score
        between = (weights.diag() - weights.outer(weights))[1:, 1:]
        information[of_shares, of_shares] += batch.num_users * between
        outer_here = mean_score.T @ mean_score
        outer += outer_here
        information += outer_here
    return outer, information


def _class_moments(model: HeterogeneousBTL, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scores (U, P) of people of one class, and the sum of weighted information."""
    z = batch.choice.new_zeros(1, batch.num_users, 0)
    derivatives = model.choice(batch, z).differentiate(batch.choice)
    first, second = derivatives.first, derivatives.second
    difference = feature_differences(model, batch).double()
    weight = weight.to(difference.device)
    # The margin moves with the coefficients by x_l − x_r, the answers' parameters by themselves.
    ones = difference.new_ones(*difference.shape[:-1], 1)
    moves = [difference, *(ones for _ in first[1:])]
    score = [torch.einsum("un,und->ud", d[0], move) for d, move in zip(first, moves, strict=True)]
    blocks = [
        [
            -torch.einsum("u,un,und,une->de", weight, second[i][j][0], moves[i], moves[j])
            for j in range(len(moves))
        ]
        for i in range(len(moves))
    ]
    return torch.cat(score, -1).cpu(), torch.cat([torch.cat(row, -1) for row in blocks]).cpu()


_SHORT_RUN = 15  # EM iterations of a restart, of which the best goes on.


_STEPS_OF_M = 10  # L-BFGS iterations of an M-step; EM needs it to climb, not to arrive.


_CONCENTRATION = 0.3  # Of the Dirichlet draws that EM starts from: people are almost in a class.


_SEPARATED = 15.0  # Nats per standard deviation above which a coefficient may have no maximum.


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
        if start.utility.is_linear:
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
        utility = [m.utility for m in self.models if m.utility.is_linear]
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
        responsibility = self._log_class_posterior(fitted_attribute(self, "data")).exp()
        return mixture_table(self.models, self.weights, responsibility, self.data)

    def _log_class_posterior(self, data: Preferences) -> Tensor:
        return self._log_joint(data).log_softmax(-1)

    def _log_joint(self, data: Preferences) -> Tensor:
        """Evaluates log π_c p(choices | class c), (U, C), in nats."""
        columns = [log_prob_of_people(model, data) for model in fitted_attribute(self, "models")]
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
        self.person = torch.from_numpy(data.person)
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
        margin = utility[self.left] - utility[self.right] + model.position_bias
        parameters = {"log_tie": model.log_tie, "lapse_logit": model.lapse_logit}
        each = log_prob_of_choices(margin[None], self.choice[None], self.rankings, **parameters)
        return self.choice.new_zeros(self.num_people).index_add(0, self.person, each.squeeze(0))


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
