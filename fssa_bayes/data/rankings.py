r"""Rankings as rows: each item of a ranking beside its base item.

A *ranking* is an order of n items, or of the best few of them; a choice from a set is the ranking
of which only the best item is known. A ranking is stored as n − 1 rows, in an order that does not
depend on the outcome. Each row compares one item with the *base* item of the ranking, which stands
on the right in all of them. A choice of the worst is a ranking that begins with the worst item: its
base stands on the left, so that margins are those of the negated utilities.

The outcome is in the `choice` of the rows. Places count from 1, and all items that are not ranked
share the place after the last ranked one. The choice of a row is

.. math:: \tfrac12 (1 + \text{place of the base} - \text{place of the other item}),

above ½ where left stands above right, below ½ where right does, and ½ where the ranking says
nothing. In a choice from a set the row of the chosen item has 1 and the others ½; all have 0 where
the base was chosen. Two items make an ordinary comparison.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fssa_bayes.data.keys import order_within
from fssa_bayes.data.ragged import list_ranges, number_runs, run_ends

__all__ = [
    "Slots",
    "StageWins",
    "break_into_rows",
    "check_rankings",
    "lay_out",
    "list_slots",
    "list_stage_wins",
]


class Slots(NamedTuple):
    """Lists the items of rankings: a slot is an item in a ranking.

    Attributes:
        ranking: Number of the ranking of each of P slots, non-decreasing, with shape (P,).
        item: Position of the slot's item, (P,).
        place: The item's place from 1, that of unranked items being the last, (P,).
        row: Number of the row in which the item is compared with the base, (P,); that of the
            ranking's first row for the base itself.
        is_base: Whether the item is the base, (P,).
        is_worst: Whether the ranking begins with the worst item, (P,).
    """

    ranking: np.ndarray
    item: np.ndarray
    place: np.ndarray
    row: np.ndarray
    is_base: np.ndarray
    is_worst: np.ndarray

    @property
    def last(self) -> np.ndarray:
        """Last place of each of G rankings, that of the unranked items, with shape (G,)."""
        start = np.flatnonzero(np.diff(self.ranking, prepend=-1))
        return np.maximum.reduceat(self.place, start) if len(start) else start


class StageWins(NamedTuple):
    """Lists the wins that the stages of rankings tell.

    Attributes:
        stage: Slot of the item that each of Q wins' stage chose, with shape (Q,).
        winner: Slot of the item with the higher utility, (Q,).
        loser: Slot of the other item, (Q,).
    """

    stage: np.ndarray
    winner: np.ndarray
    loser: np.ndarray


def break_into_rows(
    group: np.ndarray, item: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Breaks rankings into rows, whose base is the item with the highest position.

    Args:
        group: Number of the ranking of each item, non-decreasing, with shape (L,).
        item: Position of the item, (L,).
        rank: Its rank, NaN below all ranked ones, (L,).

    Returns:
        Left, right, choice and ranking of each row, ranking by ranking, each with shape (R,).
    """
    order = order_within(group, item)
    return lay_out(group[order], item[order], np.nan_to_num(rank[order], nan=np.inf))


def lay_out(
    group: np.ndarray, item: np.ndarray, rank: np.ndarray, is_worst: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lays rankings out as rows, whose base is the last item listed.

    Args:
        group: Number of the ranking of each item, non-decreasing, with shape (L,).
        item: Position of the item, (L,).
        rank: Its rank, infinite below all ranked ones, (L,).
        is_worst: Whether the ranking begins with the worst item, (L,); None for no such ranking.

    Returns:
        Left, right, choice and ranking of each row, ranking by ranking, each with shape (R,).
    """
    place = _places(group, rank)
    base = run_ends(group)[1] - 1
    other = base != np.arange(len(group))
    choice = (1.0 + place[base] - place)[other] / 2
    left, right = item[other], item[base][other]
    if is_worst is not None:
        left, right = np.where(is_worst[other], (right, left), (left, right))
    return left, right, choice, group[other]


def _places(group: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Numbers the items of each group by rank from 1; items of infinite rank share a place."""
    order = np.lexsort((rank, group))
    number = np.empty(len(group), dtype=np.int64)
    first, _ = run_ends(group)
    number[order] = np.arange(len(group)) - first + 1
    ranked = np.bincount(group, np.isfinite(rank))[group].astype(np.int64)
    return np.minimum(number, ranked + 1)


def list_slots(
    left: np.ndarray, right: np.ndarray, choice: np.ndarray, number: np.ndarray
) -> Slots:
    """Lists the items of rankings given by their rows, two rows or more each.

    Args:
        left: Position of the left item of each row, with shape (R,).
        right: The same for the right item.
        choice: Choice of each row, (R,).
        number: Number of its ranking, from 0 up, non-decreasing, (R,).
    """
    size = np.bincount(number)
    start = np.cumsum(size) - size
    is_worst = (left[start] == left[start + 1]) if len(size) else np.zeros(0, dtype=bool)
    ahead = np.rint(2 * choice - 1).astype(np.int64)  # Places by which the item is above the base.
    most = np.zeros(len(size), dtype=np.int64)
    np.maximum.at(most, number, ahead)
    # The base follows the other items of its ranking.
    position = np.arange(len(number)) + number
    total = len(number) + len(size)
    is_base = np.ones(total, dtype=bool)
    is_base[position] = False
    ranking = np.repeat(np.arange(len(size)), size + 1)
    worst = is_worst[number]
    item, place, row = (np.empty(total, dtype=np.int64) for _ in range(3))
    item[position] = np.where(worst, right, left)
    item[is_base] = np.where(is_worst, left[start], right[start])
    place[position] = 1 + most[number] - ahead
    place[is_base] = 1 + most
    row[position], row[is_base] = np.arange(len(number)), start
    return Slots(ranking, item, place, row, is_base, is_worst[ranking])


def list_stage_wins(slots: Slots) -> StageWins:
    """Lists the wins that rankings tell, ranking by ranking and stage by stage.

    A stage chooses the best item of those that are left, or the worst where a ranking begins with
    the worst.
    """
    order = order_within(slots.ranking, slots.place)
    ranking, place = slots.ranking[order], slots.place[order]
    _, stop = run_ends(ranking)
    count = np.where(place < slots.last[ranking], stop - np.arange(len(order)) - 1, 0)
    stage = order[np.repeat(np.arange(len(order)), count)]
    rest = order[list_ranges(np.arange(len(order)) + 1, count)]
    is_worst = slots.is_worst[stage]
    return StageWins(stage, np.where(is_worst, rest, stage), np.where(is_worst, stage, rest))


def check_rankings(
    left: np.ndarray,
    right: np.ndarray,
    choice: np.ndarray,
    ranking: np.ndarray,
    person: np.ndarray,
) -> np.ndarray:
    """Checks that rows of one number are those of one ranking, or one comparison.

    Args:
        left: Position of each row's left item, with shape (R,).
        right: The same for the right item.
        choice: The outcome, as this module defines it, (R,).
        ranking: Equal numbers for the rows of a ranking, which lie together, (R,).
        person: Position of the person, non-decreasing, (R,).

    Returns:
        Numbers from 0 up, in order, (R,).

    Raises:
        ValueError: If rows of one number are not those of one ranking.
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
    several = np.bincount(number)[number] > 1
    _refuse(
        number[~several & ~np.isin(choice, (0, 0.5, 1))],
        "must have a choice of 0, 0.5 or 1 where it is a single row",
    )
    own, whole = number_runs(number[several])
    slots = list_slots(left[several], right[several], choice[several], whole)
    base, is_worst = slots.item[slots.is_base], slots.is_worst[slots.is_base]
    common = np.where(is_worst[whole], left[several], right[several])
    _refuse(own[whole[common != base[whole]]], "must have one item on the same side of all rows")
    order = order_within(slots.ranking, slots.item)
    again = (np.diff(slots.item[order]) == 0) & (np.diff(slots.ranking[order]) == 0)
    _refuse(own[slots.ranking[order][1:][again]], "must have each item once")
    order = order_within(slots.ranking, slots.place)
    group, place = slots.ranking[order], slots.place[order]
    start, stop = run_ends(group)
    position, last = np.arange(len(group)) - start + 1, place[stop - 1]
    wrong = (place != np.minimum(position, last)) | (last == 1)
    _refuse(own[group[wrong]], "must put items in one order, the ranked above the others")
    return number


def _refuse(groups: np.ndarray, rule: str) -> None:
    if len(groups):
        raise ValueError(
            f"the comparisons of a ranking {rule}: number {groups[0]} does not "
            f"({len(np.unique(groups))} such rankings)"
        )
