"""Rows of different lengths, stored end to end."""

from __future__ import annotations

import numpy as np

__all__ = ["list_ranges", "number_runs", "offsets_of", "run_ends"]


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Computes where each of U rows begins, and where the last one ends, with shape (U + 1,)."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def list_ranges(start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Lists the numbers `start[i]` to `start[i] + counts[i] - 1`, range after range."""
    begin = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(start - begin, counts)


def number_runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different whole numbers among non-decreasing ones (R,), and the place of each."""
    begins = np.ones(len(values), dtype=bool)
    begins[1:] = values[1:] != values[:-1]
    return values[begins], np.cumsum(begins) - 1


def run_ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the run of equal values of each of non-decreasing ones begins and ends, (R,).

    The end is the position behind the last of them.
    """
    place = number_runs(values)[1]
    size = np.bincount(place)
    stop = np.cumsum(size)
    return (stop - size)[place], stop[place]
