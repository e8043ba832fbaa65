"""Choices are read once for each value, and mean the same in every row that has it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.outcomes import decode_choices

COLUMNS = {name: name for name in ("left", "right", "choice")}


def decode(left: list, right: list, choice: object, **options: object) -> list:
    df = pd.DataFrame({"left": pd.Series(left), "right": pd.Series(right), "choice": choice})
    return decode_choices(Columns(df), COLUMNS, options.get("labels")).tolist()


def test_the_same_name_is_the_left_item_here_and_the_right_item_there() -> None:
    choice = pd.Series(["a", "a", "TIE ", "c"])
    for column in (choice, choice.astype(object), choice.astype("category")):
        assert decode(["a", "b", "a", "c"], ["b", "a", "c", "a"], column) == [1, 0, 0.5, 1]


def test_true_is_left_and_no_name_of_an_item_in_a_column_with_numbers() -> None:
    """As a name, 1 would be the right item: rows of True say that numbers are meant."""
    choice = pd.Series([True, 1, 0, False], dtype=object)
    assert decode([2, 3, 3, 0], [1, 2, 1, 1], choice) == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="choice is ambiguous: 1 at row 1"):
        decode([1, 0], [0, 1], pd.Series([1, 1], dtype=object))


def test_what_has_no_meaning_is_told_by_its_row() -> None:
    for choice in (pd.Series([1, 0.25]), pd.Series([1, [2]], dtype=object), pd.Series([1, 1e300])):
        with pytest.raises(ValueError, match="choice must be .* at row 1"):
            decode(["a", "b"], ["b", "a"], choice)


def test_labels_are_translated_by_value() -> None:
    labels = {1: "right", "x": "tie", 2.5: "left"}
    choice = pd.Series([1.0, "x", 2.5, True], dtype=object)
    assert decode(list("aaaa"), list("bbbb"), choice, labels=labels) == [0, 0.5, 1, 0]
    with pytest.raises(ValueError, match=r"no translation for 'y' at row 1 \(2 such rows\)"):
        decode(list("aaa"), list("bbb"), pd.Series(["x", "y", "y"]), labels=labels)


def test_columns_are_read_once() -> None:
    table = Columns(pd.DataFrame({"left": ["b", "a", "b"]}))
    code, names = table.names("left", "left")
    assert (code.tolist(), names.tolist()) == ([0, 1, 0], ["b", "a"])
    assert table.names("left", "left")[0] is code
    np.testing.assert_array_equal(table.df["left"], ["b", "a", "b"])
