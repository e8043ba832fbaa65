"""Data in the terms of a model, and about some items: by name, without a change of the choices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import Preferences
from fssa_bayes.data.alignment import find_columns
from fssa_bayes.kernels.plackett_luce import Rankings

DRINKS = ["tea", "cola", "milk", "water", "juice"]


def fitted(features, covariates=None) -> SimpleNamespace:
    """What a model remembers of its fit."""
    names = None if covariates is None else pd.Index(covariates)
    levels = {"feature_levels": {}, "covariate_levels": {}}
    return SimpleNamespace(feature_names=pd.Index(features), covariate_names=names, **levels)


def votes(*rows: tuple) -> Preferences:
    """Reads rows of person, left, right and choice; the items need not be connected."""
    people = list(dict.fromkeys(row[0] for row in rows))
    items = list(dict.fromkeys(name for row in rows for name in row[1:3]))
    rows = sorted(rows, key=lambda row: people.index(row[0]))
    return Preferences(
        np.array([items.index(row[1]) for row in rows]),
        np.array([items.index(row[2]) for row in rows]),
        [row[3] for row in rows],
        np.cumsum([0, *(sum(row[0] == name for row in rows) for name in people)]),
        num_items=len(items),
        item_names=items,
        user_names=people,
    )


def named(data: Preferences) -> list[tuple]:
    """Lists person, left, right and choice by name."""
    names = data.item_names
    return list(
        zip(
            *(data.user_names[data.person], names[data.left], names[data.right], data.choice),
            strict=True,
        )
    )


ROWS = [("ann", "milk", "tea", 1), ("bob", "cola", "milk", 0), ("ann", "cola", "milk", 1)]


def test_items_are_those_of_the_model() -> None:
    data = votes(*ROWS)
    aligned = data.for_model(fitted(DRINKS))
    assert aligned.item_names.tolist() == aligned.feature_names.tolist() == DRINKS
    assert aligned.num_items == aligned.num_features == 5
    assert aligned.left.tolist() == [2, 1, 1]
    assert aligned.right.tolist() == [0, 2, 2]
    assert aligned.left.dtype == data.left.dtype
    assert named(aligned) == named(data)


def test_data_that_agree_are_the_same_object() -> None:
    data = votes(*ROWS)
    assert data.for_model(fitted(data.item_names)) is data
    assert data.for_model(fitted(["milk", "tea", "cola"], ["age"])) is data
    never = SimpleNamespace(feature_names=None, covariate_names=None)
    assert data.for_model(never) is data
    aligned = data.for_model(fitted(DRINKS))
    assert aligned.for_model(fitted(DRINKS)) is aligned


def test_unknown_items_are_named_with_the_remedy() -> None:
    data = votes(*ROWS, ("bob", "tea", "beer", 0), ("eve", "wine", "beer", 1))
    model = fitted(DRINKS)
    with pytest.raises(ValueError, match=r"got \['beer', 'wine'\] in 2 of 5 comparisons") as error:
        data.for_model(model)
    assert "fit again with them" in str(error.value)
    assert "data.select_items(model.feature_names)" in str(error.value)
    left = data.select_items(model.feature_names)
    assert named(left) == named(votes(*ROWS))
    assert left.user_names.tolist() == ["ann", "bob", "eve"]
    assert left.counts.tolist() == [2, 1, 0]
    assert left.for_model(model) is left
    # Names that nobody compared do no harm.
    assert named(data.subset([0]).for_model(model)) == named(votes(*ROWS).subset([0]))


def test_numbers_of_items_are_names_too() -> None:
    data = Preferences([0, 2], [1, 1], [1, 0], [0, 2], num_items=3)
    aligned = data.for_model(fitted([4, 2, 1, 0]))
    assert aligned.left.tolist() == [3, 1]
    assert aligned.right.tolist() == [2, 2]


def featured(columns: list[str]) -> Preferences:
    values = {"price": [3.0, 1.0, 2.0], "size": [7.0, 8.0, 9.0], "weight": [0.5, 0.6, 0.7]}
    return Preferences(
        *([0, 1], [1, 2], [1, 0], [0, 1, 2]),
        items=np.stack([values[name] for name in columns], -1),
        feature_names=columns,
        covariates=[[30.0, 1.0], [40.0, 0.0]],
        covariate_names=["age", "rural"],
    )


def test_features_and_covariates_are_those_of_the_model() -> None:
    whole = featured(["size", "weight", "price"])
    aligned = whole.for_model(fitted(["price", "size"], ["rural", "age"]))
    expected = featured(["price", "size"])
    assert torch.equal(aligned.items, expected.items)
    assert aligned.feature_names.tolist() == ["price", "size"]
    assert aligned.covariates.tolist() == [[1.0, 30.0], [0.0, 40.0]]
    assert aligned.covariate_names.tolist() == ["rural", "age"]
    assert whole.for_model(fitted(["size", "weight", "price"], ["age", "rural"])) is whole
    few = whole.for_model(fitted(["weight"], ["age"]))
    assert few.covariates.tolist() == [[30.0], [40.0]]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (fitted(["price", "taste"]), r"have the features .*'price', 'taste'\], got .*\['taste'\]"),
        (fitted(["price"], ["age", "sex"]), r"have the covariates .*got .* without \['sex'\]"),
    ],
)
def test_missing_columns_are_named(model: SimpleNamespace, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        featured(["price", "size"]).for_model(model)


def test_columns_without_names_are_never_left_out() -> None:
    names = pd.Index(["x", "y"])
    assert find_columns("", pd.RangeIndex(3), pd.RangeIndex(2)) is None
    assert find_columns("", pd.RangeIndex(2), pd.Index([0, 1])) is None
    assert find_columns("", pd.Index([0, 1, 2]), pd.Index([2, 0])).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"rule, \['x', 'y'\], got \[0, 1\] without \['x', 'y'\]"):
        find_columns("rule", pd.RangeIndex(2), names)


def test_selected_items_make_the_table_in_their_order() -> None:
    data = featured(["price", "size"])
    chosen = data.select_items([2, 1])
    assert chosen.items.tolist() == [[2.0, 9.0], [1.0, 8.0]]
    assert named(chosen) == named(data)[1:]
    assert chosen.counts.tolist() == [0, 1]
    assert torch.equal(chosen.covariates, data.covariates)
    for items, match in (
        (["beer"], r"items must be known names, got \['beer'\]"),
        ([0, 0], "items must be unique"),
        ([0, 2], r"items must leave a comparison, got \[0, 2\]"),
    ):
        with pytest.raises(ValueError, match=match):
            data.select_items(items)


def test_rankings_of_fewer_items() -> None:
    """By Plackett and Luce a ranking without an item is a ranking of the others."""
    ballots = {
        "ann": [("tea", "milk", "cola", "water"), ("milk", "water")],
        "bob": [("water", "tea")],  # Of all five: nothing is known of the three others.
        "eve": [("cola", "milk", "tea", "juice", "water")],
    }
    data = Preferences.from_rankings(ballots, choice_set=sorted(DRINKS))
    fewer = {
        "ann": [("milk", "cola"), ("milk",)],
        "eve": [("cola", "milk", "juice")],
    }
    kept = ["cola", "juice", "milk"]
    expected = Preferences.from_rankings(fewer, choice_set=kept)
    chosen = data.select_items(kept)
    assert chosen.counts.tolist() == [4, 0, 2]
    assert named(chosen) == named(expected)
    assert np.array_equal(chosen.ranking, expected.ranking)
    pair = data.select_items(["cola", "milk"])
    assert not pair.has_rankings
    assert named(pair) == [(u, "cola", "milk", c) for u, c in [("ann", 0), ("ann", 0), ("eve", 1)]]


def test_rankings_in_another_order_of_items_are_the_same_rankings() -> None:
    data = Preferences.from_rankings([("tea", "milk", "cola"), ("milk", "cola", "tea")])
    turned = data.for_model(fitted(DRINKS[::-1]))
    assert np.array_equal(turned.ranking, data.ranking)
    batch = turned.batch()
    assert isinstance(batch.rankings, Rankings)
    assert batch.items.tolist() == [2, 3, 4]
