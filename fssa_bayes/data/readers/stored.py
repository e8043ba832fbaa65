"""Comparisons on disk: columns of a Parquet source, converted once and mapped into memory.

A store is a folder with one file for each column, in the types in which `Preferences` hold them,
and `about.json`. The system reads a page of a column when a comparison on it is drawn, and forgets
the page when memory is needed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fssa_bayes._files import whole_folder
from fssa_bayes._random import keys_of
from fssa_bayes.data.ids import find_names, join_names, names_from_json, names_to_json
from fssa_bayes.data.names import show_value
from fssa_bayes.data.parquet import ParquetFile, find_parquet_files
from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.outcomes import decode_choices
from fssa_bayes.data.readers.pairs import check_frame, lookup_items

__all__ = ["Stored", "open_store"]

_FORMAT = 1
_ABOUT, _USERS = "about.json", "users.arrow"
_ROWS_AT_ONCE = 2**20
_TYPES = {
    "left": np.dtype("<i4"),
    "right": np.dtype("<i4"),
    "choice": np.dtype("<f4"),
    "counts": np.dtype("<i8"),
    "keys": np.dtype("<u8"),
}


class Stored(NamedTuple):
    """Holds comparisons on disk, and the names that are held in memory.

    Attributes:
        left: Position of each comparison's left item, int32 with shape (R,), on disk.
        right: The same for the right item.
        choice: 1, 0 or ½, single precision with shape (R,), on disk.
        counts: Number of comparisons of each person, (U,).
        keys: Keys of the people's random streams, uint64 with shape (U,), on disk.
        user_names: Names of the people, (U,).
        item_names: Names of the items.
        dropped_ties: Number of ties that were left out.
    """

    left: np.ndarray
    right: np.ndarray
    choice: np.ndarray
    counts: np.ndarray
    keys: np.ndarray
    user_names: pd.Index
    item_names: pd.Index
    dropped_ties: int


def open_store(
    path: str | os.PathLike,
    columns: Mapping[str, str],
    item_names: pd.Index | None,
    choice_labels: Mapping[Any, str] | None,
    ties: str,
    store: str | os.PathLike | None,
) -> Stored:
    """Opens the columns of a Parquet source, which are converted where that was not done before.

    Args:
        path: The source.
        columns: Names of the columns `user`, `left`, `right` and `choice`.
        item_names: Names of the items; None for all that are compared.
        choice_labels: Translation of the data's own words, or None.
        ties: `"drop"`, `"half"` or `"keep"`.
        store: Folder of the columns; None for files without a name, which end with the process.

    Raises:
        FileExistsError: If the store holds something else.
        ValueError: As `Preferences.from_parquet`.
    """
    files = find_parquet_files(path, columns, "path")
    _check_user(files[0], columns["user"])
    about = {
        "format": _FORMAT,
        "source": [[file.path.name, file.digest] for file in files],
        "columns": dict(columns),
        "items": None if item_names is None else names_to_json(item_names),
        "choice_labels": None if choice_labels is None else [*map(list, choice_labels.items())],
        "drop": ties == "drop",
    }
    about = json.loads(json.dumps(about, default=str))
    if store is None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            place = Path(folder) / "columns"
            _convert(files, columns, item_names, choice_labels, ties, place, about)
            return _read(place)  # What is mapped stays when its name is gone.
    place = Path(store)
    if not place.exists():
        _convert(files, columns, item_names, choice_labels, ties, place, about)
    elif not place.is_dir() or _about(place).get("about") != about:
        raise FileExistsError(
            f"store must be a new folder, or hold the columns of the same file read in the same "
            f"way, got {str(store)!r}: choose another folder, or delete this one"
        )
    return _read(place)


def _check_user(file: ParquetFile, column: str) -> None:
    """Refuses people who are named by something else than text or whole numbers."""
    import pyarrow as pa

    kind = file.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_text and (not pa.types.is_integer(kind) or kind == pa.uint64()):
        raise ValueError(
            f"user={column!r} must hold text or whole numbers below 2**63, got the type {kind}: "
            "cast the column to text"
        )


def _about(place: Path) -> dict:
    try:
        return json.loads((place / _ABOUT).read_bytes())
    except (OSError, ValueError):
        return {}


def _read(place: Path) -> Stored:
    import pyarrow as pa

    about = _about(place)
    arrays = {}
    for name, dtype in _TYPES.items():
        length = about["people" if name in ("counts", "keys") else "comparisons"]
        file = place / f"{name}.bin"
        size = file.stat().st_size if file.is_file() else 0
        if size != length * dtype.itemsize:
            raise ValueError(
                f"{str(file)!r} must have {length * dtype.itemsize} bytes, got {size}: delete the "
                "store, and it is made again"
            )
        arrays[name] = np.memmap(file, dtype, "r", shape=(length,))
    with pa.memory_map(str(place / _USERS)) as source:
        users = pa.ipc.open_file(source).read_all()["user"]
    if pa.types.is_integer(users.type):
        names = pd.Index(users.to_numpy())
    else:
        names = pd.Index(users.to_pandas())
    items = names_from_json("the names of items", about["item_names"])
    return Stored(**arrays, user_names=names, item_names=items, dropped_ties=about["dropped_ties"])


class _Chunk(NamedTuple):
    """Holds what is read of some people; items by position in `item_names`."""

    left: np.ndarray
    right: np.ndarray
    choice: np.ndarray
    counts: np.ndarray
    user_names: pd.Index
    dropped_ties: int


def _convert(
    files: list[ParquetFile],
    columns: Mapping[str, str],
    item_names: pd.Index | None,
    choice_labels: Mapping[Any, str] | None,
    ties: str,
    place: Path,
    about: dict,
) -> None:
    """Writes the columns of a source to a folder that appears whole."""
    import pyarrow as pa

    found = _FoundItems(item_names)
    writer, last, is_sorted = None, None, True
    sizes = {"comparisons": 0, "people": 0, "dropped_ties": 0}
    with whole_folder(place) as part:
        with ExitStack() as block:
            handles = {n: block.enter_context(open(part / f"{n}.bin", "wb")) for n in _TYPES}
            for df in _people(files, columns["user"]):
                chunk = _read_chunk(df, columns, found, choice_labels, ties)
                names = chunk.user_names
                plain = names.to_numpy() if names.dtype == np.int64 else names.tolist()
                users = pa.table({"user": pa.array(plain)})
                if writer is None:
                    writer = pa.ipc.new_file(str(part / _USERS), users.schema)
                    block.enter_context(writer)
                writer.write_table(users)
                values = {**chunk._asdict(), "keys": keys_of(names)}
                for name, dtype in _TYPES.items():
                    values[name].astype(dtype).tofile(handles[name])
                sizes["comparisons"] += len(chunk.choice)
                sizes["people"] += len(names)
                sizes["dropped_ties"] += chunk.dropped_ties
                # Names in order need no look at all of them to be told apart.
                is_sorted &= names.is_monotonic_increasing and (last is None or names[0] > last)
                last = names[-1] if len(names) else last
        if not sizes["comparisons"]:
            raise ValueError(
                f"path must hold a comparison, got {sizes['dropped_ties']} ties, which ties='drop' "
                "leaves out, and no other rows"
            )
        about = {"about": about, **sizes, "item_names": names_to_json(found.names())}
        found.renumber(part, sizes["comparisons"])
        (part / _ABOUT).write_text(json.dumps(about))
        if not is_sorted:
            _refuse_divided(_read(part).user_names, columns["user"])


def _people(files: list[ParquetFile], user: str) -> Iterator[pd.DataFrame]:
    """Yields tables of whole people: the rows of the last person wait for those that follow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: pd.DataFrame | None = None
    start = 0
    for file in files:
        names = file.schema.names
        try:
            with pq.ParquetFile(file.path, page_checksum_verification=True) as source:
                for batch in source.iter_batches(_ROWS_AT_ONCE, columns=names):
                    df = batch.to_pandas()[names]
                    if not len(df):
                        continue
                    if df[user].isna().any():
                        raise ValueError(
                            f"user={user!r} must have no missing values, got one in "
                            f"{str(file.path)!r}"
                        )
                    df = df if held is None else pd.concat([held, df], ignore_index=True)
                    df.index = pd.RangeIndex(start, start + len(df))
                    same = (df[user] == df[user].iloc[-1]).to_numpy()
                    others = len(same) - int(np.argmin(same[::-1])) if not same.all() else 0
                    held = df.iloc[others:]
                    start += others
                    if others:
                        yield df.iloc[:others]
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{str(file.path)!r} is damaged: {error}") from error
    if held is not None:
        yield held


def _read_chunk(
    df: pd.DataFrame,
    columns: Mapping[str, str],
    found: _FoundItems,
    choice_labels: Mapping[Any, str] | None,
    ties: str,
) -> _Chunk:
    """Reads some people as `Preferences.from_dataframe` does."""
    table = Columns(df)
    check_frame(table, columns)
    outcome = decode_choices(table, columns, choice_labels)
    person, names = table.names(f"user={columns['user']!r}", columns["user"])
    if len(names) != 1 + np.count_nonzero(np.diff(person)):
        _refuse_divided(names[person[np.diff(person, prepend=-1) != 0]], columns["user"])
    left, right = (found.positions(table, role, columns[role]) for role in ("left", "right"))
    (own, names_left), (other, names_right) = (
        table.names(f"column {columns[role]!r}", columns[role]) for role in ("left", "right")
    )
    same = np.flatnonzero(find_names(names_right, names_left)[other] == own)
    if len(same):
        raise ValueError(
            f"an item cannot be compared with itself: row {df.index[same[0]]} does ({len(same)} "
            "such rows)"
        )
    keep = np.ones(len(df), dtype=bool) if ties != "drop" else outcome != 0.5
    counts = np.bincount(person[keep], minlength=len(names))
    present = counts > 0
    return _Chunk(
        left[keep], right[keep], outcome[keep], counts[present], names[present], int((~keep).sum())
    )


def _refuse_divided(names: pd.Index, user: str) -> None:
    """Raises a ValueError if a name stands twice in a list of the people of runs of rows."""
    repeated = names[names.duplicated()]
    if len(repeated):
        raise ValueError(
            f"the rows of a person must lie together, got those of user "
            f"{show_value(repeated[0])} in several places ({len(repeated)} such places): sort the "
            f"rows by {user!r} first"
        )


class _FoundItems:
    """Numbers items as `Preferences.from_dataframe` does: those on the left first.

    Args:
        given: Names of all items; None for those that are found.
    """

    def __init__(self, given: pd.Index | None) -> None:
        self.given = given
        self.found: dict[str, pd.Index | None] = {"left": None, "right": None}

    def positions(self, table: Columns, role: str, column: str) -> np.ndarray:
        """Returns the positions of items in a column, int32.

        Items that are found are numbered in either column apart, until :meth:`renumber`.
        """
        if self.given is not None:
            return lookup_items(table, column, self.given)
        code, names = table.names(f"column {column!r}", column)
        known = self.found[role]
        self.found[role] = names if known is None else join_names(known, names)
        return find_names(names, self.found[role])[code].astype(np.int32)

    def names(self) -> pd.Index:
        """Returns the names of all items."""
        return self.given if self.given is not None else join_names(*self.found.values())

    def renumber(self, part: Path, number: int) -> None:
        """Gives the right items on disk their positions among all names."""
        if self.given is not None:
            return
        position = find_names(self.found["right"], self.names()).astype(np.int32)
        right = np.memmap(part / "right.bin", _TYPES["right"], "r+", shape=(number,))
        for start in range(0, number, _ROWS_AT_ONCE):
            right[start : start + _ROWS_AT_ONCE] = position[right[start : start + _ROWS_AT_ONCE]]
        right.flush()
