"""Data taken a few people at a time, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fssa_bayes.data.batch import Batch
from fssa_bayes.data.preferences import Preferences

__all__ = ["user_batches", "user_slices"]


_MARGINS = 2**19  # Margins held at once: 2 MB. From 2**18 to 2**20 the time is flat within 15 %.
_LEAST_WIDTH = 16  # Comparisons that every person counts for at least: their z costs memory too.
_MOST_PEOPLE = 1024  # Of a batch.


def user_batches(
    data: Preferences,
    num_samples: int,
    device: torch.device,
    *,
    margins: int = _MARGINS,
    padding: int | None = None,
) -> Iterator[tuple[slice, Batch]]:
    """Iterates over people in order, few enough at a time to bound memory.

    Args:
        data: The people.
        num_samples: Number of draws S of each person.
        device: Where the batches go.
        margins: Largest number of draws × people × comparisons of a batch of several people.
        padding: Largest number of them that only fill up shorter people's; unlimited if None.

    Yields:
        Which people, and their comparisons.
    """
    for people in user_slices(data, num_samples, margins=margins, padding=padding):
        yield people, data.batch(range(people.start, people.stop)).to(device)


def user_slices(
    data: Preferences, num_samples: int, *, margins: int = _MARGINS, padding: int | None = None
) -> Iterator[slice]:
    """Divides people as :func:`user_batches` does, and yields the positions alone."""
    start = 0
    while start < len(data):
        # One person with very many comparisons widens the padding of their own batch only.
        counts = data.counts[start : start + _MOST_PEOPLE].clip(min=_LEAST_WIDTH)
        total = np.maximum.accumulate(counts) * np.arange(1, len(counts) + 1)
        fits = num_samples * total <= margins
        if padding is not None:
            fits &= num_samples * (total - counts.cumsum()) <= padding
        stop = start + max(1, len(counts) if fits.all() else int(fits.argmin()))
        yield slice(start, stop)
        start = stop
