"""Some of the comparisons of the same people."""

from __future__ import annotations

import numpy as np

from fssa_bayes.data import Preferences

__all__ = ["mark_at_most", "select_comparisons"]


def select_comparisons(
    data: Preferences, keep: np.ndarray, ranking: np.ndarray | None = None
) -> Preferences:
    """Keeps the comparisons that `keep` (R,) marks, of the same people.

    Rankings become pairs unless `ranking` gives the ranking of each comparison, with shape (R,).
    """
    person = np.repeat(np.arange(len(data)), data.counts)[keep]
    return Preferences(
        data.left[keep],
        data.right[keep],
        data.choice[keep],
        np.append(0, np.cumsum(np.bincount(person, minlength=len(data)))),
        items=data.items,
        num_items=data.num_items,
        item_names=data.item_names,
        feature_names=None if data.items is None else data.feature_names,
        user_names=data.user_names,
        covariates=data.covariates,
        covariate_names=None if data.covariates is None else data.covariate_names,
        ties=data.ties,
        ranking=None if ranking is None else ranking[keep],
    )


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
