"""Categories among features and covariates: levels, the reference level, next month's file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, fit, load, save
from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.data.readers.categories import expand_levels, recode_levels

COLUMNS = {"user": "who", "left": "l", "right": "r", "choice": "y"}
DRINKS = pd.DataFrame(
    {"price": [1.0, 2.5, 2.0, 3.0], "kind": ["hot", "cold", "cold", "milk"], "new": [1, 0, 1, 0]},
    index=["tea", "cola", "soda", "shake"],
)
PEOPLE = pd.DataFrame({"region": ["south", "north", "west", "north"]}, index=list("abcd"))


def votes(number: int = 80) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    left = rng.integers(4, size=number)
    right = (left + rng.integers(1, 4, size=number)) % 4
    names = DRINKS.index.to_numpy()
    table = {"who": np.resize(list("abcd"), number), "l": names[left], "r": names[right]}
    return pd.DataFrame(table | {"y": rng.integers(2, size=number)})


def read(items: pd.DataFrame | None = None, users: pd.DataFrame | None = None) -> Preferences:
    table = votes().drop_duplicates()
    return Preferences.from_dataframe(table, **COLUMNS, items=items, users=users)


def test_a_category_is_an_indicator_for_each_level_but_the_first() -> None:
    data = read(DRINKS)
    assert data.feature_names.tolist() == ["price", "kind[T.hot]", "kind[T.milk]", "new"]
    assert data.items.tolist() == [[1, 1, 0, 1], [2.5, 0, 0, 0], [2, 0, 0, 1], [3, 0, 1, 0]]
    assert data.feature_levels == {"kind": ("cold", "hot", "milk")}
    assert "reference levels      kind: cold" in str(data.summary())


def test_the_estimates_are_those_of_indicators_made_by_hand() -> None:
    dummies = pd.get_dummies(DRINKS["kind"], dtype=float)[["hot", "milk"]]
    by_hand = pd.concat([DRINKS[["price"]], dummies, DRINKS[["new"]]], axis=1)
    fits = [HomogeneousBTL().fit(read(items), progress_bar=False) for items in (DRINKS, by_hand)]
    means = [baseline.model.utility.mean.tolist() for baseline in fits]
    assert means[0] == means[1]


def test_declared_categories_choose_the_reference_level() -> None:
    kind = pd.Categorical(DRINKS["kind"], categories=["milk", "hot", "cold", "frozen"])
    data = read(DRINKS.assign(kind=kind))
    names = ["price", "kind[T.hot]", "kind[T.cold]", "kind[T.frozen]", "new"]
    assert data.feature_names.tolist() == names
    assert data.items[:, 3].tolist() == [0, 0, 0, 0]
    numbers = DRINKS.assign(kind=pd.Categorical([3, 1, 1, 2]))
    assert read(numbers).feature_names.tolist() == ["price", "kind[T.2]", "kind[T.3]", "new"]


@pytest.mark.parametrize("dtype", [object, "string", "str", "category"])
def test_text_is_a_category_whatever_its_type(dtype: object) -> None:
    expected, found = read(DRINKS), read(DRINKS.astype({"kind": dtype}))
    assert found.digest() == expected.digest()
    assert found.feature_levels == expected.feature_levels


def test_truth_values_stay_numbers() -> None:
    data = read(DRINKS.assign(new=[True, False, True, False], kind=[0, 1, 1, 2]).astype(object))
    assert data.feature_names.tolist() == ["price", "kind", "new"]
    assert data.items[:, 2].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("items", "match"),
    [
        (
            DRINKS.assign(kind=["hot", None, "cold", "milk"]),
            "missing categories, got one for .co",
        ),
        (
            pd.DataFrame({"text": [f"t{n}" for n in range(101)]}, index=range(101)),
            "items must have at most 100 levels .* got 101 in 'text'",
        ),
    ],
)
def test_bad_categories_are_refused(items: pd.DataFrame, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read(items)


# Another file.


def of_fit(data: Preferences) -> SimpleNamespace:
    return SimpleNamespace(
        feature_names=data.feature_names,
        feature_levels=data.feature_levels,
        covariate_names=data.covariate_names,
        covariate_levels=data.covariate_levels,
    )


def test_a_level_that_a_file_lacks_changes_no_meaning() -> None:
    whole = read(DRINKS, PEOPLE)
    assert whole.covariate_levels == {"region": ("north", "south", "west")}
    # Nobody of the north: the reference level of these people alone would be the south.
    some = votes().drop_duplicates().query("who in ['a', 'c']")
    later = Preferences.from_dataframe(some, **COLUMNS, items=DRINKS, users=PEOPLE.loc[["a", "c"]])
    assert later.covariate_names.tolist() == ["region[T.west]"]
    aligned = later.for_model(of_fit(whole))
    assert aligned.covariate_names.equals(whole.covariate_names)
    assert aligned.covariates.tolist() == [[1, 0], [0, 1]]
    assert aligned.covariate_levels == whole.covariate_levels
    few = Preferences.from_dataframe(some, **COLUMNS, items=DRINKS.iloc[[1, 0, 2, 3], ::-1])
    assert torch.equal(few.for_model(of_fit(read(DRINKS))).items, read(DRINKS).items[[1, 0, 2, 3]])


def test_a_new_level_is_named() -> None:
    later = PEOPLE.replace("west", "east")
    with pytest.raises(ValueError, match=r"unknown level 'east' of 'region': .* 'north' and"):
        read(DRINKS, later).for_model(of_fit(read(DRINKS, PEOPLE)))


def test_recoding_by_hand() -> None:
    old = {"c": ("x", "y", "z")}
    table, _ = expand_levels("t", pd.DataFrame({"a": [1.0, 2, 3, 4], "c": ["x", "y", "z", "x"]}))
    numbers = torch.tensor(table.to_numpy())
    found, names, now = recode_levels(numbers, table.columns, old, {"c": ("z", "w", "y", "x")})
    assert names.tolist() == ["a", "c[T.w]", "c[T.y]", "c[T.x]"]
    assert found.tolist() == [[1, 0, 0, 1], [2, 0, 1, 0], [3, 0, 0, 0], [4, 0, 0, 1]]
    assert now == {"c": ("z", "w", "y", "x")}
    same = recode_levels(numbers, table.columns, old, {})
    assert same[0] is numbers


def test_a_saved_model_remembers_the_levels(tmp_path: Path) -> None:
    data = read(DRINKS, PEOPLE)
    model = HeterogeneousBTL(data.num_features, 1, "linear", hidden_dim=4, num_covariates=2)
    guide = NeuralProcessGuide(model, "normal", hidden_dim=4)
    fit(model, guide, data, steps=1, progress_bar=False)
    save(tmp_path / "run", model, guide)
    model, guide = load(tmp_path / "run")
    assert model.feature_levels == {"kind": ("cold", "hot", "milk")}
    assert model.covariate_levels == {"region": ("north", "south", "west")}
    expected = Posterior(model, guide, data.subset([0]), 50, fallback=None)
    table = votes().drop_duplicates().query("who == 'a'")
    alone = Preferences.from_dataframe(table, **COLUMNS, items=DRINKS, users=PEOPLE.loc[["a"]])
    found = Posterior(model, guide, alone, 50, fallback=None)
    assert torch.equal(found.z, expected.z)
    # Features of other items are read by the same levels.
    new = pd.DataFrame({"new": [0, 1], "kind": ["milk", "milk"], "price": [1.0, 2.0]})
    coded = torch.tensor([[1.0, 0, 1, 0], [2.0, 0, 1, 1]])
    assert torch.equal(found.utility(new), found.utility(coded))
    with pytest.raises(ValueError, match="unknown level 'iced' of 'kind'"):
        found.utility(new.assign(kind="iced"))


def test_new_people_are_appended_by_the_same_levels() -> None:
    data = read(DRINKS, PEOPLE)
    more = data.append("e", "tea", "cola", 1, users=pd.DataFrame({"region": ["west"]}, ["e"]))
    assert more.covariates[-1].tolist() == [0, 1]
    with pytest.raises(ValueError, match="unknown level 'east'"):
        data.append("e", "tea", "cola", 1, users=pd.DataFrame({"region": ["east"]}, ["e"]))
    nobody = Preferences.empty(PEOPLE, DRINKS)
    assert nobody.covariate_levels == data.covariate_levels
    assert nobody.feature_levels == data.feature_levels


@pytest.mark.parametrize(
    ("prices", "of", "remedy"),
    [
        (["1", "2.5", "2", "1e1"], "numbers", "astype"),
        (["1,5", "2", "2,0", "3"], "numbers with a decimal comma", "str.replace"),
    ],
)
def test_numbers_as_text_are_pointed_out(prices: list[str], of: str, remedy: str) -> None:
    items = DRINKS.assign(price=prices)
    match = rf"items: column 'price' holds text that reads like {of} \('1.*4 categories: {remedy}"
    with pytest.warns(UserWarning, match=match):
        read(items)
    assert read(items.astype({"price": "category"})).num_features == 6  # Meant, so no warning.
