"""The comparisons of whole people, read from an Arrow table whose rows lie in any order.

What is wrong with a person's rows is a reason that is told of this person; what is wrong with the
table, such as a missing column, is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fssa_bayes.data import explain_unknown, find_values
from fssa_bayes.scale.choices import read_choices

__all__ = ["ColumnNames", "People", "check_columns", "read_people", "user_type"]

_FINE, _BLANK, _TIE, _CELL, _UNKNOWN, _SELF, _CHOICE = range(7)
_NOTHING = "nothing is known: no comparison is left"


@dataclass(frozen=True)
class ColumnNames:
    """Names the columns of a table of comparisons.

    Attributes:
        user: Column that names the person: text or whole numbers.
        left: Column that names the left item.
        right: Column that names the right item.
        choice: Column with the answer: 1 / 0 / 0.5, Booleans (True: left), the words "left" /
            "right" / "tie" in any case, or the name of the preferred item (and "tie").
    """

    user: str = "user"
    left: str = "left"
    right: str = "right"
    choice: str = "choice"

    @property
    def all(self) -> list[str]:
        """The four names, the person's first."""
        return [self.user, self.left, self.right, self.choice]


@dataclass(frozen=True)
class People:
    """Holds the comparisons of people, in an order that does not depend on that of the rows.

    Attributes:
        names: Names of the people whose comparisons can be scored, in order, (U,).
        offsets: Person u owns comparisons `offsets[u]` to `offsets[u + 1] - 1`; shape (U + 1,).
        left: Position of each comparison's left item, with shape (R,).
        right: The same for the right item.
        choice: 1, 0 or ½, with shape (R,).
        failed: Names of the people who cannot be scored, in order; None for rows without a name.
        reasons: Why, for each of them.
    """

    names: list
    offsets: np.ndarray
    left: np.ndarray
    right: np.ndarray
    choice: np.ndarray
    failed: list
    reasons: list[str]

    def rows(self, people: slice) -> slice:
        """Returns the comparisons of some people."""
        return slice(self.offsets[people.start], self.offsets[people.stop])


def check_columns(schema: pa.Schema, columns: ColumnNames, where: str = "table") -> None:
    """Raises a ValueError unless a table has the columns, with names of people that can be told.

    Args:
        schema: Names and types of the table's columns.
        columns: The columns that are needed.
        where: What the table is called in messages.
    """
    if len(set(columns.all)) < 4:
        raise ValueError(f"user, left, right and choice must be four columns, got {columns.all}")
    for argument, column in zip(("user", "left", "right", "choice"), columns.all, strict=True):
        found = schema.names.count(column)
        if found != 1:
            reason = "is not a column" if not found else f"is the name of {found} columns"
            raise ValueError(
                f"{argument}={column!r} {reason} of {where}; its columns are {schema.names}"
            )
        kind = schema.field(column).type
        if pa.types.is_nested(kind):
            raise ValueError(
                f"{argument}={column!r} must hold text or numbers, got the type {kind}"
            )
    user_type(schema.field(columns.user).type, columns.user)


def user_type(kind: pa.DataType, column: str) -> pa.DataType:
    """Returns the type in which people are named, text or whole numbers of 64 bits.

    Raises:
        ValueError: If the column has another type.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    raise ValueError(
        f"user={column!r} must hold text or whole numbers below 2**63, got the type {kind}: cast "
        "the column to text"
    )


def read_people(table: pa.Table, columns: ColumnNames, items: pd.Index, ties: str) -> People:
    """Reads comparisons, people in the order of their names, and comparisons in a fixed order.

    Choices are read as `Preferences.from_dataframe` would read the rows of each person alone.

    Args:
        table: The comparisons, all rows of a person among them.
        columns: The columns.
        items: Names of the items that the model knows.
        ties: `"drop"` leaves ties out, `"half"` and `"keep"` hold them as ½.
    """
    check_columns(table.schema, columns)
    kind = user_type(table.schema.field(columns.user).type, columns.user)
    person, names = _find_distinct(table[columns.user].cast(kind))
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.arange(len(names)), -1  # Rows without a name have the person −1.
    person, names = rank[person], [names[place] for place in order]
    left, left_names, left_code = _find_items(table[columns.left], items)
    right, right_names, right_code = _find_items(table[columns.right], items)
    answer, answers = _find_distinct(table[columns.choice])
    given = answer >= 0
    if pa.types.is_floating(table[columns.choice].type):  # NaN is a missing number, as in pandas.
        given &= ~pc.is_nan(table[columns.choice]).fill_null(False).to_numpy()

    blank = np.stack([left_code < 0, right_code < 0, ~given])
    status = np.full(table.num_rows, _FINE, dtype=np.int8)
    status[left == right] = _SELF
    status[(left < 0) | (right < 0)] = _UNKNOWN
    status[blank.any(0)] = _CELL
    status[blank.all(0)] = _BLANK
    rows = np.flatnonzero((status == _FINE) & (person >= 0))
    choice = np.full(table.num_rows, np.nan)
    choice[rows], of_choices = read_choices(
        answer[rows], answers, left[rows], right[rows], person[rows], items
    )
    status[rows[np.isnan(choice[rows])]] = _CHOICE
    status[(choice == 0.5) & (ties == "drop")] = _TIE

    failed: dict[int, str] = {}
    told: dict[object, str] = {}
    wrong = np.flatnonzero((status >= _CELL) & (person >= 0))
    for row in wrong:
        if status[row] == _CELL:
            reason = "a comparison lacks an item or the choice"
        elif status[row] == _UNKNOWN:
            codes = [(left[row], left_names, left_code[row])]
            codes += [(right[row], right_names, right_code[row])]
            unknown = [names_of[code] for place, names_of, code in codes if place < 0]
            name = min(unknown, key=str)
            if name not in told:
                told[name] = f"item {name!r} is not known to the model" + explain_unknown(
                    name, items
                )
            reason = told[name]
        elif status[row] == _SELF:
            reason = f"item {items[left[row]]!r} is compared with itself"
        else:
            reason = of_choices[person[row]]
        # The least reason of a person's rows does not depend on their order.
        failed[person[row]] = min(reason, failed.get(person[row], reason))
    good = (status == _FINE) & (person >= 0)
    known = np.zeros(len(names) + 1, dtype=bool)
    known[person[good]] = True
    for place in np.flatnonzero(~known[:-1]).tolist():
        tied = " when ties are dropped" if ((person == place) & (status == _TIE)).any() else ""
        failed.setdefault(place, _NOTHING + tied)
    is_failed = np.zeros(len(names) + 1, dtype=bool)
    is_failed[list(failed)] = True
    rows = np.flatnonzero(good & ~is_failed[person])
    rows = rows[np.lexsort((choice[rows], right[rows], left[rows], person[rows]))]
    shown = np.flatnonzero(~is_failed[:-1])
    counts = np.bincount(person[rows], minlength=len(names))[shown]
    nobody = int((person < 0).sum())
    return People(
        names=[names[place] for place in shown.tolist()],
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        left=left[rows],
        right=right[rows],
        choice=choice[rows].astype(np.float32),
        failed=[None] * (nobody > 0) + [names[place] for place in sorted(failed)],
        reasons=[f"{nobody} row{'s name' if nobody > 1 else ' names'} no person"] * (nobody > 0)
        + [failed[place] for place in sorted(failed)],
    )


def _find_distinct(column: pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """Returns the position of each row's value, −1 where it is missing, and the values."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # Of a table without rows.
        encoded = pa.concat_arrays(encoded.chunks) if encoded.num_chunks else pa.nulls(0)
    if len(encoded) == encoded.null_count:
        return np.full(len(encoded), -1, dtype=np.int64), []
    encoded = encoded.dictionary_encode()
    code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return code, encoded.dictionary.to_pylist()


def _find_items(
    column: pa.ChunkedArray, items: pd.Index
) -> tuple[np.ndarray, Sequence, np.ndarray]:
    """Returns the position of each row's item, −1 if unknown, the names and the row's name."""
    code, names = _find_distinct(column)
    position = np.append(find_values(names, items), -1) if names else np.array([-1])
    return position[code], names, code
