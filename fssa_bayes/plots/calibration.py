"""Figures of calibration, of agreement with a gold standard, and of importance weights.

ArviZ draws some of these for one posterior. Its Pareto k-hat plot has the observations of one
data set on its axis, not people by known choices, and from 1.0 on takes only the result of a
leave-one-out computation. Its ECDF plots compute a band that is not simultaneous over quantities
and context sizes; the bands here are those of the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fssa_bayes._weights import MOST_PARETO_K
from fssa_bayes.plots._figure import (
    LINES,
    add_legend,
    add_legend_above,
    as_array,
    as_band,
    as_columns,
    as_float,
    check_increasing,
    curve_names,
    literal,
    new_axes,
    require,
    styles,
)
from fssa_bayes.plots._sizes import (
    as_sizes,
    group_sizes,
    label_sizes,
    place_sizes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = [
    "agreement",
    "contraction",
    "coverage_curve",
    "pareto_k",
    "reliability",
    "sbc_ecdf_difference",
]

_BAND = "0.85"
_HISTOGRAM_BINS = 25
_HISTOGRAM_HEIGHT = 0.2  # Height of the tallest bar as a share of the axes.
_CROSSES = 3  # One in so many of the points outside of the band is marked.


def reliability(
    prob: ArrayLike,
    recalibrated: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    grid: ArrayLike | None = None,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    band_name: str = "if calibrated, 90 %",
    ax: Axes | None = None,
) -> Axes:
    """Draws a CORP reliability curve over its consistency band, with a histogram of the forecasts.

    Takes the fields of a `diagnostics.Reliability`. Above the diagonal left was chosen more often
    than forecast.

    Args:
        prob: Distinct forecast probabilities, increasing, with shape (n,).
        recalibrated: Isotonic estimate of the probability of the choice at each, (n,).
        weight: Share of the comparisons at each, (n,): the histogram, left out if None.
        grid: Points at which the band is given, increasing, with shape (G,).
        lower: Lower end of the band, (G,); None draws no band.
        upper: Upper end, (G,).
        band_name: What the band is, for the legend.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a value is no probability, the curve falls or the ends
            of the band are not given together.
    """
    prob = check_increasing("prob", as_array("prob", prob, ("n",)))
    recalibrated = as_array("recalibrated", recalibrated, (len(prob),))
    for name, values in (("prob", prob), ("recalibrated", recalibrated)):
        require(name, values, (values >= 0) & (values <= 1), "lie between 0 and 1")
    rises = np.diff(recalibrated, prepend=0) >= -1e-9
    require("recalibrated", recalibrated, rises, "not fall")
    weight = None if weight is None else as_array("weight", weight, (len(prob),))
    band = as_band("grid", grid, lower, upper)
    ax = new_axes(ax)
    if band is not None:
        ax.fill_between(*band, color=_BAND, linewidth=0, label=literal(band_name))
    ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8)
    marker = "o" if len(prob) <= _HISTOGRAM_BINS else ""
    style = {"marker": marker, "markersize": 4, "linewidth": 1.5}
    ax.plot(prob, recalibrated, color="black", label="observed (isotonic)", **style)
    if weight is not None:
        edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
        share, _ = np.histogram(prob, edges, weights=weight)
        height = _HISTOGRAM_HEIGHT * share / share.max()
        label = f"forecasts (tallest bar: {share.max() / weight.sum():.0%} of them)"
        style = {"facecolor": "none", "edgecolor": "0.5", "linewidth": 0.6, "zorder": 1}
        ax.bar(edges[:-1], height, np.diff(edges), align="edge", label=label, **style)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlabel("forecast probability that left is preferred")
    ax.set_ylabel("share in which left was preferred")
    add_legend(ax, "upper left")
    return ax


def sbc_ecdf_difference(
    pit: ArrayLike,
    points: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    names: Sequence | None = None,
    *,
    band_name: str = "simultaneous band, 95 %",
    ax: Axes | None = None,
) -> Axes:
    """Draws ECDF(z) − z of probability integral transforms with their simultaneous band.

    A curve above 0 at the left and below 0 at the right is over-confidence (truths in the tails);
    the reverse is under-confidence. A curve on one side of 0 is bias: the truth lies above the
    posterior where the curve is below 0. Curves that leave the band are black, with crosses where
    they are outside.

    Args:
        pit: Transforms with shape (U, Q), of the people of one context size.
        points: Points of the band, increasing, with shape (K,).
        lower: Lower end of the difference, (K,), as of `diagnostics.ecdf_band`.
        upper: Upper end, (K,).
        names: Names of the quantities, with length Q.
        band_name: What the band is, for the legend.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit or a value lies outside [0, 1].

    References:
        Säilynoja, Bürkner & Vehtari (2022), Graphical test for discrete uniformity and its
        applications in goodness-of-fit evaluation and multiple sample comparison, Statistics and
        Computing 32(2).
    """
    pit = as_array("pit", pit, ("U", "Q"))
    require("pit", pit, (pit >= 0) & (pit <= 1), "lie between 0 and 1")
    points, lower, upper = as_band("points", points, lower, upper)
    names = curve_names(names, pit.shape[1])
    ax = new_axes(ax)
    ax.fill_between(points, lower, upper, color=_BAND, linewidth=0, label=literal(band_name))
    ax.axhline(0, color="black", linewidth=0.6)
    for column, (name, line) in enumerate(zip(names, itertools.cycle(LINES), strict=False)):
        ecdf = np.searchsorted(np.sort(pit[:, column]), points, side="right") / len(pit)
        difference = ecdf - points
        outside = (difference < lower - 1e-9) | (difference > upper + 1e-9)
        color, width = ("black", 1.6) if outside.any() else ("0.45", 1.0)
        name = "observed" if name is None else name
        label = f"{name} (outside)" if outside.any() else name
        ax.plot(points, difference, line, color=color, linewidth=width, label=label)
        marked = np.flatnonzero(outside)[::_CROSSES]
        ax.plot(points[marked], difference[marked], "x", color="black", markersize=5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("posterior probability below the truth")
    ax.set_ylabel("ECDF − uniform (share of people)")
    add_legend_above(ax, len(names) + 1)
    return ax


def coverage_curve(
    level: ArrayLike,
    covered: ArrayLike,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    names: Sequence | None = None,
    *,
    band_name: str = "exact posterior",
    ax: Axes | None = None,
) -> Axes:
    """Draws how often intervals hold the truth against their stated probability.

    Below the diagonal is over-confidence. The curves are of central intervals or of TARP regions.

    Args:
        level: Nominal probabilities, increasing, with shape (L,).
        covered: Share of the people whose truth was inside, with shape (L,) or (L, Q).
        lower: Lower end of the band of an exact posterior's curve, (L,); None draws no band.
        upper: Upper end, (L,).
        names: Names of the Q curves.
        band_name: What the band is, for the legend.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a value is no probability or the ends of the band are
            not given together.
    """
    level = check_increasing("level", as_array("level", level, ("L",)))
    covered = as_columns("covered", covered, len(level))
    for name, values in (("level", level), ("covered", covered)):
        require(name, values, (values >= 0) & (values <= 1), "lie between 0 and 1")
    band = None if lower is None and upper is None else as_band("level", level, lower, upper)
    names = curve_names(names, covered.shape[1])
    ax = new_axes(ax)
    if band is not None:
        ax.fill_between(*band, color=_BAND, linewidth=0, label=literal(band_name))
    ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8, label="as stated")
    for column, (name, color, line, marker) in enumerate(styles(names)):
        shown = marker if len(level) <= _HISTOGRAM_BINS else ""
        style = {"color": color, "linestyle": line, "marker": shown, "markersize": 5}
        ax.plot(level, covered[:, column], label="observed" if name is None else name, **style)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlabel("stated probability of the interval")
    ax.set_ylabel("share of people whose truth is inside")
    add_legend(ax, "upper left")
    return ax


def contraction(
    size: ArrayLike,
    contraction: ArrayLike,
    names: Sequence | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draws how much a posterior has contracted against how many choices are known.

    The median over people with bars from the 5 % to the 95 % quantile, at each context size; more
    than 12 sizes are grouped: 3 and 4 as ≤4, 5 to 8 as ≤8, and so on.

    Args:
        size: Number of known choices of every person, with shape (U,).
        contraction: 1 − posterior variance / prior variance, with shape (U,) or (U, Q).
        names: Names of the Q quantities.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a size is negative or a contraction exceeds 1.
    """
    size = as_sizes(size)
    contraction = as_columns("contraction", contraction, len(size))
    require("contraction", contraction, contraction <= 1 + 1e-9, "not exceed 1")
    names = curve_names(names, contraction.shape[1])
    ax = new_axes(ax)
    center, labels, index = group_sizes(size)
    quantiles = [
        np.quantile(contraction[index == group], (0.05, 0.5, 0.95), axis=0)
        for group in range(len(labels))
    ]
    low, median, high = np.moveaxis(np.array(quantiles), 1, 0)
    # Bars of several quantities are side by side.
    apart = 0.06 * (np.arange(len(names)) - (len(names) - 1) / 2)
    place = center[:, None] + apart
    for column, (name, color, line, marker) in enumerate(styles(names)):
        x, y = place[:, column], median[:, column]
        ax.vlines(x, low[:, column], high[:, column], color=color, linewidth=1)
        ax.plot(x, y, color=color, linestyle=line, marker=marker, markersize=5, label=name)
    ax.axhline(0, color="black", linewidth=0.6)
    label_sizes(ax, center, labels)
    ax.set_ylabel("1 − posterior / prior variance\n(median and 90 % of people)")
    if names != [None]:
        add_legend(ax, "lower right")
    return ax


def agreement(
    reference: ArrayLike,
    estimate: ArrayLike,
    names: Sequence | None = None,
    *,
    label: str = "probability that left is preferred",
    reference_name: str = "gold standard",
    ax: Axes | None = None,
) -> Axes:
    """Draws estimates of one or more methods against those of a gold standard.

    The legend gives each method's root mean squared difference.

    Args:
        reference: Values by the gold standard, such as NUTS, with shape (n,).
        estimate: Values by the method, with shape (n,), or by J methods, with shape (n, J).
        names: Names of the J methods.
        label: What the values are, with their unit.
        reference_name: Name of the gold standard.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit or a value is not finite.
    """
    reference = as_array("reference", reference, ("n",))
    estimate = as_columns("estimate", estimate, len(reference))
    names = curve_names(names, estimate.shape[1])
    ax = new_axes(ax)
    both = np.concatenate([reference, estimate.ravel()])
    ends = np.array([both.min(), both.max()])
    ends = ends + np.array([-0.04, 0.04]) * (np.ptp(ends) or 1.0)
    ax.plot(ends, ends, color="black", linestyle="--", linewidth=0.8, label="equal")
    size = np.clip(60 / np.sqrt(len(reference)), 2, 5)
    for column, (name, color, _, marker) in enumerate(styles(names)):
        error = np.sqrt(np.mean((estimate[:, column] - reference) ** 2))
        described = f"RMS difference {error:.2g}"
        ax.plot(
            reference,
            estimate[:, column],
            linestyle="none",
            marker=marker,
            markersize=size,
            markeredgewidth=0.8,
            fillstyle="full" if column % 2 else "none",
            color=color,
            label=described if name is None else f"{name}: {described}",
        )
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlabel(literal(f"{label}: {reference_name}"))
    ax.set_ylabel(literal(f"{label}: estimate"))
    add_legend(ax, "best")
    return ax


def pareto_k(
    pareto_k: ArrayLike,
    size: ArrayLike | None = None,
    *,
    threshold: float = MOST_PARETO_K,
    ax: Axes | None = None,
) -> Axes:
    """Draws every person's Pareto k-hat, by known choices or in order.

    Crosses are people above the threshold, and triangles at the upper edge are infinite values.

    Args:
        pareto_k: k-hat of every person, with shape (U,); infinity is allowed.
        size: Number of known choices of every person, with shape (U,); without it people are in
            order of their k-hat.
        threshold: k-hat above which importance weights are unreliable (Vehtari et al. 2024).
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a k-hat is NaN or minus infinity or a size is negative.

    References:
        Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    k = as_float("pareto_k", pareto_k)
    require("pareto_k", k, k > -np.inf, "be a number above minus infinity")
    k = as_array("pareto_k", np.where(np.isposinf(k), np.nan, k), ("U",), missing=True)
    size = None if size is None else as_sizes(size, len(k))
    ax = new_axes(ax)
    if size is None:
        x = np.argsort(np.argsort(k)) + 1.0
    else:  # People of one size stand beside each other.
        x = place_sizes(size) + np.random.default_rng(0).uniform(-0.25, 0.25, len(size))
    finite, above = np.isfinite(k), ~(k <= threshold)
    highest = max(np.max(k, where=finite, initial=threshold), 1.0)
    style = {"linestyle": "none", "color": "black"}
    below = ~above
    ax.plot(x[below], k[below], marker="o", markersize=2.5, fillstyle="none", alpha=0.6, **style)
    ax.plot(x[above & finite], k[above & finite], marker="x", markersize=5, **style)
    if not finite.all():
        edge = np.full((~finite).sum(), 1.08 * highest)
        ax.plot(x[~finite], edge, marker="^", label=f"infinite: {len(edge):,}", **style)
    label = f"{threshold:g}: {above.sum():,} of {len(k):,} people above"
    ax.axhline(threshold, color="black", linestyle="--", linewidth=0.8, label=label)
    ax.set_ylabel("Pareto k-hat of the importance weights")
    add_legend(ax, "best")
    if size is None:
        ax.set_xlabel("person, in order of k-hat")
    else:
        label_sizes(ax, *group_sizes(size)[:2])
    return ax
