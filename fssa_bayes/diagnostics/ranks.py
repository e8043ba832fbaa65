r"""Simulation-based calibration: does a posterior hold the truth as often as it says?

People are simulated from the model, so that a person's true z and the draws of their posterior are
exchangeable given the context, for every quantity. Quantities are gauge-free (utility
differences, choice probabilities, log-likelihoods), and every test is made at each context size on
its own, because errors at small and at large contexts can cancel.

Utility differences alone cannot see everything: the prior returned as posterior, and the posterior
of half the context, are calibrated for them. The log-likelihood of the *whole* context under the
truth and the draws tells them apart (Modrák et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import ndtri

from fssa_bayes.diagnostics._checks import check_level, check_pit, group_index, quantity_names
from fssa_bayes.diagnostics.ecdf import uniformity_p_value

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["SbcResult", "describe", "sbc_test"]


@dataclass(frozen=True)
class SbcResult:
    """Holds the verdict on every quantity at every context size, and on all of them together.

    Attributes:
        table: One row a group and quantity. Columns: `group`, `quantity`, `users`; `mean` and
            `variance` of the transforms (½ and 1/12 if right); `shift`, by how many posterior
            standard deviations the truth lies above the posterior on average, and `scale`, the
            posterior's standard deviation as a share of what it should be, both read off normal
            scores and exact for normal posteriors; `p_value` of uniformity; `rejected`, at the
            level that all rows share; `direction`.
        p_value: Of all rows together (Bonferroni).
        rejected: Whether a row was rejected.
        prob: Probability with which an exact posterior is rejected nowhere, at least.
    """

    table: pd.DataFrame
    p_value: float
    rejected: bool
    prob: float


def sbc_test(
    pit: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    prob: float = 0.95,
) -> SbcResult:
    r"""Tests whether probability integral transforms are uniform, in each group and all together.

    The test is that of :func:`ecdf_band`: a row is rejected where its ECDF leaves the band that is
    simultaneous over all rows. Its direction is read from the mean and the variance, whichever is
    the more standard errors from ½ and 1/12:

    - `"biased"`: the mean is off; above ½ the truth lies above the posterior.
    - `"over-confident"`: the variance is too large, the posterior too narrow.
    - `"under-confident"`: the variance is too small, the posterior too wide.
    - `"misshapen"`: rejected, with both within two standard errors; `"none"`: not rejected.

    The direction is that of the quantity. Most faults bias a log-likelihood of the context: its
    mean is below ½ where the posterior is too narrow and fits the choices better than the truth
    does, above ½ where the posterior is too wide, is the prior, or leaves out some choices.

    Args:
        pit: Transforms with shape (U, Q), as from :func:`weighted_pit`.
        groups: The context size of every user, with shape (U,); all users are one group if None.
        names: Names of the quantities, with length Q; their numbers if None.
        prob: Probability that an exact posterior passes everywhere, at least.

    Returns:
        The table and the joint verdict.

    Raises:
        ValueError: If a shape does not fit, a value lies outside [0, 1] or a group has fewer than
            20 users.

    References:
        As for :func:`ecdf_band` and :func:`weighted_pit`.
    """
    pit = check_pit(pit)
    check_level("prob", prob)
    names = quantity_names(names, pit.shape[1])
    labels, index = group_index(groups, len(pit))
    rows = [
        {"group": label, "quantity": name, **describe(pit[index == number, column])}
        for number, label in enumerate(labels)
        for column, name in enumerate(names)
    ]
    table = pd.DataFrame(rows)
    level = (1 - prob) / len(table)
    table["rejected"] = table["p_value"] <= level
    table["direction"] = table["direction"].where(table["rejected"], "none")
    p_value = float(min(1.0, table["p_value"].min() * len(table)))
    return SbcResult(table, p_value, bool(table["rejected"].any()), prob)


def describe(pit: np.ndarray) -> dict[str, object]:
    """Computes a row of :class:`SbcResult`'s table from the transforms (U,) of one quantity."""
    users = len(pit)
    mean, variance = pit.mean(), pit.var(ddof=1)
    # The variance of a uniform value's squared distance from ½ is 1/80 − 1/144 = 1/180.
    bias = (mean - 1 / 2) * np.sqrt(12 * users)
    spread = (variance - 1 / 12) * np.sqrt(180 * users)
    scores = ndtri(np.clip(pit, 1e-9, 1 - 1e-9))
    if max(abs(bias), abs(spread)) < 2:
        direction = "misshapen"
    elif abs(bias) >= abs(spread):
        direction = "biased"
    else:
        direction = "over-confident" if spread > 0 else "under-confident"
    width = scores.std(ddof=1)
    return {
        "users": users,
        "mean": float(mean),
        "variance": float(variance),
        "shift": float(scores.mean()),
        "scale": float(1 / width) if width > 0 else float("inf"),
        "p_value": uniformity_p_value(pit),
        "direction": direction,
    }
