"""Figures of what people prefer: utilities, choice probabilities, ranks.

Many rows stay legible: without an `ax` the figure's height grows with the rows up to a page. Where
not all names fit, every k-th name is written, and the axis label says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fssa_bayes.plots._figure import (
    FONT_SIZE,
    MAX_NAME,
    as_array,
    check_increasing,
    check_names,
    literal,
    new_axes,
    require,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from numpy.typing import ArrayLike

__all__ = [
    "as_aligned",
    "as_intervals",
    "axes_height",
    "choice_intervals",
    "draw_arrows",
    "draw_dots",
    "draw_intervals",
    "forest",
    "heat_map",
    "mark_choices",
    "name_rows",
    "pair_names",
    "rank_distribution",
    "rank_quantile",
    "ranking",
    "row_pitch",
    "sorted_intervals",
    "upon_population",
    "utility_bands",
    "write_numbers",
]

_NAME_HEIGHT = 1.2 * FONT_SIZE / 72  # Inches from one name to the next at single spacing.
_MAX_NUMBERS = 12  # Items whose probabilities are written into the cells: 144 numbers.
_DARKEST = 0.35  # Grey of the most probable cell, so that black marks are seen on it.
_DARK_SHARE = 10  # The darkest cell holds ten times an even share 1 / M of the probability or more.


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

    Raises:
        ValueError: If a shape does not fit, a value is not finite or the feature does not increase.
    """
    feature = check_increasing("feature", as_array("feature", feature, ("M",)))
    draws = as_array("draws", draws, ("S", len(feature)))
    truth = None if truth is None else as_array("truth", truth, (len(feature),))
    ax = new_axes(ax)
    low, quarter, median, three_quarters, high = np.quantile(
        draws, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0
    )
    ax.fill_between(feature, low, high, color="0.85", label="90 % band")
    ax.fill_between(feature, quarter, three_quarters, color="0.65", label="50 % band")
    ax.plot(feature, median, color="black", label="median")
    if truth is not None:
        ax.plot(feature, truth, color="tab:red", linestyle="--", label="truth")
    ax.set_xlabel(literal(feature_name))
    ax.set_ylabel("utility (nats)")
    return ax


def choice_intervals(
    mean: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    choice: ArrayLike | None = None,
    pairs: Iterable[tuple] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draws a person's choice probabilities with intervals, the largest at the top.

    Takes one person's row of a `ChoiceProbability`, without the padding. A mean may lie outside of
    its interval, for example if one draw in twenty-five is 1 and all others are 0.

    Args:
        mean: Posterior means of the probability that left is preferred, with shape (N,).
        lower: Posterior 5 % quantiles with shape (N,).
        upper: Posterior 95 % quantiles with shape (N,).
        choice: Observed choices with shape (N,): 1 puts a filled marker at the right edge (left
            was preferred), 0 an open one at the left edge, and half a win each does both.
        pairs: Names (left, right) of the items of each comparison, with length N.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a value is not a probability, lower exceeds upper or a
            choice lies outside {0, ½, 1}.
    """
    mean, lower, upper = as_aligned(mean=mean, lower=lower, upper=upper)
    for name, values in (("mean", mean), ("lower", lower), ("upper", upper)):
        require(name, values, (values >= 0) & (values <= 1), "lie between 0 and 1")
    require("lower", lower, lower <= upper, "not exceed upper")
    if choice is not None:
        choice = as_array("choice", choice, (len(mean),))
        require("choice", choice, np.isin(choice, (0, 0.5, 1)), "be 0, 0.5 or 1")
    names = None if pairs is None else pair_names(pairs, len(mean))
    ax = new_axes(ax, len(mean))
    order = np.argsort(-mean, kind="stable")
    draw_intervals(ax, mean[order], lower[order], upper[order], "posterior mean", "5–95 % interval")
    ax.axvline(0.5, color="black", linestyle="--", linewidth=0.8)
    ax.set_xlim(-0.04, 1.04)
    label = "probability that the first is preferred"
    if choice is not None:
        mark_choices(ax, choice[order])
        label += "\nobserved: filled, the first was; open, the second"
    ax.set_xlabel(label)
    name_rows(ax, names, order, "comparison")
    return ax


def rank_distribution(rank_prob: ArrayLike, names: Sequence, *, ax: Axes | None = None) -> Axes:
    """Draws the probability of every rank of every item, the best expected rank at the top.

    A darker cell is more probable. Up to 12 items the probabilities of .005 and more are written
    into the cells; with more items a dot is the expected rank, and the bars beside the dot are the
    ends of the 90 % interval. Two dark cells apart in a row are two groups of people, or of draws.

    Args:
        rank_prob: Probabilities with shape (M, M) of one person, or averaged over people: entry
            [i, j] is the probability that item i is choice number j + 1.
        names: Names of the items, with length M.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes; a colour bar is added to their figure.

    Raises:
        ValueError: If the table is not square, an entry is not a probability or a row or column
            does not sum to 1.
    """
    rank_prob = as_array("rank_prob", rank_prob, ("M", "M"))
    if rank_prob.shape[0] != rank_prob.shape[1]:
        raise ValueError(f"rank_prob must be square, (M, M), got shape {rank_prob.shape}")
    # Weights in float32 leave an entry or a sum a little off.
    require(
        "rank_prob",
        rank_prob,
        (rank_prob >= -1e-6) & (rank_prob <= 1 + 1e-6),
        "lie between 0 and 1",
    )
    for axis, what in ((1, "rows"), (0, "columns")):
        total = rank_prob.sum(axis)
        require(f"the sums of rank_prob's {what}", total, np.abs(total - 1) < 1e-3, "be 1")
    names = check_names("names", names, len(rank_prob))
    ax = new_axes(ax, len(rank_prob), least=4.5)
    expected = rank_prob @ np.arange(1, len(rank_prob) + 1)
    order = np.argsort(expected, kind="stable")
    image = heat_map(ax, rank_prob[order])
    if len(rank_prob) <= _MAX_NUMBERS:
        write_numbers(ax, rank_prob[order], image)
    else:
        size = np.clip(0.7 * row_pitch(ax, len(order)), 1.5, 6)
        for level in (0.05, 0.95):
            rank, label = rank_quantile(rank_prob[order], level), f"{level:.0%} quantile"
            ax.plot(rank, range(len(order)), "|", color="black", markersize=size, label=label)
        draw_dots(ax, expected[order], "expected rank")
    ax.set_xlabel("rank (1: most preferred)")
    name_rows(ax, names, order, "item")
    return ax


def forest(
    median: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    names: Sequence | None = None,
    *,
    label: str = "value",
    reference: float | None = None,
    sort: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws one interval a person, the largest median at the top.

    Args:
        median: Posterior medians with shape (U,). NaN leaves a person's line empty; infinity draws
            an arrow in place of a dot.
        lower: Lower ends of the intervals with shape (U,); NaN, in both, for no interval.
        upper: Upper ends with shape (U,).
        names: Names of the people, with length U.
        label: Label of the horizontal axis, with its unit.
        reference: Where to draw a vertical line, for example a population median.
        sort: Whether the largest median stands at the top; if not, the first person does, so that
            several figures can show people in one order.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a value is NaN alone, the interval of a finite median
            is infinite, or a median lies outside of its interval.
    """
    median, lower, upper = as_intervals(median, lower, upper)
    return sorted_intervals(median, lower, upper, names, label, "person", reference, ax, sort)


def ranking(
    median: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    names: Sequence,
    *,
    label: str = "utility (nats)",
    what: str = "item",
    reference: float | None = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Draws one interval an item or coefficient, the largest median at the top.

    Args:
        median: Posterior medians with shape (M,), of utilities centred over the items, or of
            coefficients. NaN leaves an item's line empty; infinity, the estimate of an item that
            won everything, draws an arrow in place of a dot, which begins at the bound in `lower`.
        lower: Lower ends of the intervals with shape (M,); NaN, in both, for no interval.
        upper: Upper ends with shape (M,).
        names: Names of the items or features, with length M.
        label: Label of the horizontal axis, with its unit.
        what: Label of the vertical axis, for example `"coefficient"`.
        reference: Where to draw a vertical line: 0 is the mean item where utilities are centred.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a value is NaN alone, the interval of a finite median
            is infinite, or a median lies outside of its interval.
    """
    median, lower, upper = as_intervals(median, lower, upper)
    return sorted_intervals(median, lower, upper, names, label, what, reference, ax)


def upon_population(
    median: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    population: tuple[ArrayLike, ArrayLike, ArrayLike],
    names: Sequence,
    *,
    label: str = "coefficient",
    what: str = "feature",
    who: str = "this person",
    ax: Axes | None = None,
) -> Axes:
    """Draws a person's intervals upon the range that a population covers, row by row.

    Args:
        median: The person's posterior means or medians with shape (D,).
        lower: Lower ends of the person's intervals with shape (D,).
        upper: Upper ends with shape (D,).
        population: Median, lower and upper end of the range of the people, (D,) each.
        names: Names of the rows, with length D, the first at the top.
        label: Label of the horizontal axis, with its unit.
        what: Label of the vertical axis.
        who: Whom the dots and lines are of, for the legend.
        ax: Where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, or a lower end exceeds an upper
            one.
    """
    median, lower, upper = as_aligned(median=median, lower=lower, upper=upper)
    require("lower", lower, lower <= upper, "not exceed upper")
    centre, low, high = (
        as_array(f"population[{place}]", values, (len(median),))
        for place, values in enumerate(population)
    )
    require("population[1]", low, low <= high, "not exceed population[2]")
    names = check_names("names", names, len(median))
    rows = len(median)
    ax = new_axes(ax, 2 * rows, least=2.5)
    ax.use_sticky_edges = False  # The longest bar ends within the axes.
    ax.axvline(0, color="black", linestyle=":", linewidth=0.8)
    ax.barh(range(rows), high - low, left=low, height=0.6, color="0.85", label="90 % of the people")
    ax.plot(centre, range(rows), "|", color="0.35", markersize=9, label="median person")
    ax.hlines(range(rows), lower, upper, color="black", linewidth=1.5)
    ax.plot(median, range(rows), "o", color="black", markersize=4, label=literal(who))
    ax.set_ylim(rows - 0.25, -0.75)
    ax.set_xlabel(literal(label))
    name_rows(ax, names, np.arange(rows), what)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize="small", frameon=False)
    return ax


def sorted_intervals(
    median: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    names: Sequence | None,
    label: str,
    what: str,
    reference: float | None,
    ax: Axes | None,
    sort: bool = True,
) -> Axes:
    """Draws intervals with a dot at the median, the largest median, or the first, at the top."""
    # Quantiles of equal draws that were interpolated in different ways differ in the last digits.
    slack = 1e-6 * (1 + np.abs(np.where(np.isfinite(median), median, 0)))
    outside = (median < lower - slack) | (median > upper + slack)
    require("median", median, ~outside, "lie between lower and upper")
    names = None if names is None else check_names("names", names, len(median))
    if reference is not None and not math.isfinite(reference):
        raise ValueError(f"reference must be finite or None, got {reference}")
    ax = new_axes(ax, len(median))
    order = np.argsort(-median, kind="stable") if sort else np.arange(len(median))
    infinite = np.isinf(median[order])
    point, left, right = (np.where(infinite, np.nan, x[order]) for x in (median, lower, upper))
    draw_intervals(ax, point, left, right, "median", "interval")
    if infinite.any():
        draw_arrows(ax, median[order], lower[order], upper[order], reference)
        label += "\narrow: no finite estimate"
    if reference is not None:
        ax.axvline(reference, color="tab:red", linestyle="--", linewidth=1)
    ax.set_xlabel(literal(label))
    name_rows(ax, names, order, what)
    return ax


def draw_intervals(
    ax: Axes,
    point: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    point_label: str,
    interval_label: str,
) -> None:
    """Draws a line and a dot in each row, the first row at the top."""
    rows = len(point)
    width = np.clip(0.15 * row_pitch(ax, rows), 0.4, 1.5)
    ax.hlines(range(rows), lower, upper, color="0.6", linewidth=width, label=interval_label)
    draw_dots(ax, point, point_label)
    margin = max(0.75, 0.005 * rows)
    ax.set_ylim(rows - 1 + margin, -margin)


def draw_arrows(
    ax: Axes, point: np.ndarray, lower: np.ndarray, upper: np.ndarray, reference: float | None
) -> None:
    """Draws an arrow in each row whose point is infinite, beyond all that is finite."""
    values = np.concatenate([point, lower, upper, [0.0 if reference is None else reference]])
    values = values[np.isfinite(values)]
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    reach = 0.1 * (high - low) if high > low else 1.0
    size = np.clip(0.5 * row_pitch(ax, len(point)), 2.5, 6)
    for sign, bound, end, marker in (
        (1, lower, high + reach, ">"),
        (-1, upper, low - reach, "<"),
    ):
        rows = np.flatnonzero(point == sign * np.inf)
        start = np.where(np.isfinite(bound[rows]), bound[rows], end)
        ax.hlines(rows, start, end, color="0.6", linewidth=1)
        ax.plot(np.full(len(rows), end), rows, marker, color="black", markersize=size)


def draw_dots(ax: Axes, point: np.ndarray, label: str) -> None:
    """Draws a dot in each row."""
    size = np.clip(0.35 * row_pitch(ax, len(point)), 1.5, 4)
    ax.plot(point, range(len(point)), "o", color="black", markersize=size, label=label)


def name_rows(ax: Axes, names: list[str] | None, order: np.ndarray, what: str) -> None:
    """Writes as many names as fit, from the top down."""
    if names is None:
        ax.set_yticks([])
        ax.set_ylabel(literal(what))
        return
    what, step = literal(what), math.ceil(len(order) * _NAME_HEIGHT / axes_height(ax))
    shown = range(0, len(order), step)
    ax.set_yticks(shown, [names[order[row]] for row in shown], fontsize=FONT_SIZE)
    ax.set_ylabel(what if step == 1 else f"{what} (1 in {step} of {len(order):,} named)")


def axes_height(ax: Axes) -> float:
    """Returns the height of the axes in inches."""
    return ax.bbox.height / ax.figure.dpi


def row_pitch(ax: Axes, rows: int) -> float:
    """Returns the distance from row to row in points."""
    return 72 * axes_height(ax) / rows


def mark_choices(ax: Axes, choice: np.ndarray) -> None:
    """Marks observed choices, filled at the right edge and open at the left edge."""
    row = np.arange(len(choice))
    size = np.clip(0.4 * row_pitch(ax, len(choice)), 1.5, 5)
    style = {"linestyle": "none", "marker": "s", "markersize": size, "color": "black"}
    left, right = choice > 0, choice < 1
    ax.plot(np.ones(left.sum()), row[left], **style, label="first was preferred")
    ax.plot(
        np.zeros(right.sum()),
        row[right],
        **style,
        fillstyle="none",
        markeredgewidth=0.6,
        label="second was preferred",
    )


def heat_map(ax: Axes, table: np.ndarray) -> AxesImage:
    """Draws a table of probabilities in greys, with a colour bar."""
    from matplotlib.colors import LinearSegmentedColormap

    cmap = LinearSegmentedColormap.from_list("grey", ["1", str(_DARKEST)])
    size, largest = len(table), table.max()
    darkest = min(largest, _DARK_SHARE / size)
    image = ax.imshow(
        table,
        cmap=cmap,
        vmin=0,
        vmax=darkest,
        aspect="auto",
        extent=(0.5, size + 0.5, size - 0.5, -0.5),  # Ranks count from 1, rows from 0.
    )
    if size <= _MAX_NUMBERS:
        ax.set_xticks(range(1, size + 1))
    # As wide as the space for it: a tight layout cuts off the label of a narrower colour bar.
    extend = "max" if darkest < largest else "neither"
    style = {"fraction": 0.05, "aspect": 10, "extend": extend, "extendfrac": 0.02}
    ax.figure.colorbar(image, ax=ax, label="probability", **style)
    return image


def write_numbers(ax: Axes, table: np.ndarray, image: AxesImage) -> None:
    """Writes the probabilities of .005 and more into the cells."""
    for row, column in np.argwhere(table >= 0.005):
        value = table[row, column]
        dark = image.norm(value) > 0.75
        ax.text(
            column + 1,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=FONT_SIZE,
            color="white" if dark else "black",
        )


def rank_quantile(rank_prob: np.ndarray, level: float) -> np.ndarray:
    """Returns the smallest rank whose cumulative probability reaches the level, (M,)."""
    # Sums in float32 miss a level such as 19/20 by 1e-7.
    return 1 + (rank_prob.cumsum(-1) >= level - 1e-6).argmax(-1)


def as_aligned(**arrays: ArrayLike) -> list[np.ndarray]:
    """Converts vectors of equal length."""
    size, out = "N", []
    for name, values in arrays.items():
        out.append(as_array(name, values, (size,)))
        size = len(out[0])
    return out


def as_intervals(median: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> list[np.ndarray]:
    """Converts medians, which may be NaN or infinite, and the ends of their intervals."""
    median = as_array("median", median, ("N",), missing=True, infinite=True)
    missing, finite = np.isnan(median), np.isfinite(median)
    ends = {}
    for name, values in (("lower", lower), ("upper", upper)):
        ends[name] = as_array(name, values, (len(median),), missing=True, infinite=True)
        good = np.isnan(ends[name]) | ~missing
        require(name, ends[name], good, "be NaN exactly where median is")
        require(name, ends[name], ~(finite & np.isinf(ends[name])), "be finite or NaN")
    alone = finite & (np.isnan(ends["lower"]) != np.isnan(ends["upper"]))
    require("lower", ends["lower"], ~alone, "be NaN exactly where upper is")
    return [median, *ends.values()]


def pair_names(pairs: Iterable[tuple], size: int) -> list[str]:
    """Names pairs as "left over right", in which the longer name is shortened first."""
    pairs = list(pairs)
    for row, pair in enumerate(pairs):
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise ValueError(f"pairs must hold (left, right) names, got {pair!r} at {row}")
    if len(pairs) != size:
        raise ValueError(f"pairs must have length {size}, one a comparison, got {len(pairs)}")
    half = MAX_NAME // 2
    return [
        " over ".join(
            shorten(name, max(half, MAX_NAME - len(other)))
            for name, other in ((str(left), str(right)), (str(right), str(left)))
        )
        for left, right in pairs
    ]
