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

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fssa_bayes.data.comparisons import Comparisons
from fssa_bayes.data.names import show_value

__all__ = ["check_unweighted", "check_weights", "total_weight"]


def check_weights(weights: np.ndarray | Sequence | None, user_names: pd.Index) -> np.ndarray | None:
    """Copies weights in double precision, or refuses a wrong number, or what is not positive.

    Args:
        weights: One number a person, with shape (U,), or None.
        user_names: Names of the people.

    Returns:
        The weights; None where all are 1, which is the same as none.
    """
    if weights is None:
        return None
    values = np.array(weights, dtype=np.float64)
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
