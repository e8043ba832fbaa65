"""Rows of different lengths, stored end to end."""

from __future__ import annotations

import numpy as np

__all__ = ["list_ranges", "offsets_of"]


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Computes where each of U rows begins, and where the last one ends, with shape (U + 1,)."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def list_ranges(start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Lists the numbers `start[i]` to `start[i] + counts[i] - 1`, range after range."""
    begin = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(start - begin, counts)
