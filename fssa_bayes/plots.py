"""Figures: arrays and an optional `ax` in, Axes out, readable in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["forest", "utility_bands"]


def utility_bands(
    feature: ArrayLike,
    draws: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    feature_name: str = "feature",
    ax: Axes | None = None,
) -> Axes:
    """Draws a person's posterior utility along one feature, with 50 % and 90 % bands.

    Args:
        feature: Values of the feature, increasing, with shape (M,).
        draws: Posterior draws of the utility in nats, with shape (S, M).
        truth: The true utility in nats, with shape (M,), if known.
        feature_name: Label of the horizontal axis.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    feature, draws = np.asarray(feature), np.asarray(draws)
    low, quarter, median, three_quarters, high = np.quantile(
        draws, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0
    )
    ax.fill_between(feature, low, high, color="0.85", label="90 % band")
    ax.fill_between(feature, quarter, three_quarters, color="0.65", label="50 % band")
    ax.plot(feature, median, color="black", label="median")
    if truth is not None:
        ax.plot(feature, truth, color="tab:red", linestyle="--", label="truth")
    ax.set_xlabel(feature_name)
    ax.set_ylabel("utility (nats)")
    return ax


def forest(
    median: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    names: Sequence | None = None,
    *,
    label: str = "value",
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws one interval a person, sorted by median from the bottom up.

    Args:
        median: Posterior medians with shape (U,); NaN leaves a person's line empty.
        lower: Lower ends of the intervals with shape (U,).
        upper: Upper ends with shape (U,).
        names: Names of the people, for up to 60 people.
        label: Label of the horizontal axis, with its unit.
        reference: Where to draw a vertical line, for example a population median.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    median, lower, upper = (np.asarray(values, dtype=float) for values in (median, lower, upper))
    order = np.argsort(median, kind="stable")
    row = np.arange(len(median))
    ax.hlines(row, lower[order], upper[order], color="0.6", linewidth=1)
    ax.plot(median[order], row, "o", color="black", markersize=2)
    if reference is not None:
        ax.axvline(reference, color="tab:red", linestyle="--", linewidth=1)
    if names is not None and len(median) <= 60:
        ax.set_yticks(row, [str(names[i]) for i in order], fontsize=7)
    else:
        ax.set_yticks([])
    ax.set_ylim(-1, len(median))
    ax.set_xlabel(label)
    ax.set_ylabel("person")
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots()[1]
