"""Expected log predictive densities, and their differences between models.

All scores are in nats; higher is better. Standard errors are clustered by person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fssa_bayes._weights import MOST_PARETO_K

__all__ = ["Elpd", "compare", "standard_error_of_sum"]

_MIN_PEOPLE = 10  # With fewer people a standard error over people says too little.
_SMALL_DIFFERENCE = 4.0  # Nats below which the normal approximation of a difference fails.


@dataclass(frozen=True)
class Elpd:
    """Holds an expected log predictive density and what it is made of.

    Attributes:
        values: Log predictive density of each unit left out, in nats, with shape (R,).
        person: Position of the person that each unit belongs to, with shape (R,).
        num_people: Number of people U.
        unit: What was left out at a time: `"comparison"`, `"judgement"` (a ranking, or a
            comparison that stands alone) or `"person"`.
        pareto_k: Pareto k-hat of each comparison left out, (R,); None where no weights of a
            posterior that had seen the comparison were used.
        monte_carlo_error: Standard error of the sum that comes from the draws, in nats.
        digest: Digest of the data, so that only scores on the same data are compared.
    """

    values: np.ndarray
    person: np.ndarray
    num_people: int
    unit: str
    pareto_k: np.ndarray | None
    monte_carlo_error: float
    digest: str

    @property
    def by_person(self) -> np.ndarray:
        """Sum of each person's values, in nats, with shape (U,)."""
        return np.bincount(self.person, self.values, minlength=self.num_people)

    @property
    def total(self) -> float:
        """Sum over all units, in nats."""
        return float(self.values.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the total, with a person's units as one cluster, in nats."""
        return standard_error_of_sum(self.by_person)

    def __str__(self) -> str:
        return f"{self.total:.1f} ± {self.standard_error:.1f} nats, leaving out a {self.unit}"


def compare(scores: Mapping[str, Elpd]) -> pd.DataFrame:
    """Compares models by their scores on the same data, the best first.

    Args:
        scores: The score of each model, by the name of the model.

    Returns:
        One row a model (index `model`). Columns, in nats, as in ArviZ: `rank` from 0; `elpd` and
        `se`, its standard error; `elpd_diff`, the best model's less this one's, and `dse`, the
        standard error of that difference, both paired and clustered by person; `per_unit`, the
        difference for each comparison or person left out; `high_k`, the share of comparisons with
        a k-hat above .7; `verdict`, in words.

    Raises:
        ValueError: If there are fewer than two scores, or they are of different data or units.

    References:
        Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC.
        Sivula, Magnusson, Matamoros & Vehtari (2020), Uncertainty in Bayesian leave-one-out
        cross-validation based model comparison, arXiv 2008.10296.
    """
    if len(scores) < 2:
        raise ValueError(f"scores must hold at least 2 models, got {list(scores)}")
    first_name, first = next(iter(scores.items()))
    for name, score in scores.items():
        if (score.digest, score.unit) != (first.digest, first.unit):
            raise ValueError(
                f"scores must be of the same data, leaving out the same units: {first_name!r} "
                f"({first.num_people} people, by {first.unit}) and {name!r} "
                f"({score.num_people} people, by {score.unit}) are not"
            )
    order = sorted(scores, key=lambda name: -scores[name].total)
    best = scores[order[0]]
    rows = []
    for rank, name in enumerate(order):
        score = scores[name]
        difference = best.by_person - score.by_person
        error = standard_error_of_sum(difference)
        high_k = np.nan if score.pareto_k is None else np.mean(score.pareto_k > MOST_PARETO_K)
        row = {
            "rank": rank,
            "elpd": score.total,
            "se": score.standard_error,
            "elpd_diff": difference.sum(),
            "dse": error,
            "per_unit": difference.sum() / len(score.values),
            "high_k": high_k,
            "verdict": "best" if rank == 0 else _verdict(difference.sum(), error, best.num_people),
        }
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(order, name="model"))


def standard_error_of_sum(by_person: np.ndarray) -> float:
    """Estimates the standard error of a sum over independent people; NaN for one person."""
    if len(by_person) < 2:
        return math.nan
    return float(by_person.std(ddof=1) * math.sqrt(len(by_person)))


def _verdict(difference: float, error: float, people: int) -> str:
    """Says in words whether a model is worse than the best one."""
    if people < _MIN_PEOPLE:
        return f"too few people to judge by: {people}"
    if abs(difference) <= 2 * error:
        return "not told apart from the best"
    if abs(difference) < _SMALL_DIFFERENCE:
        return "less than 4 nats below the best, too little to trust the standard error"
    return f"worse, {difference / error:.1f} standard errors below the best"
