"""Paired comparisons, item features and user covariates in files: csv, tsv, parquet and npz.

A name is text, whatever file it stands in: 007 stays "007", and the 7 of a parquet or npz file,
integer or not, is the "7" of a csv file, also where every cell reads like 7.0. Text files are UTF-8
and may be compressed (.gz, .bz2, .xz, .zip); their delimiter is a tab for .tsv and .tab, else a
comma, and never guessed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._features import read_features
from fssa_bayes.datasets._tables import as_text, list_names, read_frame

__all__ = ["Table", "read", "read_items", "read_users"]

_MISSING_CHOICES = ("na", "n/a", "<na>", "nan", "null", "none")
_BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Table:
    """Holds the comparisons of a file and what became of its rows.

    Attributes:
        data: The comparisons.
        rows: Number of rows read, those left out included.
        missing: Number of rows left out because a cell was empty, by column; a row counts once,
            for the first such column in the order user, left, right, choice.
    """

    data: Preferences
    rows: int
    missing: dict[str, int]


def read(
    path: str | os.PathLike[str],
    *,
    user: str,
    left: str,
    right: str,
    choice: str,
    choice_labels: Mapping[Any, str] | None = None,
    items: str | os.PathLike[str] | pd.DataFrame | None = None,
    users: str | os.PathLike[str] | pd.DataFrame | None = None,
    ties: str = "drop",
    delimiter: str | None = None,
) -> Table:
    """Reads comparisons from a file with one row per comparison and a header.

    Rows with an empty cell in one of the four columns are left out and counted. In the choice
    column NA, NaN, null and None are empty too, unless `choice_labels` or an item of the row has
    that name. Messages number the rows of a text file by its lines, those of parquet from 0.

    Args:
        path: A csv or tsv file, which may be compressed, or a parquet file.
        user: Column that names the person.
        left: Column that names the left item.
        right: Column that names the right item.
        choice: Column with the answer: 1 / 0 / 0.5, true / false (true: left), "left" / "right" /
            "tie", or the name of the preferred item.
        choice_labels: Translation of the file's own words into "left", "right" and "tie". Its keys
            are compared as text.
        items: File for :func:`read_items`, or what it returns; None gives every item an indicator.
        users: The same for :func:`read_users`; None for no covariates. Its names stand in the
            column called `user`, "user", or the first.
        ties: `"drop"`, `"half"` or `"keep"`, as for :meth:`Preferences.from_dataframe`.
        delimiter: Character between the cells of every text file of the call.

    Returns:
        The comparisons, people in order of first appearance, and the counts.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is parquet and pyarrow is not installed.
        ValueError: If a file is no table, a column is unknown or given twice, no row is complete,
            an item or person has no row in `items` or `users`, or a choice has no or two meanings.

    Warns:
        UserWarning: For rows left out, for rows of `users` without comparisons, and what
            :meth:`Preferences.from_dataframe` warns of.
    """
    columns = {"user": user, "left": left, "right": right, "choice": choice}
    for role, column in columns.items():
        first = next(other for other in columns if columns[other] == column)
        if first != role:
            raise ValueError(
                f"user, left, right and choice must be four columns, got {column!r} for {first} "
                f"and for {role}"
            )
    labels = choice_labels
    if labels is not None:
        if not isinstance(labels, Mapping):
            raise TypeError(
                "choice_labels must be a mapping such as {'a1': 'left', 'a2': 'right'}, "
                f"got {type(labels).__name__}"
            )
        labels = {str(label): word for label, word in labels.items()}
    features = _features("items", items, ("item",), delimiter)
    covariates = _features("users", users, (user, "user"), delimiter)
    frame = _select(path, read_frame(path, delimiter), columns)
    complete, missing = _complete(path, frame, labels or ())
    if labels is None:
        complete = complete.assign(**{choice: _decode_choices(path, complete)})
    if features is not None:
        _check_rows(_source("items", items), features, "item", complete[[left, right]])
    if covariates is not None:
        _check_rows(_source("users", users), covariates, "person", complete[[user]])
        covariates = _without_idle(_source("users", users), covariates, complete[user])
    try:
        data = Preferences.from_dataframe(
            complete,
            **columns,
            items=features,
            users=covariates,
            choice_labels=labels,
            ties=ties,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Table(data=data, rows=len(frame), missing=missing)


def read_items(
    path: str | os.PathLike[str], *, names: str | None = None, delimiter: str | None = None
) -> pd.DataFrame:
    """Reads item features, one row per item, from a csv, tsv, parquet or npz file.

    Args:
        path: The file. Of a table, every column but the names is a feature. An npz file holds the
            names in a 1-D array and the features in a 2-D array; nothing is unpickled.
        names: Column, or array, with the names; None: "item" if there is one, else the first.
        delimiter: Character between the cells of a text file.

    Returns:
        Features in single precision with shape (M, D), indexed by item name.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is parquet and pyarrow is not installed.
        ValueError: If the file is no such table, a name is empty or stands there twice, or a
            feature is not a finite number.
    """
    return read_features(path, names=names, likely=("item",), delimiter=delimiter)


def read_users(
    path: str | os.PathLike[str], *, names: str | None = None, delimiter: str | None = None
) -> pd.DataFrame:
    """Reads user covariates, one row per person, from a csv, tsv, parquet or npz file.

    Args:
        path: The file, laid out as for :func:`read_items`.
        names: Column, or array, with the names; None: "user" if there is one, else the first.
        delimiter: Character between the cells of a text file.

    Returns:
        Covariates in single precision with shape (U, W), indexed by the person's name.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is parquet and pyarrow is not installed.
        ValueError: As for :func:`read_items`.
    """
    return read_features(path, names=names, likely=("user",), delimiter=delimiter)


def _select(
    path: str | os.PathLike[str], frame: pd.DataFrame, columns: Mapping[str, str]
) -> pd.DataFrame:
    """Takes the columns of the four roles, in this order, as text."""
    for role, column in columns.items():
        if column not in frame.columns:
            raise ValueError(
                f"{role}={column!r} is not a column of {path}; its columns are "
                f"{list_names(frame.columns)}"
            )
    if len(frame) == 0:
        raise ValueError(f"{path} must have at least one row, got a header alone")
    return pd.DataFrame({column: as_text(path, frame[column]) for column in columns.values()})


def _complete(
    path: str | os.PathLike[str], frame: pd.DataFrame, labels: Iterable[str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Leaves out rows with an empty cell, and counts them by the first such column."""
    empty = frame == ""
    _, left, right, choice = (frame[column] for column in frame.columns)
    nothing = choice.str.lower().isin(_MISSING_CHOICES) & ~choice.isin(list(labels))
    empty[choice.name] |= nothing & (choice != left) & (choice != right)
    lost = empty.any(axis=1)
    if not lost.any():
        return frame, {}
    first = frame.columns[empty[lost].to_numpy().argmax(1)]
    missing = {column: int((first == column).sum()) for column in frame.columns if column in first}
    shown = ", ".join(f"{count} in {column!r}" for column, count in missing.items())
    if lost.all():
        raise ValueError(
            f"{path} must have a row without empty cells, got {len(frame)} rows with one ({shown})"
        )
    warnings.warn(
        f"{path}: {lost.sum()} of {len(frame)} rows have an empty cell and were left out ({shown})",
        stacklevel=3,
    )
    return frame[~lost], missing


def _decode_choices(path: str | os.PathLike[str], frame: pd.DataFrame) -> pd.Series:
    """Turns numbers and Booleans in the choice column into floats, unless they are item names.

    A column with some of them is turned as well, so that the message of what refuses it points at
    the cell that is none.
    """
    choice = frame.iloc[:, 3]
    named = _preferred_side(frame)
    words = choice.unique()
    for coding in (_number, lambda word: _BOOLEANS.get(word.lower(), np.nan)):
        meaning = {word: coding(word) for word in words if coding(word) in (0.0, 0.5, 1.0)}
        if len(meaning) == len(words):
            _check_unambiguous(path, choice, named, choice.map(meaning).to_numpy(dtype=float))
        if len(meaning) == len(words) or (meaning and np.isnan(named).any()):
            return choice.map(lambda word, meaning=meaning: meaning.get(word, word))
    return choice


def _preferred_side(frame: pd.DataFrame) -> np.ndarray:
    """Reads the choice column as the preferred item's name: 1, 0 or ½, NaN where it is none."""
    _, left, right, choice = (frame[column].to_numpy() for column in frame.columns)
    return np.select([choice == left, choice == right, choice == "tie"], [1.0, 0.0, 0.5], np.nan)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return np.nan


def _check_unambiguous(
    path: str | os.PathLike[str], choice: pd.Series, named: np.ndarray, code: np.ndarray
) -> None:
    if np.isnan(named).any() or (named == code).all():
        return
    row = np.flatnonzero(named != code)[0]
    words = {1.0: "left", 0.0: "right", 0.5: "a tie"}
    raise ValueError(
        f"{path}: choice is ambiguous, {choice.iloc[row]!r} at row {choice.index[row]} says "
        f"{words[code[row]]} as a number or Boolean and {words[named[row]]} as the name of the "
        "preferred item; choice_labels={'1': 'left', '0': 'right'} settles it for numbers, other "
        "item names for names"
    )


def _source(argument: str, table: str | os.PathLike[str] | pd.DataFrame | None) -> str:
    return argument if isinstance(table, pd.DataFrame) else str(table)


def _features(
    argument: str,
    table: str | os.PathLike[str] | pd.DataFrame | None,
    likely: Sequence[str],
    delimiter: str | None,
) -> pd.DataFrame | None:
    if table is None:
        return None
    if isinstance(table, pd.DataFrame):
        return table.set_axis(as_text(argument, table.index.to_series()).to_numpy(), axis=0)
    return read_features(table, names=None, likely=likely, delimiter=delimiter)


def _check_rows(source: str, table: pd.DataFrame, role: str, compared: pd.DataFrame) -> None:
    names = pd.unique(compared.to_numpy().ravel())
    lost = names[~np.isin(names, table.index.to_numpy(dtype=object))]
    if len(lost):
        raise ValueError(
            f"{source} must have a row for every {role} compared, got none for {lost[0]!r} "
            f"({len(lost)} of {len(names)} have none); its names are {list_names(table.index)}"
        )


def _without_idle(source: str, table: pd.DataFrame, people: pd.Series) -> pd.DataFrame:
    busy = table.index.isin(people)
    if not busy.all():
        warnings.warn(
            f"{source}: {(~busy).sum()} of {len(busy)} people have no comparisons and were left "
            "out",
            stacklevel=3,
        )
    return table[busy]
