"""People taken a few at a time."""

from __future__ import annotations

import numpy as np
import torch

from fssa_bayes import Preferences
from fssa_bayes.data import user_batches, user_slices


def test_batches_of_people_are_bounded_by_their_padding() -> None:
    """One person with very many comparisons costs a batch of their own, and no more."""
    counts = np.full(3000, 4)
    counts[700] = 5000
    left = np.zeros(counts.sum(), dtype=int)
    data = Preferences(left, left + 1, left, np.append(0, np.cumsum(counts)), num_items=2)
    limit, device = 2**19, torch.device("cpu")
    batches = user_batches(data, 100, device, margins=limit)
    shapes = [batch.mask.shape for _, batch in batches]
    assert sum(users for users, _ in shapes) == 3000
    assert sum(width == 5000 for _, width in shapes) == 1
    assert all(100 * users * max(width, 16) <= limit or users == 1 for users, width in shapes)
    assert len(shapes) < 25


def test_batches_end_where_shorter_people_would_be_filled_up_too_much() -> None:
    counts = np.repeat([4, 20, 200], 100)
    left = np.zeros(counts.sum(), dtype=int)
    data = Preferences(left, left + 1, left, np.append(0, np.cumsum(counts)), num_items=2)
    slices = list(user_slices(data, 10, padding=0))
    assert [(part.start, part.stop) for part in slices] == [(0, 100), (100, 200), (200, 300)]
    (everybody,) = user_slices(data, 5)
    assert everybody == slice(0, 300)
    for part in user_slices(data, 10, padding=20_000):
        longest, own = counts[part].max(), counts[part].clip(min=16)
        assert 10 * (longest * len(own) - own.sum()) <= 20_000
