"""Answers appended one by one make the data that are read at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import Preferences

DRINKS = ["tea", "cola", "milk", "water"]
TABLE = pd.DataFrame(
    {
        "u": ["ann", "bob", "ann", "eve", "bob", "ann"],
        "l": ["tea", "milk", "cola", "water", "tea", "milk"],
        "r": ["cola", "tea", "milk", "tea", "water", "water"],
        "c": ["left", "tie", "right", "right", "left", "left"],
    }
)
COLUMNS = {"user": "u", "left": "l", "right": "r", "choice": "c"}
FEATURES = pd.DataFrame({"sugar": [0.0, 10.0, 5.0, 0.0]}, index=DRINKS)
PEOPLE = pd.DataFrame({"age": [30.0, 40.0, 50.0], "rural": [1, 0, 1]}, index=["ann", "bob", "eve"])


@pytest.mark.parametrize("ties", ["half", "keep"])
@pytest.mark.parametrize("featured", [True, False])
def test_answers_one_by_one_make_the_table(featured: bool, ties: str) -> None:
    data = Preferences.empty(PEOPLE, FEATURES if featured else DRINKS, ties=ties)
    assert data.counts.tolist() == [0, 0, 0]
    before = data.digest()
    grown = data
    for row in TABLE.itertuples():
        grown = grown.append(row.u, row.l, row.r, row.c)
    items = FEATURES if featured else None
    read = Preferences.from_dataframe(TABLE, **COLUMNS, items=items, users=PEOPLE, ties=ties)
    if not featured:
        read = read.select_items(DRINKS)
    assert grown.digest() == read.digest()
    assert grown.ties == read.ties == ties
    assert data.digest() == before
    at_once = data.append(TABLE["u"], TABLE["l"], list(TABLE["r"]), TABLE["c"].to_numpy())
    assert at_once.digest() == read.digest()


def test_new_people_follow_the_others() -> None:
    data = Preferences.empty(["ann"], DRINKS)
    grown = data.append("bob", "tea", "cola", 1).append("ann", ["tea", "milk"], "cola", [True, 0.5])
    assert grown.user_names.tolist() == ["ann", "bob"]
    assert grown.counts.tolist() == [2, 1]
    assert grown.choice.tolist() == [1, 0.5, 1]
    assert grown.left.tolist() == [0, 2, 0]
    assert grown.append("ann", "milk", "tea", "milk").choice.tolist() == [1, 0.5, 1, 1]


def test_covariates_of_new_people_are_found_by_name() -> None:
    data = Preferences.empty(PEOPLE.loc[["ann"]], DRINKS)
    assert data.covariates.tolist() == [[30.0, 1.0]]
    turned = PEOPLE.loc[["eve", "bob"], ["rural", "age"]].assign(shoe=43)
    grown = data.append(["bob", "eve"], "tea", "cola", [1, 0], users=turned)
    assert grown.covariates.tolist() == [[30.0, 1.0], [40.0, 0.0], [50.0, 1.0]]
    assert torch.equal(grown.append("bob", "tea", "milk", 1).covariates, grown.covariates)
    other = Preferences.empty(["ann"], DRINKS)
    for refused, match in (
        (lambda: data.append("bob", "tea", "cola", 1), r"\['age', 'rural'\] of new people.*'bob'"),
        (
            lambda: data.append("bob", "tea", "cola", 1, users=turned[["age"]]),
            r"users must have the covariates of the other people, .* without \['rural'\]",
        ),
        (
            lambda: data.append("dan", "tea", "cola", 1, users=turned),
            "users must have a row for every person, got none for 'dan'",
        ),
        (lambda: other.append("bob", "tea", "cola", 1, users=turned), "users must be None"),
    ):
        with pytest.raises(ValueError, match=match):
            refused()


def test_rankings_one_by_one_make_the_rankings_read_at_once() -> None:
    ballots = {"ann": [("tea", "milk", "cola"), ("cola", "tea")], "bob": [("milk", "tea", "cola")]}
    read = Preferences.from_rankings(ballots, choice_set=["tea", "cola", "milk"])
    grown = Preferences.empty(["ann"], ["tea", "cola", "milk"])
    everything = ["tea", "cola", "milk"]
    for user, ranking in (("bob", 0), ("ann", 0), ("ann", 1)):
        grown = grown.append_ranking(user, ballots[user][ranking], choice_set=everything)
    assert grown.digest() == read.digest()
    assert np.array_equal(grown.ranking, read.ranking)
    # Comparisons among rankings, and a ranking of two among comparisons.
    mixed = grown.append("ann", "tea", "cola", 0).append("bob", "tea", "cola", 0)
    assert mixed.judgement_counts.tolist() == [3, 2]
    assert mixed.judgements.inside.tolist() == [True] * 4 + [False] + [True] * 2 + [False]
    plain = Preferences.empty(["ann"], DRINKS).append_ranking("ann", ["milk", "tea"])
    assert not plain.has_rankings
    assert plain.ranking is None
    assert (plain.left.tolist(), plain.choice.tolist()) == ([0], [0])


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (("ann", "tea", "beer", 1), r"items must be among .*'tea', 'cola'.*got \['beer'\]"),
        (("ann", "tea", "tea", 1), "an item cannot be compared with itself"),
        (("ann", "tea", "cola", "milk"), "choice must be 1 / 0 / 0.5"),
        (("ann", ["tea", "milk"], ["cola"], 1), "of one length, got left 2, right 1"),
        ((None, "tea", "cola", 1), "user='user' must have no missing values"),
    ],
)
def test_answers_that_mean_nothing_are_refused(answer: tuple, match: str) -> None:
    data = Preferences.empty(["ann"], DRINKS)
    with pytest.raises(ValueError, match=match):
        data.append(*answer)
    with pytest.raises(ValueError, match=r"got \['beer'\]"):
        data.append_ranking("ann", ["tea", "beer"])


def test_nobody_and_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Preferences.empty([], DRINKS)
    with pytest.raises(ValueError, match="user_names must be unique"):
        Preferences.empty(["ann", "ann"], DRINKS)
    with pytest.raises(ValueError, match="items must be finite"):
        Preferences.empty(["ann"], FEATURES.replace(10.0, np.nan))


def test_the_side_of_an_answer() -> None:
    plain = Preferences.empty(["ann"], ["tea", "cola"]).append("ann", "tea", "cola", 1)
    assert plain.side is None
    away = plain.append("ann", "cola", "tea", 0, side=-1)
    assert away.side.tolist() == [1, -1]
    assert away.append("ann", "tea", "cola", "tea").side.tolist() == [1, -1, 1]
    both = away.append("bob", ["tea", "cola"], ["cola", "tea"], "tea", side=[0, 1])
    assert both.side.tolist() == [1, -1, 0, 1]
    table = pd.DataFrame({"w": ["tea"], "l": ["cola"]})
    unknown = Preferences.from_dataframe(table, winner="w", loser="l")
    assert np.isnan(unknown.append(1, "tea", "cola", 1).side).all()
    with pytest.raises(ValueError, match=r"side must be 1 .* got 2\.0"):
        plain.append("ann", "cola", "tea", 0, side=2)
