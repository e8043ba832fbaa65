"""A random part of each person's comparisons."""

from __future__ import annotations

import numpy as np

__all__ = ["mark_at_most"]


def mark_at_most(counts: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Marks at most `most` comparisons of each person, chosen at random.

    Args:
        counts: Number of comparisons of each person, with shape (U,).
        most: Largest number that a person keeps.
        seed: Seed of the choice.

    Returns:
        Whether each comparison is kept, Boolean with shape (R,).
    """
    person = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((np.random.default_rng(seed).random(len(person)), person))
    place = np.empty(len(person), dtype=np.int64)
    place[order] = np.arange(len(person)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place < most
