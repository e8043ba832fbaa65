"""Features of items and covariates of people in files: one row a name, numbers or words besides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fssa_bayes.data import storage_type, usable_numbers
from fssa_bayes.datasets._tables import as_text, list_names, load_arrays, read_frame

__all__ = ["check_unique", "read_column", "read_features", "read_npz", "read_numbers"]

_MISSING = ("", "na", "n/a", "<na>", "nan", "null")


def read_features(
    path: str | os.PathLike[str],
    *,
    names: str | None,
    likely: Sequence[str],
    delimiter: str | None,
) -> pd.DataFrame:
    """Reads a table of one row a name, indexed by the names: numbers, or text.

    Args:
        path: A csv, tsv, parquet or npz file.
        names: Column, or array, with the names, or None.
        likely: Columns that hold the names where `names` is None, before the first column.
        delimiter: Character between the cells of a text file.
    """
    if Path(path).suffix.lower() == ".npz":
        frame, column = read_npz(path, names)
    else:
        frame = read_frame(path, delimiter)
        found = [name for name in likely if name in frame.columns]
        column = names if names is not None else [*found, *frame.columns[:1], ""][0]
    if column not in frame.columns:
        raise ValueError(
            f"names={column!r} is not a column of {path}; its columns are "
            f"{list_names(frame.columns)}"
        )
    index = check_unique(path, frame[column])
    features = frame.drop(columns=column)
    if 0 in features.shape:
        raise ValueError(
            f"{path} must have at least one row and one column besides the names {column!r}, got "
            f"{features.shape[0]} rows and {features.shape[1]} columns"
        )
    precision = storage_type(features.dtypes)
    columns = [read_column(path, features[name], index) for name in features]
    columns = [own if own.dtype == object else own.astype(precision) for own in columns]
    return pd.DataFrame(dict(enumerate(columns)), index=index).set_axis(features.columns, axis=1)


def check_unique(path: str | os.PathLike[str], column: pd.Series) -> pd.Index:
    """Returns the names in a column as text, or refuses empty and repeated ones."""
    names = as_text(path, column)
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


def read_column(path: str | os.PathLike[str], column: pd.Series, names: pd.Index) -> np.ndarray:
    """Reads a feature: text where no cell is a number, for the levels of a category, else numbers.

    Args:
        path: The file.
        column: The cells.
        names: Names of the rows, (M,).
    """
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column):
        text = as_text(path, column)
        if pd.to_numeric(text, errors="coerce").isna().all() and not _is_missing(text).any():
            return text.to_numpy(dtype=object)
    return read_numbers(path, column, names)


def _is_missing(text: pd.Series) -> pd.Series:
    return text.str.lower().isin(_MISSING)


def read_numbers(path: str | os.PathLike[str], column: pd.Series, names: pd.Index) -> np.ndarray:
    """Reads a feature as finite numbers in double precision, with shape (M,)."""
    numbers = column
    if not pd.api.types.is_numeric_dtype(column.dtype):
        numbers = pd.to_numeric(as_text(path, column), errors="coerce")
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(~usable_numbers(values))
    if len(bad):
        cell = column.iloc[bad[0]]
        raise ValueError(
            f"{path} must hold finite numbers besides the names, got {str(cell)!r} for "
            f"{names[bad[0]]!r} in column {column.name!r} ({len(bad)} such cells); "
            "numbers have a decimal point, and a column of categories has a word in every cell"
        )
    return values


def read_npz(path: str | os.PathLike[str], names: str | None) -> tuple[pd.DataFrame, str]:
    """Reads the names and features of an npz file as a table, and the names' column."""
    arrays = load_arrays(path)
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
