from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes.data import Preferences, Summary

COLUMNS = {"user": "panellist", "left": "port side", "right": "à tribord", "choice": "verdict"}
PAIRS = [
    ("zoe", "apple", "beet"),
    ("ann", "cress", "apple"),
    ("zoe", "dill", "cress"),
    ("ann", "beet", "dill"),
    ("zoe", "apple", "dill"),
]
OUTCOMES = [1.0, 0.0, 0.5, 1.0, 0.0]
ITEMS = pd.DataFrame(
    {"length in cm": [7, 9, 3, 5], "ripe": [True, False, False, True]},
    index=["dill", "cress", "beet", "apple"],
)
Comparisons = list[tuple[Any, Any, Any, float]]


def table(pairs: list, choices: list) -> pd.DataFrame:
    frame = pd.DataFrame(pairs, columns=list(COLUMNS.values())[:3])
    return frame.assign(verdict=choices)


def read(pairs: list = PAIRS, choices: list = OUTCOMES, **options: Any) -> Preferences:
    options = {"items": ITEMS, "ties": "half"} | options
    return Preferences.from_dataframe(table(pairs, choices), **COLUMNS, **options)


def comparisons(data: Preferences) -> Comparisons:
    person = np.repeat(np.arange(len(data)), data.counts)
    return list(
        zip(
            data.user_names[person],
            data.item_names[data.left],
            data.item_names[data.right],
            data.choice.tolist(),
            strict=True,
        )
    )


def ragged(counts: list[int], seed: int = 0) -> Preferences:
    """Gives every comparison a pair of items of its own, so that items tell comparisons apart."""
    total = sum(counts)
    return Preferences(
        np.arange(0, 2 * total, 2),
        np.arange(1, 2 * total, 2),
        np.random.default_rng(seed).integers(2, size=total),
        np.concatenate([[0], np.cumsum(counts)]),
        items=np.arange(2.0 * total)[:, None],
        user_names=[f"p{user}" for user in range(len(counts))],
    )


# Reading.


@pytest.mark.parametrize(
    ("choices", "options"),
    [
        ([1, 0, 0.5, 1, 0], {}),
        (["left", "right", "tie", "left", "right"], {}),
        (pd.Series([1, 0, 0.5, 1, 0], dtype=object), {}),
        (pd.Categorical(["left", "right", "tie", "left", "right"]), {}),
        (["apple", "apple", "tie", "beet", "dill"], {}),
        (
            ["a1", "a2", "=", "a1", "a2"],
            {"choice_labels": {"a1": "left", "a2": "right", "=": "tie"}},
        ),
        ([0, 1, 2, 0, 1], {"choice_labels": {0: "left", 1: "right", 2: "tie"}}),
    ],
    ids=["numbers", "words", "object numbers", "categories", "winner", "labels", "number labels"],
)
def test_codings_of_a_choice_mean_the_same(choices: list, options: dict) -> None:
    data = read(choices=choices, **options)
    assert comparisons(data) == [
        ("zoe", "apple", "beet", 1.0),
        ("zoe", "dill", "cress", 0.5),
        ("zoe", "apple", "dill", 0.0),
        ("ann", "cress", "apple", 0.0),
        ("ann", "beet", "dill", 1.0),
    ]
    assert list(data.feature_names) == ["length in cm", "ripe"]


@pytest.mark.parametrize("dtype", [bool, "boolean", object, int, "Int8", float])
def test_true_and_one_mean_left(dtype: Any) -> None:
    choices = pd.Series([True, False, True, True, False]).astype(dtype)
    data = read(choices=choices)
    assert data.choice.tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("dtype", [int, float, object, "category"])
def test_winner_may_be_the_number_of_an_item(dtype: Any) -> None:
    pairs = [("zoe", 10, 1), ("zoe", 7, 10), ("zoe", 1, 7)]
    winners = pd.Series([1, 10, 1]).astype(dtype)
    assert read(pairs, winners, items=None).choice.tolist() == [0, 0, 1]


def test_winner_may_be_the_same_everywhere() -> None:
    pairs = [("zoe", "apple", "beet"), ("zoe", "cress", "apple"), ("ann", "apple", "dill")]
    assert read(pairs, pd.Categorical(["apple"] * 3)).choice.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("ties", "choice", "dropped"),
    [
        ("drop", [1, 0, 0, 1], 1),
        ("half", [1, 0.5, 0, 0, 1], 0),
        ("keep", [1, 0.5, 0, 0, 1], 0),
    ],
)
@pytest.mark.parametrize("tie", [0.5, "tie"])
def test_ties(tie: float | str, ties: str, choice: list[float], dropped: int) -> None:
    words = {1.0: "left", 0.0: "right", 0.5: "tie"}
    outcomes = OUTCOMES if tie == 0.5 else [words[outcome] for outcome in OUTCOMES]
    data = read(choices=outcomes, ties=ties)
    assert data.choice.tolist() == choice
    assert data.summary().dropped_ties == dropped
    assert data.ties == ("keep" if ties == "keep" else "half")


def test_covariates_follow_their_people() -> None:
    users = pd.DataFrame({"age": [30, 40, 50], "tall": [0, 0, 1]}, index=["ann", "max", "zoe"])
    pairs = [*PAIRS, ("max", "beet", "dill")]
    # Max answers with a tie only, so with ties dropped his row has to go as well.
    with pytest.warns(UserWarning, match="1 of 3 people have only ties and were left out"):
        data = read(pairs, [*OUTCOMES, 0.5], users=users, ties="drop")
    assert list(data.user_names) == ["zoe", "ann"]
    assert list(data.covariate_names) == ["age", "tall"]
    assert data.covariates.tolist() == [[50, 1], [30, 0]]
    assert data.batch([1]).covariates.tolist() == [[30, 0]]
    assert data.subset([1]).covariates.tolist() == [[30, 0]]


GOOD = {"df": table(PAIRS, OUTCOMES), "items": ITEMS, **COLUMNS}
AGES = pd.DataFrame({"age": [30.0, 50.0]}, index=["ann", "zoe"])


def cell(row: int, column: str, value: object) -> dict:
    changed = GOOD["df"].astype(object)
    changed.loc[row, column] = value
    return {"df": changed}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"df": [1, 2]}, TypeError, r"df must be a pandas DataFrame, got list"),
        ({"items": [[1.0]]}, TypeError, r"items must be a pandas DataFrame.*got list"),
        ({"users": {"ann": 1}}, TypeError, r"users must be a pandas DataFrame.*got dict"),
        ({"choice_labels": ["left", "right"]}, TypeError, r"choice_labels must be .*got list"),
        ({"user": "worker"}, ValueError, r"user='worker' is not a column.*'panellist'"),
        (
            {"df": GOOD["df"].rename(columns={"verdict": "port side"}), "choice": "panellist"},
            ValueError,
            r"left='port side' is the name of 2 columns",
        ),
        ({"df": GOOD["df"].head(0)}, ValueError, r"df must have at least one row"),
        (cell(3, "panellist", None), ValueError, r"user='panellist'.*missing.*got 1.*row 3"),
        (cell(3, "à tribord", np.nan), ValueError, r"right='à tribord'.*missing.*got 1.*row 3"),
        (cell(2, "verdict", None), ValueError, r"choice='verdict'.*missing.*got 1.*row 2"),
        (cell(4, "port side", "fig"), ValueError, r"unknown item 'fig'.*'port side' at row 4"),
        (cell(1, "à tribord", "cress"), ValueError, r"compared with itself: 'cress'.*row 1"),
        (
            {"items": ITEMS.assign(ripe=[1, np.nan, 0, 1])},
            ValueError,
            r"items must be finite, got nan for 'cress', column 'ripe'",
        ),
        (
            {"items": ITEMS.assign(ripe=[1, 0, -np.inf, 1])},
            ValueError,
            r"items must be finite, got -inf for 'beet', column 'ripe'",
        ),
        (
            {"items": ITEMS.assign(ripe=pd.date_range("2025-01-01", periods=4))},
            ValueError,
            r"items must hold numbers, or text or categories, got column 'ripe' of type datetime64",
        ),
        (
            {"items": pd.concat([ITEMS, ITEMS.loc[["beet"]]])},
            ValueError,
            r"index of items must be unique, got 'beet' more than once",
        ),
        ({"items": ITEMS[[]]}, ValueError, r"items must have at least one column"),
        (
            {"df": table(PAIRS, [1, 0, 2, 1, 0])},
            ValueError,
            r"choice must be 1 / 0 / 0.5.*got (np.int64\()?2.*row 2 \(user 'zoe'\)",
        ),
        (
            {"df": table(PAIRS, ["left", "right", "tie", "lft", "right"])},
            ValueError,
            r"choice must be.*got 'lft' at row 3 \(user 'ann'\)",
        ),
        (
            {"df": table(PAIRS, ["apple", "apple", "dill", "cress", "dill"])},
            ValueError,
            r"choice must be.*got 'cress' at row 3 \(user 'ann'\)",
        ),
        (
            {"df": table([("zoe", 1, 0), ("ann", 0, 1)], [1, 1]), "items": None},
            ValueError,
            r"choice is ambiguous: (np.int64\()?1\)? at row 1.*numbers.*name.*choice_labels",
        ),
        (
            {"choice_labels": {1.0: "left", 0.0: "second", 0.5: "tie"}},
            ValueError,
            r"choice_labels must translate into 'left', 'right' or 'tie', got 'second'",
        ),
        (
            {"choice_labels": {1.0: "left", 0.0: "right"}},
            ValueError,
            r"choice_labels has no translation for (np.float64\()?0.5\)? at row 2",
        ),
        ({"ties": "skip"}, ValueError, r"ties must be one of .*got 'skip'"),
        (
            {"df": table(PAIRS, [0.5] * 5), "ties": "drop"},
            ValueError,
            r"no comparison is left: all 5 are ties and ties='drop'",
        ),
        (
            {"users": AGES.loc[["ann"]]},
            ValueError,
            r"users must have a row for every person, got none for 'zoe'",
        ),
        (
            {"users": AGES.assign(age=[np.inf, 1.0])},
            ValueError,
            r"users must be finite, got inf for 'ann', column 'age'",
        ),
    ],
)
def test_bad_tables_are_refused(change: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Preferences.from_dataframe(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"left": [0, 1, 3]}, r"left must lie in 0 … 2, got 3 in comparison 2"),
        ({"right": [1, -1, 0]}, r"right must lie in 0 … 2, got -1 in comparison 1"),
        ({"left": [0, 1]}, r"left must be integers with shape \(3,\).*\(2,\)"),
        ({"left": [0, 1.0, 2]}, r"left must be integers.*float64"),
        ({"right": [1, 2, 2]}, r"compared with itself: left = right = 2 in comparison 2"),
        ({"choice": [1, 0, 0.25]}, r"choice must be 0, 0.5 or 1, got 0.25 in comparison 2"),
        ({"choice": [1, 0, np.nan]}, r"choice must be 0, 0.5 or 1, got nan in comparison 2"),
        ({"offsets": [0, 2, 1, 3]}, r"offsets must be non-decreasing"),
        ({"num_items": None}, r"one of items and num_items must be given"),
        ({"items": [[1.0], [np.nan], [0.0]]}, r"items must be finite, got nan in row 1, column 0"),
        ({"user_names": ["ann", "ann"]}, r"user_names must be unique, got 'ann'"),
        ({"item_names": ["a", "b"]}, r"item_names must have 3 entries, got 2"),
        ({"covariates": [[1.0]]}, r"covariates must have one row per person: 2 people, 1 rows"),
        ({"ties": "skip"}, r"ties must be one of .*got 'skip'"),
    ],
)
def test_bad_arrays_are_refused(change: dict, match: str) -> None:
    arrays = {"left": [0, 1, 2], "right": [1, 2, 0], "choice": [1, 0, 0.5], "offsets": [0, 2, 3]}
    with pytest.raises(ValueError, match=match):
        Preferences(**arrays | {"num_items": 3} | change)


@pytest.mark.parametrize(
    ("pairs", "choices", "options", "match"),
    [
        (
            [*PAIRS, PAIRS[1], PAIRS[1]],
            [*OUTCOMES, 0.0, 0.0],
            {},
            r"2 of 7 rows repeat an earlier row",
        ),
        (PAIRS[:2], OUTCOMES[:2], {}, r"1 of 4 items are never compared"),
        (
            [("zoe", "apple", "beet"), ("ann", "cress", "dill"), ("ann", "beet", "fig")],
            [1, 0, 1],
            {"items": None},
            r"2 connected components.*\{'apple', 'beet', 'fig'\}, \{'cress', 'dill'\}",
        ),
        (
            [*PAIRS, ("max", "beet", "dill")],
            [*OUTCOMES, 0.5],
            {"ties": "drop"},
            r"1 of 3 people have only ties",
        ),
    ],
    ids=["repeated rows", "unused items", "disconnected", "only ties"],
)
def test_doubtful_tables_are_named(pairs: list, choices: list, options: dict, match: str) -> None:
    with pytest.warns(UserWarning, match=match) as record:
        read(pairs, choices, **options)
    assert len(record) == 1
    assert record[0].filename == __file__


# Batches.


@pytest.mark.parametrize("people", [None, [1, 0], [1]])
def test_batch_indexes_the_original_features(people: list[int] | None) -> None:
    data = read()
    batch = data.batch(people)
    seen = []
    for row, person in enumerate(people or range(len(data))):
        for column in batch.mask[row].nonzero().flatten().tolist():
            sides = (batch.items[side[row, column]].tolist() for side in (batch.left, batch.right))
            seen.append((data.user_names[person], *sides, batch.choice[row, column].item()))
    features = {name: ITEMS.loc[name].astype(float).tolist() for name in ITEMS.index}
    expected = [
        (user, features[left], features[right], choice)
        for person in people or range(len(data))
        for user, left, right, choice in comparisons(data.subset([person]))
    ]
    assert seen == expected


def test_padding_is_zero_and_masked() -> None:
    batch = ragged([1, 3, 2]).batch()
    assert batch.mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert batch.num_comparisons.tolist() == [1, 3, 2]
    for field in (batch.left, batch.right, batch.choice):
        assert not field[~batch.mask].any()


def test_batch_holds_only_its_items() -> None:
    assert ragged([1, 3, 2]).batch([2]).items.flatten().tolist() == [8, 9, 10, 11]


def test_batch_of_empty_contexts_has_no_column() -> None:
    context, _ = ragged([2, 3]).split_context(0)
    batch = context.batch()
    assert batch.left.shape == batch.choice.shape == batch.mask.shape == (2, 0)
    assert batch.items.shape == (0, 1)


def test_items_without_features_are_positions() -> None:
    data = read(items=None).subset([1])
    batch = data.batch()
    assert batch.items.dtype == torch.int64
    assert list(data.item_names[batch.items[batch.left[0]].numpy()]) == ["cress", "beet"]
    assert list(data.item_names[batch.items[batch.right[0]].numpy()]) == ["apple", "dill"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_cover_everybody_once(shuffle: bool) -> None:
    data = ragged([1, 4, 2, 3, 1, 2, 5])
    batches = list(data.batches(3, shuffle=shuffle, seed=1))
    people = np.concatenate([batch.people for batch in batches])
    counts = torch.cat([batch.num_comparisons for batch in batches])
    assert [batch.num_users for batch in batches] == [3, 3, 1]
    assert sorted(people) == list(range(7))
    assert counts.tolist() == data.counts[people].tolist()
    assert (people.tolist() != sorted(people)) == shuffle


def test_storage_is_proportional_to_the_comparisons() -> None:
    data = ragged([1000] + [1] * 10_000)
    total = 11_000
    assert len(data.left) == len(data.right) == len(data.choice) == total
    arrays = [
        value for value in vars(data).values() if isinstance(value, np.ndarray | torch.Tensor)
    ]
    assert max(np.prod(array.shape) for array in arrays) == data.num_items == 2 * total


# Splits.


def test_split_users_is_disjoint_and_keeps_the_order() -> None:
    data = ragged([1, 4, 2, 3, 1, 2, 5, 1, 1, 1])
    train, test = data.split_users(0.3, seed=4)
    names = data.user_names.tolist()
    parts = [part.user_names.tolist() for part in (train, test)]
    assert [len(part) for part in parts] == [7, 3]
    assert sorted(parts[0] + parts[1]) == names
    assert all(part == sorted(part, key=names.index) for part in parts)
    assert sorted(comparisons(train) + comparisons(test)) == sorted(comparisons(data))


@pytest.mark.parametrize("num_context", [0, 1, 2])
def test_split_context_is_disjoint_and_complete(num_context: int) -> None:
    data = ragged([3, 6, 4])
    context, target = data.split_context(num_context, seed=2)
    assert context.counts.tolist() == [num_context] * 3
    assert list(context.user_names) == list(target.user_names) == ["p0", "p1", "p2"]
    parts = comparisons(context), comparisons(target)
    assert not set(parts[0]) & set(parts[1])
    assert sorted(parts[0] + parts[1]) == comparisons(data)


def test_split_context_draws_every_comparison_equally_often() -> None:
    contexts = [ragged([2, 5]).split_context(1, seed=seed)[0].left[1] for seed in range(500)]
    counts = np.unique_counts(contexts).counts
    assert len(counts) == 5
    assert np.abs(counts - 100).max() < 4 * np.sqrt(500 * 0.2 * 0.8)


def test_split_context_drops_people_without_target() -> None:
    with pytest.warns(UserWarning, match="2 of 4 people have no target left after 3") as record:
        context, target = ragged([3, 5, 1, 4]).split_context(3)
    assert list(context.user_names) == list(target.user_names) == ["p1", "p3"]
    assert target.counts.tolist() == [2, 1]
    assert record[0].filename == __file__


def global_state() -> tuple:
    _, keys, position, *_ = np.random.get_state()
    return random.getstate(), keys.tobytes(), position, torch.get_rng_state().numpy().tobytes()


SPLITS: dict[str, Callable[[Preferences, int], list]] = {
    "users": lambda data, seed: [comparisons(part) for part in data.split_users(seed=seed)],
    "context": lambda data, seed: [comparisons(part) for part in data.split_context(3, seed=seed)],
    "batches": lambda data, seed: [
        batch.people.tolist() for batch in data.batches(4, shuffle=True, seed=seed)
    ],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
def test_seed_decides_and_global_state_is_left_alone(split: Callable) -> None:
    data = ragged([5] * 20)
    before = global_state()
    first = split(data, 1)
    assert global_state() == before
    assert split(data, 1) == first
    assert split(data, 2) != first


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda data: data.split_context(-1),
            r"num_context must be an integer of at least 0, got -1",
        ),
        (lambda data: data.split_context(3), r"num_context=3 leaves nobody a target.* is 3"),
        (lambda data: data.split_context(0.5), r"num_context must be .*got 0.5"),
        (lambda data: data.split_users(0.0), r"test_size must lie between 0 and 1, got 0.0"),
        (lambda data: data.split_users(1.0), r"test_size must lie between 0 and 1, got 1.0"),
        (lambda data: data.split_users(3), r"test_size must lie between 0 and 1, got 3"),
        (
            lambda data: data.subset([0]).split_users(),
            r"split_users needs at least 2 people, got 1",
        ),
        (lambda data: data.subset([]), r"people must name at least one person"),
        (lambda data: data.subset([True]), r"mask must have shape \(2,\), got \(1,\)"),
        (lambda data: next(data.batches(0)), r"batch_size must be at least 1, got 0"),
        (lambda data: data.swap(np.ones(2, bool)), r"which must be Boolean with shape \(5,\)"),
        (lambda data: data.with_choices(np.full(5, 2)), r"choice must be 0, 0.5 or 1, got 2"),
    ],
)
def test_bad_requests_are_refused(call: Callable, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        call(ragged([2, 3]))


@pytest.mark.parametrize("people", [[3, 0], np.array([False, True, True, False])])
def test_subset_takes_positions_or_a_mask(people: list | np.ndarray) -> None:
    data = ragged([2, 1, 3, 2])
    chosen = ["p3", "p0"] if isinstance(people, list) else ["p1", "p2"]
    everything = comparisons(data)
    expected = [row for name in chosen for row in everything if row[0] == name]
    assert comparisons(data.subset(people)) == expected


def test_swap_exchanges_sides_and_choice() -> None:
    data = read()
    swapped = [(user, right, left, 1 - choice) for user, left, right, choice in comparisons(data)]
    assert comparisons(data.swap()) == swapped
    assert comparisons(data.swap().swap()) == comparisons(data)
    some = np.array([True, False, False, True, False])
    mixed = [
        new if flip else old
        for new, old, flip in zip(swapped, comparisons(data), some, strict=True)
    ]
    assert comparisons(data.swap(some)) == mixed


def test_with_choices_leaves_the_original_alone() -> None:
    data = read()
    before = comparisons(data)
    assert data.with_choices(np.array([0, 0, 1, 1, 0.5])).choice.tolist() == [0, 0, 1, 1, 0.5]
    assert comparisons(data) == before


# Description.


def test_summary_counts_by_hand() -> None:
    repeats = [(0, 1, 1), (1, 0, 0), (2, 3, 0.5), (3, 2, 0.5)]
    conflicts = [(0, 4, 1), (4, 0, 1), (1, 4, 0), (4, 1, 0)]
    of_another_person = [(0, 1, 0), (4, 1, 1)]
    left, right, choice = zip(*repeats, *conflicts, *of_another_person, strict=True)
    data = Preferences(left, right, choice, [0, 8, 10], num_items=7, dropped_ties=3)
    assert data.summary() == Summary(
        users=2,
        items=7,
        features=None,
        comparisons=10,
        per_user=(2, 5.0, 8),
        half_wins=2,
        dropped_ties=3,
        duplicates=2,
        contradictions=2,
        unused_items=2,
        component_sizes=(3, 2),
        lone_comparisons=10,
    )


@pytest.mark.parametrize("ties", ["drop", "half", "keep"])
def test_the_summary_counts_the_repeated_rows_that_reading_warns_of(ties: str) -> None:
    """Rows of few people and items, in either order, and answers that are ties now and then."""
    rng = np.random.default_rng(0)
    names, left = np.array(list("abc")), rng.integers(3, size=80)
    df = pd.DataFrame({"l": names[left], "r": names[(left + 1) % 3]})
    df.insert(0, "u", rng.integers(3, size=80))
    turned = rng.random(80) < 0.5
    df.loc[turned, ["l", "r"]] = df.loc[turned, ["r", "l"]].to_numpy()
    df["c"] = rng.choice([0, 0.5, 1], size=80)
    with pytest.warns(UserWarning, match="rows repeat an earlier row") as heard:
        data = Preferences.from_dataframe(df, user="u", left="l", right="r", choice="c", ties=ties)
    (text,) = (str(one.message) for one in heard if "repeat an earlier" in str(one.message))
    kept = df[df["c"] != 0.5] if ties == "drop" else df
    repeated = int(kept.duplicated().sum())
    summary = data.summary()
    assert text.startswith(f"{repeated} of 80 rows")
    assert summary.identical == repeated < summary.duplicates
    assert f"({repeated} with the items on the same sides)" in str(summary)


def test_rankings_alone_are_no_comparisons() -> None:
    data = Preferences.from_rankings([["a", "b", "c"], ["b", "a", "c"]])
    counted = dict(data.summary().rows())
    assert "comparisons" not in counted
    assert counted["rankings"].startswith("2 (")


def test_summary_tells_ties_from_half_wins() -> None:
    data = Preferences([0, 1], [1, 0], [0.5, 1], [0, 2], num_items=2, ties="keep")
    assert (data.summary().ties, data.summary().half_wins) == (1, 0)
    other = data.with_choices([0.5, 0.5], ties="half")
    assert (other.summary().ties, other.summary().half_wins) == (0, 2)
    assert other.with_choices([0, 0.5]).ties == "half"


def test_summary_prints_what_it_counts() -> None:
    lines = dict(line.split("  ", 1) for line in str(read().summary()).splitlines())
    assert {name: value.strip() for name, value in lines.items()} == {
        "people": "2",
        "items": "4 (0 never compared)",
        "features of an item": "2",
        "comparisons": "5",
        "per person": "2 to 3, median 2.5",
        "half wins": "1",
        "ties kept": "0",
        "ties dropped": "0",
        "repeated answers": "0",
        "contradicted pairs": "0",
        "connected components": "1 (sizes 4)",
    }


@pytest.mark.parametrize(("second", "shared"), [((0, 2), True), ((2, 3), False), ((2, 1), True)])
def test_items_are_shared_where_two_people_meet(second: tuple[int, int], shared: bool) -> None:
    data = Preferences([0, second[0]], [1, second[1]], [1, 0], [0, 1, 2], num_items=4)
    assert data.items_are_shared == shared


def test_digest_tells_data_apart(make_data: Callable[..., Preferences]) -> None:
    data = make_data()
    same, other_names = make_data(), make_data()
    other_names.user_names = pd.Index(list("abcde"))
    different = [
        make_data(seed=1),
        data.swap(),
        data.subset([0, 1, 2, 4]),
        data.with_choices(1 - data.choice),
        other_names,
        make_data(num_features=None),
    ]
    assert same.digest() == data.digest()
    assert len({data.digest(), *(other.digest() for other in different)}) == 7


@pytest.mark.parametrize("width", [1, 4, 11, 50])
def test_pooled_data_hold_the_same_comparisons(
    width: int, make_data: Callable[..., Preferences]
) -> None:
    data = make_data()  # 11 comparisons
    pooled = data.pooled(width)
    assert pooled.counts.sum() == 11
    assert (pooled.counts[:-1] == width).all()
    assert 1 <= pooled.counts[-1] <= width
    assert pooled.num_comparisons == 11
    assert torch.equal(pooled.items, data.items)
    for name in ("left", "right", "choice"):
        assert np.array_equal(getattr(pooled, name), getattr(data, name))


def test_components_are_labelled_from_the_largest() -> None:
    data = Preferences([0, 3, 4, 6], [1, 4, 5, 7], [1, 0, 1, 0], [0, 2, 4], num_items=9)
    assert data.components().tolist() == [1, 1, -1, 0, 0, 0, 2, 2, -1]
