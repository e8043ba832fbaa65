"""People dealt into folds, so that different fits are compared on the same ones."""

from __future__ import annotations

import numpy as np

__all__ = ["deal_into_folds"]


def deal_into_folds(num_people: int, num_folds: int, *, seed: int = 0) -> np.ndarray:
    """Deals people into folds at random, by `seed` alone.

    Args:
        num_people: Number of people U.
        num_folds: Number of folds.
        seed: Seed of the deal.

    Returns:
        The fold of each person, from 0, with shape (U,); sizes of folds differ by one at most.

    Raises:
        ValueError: If `num_folds` does not lie between 2 and the number of people.
    """
    if not isinstance(num_folds, int) or not 2 <= num_folds <= num_people:
        raise ValueError(
            f"num_folds must be an integer between 2 and the {num_people} people, got {num_folds!r}"
        )
    return np.random.default_rng(seed).permutation(num_people) % num_folds
