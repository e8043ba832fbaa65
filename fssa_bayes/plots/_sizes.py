"""The axis of context sizes, on which sizes that double are at equal distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fssa_bayes.plots._figure import as_array, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["as_sizes", "group_sizes", "label_sizes", "place_sizes"]

_MOST_TICKS = 12  # With more context sizes than this, sizes are grouped by powers of two.


def as_sizes(size: ArrayLike, length: int | str = "U") -> np.ndarray:
    """Converts context sizes (U,) and checks that none is negative."""
    size = as_array("size", size, (length,))
    require("size", size, size >= 0, "not be negative")
    return size


def place_sizes(size: np.ndarray) -> np.ndarray:
    """Returns positions at which sizes that double are at equal distances; 0 is one before 1."""
    return np.where(size < 1, size, 1 + np.log2(np.maximum(size, 1)))


def group_sizes(size: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Returns the places and names of the context sizes, and the number of each person's."""
    distinct, index = np.unique(size, return_inverse=True)
    if len(distinct) <= _MOST_TICKS:
        return place_sizes(distinct), [f"{n:g}" for n in distinct], index
    power, index = np.unique(np.ceil(place_sizes(size)).astype(int), return_inverse=True)
    labels = [str(p) if p < 3 else f"≤{2 ** (p - 1)}" for p in power]
    return power.astype(float), labels, index


def label_sizes(ax: Axes, center: np.ndarray, labels: list[str]) -> None:
    """Names the context sizes on the horizontal axis."""
    ax.set_xticks(center, labels)
    ax.set_xlabel("known choices of the person (number)")
