"""Paired comparisons, item features and user covariates in files: csv, tsv, parquet and npz.

A name is text, whatever file it stands in: 007 stays "007", and the 7 of a parquet or npz file,
integer or not, is the "7" of a csv file, also where every cell reads like 7.0. Text files are UTF-8
and may be compressed (.gz, .bz2, .xz, .zip); their delimiter is a tab for .tsv and .tab, else a
comma, and never guessed.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from fssa_bayes.data import Preferences

__all__ = ["Table", "read", "read_items", "read_users"]

_MISSING_CHOICES = ("na", "n/a", "<na>", "nan", "null", "none")
_BOOLEANS = {"true": 1.0, "false": 0.0}
_DELIMITERS = ",;\t|"
_WHOLE = re.compile(r"-?[0-9]+\.0")
# A cell may hold a whole conversation; the csv module stops at 131,072 characters by default.
_LONGEST_CELL = 2**31 - 1
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,  # An encrypted zip file.
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


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
    _check_roles(columns)
    labels = _text_labels(choice_labels)
    features = _features("items", items, ("item",), delimiter)
    covariates = _features("users", users, (user, "user"), delimiter)
    frame = _select(path, _read_frame(path, delimiter), columns)
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
    return _read_features(path, names=names, likely=("item",), delimiter=delimiter)


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
    return _read_features(path, names=names, likely=("user",), delimiter=delimiter)


# ---------------------------------------------------------------------- comparisons


def _check_roles(columns: Mapping[str, str]) -> None:
    roles = {}
    for role, column in columns.items():
        if column in roles:
            raise ValueError(
                f"user, left, right and choice must be four columns, got {column!r} for "
                f"{roles[column]} and for {role}"
            )
        roles[column] = role


def _text_labels(labels: Mapping[Any, str] | None) -> dict[str, str] | None:
    if labels is None:
        return None
    if not isinstance(labels, Mapping):
        raise TypeError(
            "choice_labels must be a mapping such as {'a1': 'left', 'a2': 'right'}, "
            f"got {type(labels).__name__}"
        )
    return {str(label): word for label, word in labels.items()}


def _select(
    path: str | os.PathLike[str], frame: pd.DataFrame, columns: Mapping[str, str]
) -> pd.DataFrame:
    """Takes the columns of the four roles, in this order, as text."""
    for role, column in columns.items():
        if column not in frame.columns:
            raise ValueError(
                f"{role}={column!r} is not a column of {path}; its columns are "
                f"{_listing(frame.columns)}"
            )
    if len(frame) == 0:
        raise ValueError(f"{path} must have at least one row, got a header alone")
    return pd.DataFrame({column: _text(path, frame[column]) for column in columns.values()})


def _complete(
    path: str | os.PathLike[str], frame: pd.DataFrame, labels: Iterable[str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Leaves out rows with an empty cell, and counts them by the first such column."""
    empty = _empty_cells(frame, labels)
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


def _empty_cells(frame: pd.DataFrame, labels: Iterable[str]) -> pd.DataFrame:
    empty = frame == ""
    _, left, right, choice = (frame[column] for column in frame.columns)
    nothing = choice.str.lower().isin(_MISSING_CHOICES) & ~choice.isin(list(labels))
    empty[choice.name] |= nothing & (choice != left) & (choice != right)
    return empty


def _decode_choices(path: str | os.PathLike[str], frame: pd.DataFrame) -> pd.Series:
    """Turns numbers and Booleans in the choice column into floats, unless they are item names.

    A column with some of them is turned as well, so that the message of what refuses it points at
    the cell that is none.
    """
    choice = frame.iloc[:, 3]
    named = _preferred_side(frame)
    words = choice.unique()
    for coding in (_number, _boolean):
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


def _boolean(word: str) -> float:
    return _BOOLEANS.get(word.lower(), np.nan)


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


# ---------------------------------------------------------------------- items and users


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
        return table.set_axis(_text(argument, table.index.to_series()).to_numpy(), axis=0)
    return _read_features(table, names=None, likely=likely, delimiter=delimiter)


def _check_rows(source: str, table: pd.DataFrame, role: str, compared: pd.DataFrame) -> None:
    names = pd.unique(compared.to_numpy().ravel())
    lost = names[~np.isin(names, table.index.to_numpy(dtype=object))]
    if len(lost):
        raise ValueError(
            f"{source} must have a row for every {role} compared, got none for {lost[0]!r} "
            f"({len(lost)} of {len(names)} have none); its names are {_listing(table.index)}"
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


def _read_features(
    path: str | os.PathLike[str],
    *,
    names: str | None,
    likely: Sequence[str],
    delimiter: str | None,
) -> pd.DataFrame:
    if Path(path).suffix.lower() == ".npz":
        frame, column = _read_npz(path, names)
    else:
        frame = _read_frame(path, delimiter)
        found = [name for name in likely if name in frame.columns]
        column = names if names is not None else [*found, *frame.columns[:1], ""][0]
    if column not in frame.columns:
        raise ValueError(
            f"names={column!r} is not a column of {path}; its columns are {_listing(frame.columns)}"
        )
    index = _unique_names(path, frame[column])
    features = frame.drop(columns=column)
    if 0 in features.shape:
        raise ValueError(
            f"{path} must have at least one row and one column besides the names {column!r}, got "
            f"{features.shape[0]} rows and {features.shape[1]} columns"
        )
    values = np.column_stack([_finite(path, features[name], index) for name in features])
    return pd.DataFrame(values, index=index, columns=features.columns)


def _unique_names(path: str | os.PathLike[str], column: pd.Series) -> pd.Index:
    names = _text(path, column)
    empty = names.index[names == ""]
    if len(empty):
        raise ValueError(
            f"{path} must name every row in column {column.name!r}, got an empty cell at row "
            f"{empty[0]} ({len(empty)} such rows)"
        )
    again = names[names.duplicated()]
    if len(again):
        raise ValueError(
            f"{path} must have one row for each name in column {column.name!r}, got "
            f"{again.iloc[0]!r} again at row {again.index[0]} ({len(again)} such rows)"
        )
    return pd.Index(names.to_numpy(), name=column.name)


def _finite(path: str | os.PathLike[str], column: pd.Series, names: pd.Index) -> np.ndarray:
    """Reads a feature as finite single-precision numbers, with shape (M,)."""
    numbers = column
    if not pd.api.types.is_numeric_dtype(column.dtype):
        numbers = pd.to_numeric(_text(path, column), errors="coerce")
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max))
    if len(bad):
        cell = column.iloc[bad[0]]
        raise ValueError(
            f"{path} must hold finite numbers besides the names, got {str(cell)!r} for "
            f"{names[bad[0]]!r} in column {column.name!r} ({len(bad)} such cells); encode the "
            "column as numbers or leave it out"
        )
    return values.astype(np.float32)


def _read_npz(path: str | os.PathLike[str], names: str | None) -> tuple[pd.DataFrame, str]:
    """Reads the names and features of an npz file as a table, and the names' column."""
    arrays = _load_arrays(path)
    vectors = [name for name, array in arrays.items() if array.ndim == 1 and names in (None, name)]
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    wanted = "one 1-D array of names" if names is None else f"a 1-D array {names!r} of names"
    fits = len(vectors) == len(matrices) == 1
    if not fits or len(arrays[vectors[0]]) != len(arrays[matrices[0]]):
        found = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{path} must hold {wanted} and one 2-D array of features with as many rows, got "
            f"{found or 'no arrays'}"
        )
    column, matrix = vectors[0], arrays[matrices[0]]
    if matrix.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} must hold numbers in its 2-D array {matrices[0]!r}, got {matrix.dtype}"
        )
    frame = pd.DataFrame(matrix, columns=[f"{matrices[0]}_{d}" for d in range(matrix.shape[1])])
    frame.insert(0, column, arrays[column])
    return frame, column


def _load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    _check_file(path)
    name = None
    arrays = {}
    try:
        with zipfile.ZipFile(path):  # np.load takes other files for pickles, and says so.
            archive = np.load(path, allow_pickle=False)
        with archive:
            for name in archive.files:
                arrays[name] = np.asarray(archive[name])
    except (ValueError, *_DAMAGE) as error:
        where = "" if name is None else f", array {name!r}"
        raise ValueError(
            f"{path} must be an npz file of text and numbers, without Python objects (save names "
            f"with names.astype(str)), got{where}: {error}"
        ) from error
    return arrays


# ---------------------------------------------------------------------- files


def _read_frame(path: str | os.PathLike[str], delimiter: str | None) -> pd.DataFrame:
    """Reads a table whose column names are distinct text."""
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(
            f"delimiter must be one character, no quote and no line end, got {delimiter!r}"
        )
    _check_file(path)
    if Path(path).suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    return _read_text(path, delimiter or _default_delimiter(path))


def _check_file(path: str | os.PathLike[str]) -> None:
    if not Path(path).exists():
        raise FileNotFoundError(f"path must be a file, there is no {str(path)!r}")
    if not Path(path).is_file():
        raise ValueError(f"path must be a file, got the directory {str(path)!r}")


def _default_delimiter(path: str | os.PathLike[str]) -> str:
    name = Path(path).name.lower()
    for suffix in _OPENERS:
        name = name.removesuffix(suffix)
    return "\t" if name.endswith((".tsv", ".tab")) else ","


def _read_parquet(path: str | os.PathLike[str]) -> pd.DataFrame:
    try:
        # Nullable types: an integer name of 17 digits would not survive as a float.
        frame = pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
    except ImportError as error:
        raise ImportError(
            f"{path} needs pyarrow to be read: pip install pyarrow, or save the table as csv"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} must be a parquet file, got: {error}") from error
    if frame.index.name is not None or not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    _check_header(path, [str(name) for name in frame.columns])
    return frame.set_axis(frame.columns.map(str), axis=1)


def _read_text(path: str | os.PathLike[str], delimiter: str) -> pd.DataFrame:
    """Reads a text file, cells as they stand, indexed by line."""
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with _open(path) as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _header(path, reader, delimiter)
            lines, rows = [], []
            for row in _even_rows(path, reader, len(header)):
                lines.append(reader.line_num)
                rows.append(row)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be UTF-8 text (in a spreadsheet: save as CSV UTF-8), got byte "
            f"0x{error.object[error.start]:02x}"
        ) from error
    except csv.Error as error:
        raise ValueError(
            f"{path} must quote cells as csv does, got at line {reader.line_num}: {error}"
        ) from error
    except _DAMAGE as error:
        raise ValueError(f"{path} must be a whole, readable file, got: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return pd.DataFrame(rows, index=lines, columns=header, dtype=object)


def _header(path: str | os.PathLike[str], reader: Iterator[list[str]], delimiter: str) -> list[str]:
    header = next(filter(None, reader), None)
    if header is None:
        raise ValueError(f"{path} must have a header and rows, got an empty file")
    if any("\0" in name for name in header):
        raise ValueError(f"{path} must be text, got a binary file")
    others = [mark for mark in _DELIMITERS if mark != delimiter and mark in header[0]]
    if len(header) == 1 and others:
        raise ValueError(
            f"{path} must have columns between {delimiter!r}, got one column {header[0][:80]!r}; "
            f"try delimiter={max(others, key=header[0].count)!r}"
        )
    # An index that pandas wrote, or trailing delimiters of a spreadsheet.
    header = [name or f"column {number}" for number, name in enumerate(header, start=1)]
    _check_header(path, header)
    return header


def _check_header(path: str | os.PathLike[str], header: Sequence[str]) -> None:
    for name, count in Counter(header).most_common(1):
        if count > 1:
            raise ValueError(f"{path} must have distinct columns, got {name!r} {count} times")


def _even_rows(
    path: str | os.PathLike[str], reader: Iterator[list[str]], width: int
) -> Iterator[list[str]]:
    for row in filter(None, reader):
        if len(row) != width:
            raise ValueError(
                f"{path} must have {width} cells in every row, as in the header, got {len(row)} "
                f"at line {reader.line_num}"
            )
        yield row


def _open(path: str | os.PathLike[str]) -> TextIO:
    opener = _OPENERS.get(Path(path).suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _open_zip(path: str | os.PathLike[str], mode: str, **text: str) -> TextIO:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"{path} must hold one file, got {_listing(names)}")
        # The member keeps the archive open until it is closed itself.
        return io.TextIOWrapper(archive.open(names[0]), **text)


_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": _open_zip}


def _text(source: str | os.PathLike[str], column: pd.Series) -> pd.Series:
    """Turns a column into text, whole numbers without a point, empty cells into ''.

    A column of 7.0 and 12.0 alone is one of whole numbers that had an empty cell when a program
    wrote it.
    """
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise ValueError(
            f"{source} must hold one word or number in each cell of column {column.name!r}: {error}"
        ) from error
    texts = [_name(value) for value in values]
    if all(_WHOLE.fullmatch(text) for text in texts if text):
        texts = [text.removesuffix(".0") for text in texts]
    names = np.array([*texts, ""], dtype=object)  # Code -1, for missing, is the last.
    return pd.Series(names[codes], index=column.index, dtype=object, name=column.name)


def _name(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _listing(names: Iterable[object]) -> str:
    names = [str(name) for name in names]
    shown = ", ".join(repr(name[:60]) for name in names[:20])
    return shown + (f", … ({len(names)} in all)" if len(names) > 20 else "")
