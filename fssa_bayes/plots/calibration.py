"""Whether a posterior can be believed: calibration, agreement with a gold standard, weights.

ArviZ draws some of these for one posterior: its Pareto k-hat plot has the observations of one
data set on its axis, not people by known choices, and takes from 1.0 on nothing but the result of a
leave-one-out computation; its ECDF plots compute a band of their own, which is not simultaneous
over quantities and context sizes. What is drawn here is what was tested.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fssa_bayes.plots._figure import (
    as_array,
    as_float,
    check_increasing,
    check_names,
    new_axes,
    require,
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
_GREYS = ("0", "0.4", "0.6")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HISTOGRAM_BINS = 25
_HISTOGRAM_HEIGHT = 0.2  # Share of the axes that the tallest bar takes.
_CROSSES = 3  # One in so many of the points outside of the band is marked.
_MOST_TICKS = 12  # Context sizes that are shown each; more are put together by powers of two.
_TWO_COLUMNS = 4.0  # Inches of width that a legend of two columns needs.


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
    band = _band("grid", grid, lower, upper)
    ax = new_axes(ax)
    if band is not None:
        ax.fill_between(*band, color=_BAND, linewidth=0, label=band_name)
    ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8)
    marker = "o" if len(prob) <= _HISTOGRAM_BINS else ""
    style = {"marker": marker, "markersize": 4, "linewidth": 1.5}
    ax.plot(prob, recalibrated, color="black", label="observed (isotonic)", **style)
    if weight is not None:
        _histogram(ax, prob, weight)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlabel("forecast probability that left is preferred")
    ax.set_ylabel("share in which left was preferred")
    _legend(ax, "upper left")
    return ax


def _histogram(ax: Axes, prob: np.ndarray, weight: np.ndarray) -> None:
    edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
    share, _ = np.histogram(prob, edges, weights=weight)
    height = _HISTOGRAM_HEIGHT * share / share.max()
    label = f"forecasts (at most {share.max() / weight.sum():.0%})"
    style = {"facecolor": "none", "edgecolor": "0.5", "linewidth": 0.6, "zorder": 1}
    ax.bar(edges[:-1], height, np.diff(edges), align="edge", label=label, **style)


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

    A hump above 0 at the left and below 0 at the right is over-confidence (truths in the tails);
    the reverse is under-confidence; a curve on one side of 0 is bias: below it the truth lies above
    the posterior. Curves that leave the band are black with crosses where they are outside.

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
    points, lower, upper = _band("points", points, lower, upper)
    names = _quantity_names(names, pit.shape[1])
    ax = new_axes(ax)
    ax.fill_between(points, lower, upper, color=_BAND, linewidth=0, label=band_name)
    ax.axhline(0, color="black", linewidth=0.6)
    for column, (name, line) in enumerate(zip(names, itertools.cycle(_LINES), strict=False)):
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
    _legend_above(ax, len(names) + 1)
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
    """Draws how often intervals hold the truth against how often they say they do.

    Below the diagonal is over-confidence. For central intervals and for TARP regions alike.

    Args:
        level: Nominal probabilities, increasing, with shape (L,).
        covered: Share of the people whose truth was inside, with shape (L,) or (L, Q).
        lower: Lower end of where the curve of an exact posterior falls, (L,); None draws no band.
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
    covered = _columns("covered", covered, len(level))
    for name, values in (("level", level), ("covered", covered)):
        require(name, values, (values >= 0) & (values <= 1), "lie between 0 and 1")
    band = None if lower is None and upper is None else _band("level", level, lower, upper)
    names = _quantity_names(names, covered.shape[1])
    ax = new_axes(ax)
    if band is not None:
        ax.fill_between(*band, color=_BAND, linewidth=0, label=band_name)
    ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8, label="as stated")
    _curves(ax, level, covered, names, markers=len(level) <= _HISTOGRAM_BINS)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlabel("stated probability of the interval")
    ax.set_ylabel("share of people whose truth is inside")
    _legend(ax, "upper left")
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
    than 12 sizes are put together: 3 and 4 as ≤4, 5 to 8 as ≤8, and so on.

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
    size = _sizes(size)
    contraction = _columns("contraction", contraction, len(size))
    require("contraction", contraction, contraction <= 1 + 1e-9, "not exceed 1")
    names = _quantity_names(names, contraction.shape[1])
    ax = new_axes(ax)
    center, labels, index = _by_size(size)
    quantiles = [
        np.quantile(contraction[index == group], (0.05, 0.5, 0.95), axis=0)
        for group in range(len(labels))
    ]
    low, median, high = np.moveaxis(np.array(quantiles), 1, 0)
    # Bars of several quantities stand beside each other.
    apart = 0.06 * (np.arange(len(names)) - (len(names) - 1) / 2)
    place = center[:, None] + apart
    for column, (name, color, line, marker) in enumerate(_styles(names)):
        x, y = place[:, column], median[:, column]
        ax.vlines(x, low[:, column], high[:, column], color=color, linewidth=1)
        ax.plot(x, y, color=color, linestyle=line, marker=marker, markersize=5, label=name)
    ax.axhline(0, color="black", linewidth=0.6)
    _size_axis(ax, center, labels)
    ax.set_ylabel("1 − posterior / prior variance\n(median and 90 % of people)")
    if names != [None]:
        _legend(ax, "lower right")
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
    estimate = _columns("estimate", estimate, len(reference))
    names = _quantity_names(names, estimate.shape[1])
    ax = new_axes(ax)
    both = np.concatenate([reference, estimate.ravel()])
    ends = np.array([both.min(), both.max()])
    ends = ends + np.array([-0.04, 0.04]) * (np.ptp(ends) or 1.0)
    ax.plot(ends, ends, color="black", linestyle="--", linewidth=0.8, label="equal")
    size = np.clip(60 / np.sqrt(len(reference)), 2, 5)
    for column, (name, color, _, marker) in enumerate(_styles(names)):
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
    ax.set_xlabel(f"{label}: {reference_name}")
    ax.set_ylabel(f"{label}: estimate")
    _legend(ax, "best")
    return ax


def pareto_k(
    pareto_k: ArrayLike,
    size: ArrayLike | None = None,
    *,
    threshold: float = 0.7,
    ax: Axes | None = None,
) -> Axes:
    """Draws every person's Pareto k-hat, by known choices or in order.

    Crosses are people above the threshold, whose importance weights are not to be relied upon;
    infinite values stand at the upper edge as triangles.

    Args:
        pareto_k: k-hat of every person, with shape (U,); infinity is allowed.
        size: Number of known choices of every person, with shape (U,); without it people stand in
            order of their k-hat.
        threshold: Where to draw the line.
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
    size = None if size is None else _sizes(size, len(k))
    ax = new_axes(ax)
    x = np.argsort(np.argsort(k)) + 1.0 if size is None else _spread(size)
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
    _legend(ax, "best")
    if size is None:
        ax.set_xlabel("person, in order of k-hat")
    else:
        _size_axis(ax, *_by_size(size)[:2])
    return ax


# ---------------------------------------------------------------------- parts


def _legend(ax: Axes, place: str) -> None:
    ax.legend(loc=place, fontsize="small", framealpha=0.85, edgecolor="none")


def _legend_above(ax: Axes, entries: int) -> None:
    """Makes room above the curves for a legend, in two columns if they fit."""
    columns = 2 if ax.bbox.width / ax.figure.dpi > _TWO_COLUMNS else 1
    rows = np.ceil(entries / columns)
    height = 72 * ax.bbox.height / ax.figure.dpi  # Points.
    share = min((14 * rows + 8) / height, 0.6)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + (high - low) * share / (1 - share))
    ax.legend(loc="upper center", ncols=columns, fontsize="small", frameon=False, borderaxespad=0.2)


def _styles(names: list) -> list[tuple[object, str, str, str]]:
    """Gives each name a grey, a line and a marker that differ from its neighbours'."""
    looks = zip(itertools.cycle(_GREYS), itertools.cycle(_LINES), itertools.cycle(_MARKERS))
    return [(name, *look) for name, look in zip(names, looks, strict=False)]


def _curves(ax: Axes, x: np.ndarray, columns: np.ndarray, names: list, *, markers: bool) -> None:
    for column, (name, color, line, marker) in enumerate(_styles(names)):
        shown = marker if markers else ""
        style = {"color": color, "linestyle": line, "marker": shown, "markersize": 5}
        ax.plot(x, columns[:, column], label="observed" if name is None else name, **style)


def _place(size: np.ndarray) -> np.ndarray:
    """Puts sizes that double at equal distances, and 0 one before 1."""
    return np.where(size < 1, size, 1 + np.log2(np.maximum(size, 1)))


def _spread(size: np.ndarray) -> np.ndarray:
    """Places people of one size beside each other, the same way every time."""
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(size))
    return _place(size) + jitter


def _by_size(size: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Returns the places and names of the context sizes, and the number of each person's."""
    distinct, index = np.unique(size, return_inverse=True)
    if len(distinct) <= _MOST_TICKS:
        return _place(distinct), [f"{n:g}" for n in distinct], index
    power, index = np.unique(np.ceil(_place(size)).astype(int), return_inverse=True)
    labels = [str(p) if p < 3 else f"≤{2 ** (p - 1)}" for p in power]
    return power.astype(float), labels, index


def _size_axis(ax: Axes, center: np.ndarray, labels: list[str]) -> None:
    ax.set_xticks(center, labels)
    ax.set_xlabel("known choices of the person (number)")


# ---------------------------------------------------------------------- checks


def _columns(name: str, values: ArrayLike, rows: int) -> np.ndarray:
    """Takes a vector as a table of one column."""
    if np.ndim(values) == 1:
        return as_array(name, values, (rows,))[:, None]
    return as_array(name, values, (rows, "Q"))


def _quantity_names(names: Sequence | None, count: int) -> list:
    if names is not None:
        return check_names("names", names, count)
    return [None] if count == 1 else [f"quantity {column + 1}" for column in range(count)]


def _sizes(size: ArrayLike, length: int | str = "U") -> np.ndarray:
    size = as_array("size", size, (length,))
    require("size", size, size >= 0, "not be negative")
    return size


def _band(
    name: str, points: ArrayLike | None, lower: ArrayLike | None, upper: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    given = [values is not None for values in (points, lower, upper)]
    if not any(given):
        return None
    if not all(given):
        raise ValueError(f"{name}, lower and upper must be given together, or none of them")
    points = check_increasing(name, as_array(name, points, ("K",)))
    lower, upper = (
        as_array(key, values, (len(points),))
        for key, values in (("lower", lower), ("upper", upper))
    )
    require("lower", lower, lower <= upper, "not exceed upper")
    return points, lower, upper
