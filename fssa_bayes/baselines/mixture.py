"""Classes of people, each with utilities of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Self

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fssa_bayes.baselines.base import (
    Baseline,
    Predictions,
    check_preferences,
    log_prob_of_people,
)
from fssa_bayes.baselines.em import EM
from fssa_bayes.baselines.homogeneous import HomogeneousBTL
from fssa_bayes.baselines.mixture_errors import mixture_table
from fssa_bayes.comparison.choice import choose_size
from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import PopulationMixture

__all__ = ["MixtureBTL", "choose_num_classes"]

_SHORT_RUN = 15  # EM iterations of a restart, of which the best is continued.
_SEPARATED = 15.0  # Nats per standard deviation above which a coefficient may have no maximum.


class MixtureBTL(Baseline):
    r"""Divides people into C classes, each with utilities of its own: a latent class model,

    .. math:: p(y_u) = \sum_c π_c \prod_n \sigma(r_c(x_{un}^l) - r_c(x_{un}^r)).

    EM makes short runs from several starts and continues the best run. The E-step computes each
    person's class probabilities. The M-step takes a few L-BFGS iterations of weighted maximum
    likelihood for each class and never lowers the likelihood. For a linear utility EM is followed
    by L-BFGS on the likelihood itself, which converges faster near the maximum. Classes are
    numbered from the largest.

    A ranking has the probability of Plackett and Luce in every class; only `coefficients()` needs
    comparisons. Likelihood alone is maximised, without a prior: a network, or items without
    features, needs many people in every class.

    Args:
        num_classes: Number of classes C; one is the homogeneous model.
        utility: As in :class:`HomogeneousBTL`, like the next four.
        hidden_dim: Width of the networks.
        ties: `"davidson"` for a model with ties; every class has its own ν, bias and lapse rate.
        position_bias: Whether the item on the left may have an advantage.
        lapses: Whether answers may be careless.
        num_restarts: Number of starts.
        max_iterations: Largest number of EM iterations of the run that is continued.
        tolerance: Gain of the log-likelihood in nats a person at which EM ends.

    Attributes:
        models: The classes' models, the largest class first.
        weights: Shares π of the classes, with shape (C,).
        history: One row an EM iteration: `restart`, `iteration`, `log_likelihood` in nats. The last
            row of a linear utility, whose `iteration` is one more, is that of the final L-BFGS.
        log_likelihood: The largest log-likelihood, of all training people together, in nats.
        data: The comparisons of the training people.

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
                such as ties where the model has none.

        Warns:
            UserWarning: If EM has not settled after `max_iterations`, or a class's coefficients
                suggest that its choices are separated.
        """
        check_preferences(data)
        if len(data) < self.num_classes:
            raise ValueError(
                f"data must have at least num_classes={self.num_classes} people, got {len(data)}"
            )
        start = self._everybody.fit(data, seed=seed, progress_bar=False).model
        em = EM(start, data, self.num_classes, seed)
        restarts = self.num_restarts if self.num_classes > 1 else 1
        runs, short = [], min(_SHORT_RUN, self.max_iterations)
        for restart in tqdm(range(restarts), desc="EM starts", delay=1.0, disable=not progress_bar):
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
        order = final.log_weights.argsort(descending=True)
        self.weights = final.log_weights[order].exp()
        self.models = [em.model_of(final.parameters[int(c)]) for c in order]
        self.history, self.data = pd.DataFrame(rows + final.history), data
        self.log_likelihood = final.log_likelihood
        utility = [m.utility for m in self.models if m.utility.is_linear]
        largest = max((u.mean.abs().max().item() for u in utility), default=0.0)
        if largest > _SEPARATED:
            warnings.warn(
                f"a coefficient of {largest:.0f} nats per standard deviation suggests that the "
                "choices of a class are separated (an item that never lost in it, say): the "
                "maximum of the likelihood may lie at infinity. Fewer classes may do",
                stacklevel=2,
            )
        return self

    def predict(self, context: Preferences) -> Predictions:
        """Returns predictions averaged over classes, by their probabilities given the context."""
        log_weights = self.log_joint(context).log_softmax(-1).T.float()
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
        prob = self.log_joint(context).log_softmax(-1).exp().numpy()
        columns = pd.RangeIndex(1, self.num_classes + 1, name="class")
        return pd.DataFrame(prob, index=context.user_names.rename("user"), columns=columns)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return self.log_joint(data).logsumexp(-1)

    def coefficients(self) -> pd.DataFrame:
        """Tabulates every class's coefficients and share with standard errors.

        See :func:`fssa_bayes.baselines.mixture_errors.mixture_table` for columns, errors and
        sources.
        """
        responsibility = self.log_joint(self.fitted("data")).log_softmax(-1).exp()
        return mixture_table(self.models, self.weights, responsibility, self.data)

    def log_joint(self, data: Preferences) -> Tensor:
        """Evaluates log π_c p(choices | class c), (U, C), in nats."""
        columns = [log_prob_of_people(model, data) for model in self.fitted("models")]
        return torch.stack(columns, -1) + self.weights.log()


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
        The number and the comparison by `num_classes`, see
        :func:`fssa_bayes.comparison.choice.choose_size`.

    Raises:
        ValueError: If there are fewer than two different numbers.
    """
    numbers = sorted(set(num_classes))
    if len(numbers) < 2 or numbers[0] < 1:
        raise ValueError(f"num_classes must be at least 2 numbers from 1 up, got {num_classes}")
    chosen, table = choose_size(build, data, numbers, num_folds, seed=seed)
    return chosen, table.rename_axis("num_classes")
