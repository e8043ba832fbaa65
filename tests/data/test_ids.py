"""Names: plain values whatever the type of a column, compared as Python compares values."""

from __future__ import annotations

import datetime
import enum
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import Preferences
from fssa_bayes.data import (
    canonical_names,
    explain_unknown,
    factorise_names,
    find_names,
    names_from_json,
    names_to_json,
)
from fssa_bayes.data.ids import tell_objects_apart

NOON = pd.Timestamp("2024-02-29 12:00")


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("names", "plain", "dtype"),
    [
        (pd.array([2, 1], dtype="Int64"), [2, 1], np.int64),
        (pd.Series([1.0, 2.0]), [1, 2], np.int64),
        ([1, 2.5], [1.0, 2.5], np.float64),
        (np.array([2**63, 1], dtype=np.uint64), [2**63, 1], object),
        (np.array([5, 1], dtype=np.uint64), [5, 1], np.int64),
        ([2**53 + 1, 0.5], [2**53 + 1, 0.5], object),
        ([True, 2], [1, 2], np.int64),
        ([np.True_, False], [True, False], bool),
        (["a", 1.0], ["a", 1], object),
        ([np.str_("a"), Colour.RED], ["a", "red"], pd.Index(["a"]).dtype),
        ([Decimal("1.0"), Decimal("0.5")], [1.0, 0.5], np.float64),
        ([NOON.tz_localize("UTC").tz_convert("Asia/Tokyo")], [NOON.tz_localize("UTC")], object),
        (np.array(["2024-02-29"], dtype="datetime64[D]"), [pd.Timestamp("2024-02-29")], object),
        ([datetime.date(2024, 2, 29)], [datetime.date(2024, 2, 29)], object),
        (pd.RangeIndex(3), [0, 1, 2], np.int64),
        ([], [], object),
    ],
)
def test_names_have_one_form(names: Any, plain: list, dtype: Any) -> None:
    index = canonical_names("names", names)
    assert index.tolist() == plain
    assert list(map(type, index.tolist())) == list(map(type, plain))
    assert index.dtype == dtype
    assert canonical_names("names", index).equals(index)
    assert names_from_json("names", names_to_json(index)).equals(index)


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        (
            ("a", 1),
            TypeError,
            r"must be text, numbers.*got \('a', 1\) of type tuple.*astype\(str\)",
        ),
        (pd.Interval(0, 1), TypeError, "got Interval.* of type Interval"),
        (pd.Timedelta("1h"), TypeError, "of type Timedelta"),
        (np.timedelta64(1, "h"), TypeError, "of type timedelta64"),
        (pd.Period("2024-01"), TypeError, "of type Period"),
        (1j, TypeError, "of type complex"),
        (None, ValueError, "no missing names, got None"),
        (np.nan, ValueError, "got nan"),
        (pd.NaT, ValueError, "no missing names, got NaT"),
        (pd.NA, ValueError, "no missing names"),
        (-np.inf, ValueError, "must have finite numbers as names, got -inf"),
        (Decimal("NaN"), ValueError, "must have finite numbers"),
        ("a\0", ValueError, r"that UTF-8 can hold, without NUL characters, got 'a\\x00'"),
        ("\ud800", ValueError, r"that UTF-8 can hold, .* got '\\ud800'"),
    ],
)
def test_what_is_no_name_is_refused(name: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        canonical_names("the index of items", [name, "b"])
    with pytest.raises(error, match="the index of items"):
        canonical_names("the index of items", pd.Index([name], dtype=object, tupleize_cols=False))


def test_names_without_a_hash_are_refused() -> None:
    with pytest.raises(TypeError, match=r"user='who' must hold names.*unhashable type: 'list'"):
        factorise_names("user='who'", pd.Series([["a"], ["b"]]))


def test_a_column_names_a_value_once_whatever_its_type() -> None:
    column = pd.Series([NOON, np.datetime64(NOON), 1, 1.0, True, np.int8(1), "1"], dtype=object)
    code, names = factorise_names("names", column)
    assert code.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert names.tolist() == [NOON, 1, "1"]


def test_numbers_of_two_types_are_not_compared_as_floats() -> None:
    names = canonical_names("names", [2**53, 2**53 + 1, 0.5])
    wanted = canonical_names("names", np.array([2.0**53, 0.5]))
    assert find_names(wanted, names).tolist() == [0, 2]
    assert find_names(names, wanted).tolist() == [0, -1, 1]
    assert find_names(pd.Index(["1"]), pd.Index([1])).tolist() == [-1]


# As columns of comparisons.


def test_items_beyond_double_precision_stay_apart() -> None:
    """A column of integers on the left and one of floats on the right."""
    df = pd.DataFrame(
        {
            "user": ["u", "v", "v"],
            "left": [2**53 + 1, 2**53 + 1, 2**53 + 3],
            "right": [2.0**53, 4.5, 2.0**53],
            "choice": pd.Series([2**53, 2**53 + 1, 2**53], dtype=object),
        }
    )
    columns = {name: name for name in df}
    for table, choice in (
        (df, [0, 1, 0]),
        (df.astype({"left": "Int64"}), [0, 1, 0]),
        (df.assign(choice=df["right"]), [0, 0, 0]),
    ):
        data = Preferences.from_dataframe(table, **columns)
        assert data.item_names.tolist() == [2**53 + 1, 2**53 + 3, 2**53, 4.5]
        assert data.choice.tolist() == choice


def test_boolean_people_have_covariates() -> None:
    df = pd.DataFrame(
        {"u": [True, False, True], "l": list("abc"), "r": list("bca"), "c": [1, 0, 1]}
    )
    users = pd.DataFrame({"age": [20.0, 30.0]}, index=[False, True])
    for dtype in ("bool", "boolean", "object", "category"):
        data = Preferences.from_dataframe(
            df.astype({"u": dtype}), user="u", left="l", right="r", choice="c", users=users
        )
        assert data.user_names.tolist() == [True, False]
        assert data.covariates.flatten().tolist() == [30, 20]
        assert data.subset([1]).user_names.tolist() == [False]


def test_a_name_of_another_type_that_reads_alike_is_pointed_out() -> None:
    df = pd.DataFrame({"u": ["x", "y"], "l": ["1", "2"], "r": ["2", "1"], "c": [1, 0]})
    items = pd.DataFrame({"size": [3.0, 4.0]}, index=[1, 2])
    columns = {"user": "u", "left": "l", "right": "r", "choice": "c"}
    match = "unknown item '1' in column 'l'.* 1 of type int is another name than '1' of type str"
    with pytest.raises(ValueError, match=match):
        Preferences.from_dataframe(df, **columns, items=items)
    users = pd.DataFrame({"age": [1.0, 2.0]}, index=["x", "y"])
    with pytest.raises(ValueError, match="none for 7 .*'7' of type str is another name"):
        Preferences.from_dataframe(
            df.assign(u=[7, 8]), **columns, users=users.set_axis(["7", "8"], axis=0)
        )
    assert explain_unknown("a", pd.Index(["b", "c"])) == ""


def test_rankings_name_their_items_by_value() -> None:
    lists = {7: [[2**53 + 1, 2.0**53, 0.5]], Decimal(8): [[0.5, 2**53 + 1]]}
    data = Preferences.from_rankings(lists, choice_set=[2**53, Decimal("0.5"), 2**53 + 1])
    assert data.user_names.tolist() == [7, 8]
    assert data.item_names.tolist() == [2**53, 0.5, 2**53 + 1]
    df = pd.DataFrame(
        {"who": [7, 7, 7, 8, 8], "what": [2**53 + 1, 2**53, 0.5, 0.5, 2**53 + 1],
         "place": [1, 2, 3, 1, 2]}, dtype=object,
    ).astype({"who": "Int64", "place": "Int64"})  # fmt: skip
    table = Preferences.from_rankings(df, user="who", item="what", rank="place",
                                      choice_set=data.item_names)  # fmt: skip
    assert table.digest() == data.digest()


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([3, "3"], "3 of type int and '3' of type str"),
        (
            [datetime.date(2024, 1, 2), pd.Timestamp("2024-01-02")],
            r"datetime.date\(2024, 1, 2\) of type date and Timestamp\(.* of type Timestamp",
        ),
    ],
)
def test_names_that_read_alike_are_pointed_out(names: list, shown: str) -> None:
    columns = {"user": "u", "left": "l", "right": "r", "choice": "c"}
    other = pd.Series(["x", "x"], dtype=object)
    odd = pd.Series(names, dtype=object)
    for what, people, items in (("items", other, odd), ("people", odd, other)):
        df = pd.DataFrame({"u": people, "l": items, "r": "z", "c": [1, 0]})
        with pytest.warns(UserWarning, match=f"names of {what} of different types .*: {shown}"):
            Preferences.from_dataframe(df, **columns)
    assert "is another name" in explain_unknown(names[0], canonical_names("n", names[1:]))


def test_equal_texts_in_different_places_of_memory_are_one_name() -> None:
    texts = ["".join(["a", "b"]) for _ in range(3)] + ["c"]
    column = pd.Series([texts[0], texts[3], texts[1], texts[0], texts[2]], dtype=object)
    place, first = tell_objects_apart(column.to_numpy())
    assert (place.tolist(), first.tolist()) == ([0, 1, 2, 0, 3], [0, 1, 2, 4])
    for rows in (column, column[1:], column[::-2]):  # In the second no row shares an object.
        code, names = factorise_names("names", rows)
        expected = list(dict.fromkeys(rows))
        assert names.tolist() == expected
        assert code.tolist() == [expected.index(text) for text in rows]
