"""Tables with one row a comparison: winner and loser, counts, sides, nobody named."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, fit
from fssa_bayes.baselines import HomogeneousBTL

LONG = {"left": "left", "right": "right", "choice": "y"}
CUPS = pd.DataFrame(
    [
        ("ann", "tea", "cola", 1),
        ("ann", "milk", "tea", 0),
        ("bob", "cola", "milk", 0),
        ("bob", "tea", "milk", 0),
        ("eve", "cola", "tea", 1),
        ("eve", "milk", "cola", 0),
    ],
    columns=["who", "left", "right", "y"],
)


def winners(table: pd.DataFrame) -> pd.DataFrame:
    left = table["y"] == 1
    return table.assign(
        w=table["left"].where(left, table["right"]), l=table["right"].where(left, table["left"])
    )


def rows(data: Preferences) -> list[tuple]:
    names = data.item_names.tolist()
    columns = (data.user_names[data.person].tolist(), data.left, data.right, data.choice.tolist())
    return [(who, names[a], names[b], y) for who, a, b, y in zip(*columns, strict=True)]


def estimates(data: Preferences) -> pd.Series:
    utility = HomogeneousBTL().fit(data, progress_bar=False).model.utility.mean.tolist()
    found = pd.Series(utility, index=data.item_names).sort_index()
    return found - found.mean()


# Winner and loser.


def test_winner_and_loser_make_the_comparisons_of_the_long_table() -> None:
    long = Preferences.from_dataframe(CUPS, user="who", **LONG)
    data = Preferences.from_dataframe(winners(CUPS), user="who", winner="w", loser="l")
    turned = [(who, *sorted((a, b)), y if a < b else 1 - y) for who, a, b, y in rows(long)]
    assert rows(data) == turned
    assert not data.places_are_known
    assert long.places_are_known
    np.testing.assert_allclose(estimates(data), estimates(long), atol=1e-6)


def test_which_item_is_left_does_not_tell_who_won() -> None:
    rng = np.random.default_rng(0)
    worse = rng.integers(9, size=2000)
    better = worse + rng.integers(1, 10 - worse)  # The name of the winner comes always later.
    table = pd.DataFrame({"w": better, "l": worse})
    data = Preferences.from_dataframe(table, winner="w", loser="l")
    assert (data.choice == 0).all()
    mixed = table.assign(name=0)
    names = rng.permutation(10)  # Names that are strange to merit.
    mixed = pd.DataFrame({"w": names[better], "l": names[worse]})
    share = Preferences.from_dataframe(mixed, winner="w", loser="l").choice.mean()
    expected = np.mean([names[b] < names[a] for a, b in zip(worse, better, strict=True)])
    assert share == pytest.approx(expected)


def test_winner_and_loser_with_sides_are_the_long_table_with_sides() -> None:
    side = np.array([1, -1, 0, 1, 1, 0])
    long = CUPS.assign(side=side)
    by_winner = winners(long).assign(side=np.where(long["y"] == 1, side, -side))
    data = Preferences.from_dataframe(by_winner, winner="w", loser="l", side="side")
    assert data.places_are_known
    first = Preferences.from_dataframe(long, side="side", **LONG)
    turned = first.swap(first.item_names[first.left] > first.item_names[first.right])
    assert data.side.tolist() == turned.side.tolist()
    assert data.choice.tolist() == turned.choice.tolist()


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"winner": "w"}, r"or by winner= and loser=, got winner='w'"),
        ({"left": "left", "right": "right"}, r"got left='left', right='right'"),
        (LONG | {"winner": "w", "loser": "l"}, r"got left='left', .* loser='l'"),
        ({}, "got none of them"),
        ({"winner": "w", "loser": "w"}, "winner and loser must be different columns"),
        ({"winner": "w", "loser": "nobody"}, "loser='nobody' is not a column of df"),
        (
            {"winner": "w", "loser": "l", "choice_labels": {1: "left"}},
            "choice_labels translates choice, and winner and loser have none",
        ),
        (
            LONG | {"users": pd.DataFrame({"age": [1.0]}, index=["ann"])},
            "users must be None where user=None",
        ),
        (LONG | {"side": "who"}, r"side='who' must hold 1 .* got 'ann' at row 0 \(6 such rows\)"),
    ],
)
def test_roles_that_make_no_comparison_are_refused(columns: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Preferences.from_dataframe(winners(CUPS), **columns)


# Nobody named.


def test_without_a_user_every_row_has_a_judge_of_its_own() -> None:
    data = Preferences.from_dataframe(CUPS, **LONG)
    assert data.counts.tolist() == [1] * 6
    assert data.user_names.tolist() == [0, 1, 2, 3, 4, 5]
    assert not data.people_are_named
    assert not data.subset([2, 4]).people_are_named
    named = Preferences.from_dataframe(CUPS, user="who", **LONG)
    assert [row[1:] for row in rows(data)] == [row[1:] for row in rows(named)]
    np.testing.assert_allclose(estimates(data), estimates(named), atol=1e-6)


def test_a_model_of_individuals_is_warned_of_judges_without_names() -> None:
    data = Preferences.from_dataframe(CUPS, **LONG)
    model = HeterogeneousBTL(3, 1, "linear", hidden_dim=4)
    guide = NeuralProcessGuide(model, "normal", hidden_dim=4)
    with pytest.warns(UserWarning, match=r"name no people \(user=None\)"):
        fit(model, guide, data, steps=1, progress_bar=False)


# Counts.


@pytest.mark.parametrize("user", [None, "who"])
def test_a_count_stands_for_as_many_rows(user: str | None) -> None:
    number = np.array([2, 1, 0, 3, 1, 2])
    repeated = CUPS.loc[CUPS.index.repeat(number)]
    counted = Preferences.from_dataframe(CUPS.assign(n=number), user=user, count="n", **LONG)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* rows repeat an earlier row")
        data = Preferences.from_dataframe(repeated, user=user, **LONG)
    assert counted.digest() == data.digest()
    assert counted.people_are_named == (user is not None)
    # Equal rows are merged in a fit, so that even their order makes no difference, to the bit.
    shuffled = repeated.sample(frac=1, random_state=0).sort_values("who", kind="stable")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* rows repeat an earlier row")
        other = Preferences.from_dataframe(shuffled, user=user, **LONG)
    assert estimates(counted).tolist() == estimates(data).tolist()
    np.testing.assert_allclose(estimates(other), estimates(data), atol=1e-6)


def test_ties_of_a_count_are_dropped_by_their_number() -> None:
    table = pd.DataFrame({"left": ["a", "b"], "right": ["b", "a"], "y": [0.5, 1], "n": [7, 4]})
    data = Preferences.from_dataframe(table, count="n", **LONG)
    assert (data.num_comparisons, data.dropped_ties) == (4, 7)


@pytest.mark.parametrize(
    ("number", "match"),
    [
        ([1, -2, 1, 1, 1, 1], r"count='n' must hold whole numbers from 0, got .*-2.* at row 1"),
        ([1, 1, 0.5, 1, 1, 1], r"must hold whole numbers from 0, got .*0\.5.* at row 2"),
        (["x"] * 6, r"got 'x' at row 0 \(6 such rows\)"),
        ([True] * 6, r"must hold whole numbers from 0, got .*True"),
        ([0] * 6, r"counts must add up to 1 to 200,000,000 comparisons, .* got 0"),
        ([10**9] * 6, r"got 6,000,000,000"),
    ],
)
def test_counts_that_are_none_are_refused(number: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Preferences.from_dataframe(CUPS.assign(n=number), count="n", **LONG)


# A column that says the same everywhere.


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        (1, r"left was preferred in all 12 rows: .* winner='left', loser='right' in place of"),
        ("right", r"right was preferred in all 12 rows: .* winner='right', loser='left'"),
    ],
)
def test_a_constant_choice_is_suspected_of_naming_winners(choice: object, match: str) -> None:
    table = pd.DataFrame({"left": ["a", "b", "c"] * 4, "right": ["b", "c", "a"] * 4, "y": choice})
    with pytest.warns(UserWarning, match=match):
        Preferences.from_dataframe(table, **LONG)
    Preferences.from_dataframe(table[:6], **LONG)  # A few rows may well agree.


def test_words_in_any_case_and_numbers_as_text_are_choices() -> None:
    table = CUPS.drop(columns="y")
    expected = Preferences.from_dataframe(
        table.assign(y=[1, 0, 0.5, 0, 1, 0]), user="who", ties="half", **LONG
    )
    for answers in (
        ["Left", "RIGHT", " Tie", "right ", "left", "Right"],
        ["1", "0", "0.5", "0.0", "1.0", " 0"],
    ):
        data = Preferences.from_dataframe(table.assign(y=answers), user="who", ties="half", **LONG)
        assert data.digest() == expected.digest()


def test_text_that_names_an_item_too_is_ambiguous() -> None:
    for items, answers in ((("1", "0"), ["1", "0"]), (("Left", "Right"), ["Left", "Right"])):
        table = pd.DataFrame({"left": [items[1]] * 2, "right": [items[0]] * 2, "y": answers})
        with pytest.raises(ValueError, match="choice is ambiguous"):
            Preferences.from_dataframe(table, **LONG)


def test_covariates_of_people_without_comparisons_are_left_out() -> None:
    """Their levels are no levels of the data."""
    users = pd.DataFrame({"place": list("nsnw")}, index=["ann", "bob", "eve", "zoe"])
    with pytest.warns(UserWarning, match="1 of 4 people have no comparisons .*: 'zoe'"):
        data = Preferences.from_dataframe(CUPS, user="who", users=users, **LONG)
    assert data.covariate_names.tolist() == ["place[T.s]"]
    ballots = {"ann": [("tea", "cola")], "bob": [("cola", "tea")], "eve": [("tea", "cola")]}
    with pytest.warns(UserWarning, match="1 of 4 people have no comparisons"):
        data = Preferences.from_rankings(ballots, users=users)
    assert data.covariate_names.tolist() == ["place[T.s]"]


@pytest.mark.parametrize("argument", ["user", "left", "choice", "count"])
def test_a_column_in_place_of_its_name_is_refused(argument: str) -> None:
    columns = {"user": "who", **LONG} | {argument: CUPS["y"]}
    with pytest.raises(TypeError, match=f"{argument} must be the name of a column, got Series"):
        Preferences.from_dataframe(CUPS, **columns)


def test_a_string_is_no_list_of_names() -> None:
    for users, items, argument in (("ann", ["a", "b"], "users"), (["ann"], "abc", "items")):
        with pytest.raises(TypeError, match=f"{argument} must be a list of names, got the string"):
            Preferences.empty(users, items)
    result = HomogeneousBTL().fit(CUPS.pipe(_read), progress_bar=False).result
    with pytest.raises(TypeError, match="items must be a list of names, got the string 'ab'"):
        result.ranking("ab")


def _read(table: pd.DataFrame) -> Preferences:
    return Preferences.from_dataframe(table, user="who", **LONG)
