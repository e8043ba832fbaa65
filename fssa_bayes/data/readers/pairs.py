"""Tables of comparisons, item features and covariates, read and checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import (
    canonical_names,
    explain_unknown,
    factorise_names,
    find_names,
    join_names,
    warn_of_lookalikes,
)
from fssa_bayes.data.names import check_column, first_names, show_cell, show_value
from fssa_bayes.data.precision import LARGEST, table_values, usable_numbers
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.readers.categories import expand_levels

__all__ = [
    "arrange",
    "check_frame",
    "choose_columns",
    "decode_choices",
    "leave_out_idle",
    "lookup_items",
    "name_items",
    "neutral_order",
    "parse_number",
    "read_count",
    "read_covariates",
    "read_frame",
    "read_sides",
]

_WORDS = {"left": 1.0, "right": 0.0, "tie": 0.5}
_NUMBERS = bool | np.bool_ | int | float | np.number | Decimal | str
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
            `user`, `count` and `side`, or None.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
        choice_labels: Translation of the data's own words, or None.
        ties: `"drop"`, `"half"` or `"keep"`.
    """
    columns = choose_columns(columns)
    check_frame(df, columns)
    count = read_count(df, "count", columns["count"]) if "count" in columns else None
    if "winner" in columns:
        if choice_labels is not None:
            raise ValueError("choice_labels translates choice, and winner and loser have none")
        return arrange(df, columns, np.ones(len(df), np.float32), count, items, users, ties)
    outcome = decode_choices(df, columns, choice_labels)
    _warn_of_constant_choices(columns, outcome)
    return arrange(df, columns, outcome, count, items, users, ties)


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
    df: pd.DataFrame,
    columns: Mapping[str, str],
    outcome: np.ndarray,
    count: np.ndarray | None,
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
    ties: str,
) -> dict[str, Any]:
    """Arranges comparisons by person, as the arguments of `Preferences`.

    Args:
        df: One row a comparison, which stands for as many equal ones as `count` says.
        columns: Names of the columns `left` and `right`, or `winner` and `loser`; and `user` and
            `side` where there are any.
        outcome: 1, 0 or ½ for each row, (R,).
        count: Numbers of equal comparisons, (R,), or None for one each.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
        ties: `"drop"`, `"half"` or `"keep"`.
    """
    items, feature_levels = expand_levels("items", items)
    if count is not None:
        _check_total(count)
        df, outcome, count = df[count > 0], outcome[count > 0], count[count > 0]
    by_outcome = "winner" in columns
    first, second = ("winner", "loser") if by_outcome else ("left", "right")
    first, second = columns[first], columns[second]
    item_names = name_items(df, first, second, items)
    if by_outcome and items is None:
        item_names = neutral_order(item_names, None)
    left_item = lookup_items(df, first, item_names)
    right_item = lookup_items(df, second, item_names)
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
    person, user_names = _find_people(df, columns, users)
    users = leave_out_idle(users, user_names, stacklevel=5)
    users, covariate_levels = expand_levels("users", users)
    covariates = None if users is None else read_covariates(users, user_names)
    if "user" in columns:
        _warn_of_repetitions(person, left_item, right_item, outcome, side)

    tied = outcome == 0.5
    number = np.ones(len(df), dtype=np.int64) if count is None else count
    dropped = int(number[tied].sum()) if ties == "drop" else 0
    keep = ~tied if ties == "drop" else np.ones(len(df), dtype=bool)
    if not keep.any():
        raise ValueError(f"no comparison is left: all {dropped} are ties and ties='drop'")
    order = np.flatnonzero(keep)
    order = order[np.argsort(person[order], kind="stable")]
    if count is not None:
        order = np.repeat(order, count[order])
    counts = np.bincount(person[order], minlength=len(user_names))
    if "user" not in columns:
        counts, user_names = np.ones(len(order), dtype=np.int64), pd.RangeIndex(len(order))
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
        "people_are_named": "user" in columns,
        "feature_levels": feature_levels,
        "covariate_levels": covariate_levels,
    }


def _find_people(
    df: pd.DataFrame, columns: Mapping[str, str], users: pd.DataFrame | None
) -> tuple[np.ndarray, pd.Index]:
    """Returns the person of each row, and the names of people."""
    if "user" not in columns:
        if users is not None:
            raise ValueError("users must be None where user=None: nobody is named")
        return np.arange(len(df)), pd.RangeIndex(len(df))
    person, names = factorise_names(_described(columns, "user"), df[columns["user"]])
    warn_of_lookalikes("names of people", names, stacklevel=6)
    return person, names


def _warn_of_repetitions(*columns: np.ndarray | None) -> None:
    """Warns of rows with the same person, items, answer and side as an earlier row."""
    table = pd.DataFrame({n: column for n, column in enumerate(columns) if column is not None})
    repeated = int(table.duplicated().sum())
    if repeated:
        warnings.warn(
            f"{repeated} of {len(table)} rows repeat an earlier row (same person, left, right and "
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


def check_frame(df: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Refuses a table without rows, without one of the columns or with missing values in one."""
    if not isinstance(df, pd.DataFrame):
        raise TypeError(f"df must be a pandas DataFrame, got {type(df).__name__}")
    for argument, column in columns.items():
        check_column(argument, column)
        found = int((df.columns == column).sum())
        if found != 1:
            reason = "is not a column" if not found else f"is the name of {found} columns"
            raise ValueError(
                f"{argument}={column!r} {reason} of df; its columns are {list(df.columns)}"
            )
    if len(set(columns.values())) < len(columns):
        *roles, last = columns
        raise ValueError(
            f"{', '.join(roles)} and {last} must be different columns, got {dict(columns)}"
        )
    if len(df) == 0:
        raise ValueError("df must have at least one row, got an empty table")
    for argument, column in columns.items():
        missing = np.flatnonzero(df[column].isna())
        if len(missing):
            raise ValueError(
                f"{argument}={column!r} must have no missing values, got {len(missing)}, the first "
                f"at row {df.index[missing[0]]}; drop these rows first"
            )


def name_items(df: pd.DataFrame, left: str, right: str, items: pd.DataFrame | None) -> pd.Index:
    """Names the items: those of the features, or else all that are compared."""
    if items is None:
        names = [factorise_names(f"column {column!r}", df[column])[1] for column in (left, right)]
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


def _described(columns: Mapping[str, str], argument: str) -> str:
    """Names a column in a message by the argument that named it."""
    return f"{argument}={columns[argument]!r}"


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
    df: pd.DataFrame,
    column: str,
    names: pd.Index,
    describe: Callable[[int], str] | None = None,
) -> np.ndarray:
    """Finds the positions of the items in a column, int32, or refuses unknown items.

    Args:
        df: A table.
        column: Name of its column of items.
        names: Names of all items.
        describe: Says where a row, given by position, stands; None for column and index.
    """
    code, distinct = factorise_names(f"column {column!r}", df[column])
    position = find_names(distinct, names)[code]
    unknown = np.flatnonzero(position < 0)
    if len(unknown):
        row, name = unknown[0], distinct.tolist()[code[unknown[0]]]
        where = f"in column {column!r} at row {df.index[row]}"
        raise ValueError(
            f"unknown item {name!r} {describe(row) if describe else where} ({len(unknown)} such "
            f"rows): items has no row of that name; its index begins with {names[:3].tolist()}"
            f"{explain_unknown(name, names)}"
        )
    return position.astype(np.int32)


def decode_choices(
    df: pd.DataFrame, columns: Mapping[str, str], labels: Mapping[Any, str] | None
) -> np.ndarray:
    """Translates the choice column into 1, 0 and ½, refusing what has no or two meanings."""
    choice = df[columns["choice"]]
    if isinstance(choice.dtype, pd.CategoricalDtype):
        choice = choice.astype(object)
    if labels is not None:
        return _decode_labels(choice, labels)
    codings = {
        "numbers 1 / 0 / 0.5": _decode_numbers(choice),
        'words "left" / "right" / "tie"': choice.map(_word).to_numpy(dtype=np.float32),
        "name of the preferred item": _decode_names(df, columns),
    }
    fitting = {name: code for name, code in codings.items() if not np.isnan(code).any()}
    if not fitting:
        best = min(codings, key=lambda name: np.isnan(codings[name]).sum())
        row = np.flatnonzero(np.isnan(codings[best]))[0]
        raise ValueError(
            f"choice must be 1 / 0 / 0.5, a Boolean, 'left' / 'right' / 'tie' or the preferred "
            f"item's name, the same way in every row, got {show_cell(choice, row)} at row "
            f"{df.index[row]}{_of_user(df, columns, row)}; choice_labels translates the data's own "
            "words and numbers"
        )
    first, *others = fitting.values()
    if any((other != first).any() for other in others):
        row = next(np.flatnonzero(other != first)[0] for other in others if (other != first).any())
        raise ValueError(
            f"choice is ambiguous: {show_cell(choice, row)} at row {df.index[row]} can be read as "
            f"{' or as '.join(fitting)}; choice_labels={{…: 'left', …: 'right'}} settles it"
        )
    return first


def _of_user(df: pd.DataFrame, columns: Mapping[str, str], row: int) -> str:
    return f" (user {show_cell(df[columns['user']], row)})" if "user" in columns else ""


def _word(value: object) -> float:
    """Reads "left", "right" or "tie" in any case, with blanks around it or not; else NaN."""
    return _WORDS.get(value.strip().lower(), np.nan) if isinstance(value, str) else np.nan


def parse_number(value: object) -> float:
    """Reads a number, a Boolean, or text such as "1" or "0.5"; NaN for anything else."""
    try:
        return float(value) if isinstance(value, _NUMBERS) else np.nan
    except ValueError:  # Text that is no number.
        return np.nan


def _decode_numbers(choice: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(choice.dtype):  # Booleans are numeric.
        values = choice.to_numpy(dtype=np.float32)
    else:
        values = np.array([parse_number(value) for value in choice], dtype=np.float32)
    return np.where(np.isin(values, (0, 0.5, 1)), values, np.nan).astype(np.float32)


def _decode_names(df: pd.DataFrame, columns: Mapping[str, str]) -> np.ndarray:
    code = np.full(len(df), np.nan, dtype=np.float32)
    choice, left, right = (df[columns[name]] for name in ("choice", "left", "right"))
    if pd.api.types.is_bool_dtype(choice.dtype):
        return code
    numeric = [pd.api.types.is_numeric_dtype(column.dtype) for column in (choice, left, right)]
    # Strings, categories and mixtures compare as Python objects, and so do numbers of two types,
    # which NumPy would compare as floats.
    if not all(numeric) or len({choice.dtype, left.dtype, right.dtype}) > 1:
        choice, left, right = (column.astype(object) for column in (choice, left, right))
    choice, left, right = (column.to_numpy() for column in (choice, left, right))
    if choice.dtype == object:
        code[[_word(value) == 0.5 for value in choice]] = 0.5
    code[choice == right] = 0.0
    code[choice == left] = 1.0
    if choice.dtype == object:  # True equals 1 in Python, and would be taken for the name 1.
        code[[isinstance(value, bool | np.bool_) for value in choice]] = np.nan
    return code


def _decode_labels(choice: pd.Series, labels: Mapping[Any, str]) -> np.ndarray:
    if not isinstance(labels, Mapping):
        raise TypeError(
            "choice_labels must be a mapping such as {'a1': 'left', 'a2': 'right'}, "
            f"got {type(labels).__name__}"
        )
    wrong = [value for value in labels.values() if value not in _WORDS]
    if wrong:
        raise ValueError(
            f"choice_labels must translate into 'left', 'right' or 'tie', got {wrong[0]!r}"
        )
    code = choice.map({label: _WORDS[word] for label, word in labels.items()})
    unknown = np.flatnonzero(code.isna())
    if len(unknown):
        raise ValueError(
            f"choice_labels has no translation for {show_cell(choice, unknown[0])} at row "
            f"{choice.index[unknown[0]]} ({len(unknown)} such rows); it knows {list(labels)}"
        )
    return code.to_numpy(dtype=np.float32)


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
