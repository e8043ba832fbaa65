"""What figures share: new axes, and checks of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = [
    "FONT_SIZE",
    "MAX_NAME",
    "as_array",
    "as_float",
    "check_increasing",
    "check_names",
    "new_axes",
    "require",
    "shorten",
]

FONT_SIZE = 7.0  # Points.
ROW_HEIGHT = 0.17  # Inches a row of a new figure: names fit with a margin for the axes.
MAX_HEIGHT = 11.0  # Inches: the height of a page of letter paper.
MAX_NAME = 40  # Characters of a name: at 7 points a third of a 7-inch figure.


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
    name: str, values: ArrayLike, shape: tuple[int | str, ...], *, missing: bool = False
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
    finite = np.isfinite(values) | (np.isnan(values) if missing else False)
    require(name, values, finite, "be finite" + (" or NaN" if missing else ""))
    return values


def as_float(name: str, values: ArrayLike) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double()
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {values!r:.60}") from error


def check_increasing(name: str, values: np.ndarray) -> np.ndarray:
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
    text = " ".join(str(name).split())
    return text if len(text) <= length else text[: length - 1] + "…"
