"""Tables in csv, tsv, parquet and npz files, read with names as text.

Text files are UTF-8 and may be compressed; their delimiter is a tab for .tsv and .tab, else a
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
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

__all__ = [
    "as_text",
    "check_file",
    "check_header",
    "list_names",
    "load_arrays",
    "open_zip",
    "read_frame",
    "read_parquet",
    "read_text",
]

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


def read_frame(path: str | os.PathLike[str], delimiter: str | None) -> pd.DataFrame:
    """Reads a table whose column names are distinct text."""
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(
            f"delimiter must be one character, no quote and no line end, got {delimiter!r}"
        )
    check_file(path)
    if Path(path).suffix.lower() in (".parquet", ".pq"):
        return read_parquet(path)
    if delimiter is None:
        name = Path(path).name.lower()
        for suffix in _OPENERS:
            name = name.removesuffix(suffix)
        delimiter = "\t" if name.endswith((".tsv", ".tab")) else ","
    return read_text(path, delimiter)


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuses a path where there is no file."""
    if not Path(path).exists():
        raise FileNotFoundError(f"path must be a file, there is no {str(path)!r}")
    if not Path(path).is_file():
        raise ValueError(f"path must be a file, got the directory {str(path)!r}")


def read_parquet(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads a parquet file, with a named index as a column, in nullable types."""
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
    check_header(path, [str(name) for name in frame.columns])
    return frame.set_axis(frame.columns.map(str), axis=1)


def read_text(path: str | os.PathLike[str], delimiter: str) -> pd.DataFrame:
    """Reads a text file, cells as they stand, indexed by line."""
    opener = _OPENERS.get(Path(path).suffix.lower(), open)
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _header(path, reader, delimiter)
            lines, rows = [], []
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise ValueError(
                        f"{path} must have {len(header)} cells in every row, as in the header, got "
                        f"{len(row)} at line {reader.line_num}"
                    )
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
    check_header(path, header)
    return header


def check_header(path: str | os.PathLike[str], header: Sequence[str]) -> None:
    """Refuses columns of the same name."""
    for name, count in Counter(header).most_common(1):
        if count > 1:
            raise ValueError(f"{path} must have distinct columns, got {name!r} {count} times")


def open_zip(path: str | os.PathLike[str], mode: str, **text: str) -> TextIO:
    """Opens the only file of a zip archive as text."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"{path} must hold one file, got {list_names(names)}")
        # The member keeps the archive open until it is closed itself.
        return io.TextIOWrapper(archive.open(names[0]), **text)


_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": open_zip}


def as_text(source: str | os.PathLike[str], column: pd.Series) -> pd.Series:
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


def list_names(names: Iterable[object]) -> str:
    """Lists names in a message, the first twenty, each cut to 60 characters."""
    names = [str(name) for name in names]
    shown = ", ".join(repr(name[:60]) for name in names[:20])
    return shown + (f", … ({len(names)} in all)" if len(names) > 20 else "")


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file by name; nothing is unpickled."""
    check_file(path)
    name = None
    arrays = {}
    try:
        with zipfile.ZipFile(path):  # np.load would take another file for a pickle.
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
