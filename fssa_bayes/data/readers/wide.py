"""Wide tables: one row a person, or a ranking, and one column a pair, a place or an item."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.names import check_column, first_names, show_cell
from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.outcomes import decode_choices
from fssa_bayes.data.readers.pairs import arrange

__all__ = ["read_orderings", "read_pair_columns", "read_ranks"]

_ROLES = {"user": "user", "left": "left", "right": "right"}


def read_pair_columns(
    df: pd.DataFrame,
    sep: str,
    columns: Sequence[str] | None,
    user: str | None,
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
    choice_labels: Mapping[Any, str] | None,
    ties: str,
) -> dict[str, Any]:
    """Reads one column a pair as the arguments of `Preferences`.

    Arguments are those of `Preferences.from_pair_columns`.
    """
    check_table(df, "df")
    check_column("user", user)
    if not isinstance(sep, str) or not sep:
        raise ValueError(f"sep must be the text between the two items of a column, got {sep!r}")
    if columns is None:
        columns = [name for name in df.columns if isinstance(name, str) and sep in name]
        columns = [name for name in columns if name != user]
        if not columns:
            raise ValueError(
                f"df must have columns named like 'a{sep}b' (sep={sep!r}), got {list(df.columns)}"
            )
    columns = check_columns(df, "columns", columns)
    pairs = [split_name(name, sep) for name in columns]
    table = df[columns]
    asked = ~find_blanks(table)
    if not asked.any():
        raise ValueError(f"no comparison is left: the {len(columns)} columns are blank")
    silent = int((~asked.any(1)).sum())
    if silent:
        warnings.warn(f"{silent} of {len(df)} rows have no answer and were left out", stacklevel=3)
    row, column = np.nonzero(asked)
    answers = pd.Series(table.to_numpy(dtype=object)[asked])
    left, right = zip(*(pairs[c] for c in column), strict=True)
    long = pd.DataFrame(
        {
            "user": name_rows(df, user)[row],
            "left": pd.Series(left, dtype=object),
            "right": pd.Series(right, dtype=object),
            "choice": answers.infer_objects(),
        }
    )
    long.index = df.index[row]
    rows = Columns(long)
    outcome = decode_choices(rows, _ROLES | {"choice": "choice"}, choice_labels)
    return arrange(rows, _ROLES, outcome, None, items, users, ties)


def find_blanks(table: pd.DataFrame) -> np.ndarray:
    """Tells which cells are blank: missing, or text of nothing but spaces, with shape (R, C)."""
    blank = table.isna().to_numpy(copy=True)
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if not pd.api.types.is_numeric_dtype(column.dtype):
            blank[:, place] |= [isinstance(cell, str) and not cell.strip() for cell in column]
    return blank


def split_name(name: Hashable, sep: str) -> tuple[str, str]:
    """Splits the name of a column into two items."""
    parts = [part.strip() for part in name.split(sep)] if isinstance(name, str) else [""]
    if len(parts) != 2 or not all(parts):
        raise ValueError(
            f"a column of a pair must be named like 'a{sep}b' (sep={sep!r}), got {name!r}"
        )
    return parts[0], parts[1]


def read_orderings(df: pd.DataFrame, columns: Sequence, user: str | None) -> pd.DataFrame:
    """Lays rankings with one column a place out as a table with one row an item.

    Args:
        df: One row a ranking.
        columns: The columns that hold the names of the first, second, … item; blank from the first
            place that is not given.
        user: Column that names the person; None where the table's index does.

    Returns:
        Columns `user`, `ranking`, `item` and `rank`.
    """
    check_table(df, "rankings")
    columns = check_columns(df, "orderings", columns)
    given = ~find_blanks(df[columns])
    gap = given[:, 1:] & ~given[:, :-1]
    if gap.any():
        row, place = np.argwhere(gap)[0]
        raise ValueError(
            "orderings must have blanks at the end alone, got "
            f"{show_cell(df[columns[place + 1]], row)} in column {columns[place + 1]!r} "
            f"behind a blank at row {df.index[row]} "
            f"({int(gap.any(1).sum())} such rows)"
        )
    row, place = np.nonzero(given)
    return _lay_out(df, user, row, df[columns].to_numpy(dtype=object)[given], place + 1.0, given)


def read_ranks(df: pd.DataFrame, columns: Sequence, user: str | None) -> pd.DataFrame:
    """Lays rankings with one column an item, which holds its rank, out like :func:`read_orderings`.

    A blank cell is an item that the ranking does not list.
    """
    check_table(df, "rankings")
    columns = check_columns(df, "ranks", columns)
    ranks = df[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    given = ~find_blanks(df[columns])
    wrong = given & ~((ranks >= 1) & np.isfinite(ranks))
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise ValueError(
            f"a rank must be a number from 1, the best, or blank, got "
            f"{show_cell(df[columns[place]], row)} in column {columns[place]!r} at row "
            f"{df.index[row]} ({int(wrong.sum())} such cells); where 0 means that an item was not "
            "ranked, make it blank"
        )
    row, place = np.nonzero(given)
    return _lay_out(df, user, row, [columns[p] for p in place], ranks[given], given)


def _lay_out(
    df: pd.DataFrame,
    user: str | None,
    row: np.ndarray,
    items: Sequence,
    rank: np.ndarray,
    given: np.ndarray,
) -> pd.DataFrame:
    silent = int((~given.any(1)).sum())
    if silent:
        warnings.warn(f"{silent} of {len(df)} rows rank no item and were left out", stacklevel=5)
    names = name_rows(df, user)
    item = pd.Series(items, dtype=object)
    return pd.DataFrame({"user": names[row], "ranking": row, "item": item, "rank": rank})


def check_table(df: object, argument: str) -> None:
    """Refuses what is no table, or a table without rows."""
    if not isinstance(df, pd.DataFrame):
        raise TypeError(f"{argument} must be a pandas DataFrame, got {type(df).__name__}")
    if len(df) == 0:
        raise ValueError(f"{argument} must have at least one row, got an empty table")


def check_columns(df: pd.DataFrame, argument: str, columns: Sequence) -> list:
    """Returns a list of columns, or refuses one that is not there or stands twice."""
    if isinstance(columns, str) or not isinstance(columns, Sequence | np.ndarray | pd.Index):
        raise TypeError(f"{argument} must be a list of columns, got {columns!r}")
    columns = list(columns)
    if len(set(columns)) < len(columns) or not columns:
        raise ValueError(f"{argument} must be different columns, at least one, got {columns}")
    for column in columns:
        found = int((df.columns == column).sum())
        if found != 1:
            reason = "is not a column" if not found else f"is the name of {found} columns"
            raise ValueError(
                f"{column!r} in {argument} {reason}; the table's columns are {list(df.columns)}"
            )
    return columns


def name_rows(df: pd.DataFrame, user: str | None) -> pd.Index:
    """Names the person of each row, by a column or by the index of the table."""
    check_column("user", user)
    if user is None:
        if not df.index.is_unique:
            raise ValueError(
                "the index of the table names the people where user=None, and must be unique, got "
                f"{first_names(df.index[df.index.duplicated()][:1])} more than once"
            )
        return df.index
    names = df[check_columns(df, "user", [user])[0]]
    missing = np.flatnonzero(names.isna())
    if len(missing):
        raise ValueError(
            f"user={user!r} must have no missing values, got {len(missing)}, the first at row "
            f"{df.index[missing[0]]}"
        )
    return pd.Index(names)
