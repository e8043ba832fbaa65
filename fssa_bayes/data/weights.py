"""Weights of people, as of a survey: how many people of the population a person stands for.

The log-likelihood of a person with weight w counts w times in estimates (pseudo maximum
likelihood). What is inferred of a person, given the population, does not depend on weights.

References:
    Binder (1983), On the variances of asymptotically normal estimators from complex surveys,
    International Statistical Review 51.
    Skinner (1989), Domain means, regression and multivariate analysis, in Skinner, Holt & Smith
    (eds.), Analysis of complex surveys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fssa_bayes.data.comparisons import Comparisons
from fssa_bayes.data.ids import canonical_names, find_names
from fssa_bayes.data.names import first_names, show_value

__all__ = ["check_unweighted", "check_weights", "total_weight"]


def check_weights(
    weights: np.ndarray | Sequence | Mapping | None, user_names: pd.Index
) -> np.ndarray | None:
    """Copies weights in double precision, or refuses a wrong number, or what is not positive.

    Args:
        weights: One number a person, with shape (U,); a mapping from people's names, or a Series
            indexed by them, in any order; or None.
        user_names: Names of the people.

    Returns:
        The weights; None where all are 1, which is the same as none.

    Raises:
        ValueError: If a person has no weight, or one that is no positive and finite number.
    """
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        weights = pd.Series(list(weights.values()), index=list(weights), dtype=object)
    if isinstance(weights, pd.Series):
        weights = _by_name(weights, user_names)
    try:
        values = np.array(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights must be numbers, one a person: {error}") from None
    if values.shape != (len(user_names),):
        raise ValueError(
            f"weights must be one number a person, with shape ({len(user_names)},), got shape "
            f"{values.shape}"
        )
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        raise ValueError(
            f"weights must be positive and finite, got {values[wrong[0]]} for user "
            f"{show_value(user_names[wrong[0]])} ({len(wrong)} such people)"
        )
    return None if (values == 1).all() else values


def _by_name(weights: pd.Series, user_names: pd.Index) -> np.ndarray:
    """Brings weights indexed by people's names into the order of the people.

    An index of row numbers names nobody, unless people are numbers too.
    """
    names = canonical_names("the index of weights", weights.index)
    if not names.is_unique:
        again = names[names.duplicated()]
        raise ValueError(f"weights must name a person once, got {first_names(again[:1])} again")
    place = find_names(user_names, names)
    if (place >= 0).all():
        return weights.to_numpy()[place]
    if isinstance(weights.index, pd.RangeIndex) and (place < 0).all():
        return weights.to_numpy()
    lacking = user_names[place < 0]
    raise ValueError(
        f"weights must have every person in its index, got none of {first_names(lacking)} "
        f"({len(lacking)} such people); weights.to_numpy() takes them in order"
    )


def check_unweighted(data: Comparisons, what: str) -> None:
    """Raises a ValueError if people have weights, which `what` would ignore."""
    if data.weights is not None:
        raise ValueError(
            f"{what} does not take weights of people into account, and these data have weights "
            f"from {data.weights.min():.4g} to {data.weights.max():.4g}; "
            "data.with_weights(None) leaves them out"
        )


def total_weight(data: Comparisons) -> float:
    """Returns the sum of the people's weights: their number U where they have none."""
    return len(data) if data.weights is None else float(data.weights.sum())
