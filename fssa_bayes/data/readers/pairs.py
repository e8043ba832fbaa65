"""Tables of comparisons, item features and covariates, read and checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import (
    canonical_names,
    explain_unknown,
    find_names,
    join_names,
    warn_of_lookalikes,
)
from fssa_bayes.data.keys import combine_keys, count_repeated, order_by
from fssa_bayes.data.names import check_column, first_names, show_cell, show_value
from fssa_bayes.data.precision import LARGEST, table_values, usable_numbers
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.readers.categories import expand_levels
from fssa_bayes.data.readers.columns import Columns, find_column
from fssa_bayes.data.readers.outcomes import decode_choices

__all__ = [
    "arrange",
    "check_frame",
    "choose_columns",
    "leave_out_idle",
    "lookup_items",
    "name_items",
    "neutral_order",
    "read_count",
    "read_covariates",
    "read_frame",
    "read_sides",
    "read_weights",
]

_FEW_CHOICES = 10  # Even choices would all be the same in 1 of 512 tables.
_MOST_COMPARISONS = 200_000_000


def read_frame(
    df: pd.DataFrame,
    columns: Mapping[str, str | None],
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
    choice_labels: Mapping[Any, str] | None,
    ties: str,
) -> dict[str, Any]:
    """Reads comparisons as the arguments of `Preferences`: see `Preferences.from_dataframe`.

    Args:
        df: The comparisons.
        columns: Names of the columns `left`, `right` and `choice`, or `winner` and `loser`; and
            `user`, `count`, `side` and `weight`, or None.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
        choice_labels: Translation of the data's own words, or None.
        ties: `"drop"`, `"half"` or `"keep"`.
    """
    columns = choose_columns(columns)
    table = Columns(df)
    check_frame(table, columns)
    count = read_count(df, "count", columns["count"]) if "count" in columns else None
    if "winner" in columns:
        if choice_labels is not None:
            raise ValueError("choice_labels translates choice, and winner and loser have none")
        return arrange(table, columns, np.ones(len(df), np.float32), count, items, users, ties)
    outcome = decode_choices(table, columns, choice_labels)
    _warn_of_constant_choices(columns, outcome)
    return arrange(table, columns, outcome, count, items, users, ties)


def choose_columns(columns: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the columns that are named, or refuses columns that make no comparison."""
    named = {role: column for role, column in columns.items() if column is not None}
    items = [role for role in ("left", "right", "choice", "winner", "loser") if role in named]
    if items not in (["left", "right", "choice"], ["winner", "loser"]):
        given = ", ".join(f"{role}={named[role]!r}" for role in items) or "none of them"
        raise ValueError(
            f"columns must be named by left=, right= and choice=, or by winner= and loser=, got "
            f"{given}"
        )
    return named


def arrange(
    table: Columns,
    columns: Mapping[str, str],
    outcome: np.ndarray,
    count: np.ndarray | None,
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
    ties: str,
) -> dict[str, Any]:
    """Arranges comparisons by person, as the arguments of `Preferences`.

    Args:
        table: One row a comparison, which stands for as many equal ones as `count` says.
        columns: Names of the columns `left` and `right`, or `winner` and `loser`; and `user`,
            `side` and `weight` where there are any.
        outcome: 1, 0 or ½ for each row, (R,).
        count: Numbers of equal comparisons, (R,), or None for one each.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
        ties: `"drop"`, `"half"` or `"keep"`.
    """
    items, feature_levels = expand_levels("items", items)
    if count is not None:
        _check_total(count)
        if not count.all():
            table, outcome, count = (
                Columns(table.df[count > 0]),
                outcome[count > 0],
                count[count > 0],
            )
    df = table.df
    by_outcome = "winner" in columns
    first, second = ("winner", "loser") if by_outcome else ("left", "right")
    first, second = columns[first], columns[second]
    item_names = name_items(table, first, second, items)
    if by_outcome and items is None:
        item_names = neutral_order(item_names, None)
    left_item = lookup_items(table, first, item_names)
    right_item = lookup_items(table, second, item_names)
    same = np.flatnonzero(left_item == right_item)
    if len(same):
        raise ValueError(
            f"an item cannot be compared with itself: {show_cell(df[first], same[0])} stands in "
            f"{first!r} and {second!r} at row {df.index[same[0]]} ({len(same)} such rows)"
        )
    side = read_sides(df, columns["side"]) if "side" in columns else None
    if by_outcome:  # Which item is left must not depend on the outcome.
        turn = left_item > right_item
        left_item, right_item = np.where(turn, [right_item, left_item], [left_item, right_item])
        outcome = np.where(turn, 1 - outcome, outcome)
        side = np.full(len(df), np.nan) if side is None else np.where(turn, 0 - side, side)
    person, user_names = _find_people(table, columns, users)
    weights = None
    if "weight" in columns:
        weights = read_weights(df, columns["weight"], person, user_names)
    users = leave_out_idle(users, user_names, stacklevel=5)
    users, covariate_levels = expand_levels("users", users)
    covariates = None if users is None else read_covariates(users, user_names)
    tied = outcome == 0.5
    number = np.ones(len(df), dtype=np.int64) if count is None else count
    dropped = int(number[tied].sum()) if ties == "drop" else 0
    keep = ~tied if ties == "drop" else np.ones(len(df), dtype=bool)
    if "user" in columns:
        sizes = len(user_names), len(item_names)
        _warn_of_repetitions(person, left_item, right_item, outcome, side, keep, sizes)
    if not keep.any():
        raise ValueError(f"no comparison is left: all {dropped} are ties and ties='drop'")
    order = order_by(person, len(user_names))
    answering = person
    if not keep.all():
        order = order[keep[order]]
        answering = person[order]
    if count is not None:
        order = np.repeat(order, count[order])
        answering = person[order]
    counts = np.bincount(answering, minlength=len(user_names))
    if "user" not in columns:
        counts, user_names = np.ones(len(order), dtype=np.int64), pd.RangeIndex(len(order))
        weights = None if weights is None else weights[order]
    elif (counts == 0).any():
        warnings.warn(
            f"{int((counts == 0).sum())} of {len(counts)} people have only ties and were left "
            "out; ties='half' keeps them",
            stacklevel=4,
        )
    present = np.flatnonzero(counts)
    return {
        "left": left_item[order],
        "right": right_item[order],
        "choice": outcome[order],
        "offsets": offsets_of(counts[present]),
        "items": None if items is None else table_values(items),
        "num_items": len(item_names),
        "item_names": item_names,
        "feature_names": None if items is None else items.columns,
        "user_names": user_names[present],
        "covariates": None if covariates is None else covariates[present],
        "covariate_names": None if users is None else users.columns,
        "ties": "half" if ties == "drop" else ties,
        "dropped_ties": dropped,
        "side": None if side is None else side[order],
        "weights": None if weights is None else weights[present],
        "people_are_named": "user" in columns,
        "feature_levels": feature_levels,
        "covariate_levels": covariate_levels,
    }


def _find_people(
    table: Columns, columns: Mapping[str, str], users: pd.DataFrame | None
) -> tuple[np.ndarray, pd.Index]:
    """Returns the person of each row, and the names of people."""
    if "user" not in columns:
        if users is not None:
            raise ValueError("users must be None where user=None: nobody is named")
        return np.arange(len(table.df)), pd.RangeIndex(len(table.df))
    person, names = table.names(f"user={columns['user']!r}", columns["user"])
    warn_of_lookalikes("names of people", names, stacklevel=6)
    return person, names


def _warn_of_repetitions(
    person: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    outcome: np.ndarray,
    side: np.ndarray | None,
    keep: np.ndarray,
    sizes: tuple[int, int],
) -> None:
    """Warns of rows with the same person, items, answer and side as an earlier row.

    Counted are the rows in `keep`, ties that are dropped left out. `sizes` are the numbers of
    people and of items.
    """
    answer = (2 * outcome).astype(np.int64)
    if side is not None:
        answer += 3 * np.nan_to_num(side + 1, nan=3.0).astype(np.int64)
    numbers = sizes[0], sizes[1], sizes[1], 12
    repeated = count_repeated(combine_keys([person, left, right, answer], numbers)[0][keep])
    if repeated:
        warnings.warn(
            f"{repeated} of {len(person)} rows repeat an earlier row (same person, left, right and "
            "choice); each counts as a judgement of its own",
            stacklevel=5,
        )


def read_count(df: pd.DataFrame, argument: str, column: str) -> np.ndarray:
    """Reads how many equal comparisons each row stands for, int64 with shape (R,)."""
    number = pd.to_numeric(df[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~((number >= 0) & (number == np.floor(number)) & (number < 2**53)))
    if len(wrong) or pd.api.types.is_bool_dtype(df[column].dtype):
        row = wrong[0] if len(wrong) else 0
        raise ValueError(
            f"{argument}={column!r} must hold whole numbers from 0, got "
            f"{show_cell(df[column], row)} at row {df.index[row]} "
            f"({len(wrong) or len(df)} such rows)"
        )
    return number.astype(np.int64)


def _check_total(count: np.ndarray) -> None:
    total = int(count.sum())
    if not 0 < total <= _MOST_COMPARISONS:
        raise ValueError(
            f"counts must add up to 1 to {_MOST_COMPARISONS:,} comparisons, which are held one by "
            f"one in about 20 bytes each, got {total:,}"
        )


def read_sides(df: pd.DataFrame, column: str) -> np.ndarray:
    """Reads whose place is an advantage: 1, 0 or −1, with shape (R,)."""
    side = pd.to_numeric(df[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~np.isin(side, (-1, 0, 1)))
    if len(wrong):
        raise ValueError(
            f"side={column!r} must hold 1 (left has the advantage of its place), 0 (neither) or -1 "
            f"(right has it), got {show_cell(df[column], wrong[0])} at row {df.index[wrong[0]]} "
            f"({len(wrong)} such rows)"
        )
    return side


def read_weights(
    df: pd.DataFrame, column: str, person: np.ndarray, user_names: pd.Index
) -> np.ndarray:
    """Reads the weights of people, which all rows of a person repeat, with shape (U,).

    Args:
        df: The table.
        column: Name of the column.
        person: Position of each row's person, with shape (R,); every person has a row.
        user_names: Names of the people, U.
    """
    argument = f"weight={column!r}"
    number = pd.to_numeric(df[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~(np.isfinite(number) & (number > 0)))
    if len(wrong):
        raise ValueError(
            f"{argument} must hold positive and finite numbers, got "
            f"{show_cell(df[column], wrong[0])} for user "
            f"{show_value(user_names[person[wrong[0]]])} at row {df.index[wrong[0]]} "
            f"({len(wrong)} such rows)"
        )
    weights = np.empty(len(user_names))
    weights[person[::-1]] = number[::-1]  # Of each person's first row.
    differ = np.flatnonzero(number != weights[person])
    if len(differ):
        row, user = differ[0], person[differ[0]]
        raise ValueError(
            f"{argument} must hold one value for all rows of a person, got {weights[user]:g} and "
            f"{number[row]:g} for user {show_value(user_names[user])} at row {df.index[row]} "
            f"({len(differ)} such rows)"
        )
    return weights


def _warn_of_constant_choices(columns: Mapping[str, str], outcome: np.ndarray) -> None:
    if len(outcome) < _FEW_CHOICES or (outcome != outcome[0]).any() or outcome[0] == 0.5:
        return
    left, right = columns["left"], columns["right"]
    winner, loser = (left, right) if outcome[0] == 1 else (right, left)
    warnings.warn(
        f"{'left' if outcome[0] == 1 else 'right'} was preferred in all {len(outcome)} rows: where "
        f"{left!r} and {right!r} name the preferred item and the other one, pass "
        f"winner={winner!r}, loser={loser!r} in place of left, right and choice. A position bias "
        "would explain all of these choices",
        stacklevel=4,
    )


def check_frame(table: Columns, columns: Mapping[str, str]) -> None:
    """Refuses a table without rows, without one of the columns or with missing values in one."""
    df = table.df
    if not isinstance(df, pd.DataFrame):
        raise TypeError(f"df must be a pandas DataFrame, got {type(df).__name__}")
    for argument, column in columns.items():
        check_column(argument, column)
        find_column(df, argument, column)
    if len(set(columns.values())) < len(columns):
        *roles, last = columns
        raise ValueError(
            f"{', '.join(roles)} and {last} must be different columns, got {dict(columns)}"
        )
    if len(df) == 0:
        raise ValueError("df must have at least one row, got an empty table")
    for argument, column in columns.items():
        missing = table.missing(column)
        if len(missing):
            raise ValueError(
                f"{argument}={column!r} must have no missing values, got {len(missing)}, the first "
                f"at row {df.index[missing[0]]}; drop these rows first"
            )


def name_items(table: Columns, left: str, right: str, items: pd.DataFrame | None) -> pd.Index:
    """Names the items: those of the features, or else all that are compared."""
    if items is None:
        names = [table.names(f"column {column!r}", column)[1] for column in (left, right)]
        names = join_names(*names)
        warn_of_lookalikes("names of items", names, stacklevel=6)
        return names
    if not isinstance(items, pd.DataFrame):
        raise TypeError(
            "items must be a pandas DataFrame of features indexed by item name, or None, "
            f"got {type(items).__name__}"
        )
    _check_numeric("items", items)
    return canonical_names("the index of items", items.index)


def neutral_order(names: pd.Index, choice_set: Sequence | None) -> pd.Index:
    """Orders items by the choice set or by name, so that the order tells nothing of the ranks."""
    if choice_set is not None:
        return canonical_names("choice_set", choice_set)
    try:
        return names.sort_values()
    except TypeError:  # Names of different types have no order.
        return names


def _check_numeric(argument: str, table: pd.DataFrame) -> None:
    index = canonical_names(f"the index of {argument}", table.index)
    if not index.is_unique:
        name = index[index.duplicated()].tolist()[0]
        raise ValueError(f"the index of {argument} must be unique, got {name!r} more than once")
    for column, dtype in table.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            raise ValueError(
                f"{argument} must hold numbers, or text or categories, got column {column!r} of "
                f"type {dtype}"
            )
    values = table_values(table)
    bad = np.argwhere(~usable_numbers(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{argument} must be finite, got {values[row, column]} for "
            f"{show_value(table.index[row])}, "
            f"column {table.columns[column]!r} ({len(bad)} such entries); the largest size is "
            f"{LARGEST:g}"
        )


def lookup_items(
    table: Columns,
    column: str,
    names: pd.Index,
    describe: Callable[[int], str] | None = None,
) -> np.ndarray:
    """Finds the positions of the items in a column, int32, or refuses unknown items.

    Args:
        table: A table.
        column: Name of its column of items.
        names: Names of all items.
        describe: Says where a row, given by position, stands; None for column and index.
    """
    code, distinct = table.names(f"column {column!r}", column)
    position = find_names(distinct, names).astype(np.int32)[code]
    unknown = np.flatnonzero(position < 0)
    if len(unknown):
        row, name = unknown[0], distinct.tolist()[code[unknown[0]]]
        where = f"in column {column!r} at row {table.df.index[row]}"
        raise ValueError(
            f"unknown item {name!r} {describe(row) if describe else where} ({len(unknown)} such "
            f"rows): items has no row of that name; its index begins with {names[:3].tolist()}"
            f"{explain_unknown(name, names)}"
        )
    return position


def leave_out_idle(
    users: pd.DataFrame | None, names: pd.Index, *, stacklevel: int
) -> pd.DataFrame | None:
    """Leaves out the covariates of people without comparisons, with a warning that counts them.

    Args:
        users: Covariates, or None; what is no table is returned unchanged.
        names: Names of the people with comparisons.
        stacklevel: As of `warnings.warn`, for a call from here.
    """
    if not isinstance(users, pd.DataFrame):
        return users
    index = canonical_names("the index of users", users.index)
    idle = find_names(index, names) < 0
    # Where nobody is known the names are of another type, which the missing rows tell.
    if not idle.any() or idle.all():
        return users
    warnings.warn(
        f"users: {int(idle.sum())} of {len(idle)} people have no comparisons and were left out: "
        f"{first_names(index[idle])}",
        stacklevel=stacklevel + 1,
    )
    return users[~idle]


def read_covariates(users: pd.DataFrame, names: pd.Index) -> np.ndarray:
    """Reads the covariates of people in the order of `names`."""
    if not isinstance(users, pd.DataFrame):
        raise TypeError(
            "users must be a pandas DataFrame of covariates indexed by user, or None, "
            f"got {type(users).__name__}"
        )
    _check_numeric("users", users)
    index = canonical_names("the index of users", users.index)
    row = find_names(names, index)
    missing = names[row < 0].tolist()
    if missing:
        raise ValueError(
            f"users must have a row for every person, got none for {missing[0]!r} "
            f"({len(missing)} such people){explain_unknown(missing[0], index)}"
        )
    return table_values(users.iloc[row])
