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
)
from fssa_bayes.data.precision import LARGEST, table_values, usable_numbers
from fssa_bayes.data.ragged import offsets_of

__all__ = [
    "check_frame",
    "decode_choices",
    "lookup_items",
    "name_items",
    "neutral_order",
    "read_covariates",
    "read_frame",
]

_WORDS = {"left": 1.0, "right": 0.0, "tie": 0.5}


def read_frame(
    df: pd.DataFrame,
    columns: Mapping[str, str],
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
    choice_labels: Mapping[Any, str] | None,
    ties: str,
) -> dict[str, Any]:
    """Reads comparisons as the arguments of `Preferences`: see `Preferences.from_dataframe`.

    Args:
        df: The comparisons.
        columns: Names of the columns `user`, `left`, `right` and `choice`.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
        choice_labels: Translation of the data's own words, or None.
        ties: `"drop"`, `"half"` or `"keep"`.
    """
    check_frame(df, columns)
    left, right = columns["left"], columns["right"]
    item_names = name_items(df, left, right, items)
    left_item = lookup_items(df, left, item_names)
    right_item = lookup_items(df, right, item_names)
    same = np.flatnonzero(left_item == right_item)
    if len(same):
        raise ValueError(
            f"an item cannot be compared with itself: {df[left].iloc[same[0]]!r} stands in "
            f"{left!r} and {right!r} at row {df.index[same[0]]} ({len(same)} such rows)"
        )
    outcome = decode_choices(df, columns, choice_labels)
    person, user_names = factorise_names(_described(columns, "user"), df[columns["user"]])
    covariates = None if users is None else read_covariates(users, user_names)
    rows = {"person": person, "left": left_item, "right": right_item, "outcome": outcome}
    repeated = int(pd.DataFrame(rows).duplicated().sum())
    if repeated:
        warnings.warn(
            f"{repeated} of {len(df)} rows repeat an earlier row (same person, left, right and "
            "choice); each counts as a judgement of its own",
            stacklevel=3,
        )

    tied = outcome == 0.5
    dropped = int(tied.sum()) if ties == "drop" else 0
    keep = ~tied if ties == "drop" else np.ones(len(df), dtype=bool)
    if not keep.any():
        raise ValueError(f"no comparison is left: all {dropped} are ties and ties='drop'")
    order = np.flatnonzero(keep)
    order = order[np.argsort(person[order], kind="stable")]
    counts = np.bincount(person[order], minlength=len(user_names))
    if (counts == 0).any():
        warnings.warn(
            f"{int((counts == 0).sum())} of {len(counts)} people have only ties and were left "
            "out; ties='half' keeps them",
            stacklevel=3,
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
    }


def check_frame(df: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Refuses a table without rows, without one of the columns or with missing values in one."""
    if not isinstance(df, pd.DataFrame):
        raise TypeError(f"df must be a pandas DataFrame, got {type(df).__name__}")
    for argument, column in columns.items():
        found = int((df.columns == column).sum())
        if found != 1:
            reason = "is not a column" if not found else f"is the name of {found} columns"
            raise ValueError(
                f"{argument}={column!r} {reason} of df; its columns are {list(df.columns)}"
            )
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"user, left, right and choice must be four columns, got {dict(columns)}")
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
        return join_names(*names)
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
    if table.shape[1] == 0:
        raise ValueError(f"{argument} must have at least one column, got none")
    for column, dtype in table.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            raise ValueError(
                f"{argument} must be numeric, got column {column!r} of type {dtype}; encode it "
                "first, for example with pandas.get_dummies"
            )
    values = table_values(table)
    bad = np.argwhere(~usable_numbers(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{argument} must be finite, got {values[row, column]} for {table.index[row]!r}, "
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
        'words "left" / "right" / "tie"': choice.map(_WORDS).to_numpy(dtype=np.float32),
        "name of the preferred item": _decode_names(df, columns),
    }
    fitting = {name: code for name, code in codings.items() if not np.isnan(code).any()}
    if not fitting:
        best = min(codings, key=lambda name: np.isnan(codings[name]).sum())
        row = np.flatnonzero(np.isnan(codings[best]))[0]
        raise ValueError(
            f"choice must be 1 / 0 / 0.5, a Boolean, 'left' / 'right' / 'tie' or the preferred "
            f"item's name, the same way in every row, got {choice.iloc[row]!r} at row "
            f"{df.index[row]} (user {df[columns['user']].iloc[row]!r}); choice_labels translates "
            "the data's own words"
        )
    first, *others = fitting.values()
    if any((other != first).any() for other in others):
        row = next(np.flatnonzero(other != first)[0] for other in others if (other != first).any())
        raise ValueError(
            f"choice is ambiguous: {choice.iloc[row]!r} at row {df.index[row]} can be read as "
            f"{' or as '.join(fitting)}; choice_labels={{…: 'left', …: 'right'}} settles it"
        )
    return first


def _decode_numbers(choice: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(choice.dtype):  # Booleans are numeric.
        values = choice.to_numpy(dtype=np.float32)
    else:
        is_number = [
            isinstance(value, bool | np.bool_ | int | float | np.number | Decimal)
            for value in choice
        ]
        values = np.full(len(choice), np.nan, dtype=np.float32)
        values[is_number] = choice[is_number].to_numpy(dtype=np.float32)
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
        code[choice == "tie"] = 0.5
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
            f"choice_labels has no translation for {choice.iloc[unknown[0]]!r} at row "
            f"{choice.index[unknown[0]]} ({len(unknown)} such rows); it knows {list(labels)}"
        )
    return code.to_numpy(dtype=np.float32)


def read_covariates(users: pd.DataFrame, names: pd.Index) -> np.ndarray:
    """Reads the covariates of people in the order of `names`."""
    if not isinstance(users, pd.DataFrame):
        raise TypeError(
            "users must be a pandas DataFrame of covariates indexed by user, or None, "
            f"got {type(users).__name__}"
        )
    _check_numeric("users", users)
    index = canonical_names("the index of users", users.index)
    idle = index[find_names(index, names) < 0].tolist()
    if idle:
        raise ValueError(
            f"users must belong to people with comparisons, got {idle[0]!r} without any "
            f"({len(idle)} such rows){explain_unknown(idle[0], names)}"
        )
    row = find_names(names, index)
    missing = names[row < 0].tolist()
    if missing:
        raise ValueError(
            f"users must have a row for every person, got none for {missing[0]!r} "
            f"({len(missing)} such people)"
        )
    return table_values(users.iloc[row])
