"""Copies of data with other parts, and the judgements that both kinds of data answer alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pandas as pd
import pytest

from fssa_bayes.data import Preferences
from fssa_bayes.data.comparisons import Comparisons, replace
from fssa_bayes.data.judgements import Judgements, RankedJudgements, find_judgements
from fssa_bayes.data.ragged import list_ranges, offsets_of

BALLOTS = {
    "ann": [("tea", "cola", "milk"), ("milk", "tea")],
    "bob": [("milk", "tea", "cola"), ("water", "tea", "cola", "milk"), ("tea", "water")],
    "eve": [("cola", "water")],
}
COPIES: dict[str, Callable[[Preferences], Preferences]] = {
    "subset": lambda data: data.subset([1, 2]),
    "repeated": lambda data: data.subset([0, 0, 1]),
    "context": lambda data: data.subset([0, 1]).split_context(1)[0],
    "target": lambda data: data.subset([0, 1]).split_context(1)[1],
    "swap": lambda data: data.swap(),
    "with_choices": lambda data: data.with_choices(1 - data.choice),
    "as_pairs": lambda data: data.as_pairs(),
    "pooled": lambda data: data.pooled(4),
    "imagine": lambda data: data.imagine(np.array([[0, 3], [2, 2], [1, 0], [4, 4]])),
}
CACHED = [name for name, x in vars(Comparisons).items() if isinstance(x, cached_property)]


def comparisons_alone() -> Preferences:
    frame = pd.DataFrame(
        [("a", 0, 1), ("a", 1, 2), ("b", 2, 0), ("b", 2, 3), ("b", 0, 3), ("c", 1, 3)],
        columns=["user", "left", "right"],
    )
    frame["choice"] = [1, 0, 0, 1, 1, 0]
    columns = {name: name for name in frame.columns}
    return Preferences.from_dataframe(frame, **columns)


DATA = {"alone": comparisons_alone, "rankings": lambda: Preferences.from_rankings(BALLOTS)}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", COPIES)
def test_copies_carry_no_cached_value_over(name: str, kind: str) -> None:
    data = DATA[kind]()
    before = {cached: getattr(data, cached).copy() for cached in CACHED}
    copy = COPIES[name](data)
    ranking = copy.ranking
    fresh = Preferences(
        copy.left,
        copy.right,
        copy.choice,
        copy.offsets,
        num_items=copy.num_items,
        ranking=ranking,
    )
    fresh = replace(fresh, user_names=copy.user_names)  # Names may repeat in a copy alone.
    for cached in CACHED:
        assert np.array_equal(getattr(copy, cached), getattr(fresh, cached)), cached
        assert np.array_equal(getattr(data, cached), before[cached]), cached
    assert copy.judgement_heads.tolist() == fresh.judgement_heads.tolist()
    assert copy.half_wins.tolist() == fresh.half_wins.tolist()


def test_a_copy_with_an_unknown_part_is_refused() -> None:
    with pytest.raises(TypeError, match="chioce"):
        replace(comparisons_alone(), chioce=np.ones(6))


@pytest.mark.parametrize("kind", DATA)
def test_every_comparison_knows_its_person(kind: str) -> None:
    data = DATA[kind]()
    for user in range(len(data)):
        own = np.flatnonzero(data.person == user)
        assert own.tolist() == list(range(data.offsets[user], data.offsets[user + 1]))


def test_comparisons_that_stand_alone_are_rankings_of_two() -> None:
    """Both kinds of judgements answer alike where both can describe the data."""
    data = comparisons_alone()
    alone, ranked = Judgements(6), RankedJudgements(6, np.arange(6))
    some = np.array([4, 0, 5, 5])
    for name in ("heads", "inside", "has_rankings", "num_rankings"):
        assert np.array_equal(getattr(alone, name), getattr(ranked, name)), name
    assert np.array_equal(alone.spread(np.arange(6)), ranked.spread(np.arange(6)))
    for name in ("count_before", "head_of"):
        assert np.array_equal(getattr(alone, name)(some), getattr(ranked, name)(some)), name
    counts = np.array([1, 0, 3])
    for mine, other in zip(alone.expand(some, counts), ranked.expand(some, counts), strict=True):
        assert np.array_equal(mine, other)
    columns = (data.left, data.right, data.choice)
    for judgements in (alone, ranked):
        slots, own = judgements.list_slots(*columns)
        assert len(slots.item) == len(own) == 0
    assert alone.begins(some) is None
    assert ranked.begins(some).all()
    assert len(alone.select(some).heads) == len(ranked.select(some).heads) == 4


def test_rankings_of_two_are_found_to_stand_alone() -> None:
    data = comparisons_alone()
    columns = (data.left, data.right, data.choice)
    assert type(find_judgements(*columns, np.arange(6), data.person)) is Judgements
    assert type(find_judgements(*columns, None, data.person)) is Judgements
    assert type(DATA["rankings"]().judgements) is RankedJudgements


def test_judgements_hold_their_comparisons() -> None:
    judgements = DATA["rankings"]().judgements  # Rankings of 3, 2, 3, 4, 2 and 2 items.
    assert judgements.heads.tolist() == [0, 2, 3, 5, 8, 9]
    assert judgements.num_rankings == 3
    assert judgements.count_before(np.array([0, 1, 3, 10])).tolist() == [0, 1, 2, 6]
    assert judgements.head_of(np.array([0, 1, 2, 7])).tolist() == [0, 0, 2, 5]
    rows, counts = judgements.expand(np.array([2, 1, 1, 0]), np.array([1, 0, 3]))
    assert rows.tolist() == [3, 4, 2, 2, 0, 1]
    assert counts.tolist() == [2, 0, 4]
    chosen = judgements.spread(np.array([True, False, False, False, True, True]))
    assert np.flatnonzero(chosen).tolist() == [0, 1, 8, 9]
    assert judgements.select(np.array([2, 2, 0, 1])).ranking.tolist() == [0, 1, 2, 2]


def test_ranges_are_listed_end_to_end() -> None:
    assert list_ranges(np.array([5, 0, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]
    assert offsets_of(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]
    assert offsets_of(np.zeros(0, dtype=np.int64)).tolist() == [0]
