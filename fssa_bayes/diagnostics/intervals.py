"""How often central intervals hold the truth, by context size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fssa_bayes.diagnostics._checks import (
    as_array,
    check_pit,
    group_index,
    normalised_weights,
    quantity_names,
    require,
)
from fssa_bayes.diagnostics.transforms import draws_and_truth, mass_below_and_at

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["check_levels", "coverage", "coverage_table", "interval_coverage"]


def coverage(
    pit: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Counts how often central intervals hold the truth: `|PIT − ½| < level / 2`.

    With transforms that are exactly uniform the coverage is exactly the level at any number of
    draws. :func:`interval_coverage` counts how often reported quantiles enclose the truth.

    Args:
        pit: Transforms with shape (U, Q), as from :func:`weighted_pit`.
        groups: The context size of every user, with shape (U,); all users are one group if None.
        levels: Probabilities of the intervals.
        names: Names of the quantities, with length Q; their numbers if None.

    Returns:
        One row a group, quantity and level. Columns: `group`, `quantity`, `level`, `users`,
        `covered`, the share; `standard_error`, binomial at the nominal level; `z`, the distance
        from nominal in standard errors.

    Raises:
        ValueError: As :func:`sbc_test`, or if a level is no probability.
    """
    pit = check_pit(pit)
    distance = np.abs(pit - 0.5)
    levels = check_levels(levels)
    inside = distance[..., None] < levels / 2
    return coverage_table(inside, groups, levels, names)


def interval_coverage(
    values: ArrayLike,
    log_weights: ArrayLike | None,
    truth: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Counts how often the truth lies between the weighted quantiles of the draws.

    The intervals are closed, from the (1 − level) / 2 to the (1 + level) / 2 quantile. At few draws
    their coverage is below the level by the order of 1 / S. Where draws tie with the truth it is
    above the level: the log-likelihood of an empty context is always covered.

    Args:
        values: The quantities of every draw, with shape (S, U, Q).
        log_weights: Log-weights with shape (S, U); None for equal ones.
        truth: The quantities at the true z, with shape (U, Q).
        groups: The context size of every user, with shape (U,); all users are one group if None.
        levels: Probabilities of the intervals.
        names: Names of the quantities, with length Q; their numbers if None.

    Returns:
        The table of :func:`coverage`.

    Raises:
        ValueError: As :func:`weighted_pit` and :func:`coverage`.
    """
    values, truth = draws_and_truth(values, truth)
    levels = check_levels(levels)
    weights = normalised_weights(log_weights, *values.shape[:2])
    below, equal = (mass.numpy()[..., None] for mass in mass_below_and_at(values, weights, truth))
    # The truth is at or above the lower quantile if the mass up to the truth reaches the quantile's
    # probability, and likewise for the upper one. Sums of weights are off by rounding.
    slack = 1e-9
    inside = (below + equal >= (1 - levels) / 2 - slack) & (below < (1 + levels) / 2 - slack)
    return coverage_table(inside, groups, levels, names)


def check_levels(levels: Sequence[float]) -> np.ndarray:
    """Converts levels to an array and checks that they are probabilities."""
    levels = np.atleast_1d(as_array("levels", levels))
    require("levels", levels, (levels > 0) & (levels < 1), "lie between 0 and 1")
    return levels


def coverage_table(
    inside: np.ndarray,
    groups: ArrayLike | None,
    levels: np.ndarray,
    names: Sequence[str] | None,
) -> pd.DataFrame:
    """Averages whether intervals hold the truth, (U, Q, L), into the table of :func:`coverage`."""
    names = quantity_names(names, inside.shape[1])
    labels, index = group_index(groups, len(inside))
    rows = []
    for number, label in enumerate(labels):
        chosen = inside[index == number]
        error = np.sqrt(levels * (1 - levels) / len(chosen))
        for column, name in enumerate(names):
            share = chosen[:, column].mean(0)
            for level, covered, e in zip(levels, share, error, strict=True):
                rows.append((label, name, level, len(chosen), covered, e, (covered - level) / e))
    columns = ["group", "quantity", "level", "users", "covered", "standard_error", "z"]
    return pd.DataFrame(rows, columns=columns)
