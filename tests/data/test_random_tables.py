"""Random tables read by `Preferences.from_dataframe`, against a reading of their cells in Python.

What is read depends on the values alone: not on the types of columns, their order, the labels of
the rows or the columns that nobody asked for.
"""

from __future__ import annotations

import datetime
import json
import warnings
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import Preferences
from fssa_bayes.data import names_from_json, names_to_json

DAYS = [pd.Timestamp("2024-02-27") + pd.Timedelta(days=day) for day in range(5)]
ZONED = [day.tz_localize("Europe/Berlin") + pd.Timedelta(minutes=90) for day in DAYS]

# Names of each kind, and the types of columns that hold them as they are.
KINDS: dict[str, tuple[list, list[str]]] = {
    "small numbers": (
        [7, 3, 12, 40, 5],
        [
            *("int64", "Int64", "int16", "uint8", "UInt32", "float32", "float64", "Float64"),
            *("object", "category", "int64[pyarrow]", "double[pyarrow]"),
        ],
    ),
    "numbers above 2**53": (
        [2**53, 2**53 + 1, 2**53 + 2, -(2**53) - 1, 2**60 + 1],
        ["int64", "Int64", "object", "category", "int64[pyarrow]"],
    ),
    "numbers above 2**63": (
        [2**63, 2**63 + 1, 2**64 - 1, 0, 2**53 + 1],
        ["uint64", "UInt64", "object", "uint64[pyarrow]"],
    ),
    "fractions": (
        [2.5, 3.0, 0.1, -1e9, 1e300],
        ["float64", "Float64", "object", "category", "double[pyarrow]"],
    ),
    "large numbers and fractions": (
        [2**53, 0.5, 2**53 + 1, 2**53 + 2, -3.0],
        ["object"],  # pandas makes floats of them in a category.
    ),
    "text": (
        ["b", "ä", "", "10", "left or so"],
        ["object", "str", "string[python]", "string[pyarrow]", "category"],
    ),
    "Booleans": ([True, False], ["bool", "boolean", "object", "category", "bool[pyarrow]"]),
    "days": (
        DAYS,
        [
            *("datetime64[ns]", "datetime64[s]", "object", "category"),
            "timestamp[ns][pyarrow]",
        ],
    ),
    "times with a zone": (
        ZONED,
        ["datetime64[ns, Europe/Berlin]", "datetime64[us, UTC]", "object", "category"],
    ),
    "dates": ([day.date() for day in DAYS], ["object", "category", "date32[pyarrow]"]),
    "UUIDs": ([UUID(int=number**20) for number in range(5)], ["object", "category"]),
    "bytes": ([b"", b"a", b"\xff", b"1", b"b"], ["object", "category", "binary[pyarrow]"]),
    "decimals": (
        [Decimal(text) for text in ("0.1", "2.50", "3", "-1.1", "1e-30")],
        ["object", "category"],
    ),
    "a mixture": (
        ["1", 1, 2.5, datetime.date(2024, 1, 1), Decimal("0.1")],
        ["object", "category"],
    ),
}

# Codings of a choice: its three values, and the types of columns that hold them.
CHOICES: dict[str, tuple[tuple, list[str]]] = {
    "Booleans": ((True, False), ["bool", "boolean", "object", "bool[pyarrow]", "category"]),
    "numbers": ((1, 0), ["int64", "Int64", "uint8", "float32", "object", "int64[pyarrow]"]),
    "halves": ((1.0, 0.0, 0.5), ["float64", "Float64", "object", "category", "double[pyarrow]"]),
    "decimals": ((Decimal(1), Decimal(0), Decimal("0.5")), ["object", "category"]),
    "words": (("left", "right", "tie"), ["object", "str", "string[pyarrow]", "category"]),
}
COLUMNS = {"user": "who", "left": "port", "right": "starboard", "choice": "answer"}


@dataclass
class Table:
    """Holds the cells of a random table as Python values, and which types its columns may have."""

    cells: dict[str, list]
    types: dict[str, list[str]]
    outcome: list[float]
    rng: np.random.Generator

    def frame(self) -> pd.DataFrame:
        """Lays the cells out in columns of random types and order, rows labelled at random."""
        rows = len(self.outcome)
        columns = {
            name: pd.Series(cells, dtype=object).astype(self.rng.choice(self.types[name]))
            for name, cells in self.cells.items()
        }
        columns |= {"remark": [None] * rows, 0: self.rng.normal(size=rows)}
        names = list(columns)
        order = [names[place] for place in self.rng.permutation(len(names))]
        frame = pd.DataFrame(columns)[order]
        return frame.set_axis(self.rng.permutation(rows + 5)[:rows], axis=0)


def draw_table(seed: int) -> Table:
    rng = np.random.default_rng(seed)
    kinds = list(KINDS)
    people, user_types = KINDS[kinds[seed % len(kinds)]]
    items, item_types = KINDS[kinds[rng.integers(len(kinds))]]
    rows = int(rng.integers(4, 20))
    pairs = [rng.choice(len(items), 2, replace=False) for _ in range(rows)]
    codings = {name: coding for name, coding in CHOICES.items() if items != [True, False]}
    codings = codings or {"words": CHOICES["words"]}
    values, types = codings[rng.choice(list(codings))]
    # The first row is no tie, and many rows repeat an earlier one.
    answers = [0, *rng.integers(len(values), size=rows - 1)]
    repeated = [row if rng.random() < 0.7 else int(rng.integers(row + 1)) for row in range(rows)]
    outcome = [(1.0, 0.0, 0.5)[answers[row]] for row in repeated]
    cells = {
        "who": [people[rng.integers(len(people))] for _ in range(rows)],
        "port": [items[pairs[row][0]] for row in repeated],
        "starboard": [items[pairs[row][1]] for row in repeated],
        "answer": [values[answers[row]] for row in repeated],
    }
    if rng.random() < 0.3 and not isinstance(items[0], bool):
        winners = zip(outcome, cells["port"], cells["starboard"], strict=True)
        if 0.5 not in outcome:
            cells["answer"] = [left if won == 1 else right for won, left, right in winners]
            types = item_types
    types = {"who": user_types, "port": item_types, "starboard": item_types, "answer": types}
    return Table(cells, types, outcome, rng)


def read(frame: pd.DataFrame, **tables: pd.DataFrame) -> Preferences:
    with warnings.catch_warnings():
        # Repeated rows, and graphs that are not connected.
        warnings.filterwarnings("ignore", category=UserWarning)
        return Preferences.from_dataframe(frame, **COLUMNS, ties="half", **tables)


def position_of(name: object, names: list) -> int:
    return next(place for place, other in enumerate(names) if other == name)


@pytest.mark.parametrize("seed", range(80))
def test_what_is_read_is_what_the_cells_say(seed: int) -> None:
    table = draw_table(seed)
    data = read(table.frame())
    people = list(dict.fromkeys(table.cells["who"]))
    items = list(dict.fromkeys(table.cells["port"] + table.cells["starboard"]))
    assert data.user_names.tolist() == people
    assert data.item_names.tolist() == items
    rows = sorted(range(len(table.outcome)), key=lambda row: people.index(table.cells["who"][row]))
    names = data.item_names.tolist()
    assert [names[place] for place in data.left] == [table.cells["port"][row] for row in rows]
    assert [names[place] for place in data.right] == [table.cells["starboard"][row] for row in rows]
    assert data.choice.tolist() == [table.outcome[row] for row in rows]
    owner = [data.user_names.tolist()[place] for place in data.person]
    assert owner == [table.cells["who"][row] for row in rows]
    # The same cells in columns of other types are the same data.
    again = read(table.frame())
    for one, other in (
        (data.user_names, again.user_names),
        (data.item_names, again.item_names),
    ):
        assert one.equals(other)
        assert one.dtype == other.dtype
        assert list(map(type, one)) == list(map(type, other))
        back = names_from_json("names", json.loads(json.dumps(names_to_json(one))))
        assert back.equals(one)
        assert back.dtype == one.dtype
    assert data.digest() == again.digest()


@pytest.mark.parametrize("seed", range(0, 80, 2))
def test_tables_of_features_and_covariates_are_found_by_value(seed: int) -> None:
    table = draw_table(seed)
    rng = table.rng
    people = list(dict.fromkeys(table.cells["who"]))
    items = list(dict.fromkeys(table.cells["port"] + table.cells["starboard"]))
    tables, values = {}, {}
    for argument, names, column in (("items", items, "port"), ("users", people, "who")):
        order = rng.permutation(len(names))
        index = pd.Series([names[place] for place in order], dtype=object)
        index = pd.Index(index.astype(rng.choice(table.types[column])))
        values[argument] = {names[place]: [rng.normal(), float(place)] for place in order}
        tables[argument] = pd.DataFrame(list(values[argument].values()), index=index)
    data = read(table.frame(), **tables)
    expected = [values["items"][name] for name in tables["items"].index.tolist()]
    np.testing.assert_allclose(data.items, expected, rtol=1e-6)
    np.testing.assert_allclose(
        data.covariates, [values["users"][name] for name in people], rtol=1e-6
    )
    names = data.item_names.tolist()
    rows = sorted(range(len(table.outcome)), key=lambda row: people.index(table.cells["who"][row]))
    assert [names[place] for place in data.left] == [table.cells["port"][row] for row in rows]


@pytest.mark.parametrize("seed", range(0, 80, 4))
def test_a_missing_cell_is_named_by_column_and_row(seed: int) -> None:
    table = draw_table(seed)
    frame = table.frame()
    argument = table.rng.choice(list(COLUMNS))
    column, row = COLUMNS[argument], int(table.rng.integers(len(frame)))
    holes = frame[column].convert_dtypes() if frame[column].dtype.kind in "iub" else frame[column]
    holes = holes.astype(object) if table.rng.random() < 0.5 else holes.copy()
    holes.iloc[row] = None
    frame[column] = holes
    label = frame.index[row]
    message = rf"{argument}='{column}' must have no missing values, got 1, .* row {label};"
    with pytest.raises(ValueError, match=message):
        read(frame)
