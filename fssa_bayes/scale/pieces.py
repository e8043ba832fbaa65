"""A table on disk dealt to parts, so that all rows of a person lie in one part.

The part of a person follows from the key of the person's random stream, a digest of the name, so
that it does not depend on where the rows lie. A *piece* is a stretch of the source; its rows are
written to one Arrow file, which has a record batch for each part. A part is read by taking its
batch from every piece, through a memory map: memory is that of one piece or one part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fssa_bayes._files import whole_file
from fssa_bayes._random import keys_of
from fssa_bayes.data import ParquetFile, find_parquet_files
from fssa_bayes.scale.people import ColumnNames, check_columns, user_type

__all__ = ["Piece", "deal", "find_source", "list_pieces", "part_of", "read_part"]

_ROWS_AT_ONCE = (
    2**18
)  # Rows of a piece that are dealt at once: about 10 MB for names of 10 letters.


@dataclass(frozen=True)
class Piece:
    """Describes a stretch of the source: some row groups of one file.

    Attributes:
        path: The Parquet file.
        row_groups: Numbers of the row groups.
    """

    path: Path
    row_groups: tuple[int, ...]


def find_source(source: str | os.PathLike, columns: ColumnNames) -> list[ParquetFile]:
    """Finds the Parquet files of a source, and checks their columns.

    Args:
        source: A Parquet file, or a folder with some.
        columns: The columns that are read.

    Raises:
        FileNotFoundError: If there is no such file, or no Parquet file in the folder.
        ValueError: If a file is damaged, lacks a column, or has a column of another type than the
            first file, or people are not named by text or whole numbers.
    """
    files = find_parquet_files(source, asdict(columns))
    check_columns(files[0].schema, columns)
    return files


def list_pieces(files: Sequence[ParquetFile], rows: int) -> list[Piece]:
    """Divides a source into stretches of about `rows` rows, each of whole row groups."""
    pieces = []
    for file in files:
        some: list[int] = []
        held = 0
        for number, size in enumerate(file.row_groups):
            some.append(number)
            held += size
            if held >= rows:
                pieces.append(Piece(file.path, tuple(some)))
                some, held = [], 0
        if some:
            pieces.append(Piece(file.path, tuple(some)))
    return pieces


def part_of(names: pa.Array | pa.ChunkedArray, num_parts: int) -> np.ndarray:
    """Returns the part of each row's person, int64 with shape (R,); 0 for rows without a name."""
    encoded = pc.dictionary_encode(names)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    part = np.zeros(len(encoded.dictionary) + 1, dtype=np.int64)
    part[:-1] = keys_of(encoded.dictionary.to_pylist()) % np.uint64(num_parts)
    return part[encoded.indices.fill_null(len(part) - 1).to_numpy(zero_copy_only=False)]


def deal(piece: Piece, path: Path, columns: ColumnNames, num_parts: int) -> None:
    """Writes the rows of a piece, by part, to an Arrow file that appears whole.

    The file holds a record batch for each part, and again as many for every further stretch of
    rows.

    Raises:
        ValueError: If the Parquet file is damaged.
    """
    try:
        with pq.ParquetFile(piece.path, page_checksum_verification=True) as source:
            batches = source.iter_batches(
                _ROWS_AT_ONCE, row_groups=list(piece.row_groups), columns=columns.all
            )
            with whole_file(path) as part:
                _write(part, (_plain(batch, columns) for batch in batches), num_parts)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # A full disk, say.
            raise
        raise ValueError(f"source file {str(piece.path)!r} is damaged: {error}") from error


def _plain(batch: pa.RecordBatch, columns: ColumnNames) -> pa.RecordBatch:
    """Returns the four columns, without dictionaries, which differ from batch to batch."""
    arrays = []
    for name in columns.all:
        column = batch.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        kind = user_type(kind, name) if name == columns.user else kind
        arrays.append(column.cast(kind))
    return pa.RecordBatch.from_arrays(arrays, columns.all)


def _write(path: Path, batches: Iterator[pa.RecordBatch], num_parts: int) -> None:
    writer = None
    try:
        for batch in batches:
            part = part_of(batch.column(0), num_parts)
            order = np.argsort(part, kind="stable")
            ends = np.searchsorted(part[order], np.arange(num_parts + 1))
            ordered = batch.take(pa.array(order))
            if writer is None:
                writer = pa.ipc.new_file(str(path), batch.schema)
            for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
                writer.write_batch(ordered.slice(start, stop - start))
        if writer is None:  # Row groups without rows.
            path.touch()
    finally:
        if writer is not None:
            writer.close()


def read_part(paths: Sequence[Path], part: int, num_parts: int) -> pa.Table | None:
    """Reads the rows of one part from the files of all pieces; None where there are no rows."""
    batches = []
    for path in paths:
        if not path.stat().st_size:
            continue
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(part, reader.num_record_batches, num_parts):
                batches.append(reader.get_batch(number))
    return pa.Table.from_batches(batches) if batches else None
