"""What figures share: axes, legends, styles without colour, and checks of what is drawn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = [
    "FONT_SIZE",
    "LINES",
    "MAX_NAME",
    "add_legend",
    "add_legend_above",
    "as_array",
    "as_band",
    "as_columns",
    "as_float",
    "check_increasing",
    "check_names",
    "curve_names",
    "literal",
    "new_axes",
    "require",
    "shorten",
    "styles",
]

FONT_SIZE = 7.0  # Points.
ROW_HEIGHT = 0.17  # Inches a row of a new figure: names fit with a margin for the axes.
MAX_HEIGHT = 11.0  # Inches: the height of a page of letter paper.
LINES = ("-", "--", ":", "-.")
MAX_NAME = 40  # Characters of a name: at 7 points a third of a 7-inch figure.
_GREYS = ("0", "0.4", "0.6")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_TWO_COLUMNS = 4.0  # Inches of width that a legend of two columns needs.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # All but the end of a line.


def new_axes(ax: Axes | None, rows: int | None = None, least: float = 2.0) -> Axes:
    """Returns `ax`, or new axes whose height in inches suits the number of rows."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    if rows is None:
        return plt.subplots()[1]
    height = min(max(1 + ROW_HEIGHT * rows, least), MAX_HEIGHT)
    return plt.subplots(figsize=(7, height), layout="tight")[1]


def as_array(
    name: str,
    values: ArrayLike,
    shape: tuple[int | str, ...],
    *,
    missing: bool = False,
    infinite: bool = False,
) -> np.ndarray:
    """Converts to float64 and checks the shape, letters standing for any positive size."""
    values = as_float(name, values)
    fits = values.ndim == len(shape) and all(
        size > 0 and (isinstance(expected, str) or size == expected)
        for size, expected in zip(values.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}) and not be empty, got {values.shape}")
    finite = np.isfinite(values) | (missing & np.isnan(values)) | (infinite & np.isinf(values))
    require(name, values, finite, "be finite" + (" or NaN" if missing else ""))
    return values


def as_float(name: str, values: ArrayLike) -> np.ndarray:
    """Converts numbers of any kind to a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double()
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {values!r:.60}") from error


def check_increasing(name: str, values: np.ndarray) -> np.ndarray:
    """Returns values after a check that there are two or more and that they increase."""
    if len(values) < 2:
        raise ValueError(f"{name} must have at least 2 values, got {len(values)}")
    require(name, values, np.diff(values, prepend=-np.inf) > 0, "increase")
    return values


def require(name: str, values: np.ndarray, good: np.ndarray, rule: str) -> None:
    """Raises for the first value that is not good."""
    if not good.all():
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        place = where[0] if len(where) == 1 else where
        raise ValueError(f"{name} must {rule}, got {values[where]} at {place}")


def check_names(argument: str, names: Sequence, size: int) -> list[str]:
    """Converts names to one line each, cut to what an axis can hold."""
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a list of names, got the string {names!r}")
    names = list(names)
    if len(names) != size:
        raise ValueError(f"{argument} must have length {size}, one a row, got {len(names)}")
    return [shorten(name, MAX_NAME) for name in names]


def shorten(name: object, length: int) -> str:
    """Writes a name on one line, cut to a length."""
    text = " ".join(str(name).split())
    return literal(text if len(text) <= length else text[: length - 1] + "…")


def literal(text: object) -> str:
    """Writes a text so that a figure shows it as it is: a dollar sign starts no formula."""
    return _CONTROL.sub("\ufffd", str(text)).replace("$", r"\$")


def add_legend(ax: Axes, place: str) -> None:
    """Adds a small legend inside the axes."""
    ax.legend(loc=place, fontsize="small", framealpha=0.85, edgecolor="none")


def add_legend_above(ax: Axes, entries: int) -> None:
    """Adds a legend above the curves, in two columns if they fit, and extends the axis by it."""
    columns = 2 if ax.bbox.width / ax.figure.dpi > _TWO_COLUMNS else 1
    rows = np.ceil(entries / columns)
    height = 72 * ax.bbox.height / ax.figure.dpi  # Points.
    share = min((14 * rows + 8) / height, 0.6)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + (high - low) * share / (1 - share))
    ax.legend(loc="upper center", ncols=columns, fontsize="small", frameon=False, borderaxespad=0.2)


def styles(names: list) -> list[tuple[object, str, str, str]]:
    """Gives each name a grey, a line and a marker, which differ between neighbours."""
    looks = zip(itertools.cycle(_GREYS), itertools.cycle(LINES), itertools.cycle(_MARKERS))
    return [(name, *look) for name, look in zip(names, looks, strict=False)]


def as_columns(name: str, values: ArrayLike, rows: int) -> np.ndarray:
    """Converts a table (rows, Q); a vector is a table of one column."""
    if np.ndim(values) == 1:
        return as_array(name, values, (rows,))[:, None]
    return as_array(name, values, (rows, "Q"))


def curve_names(names: Sequence | None, count: int) -> list:
    """Returns names of so many curves; a single curve without a name is None."""
    if names is not None:
        return check_names("names", names, count)
    return [None] if count == 1 else [f"quantity {column + 1}" for column in range(count)]


def as_band(
    name: str, points: ArrayLike | None, lower: ArrayLike | None, upper: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Converts a band's points (K,) and its ends; None if none of the three is given."""
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
