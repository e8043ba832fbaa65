r"""Rankings as pairs: broken into them, and recognised in them.

A ranking of n items is stored as its n (n − 1) / 2 pairs, in an order that does not depend on the
outcome. The choice of a pair is 1 where left stands above right, 0 where right does, and ½ where
the ranking says nothing: both stand below the k items that were ranked.
"""

from __future__ import annotations

import numpy as np

__all__ = ["break_into_pairs", "check_rankings"]


def break_into_pairs(
    group: np.ndarray, item: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Breaks rankings into all their pairs, each with the lower position on the left.

    Args:
        group: Number of the ranking of each row, non-decreasing, with shape (L,).
        item: Position of its item, (L,).
        rank: Its rank, NaN below all ranked ones, (L,).

    Returns:
        Left, right, choice and ranking of each pair, ranking by ranking, each with shape (R,).
    """
    order = np.lexsort((item, group))
    item, rank = item[order], np.nan_to_num(rank[order], nan=np.inf)
    size = np.bincount(group)
    start = np.cumsum(size) - size
    first, second, owner = [], [], []
    for count in np.unique(size):  # Rankings of one size together.
        own = np.flatnonzero(size == count)
        low, high = np.triu_indices(count, 1)
        first.append((start[own, None] + low).ravel())
        second.append((start[own, None] + high).ravel())
        owner.append(np.repeat(own, len(low)))
    owner = np.concatenate(owner)
    order = np.argsort(owner, kind="stable")
    first, second = np.concatenate(first)[order], np.concatenate(second)[order]
    above, below = rank[first] < rank[second], rank[first] > rank[second]
    return item[first], item[second], (1.0 + above - below) / 2, owner[order]


def check_rankings(
    left: np.ndarray,
    right: np.ndarray,
    choice: np.ndarray,
    ranking: np.ndarray,
    person: np.ndarray,
) -> np.ndarray:
    """Checks that comparisons of one number are the pairs of one ranking, or one pair alone.

    Args:
        left: Position of each comparison's left item, with shape (R,).
        right: The same for the right item.
        choice: 1, 0 or ½, (R,).
        ranking: Equal numbers for the pairs of a ranking, which lie together, (R,).
        person: Position of the person, non-decreasing, (R,).

    Returns:
        Numbers from 0 up, in order, (R,).

    Raises:
        ValueError: If comparisons of one number are not the pairs of one ranking.
    """
    ranking = np.asarray(ranking)
    if ranking.shape != left.shape or not np.issubdtype(ranking.dtype, np.integer):
        raise ValueError(
            f"ranking must be integers with shape {left.shape}, got {ranking.dtype} with shape "
            f"{ranking.shape}"
        )
    if not len(ranking):
        return ranking.astype(np.int64)
    new = (np.diff(ranking) != 0) | (np.diff(person) != 0)
    number = np.concatenate([[0], np.cumsum(new)])
    size = np.bincount(number)
    whole = size[number] > 1  # A pair alone is a comparison that stands alone.
    left, right, choice = left[whole], right[whole], choice[whole]
    group = number[whole]
    low, high = np.minimum(left, right).astype(np.int64), np.maximum(left, right).astype(np.int64)
    order = np.lexsort((high, low, group))
    same = (np.diff(group[order]) == 0) & (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
    _refuse(group[order][1:][same], "must have each pair once")
    items = max(int(high.max(initial=0)) + 1, 1)
    slot, place = np.unique(
        np.stack([group * items + left, group * items + right]), return_inverse=True
    )
    owner = slot // items
    count = np.bincount(owner, minlength=len(size))
    several = size > 1
    wrong = np.flatnonzero(several & (size != count * (count - 1) // 2))
    _refuse(wrong, "must have all pairs of its items")
    winner = np.where(choice == 1, *place.reshape(2, -1))[choice != 0.5]
    wins = np.bincount(winner, minlength=len(slot))
    order = np.lexsort((-wins, owner))
    wins, owner = wins[order], owner[order]
    position = np.arange(len(owner)) - np.searchsorted(owner, owner)
    expected = count[owner] - 1 - position
    wrong = (wins != expected) & ((wins != 0) | (position == 0))
    _refuse(owner[wrong], "must put items in one order, the ranked above the others")
    return number


def _refuse(groups: np.ndarray, rule: str) -> None:
    if len(groups):
        raise ValueError(
            f"the comparisons of a ranking {rule}: number {groups[0]} does not "
            f"({len(np.unique(groups))} such rankings)"
        )
