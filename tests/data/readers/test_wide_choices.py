"""Choices from sets in the wide format: the same as in the long one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import Preferences

MODES = ["train", "metro", "car"]
CODES = {"train": 1, "metro": 2, "car": 3}
TRIPS = pd.DataFrame(
    {
        "ID": [7, 7, 8, 8],
        "TRAIN_TT": [112, 103, 130, 90],
        "SM_TT": [63, 60, 67, 63],
        "CAR_TT": [117.0, 117.0, 80.0, np.nan],
        "TRAIN_CO": [48, 48, 40, 36],
        "CAR_CO": [65.0, 84.0, 52.0, np.nan],
        "CAR_AV": [1, 1, 1, 0],
        "CHOICE": [2, 1, 3, 2],
    },
    index=["r1", "r2", "r3", "r4"],
)
FEATURES = {
    "time": {"train": "TRAIN_TT", "metro": "SM_TT", "car": "CAR_TT"},
    "cost": {"train": "TRAIN_CO", "metro": 50, "car": "CAR_CO"},
    "seats": {"train": 1},
}
OPTIONS = {"user": "ID", "chosen": "CHOICE", "alternatives": CODES, "features": FEATURES}
OPTIONS |= {"available": {"car": "CAR_AV"}}
LONG = pd.DataFrame(
    [
        (7, 0, "train", 112.0, 48.0, 1.0, 0),
        (7, 0, "metro", 63.0, 50.0, 0.0, 1),
        (7, 0, "car", 117.0, 65.0, 0.0, 0),
        (7, 1, "train", 103.0, 48.0, 1.0, 1),
        (7, 1, "metro", 60.0, 50.0, 0.0, 0),
        (7, 1, "car", 117.0, 84.0, 0.0, 0),
        (8, 2, "train", 130.0, 40.0, 1.0, 0),
        (8, 2, "metro", 67.0, 50.0, 0.0, 0),
        (8, 2, "car", 80.0, 52.0, 0.0, 1),
        (8, 3, "train", 90.0, 36.0, 1.0, 0),
        (8, 3, "metro", 63.0, 50.0, 0.0, 1),
    ],
    columns=["user", "situation", "item", "time", "cost", "seats", "chosen"],
)
COLUMNS = {name: name for name in ("user", "situation", "item", "chosen")}


def read(df: pd.DataFrame = TRIPS, **options: object) -> Preferences:
    return Preferences.from_wide_choices(df, **OPTIONS | options)


@pytest.mark.parametrize("constants", [False, True])
def test_wide_is_long(constants: bool) -> None:
    names = list(FEATURES)
    long = Preferences.from_choices(LONG, **COLUMNS, features=names, constants=constants)
    assert read(constants=constants).digest() == long.digest()
    assert read(constants=constants).feature_levels == long.feature_levels


def test_names_are_codes_of_their_own_and_features_may_be_absent() -> None:
    long = Preferences.from_choices(LONG, **COLUMNS)
    named = TRIPS.assign(CHOICE=TRIPS["CHOICE"].map({code: name for name, code in CODES.items()}))
    assert read(named, alternatives=MODES, features=None).digest() == long.digest()
    numbered = TRIPS.assign(when=[5, 6, 5, 6])
    names = read(numbered, situation="when").item_names
    assert names[:4].tolist() == ["7 / 5: train", "7 / 5: metro", "7 / 5: car", "7 / 6: train"]
    alone = read(user=None)
    assert not alone.people_are_named
    assert alone.item_names[0] == "0: train"


def test_people_and_the_outside_option() -> None:
    stay = TRIPS.assign(CHOICE=[2, 0, 3, 0])
    people = pd.DataFrame({"age": [30.0, 40.0]}, index=[8, 7])
    rows = LONG.assign(chosen=LONG["chosen"] * LONG["situation"].isin([0, 2]))
    long = Preferences.from_choices(
        rows, **COLUMNS, features=list(FEATURES), outside="stay", users=people
    )
    last = CODES | {"stay": 0}
    data = read(stay, alternatives=last, outside="stay", users=people)
    assert data.digest() == long.digest()
    assert data.feature_names.tolist() == [*FEATURES, "stay"]
    assert data.covariates.tolist() == [[40.0], [30.0]]
    by_name = TRIPS.assign(CHOICE=["2", "stay", "3", "stay"])
    codes = {name: str(code) for name, code in CODES.items()}
    again = read(by_name, alternatives=codes, outside="stay", users=people)
    assert again.digest() == long.digest()
    first = read(stay, alternatives={"stay": 0} | CODES, outside="stay")
    assert first.item_names[0] == "7 / 0: stay"


def test_categories_in_several_columns() -> None:
    df = TRIPS.assign(a=list("xyxy"), b=list("yyxx"), c=list("xxyy"))
    features = {"kind": {"train": "a", "metro": "b", "car": "c"}}
    data = read(df, features=features)
    assert data.feature_levels == {"kind": ("x", "y")}
    assert data.items.T.tolist() == [[0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"chosen": "CAR_AV"}, "chosen='CAR_AV' must hold one of 1, 2, 3 .* got 0 at row r4"),
        ({"chosen": "WHICH"}, "chosen='WHICH' is not a column of df"),
        (
            {"alternatives": {"train": 1, "car": 1}},
            "alternatives must have codes of their own, got 1",
        ),
        ({"alternatives": ["train"]}, "alternatives must be at least two, got .'train'.$"),
        (
            {"features": {"time": {"bus": "SM_TT"}}},
            r"features\['time'\] must be given for alt.*'bus'",
        ),
        ({"features": {"time": {"car": "BUS_TT"}}}, r"features\['time'\]='BUS_TT' is not a column"),
        ({"available": {"car": "ID"}}, r"available\['car'\] must name a column of 1 / 0.*got 7 in"),
        ({"available": {"bus": "CAR_AV"}}, "available must be given for alternatives.*got 'bus'"),
        (
            {"available": None},
            "no missing values, got one in column 'time' at row r4, in situation 3",
        ),
        (
            {"outside": "car"},
            r"features\['time'\] must have no column for the outside option 'car'",
        ),
    ],
)
def test_errors_name_argument_and_row(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read(**change)


def test_what_is_chosen_must_be_available() -> None:
    with pytest.raises(
        ValueError, match="available, got 'car' at row r4, in situation 3 of user 8"
    ):
        read(TRIPS.assign(CHOICE=3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"alternatives": "train"}, "alternatives must be a list of names or a mapping"),
        ({"features": ["time"]}, "features must be a mapping from features to mappings"),
        (
            {"features": {"time": "SM_TT"}},
            r"features\['time'\] must be a mapping from alternatives",
        ),
        ({"available": ["CAR_AV"]}, "available must be a mapping from alternatives to columns"),
    ],
)
def test_other_types_are_refused(change: dict, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        read(**change)


def test_weights_are_told_of_by_the_columns_and_rows_that_were_given() -> None:
    trips = TRIPS.assign(stands_for=[2.0, 3.0, 1.0, 1.0])
    said = "weight='stands_for' must hold one value .*got 2 and 3 for user 7 at row r2 .1 such"
    with pytest.raises(ValueError, match=said):
        Preferences.from_wide_choices(trips, weight="stands_for", **OPTIONS)
    data = Preferences.from_wide_choices(
        trips.assign(stands_for=[2, 2, 1, 1]), weight="stands_for", **OPTIONS
    )
    assert data.weights.tolist() == [2.0, 1.0]
