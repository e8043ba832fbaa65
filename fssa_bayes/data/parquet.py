"""Parquet files on disk: which there are, what they hold, and a digest that tells them apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetFile", "find_parquet_files"]

_MAGIC = b"PAR1"  # The first bytes of a Parquet file.
_TAIL = 8  # Bytes at the end of a Parquet file: the length of its footer, and "PAR1".


@dataclass(frozen=True)
class ParquetFile:
    """Describes a Parquet file.

    Attributes:
        path: The file.
        row_groups: Number of rows of each row group.
        digest: SHA-256 of its footer, which lists rows, sizes and statistics of the columns.
        schema: Names and types of the columns that are needed, in the order asked for.
    """

    path: Path
    row_groups: tuple[int, ...]
    digest: str
    schema: pa.Schema


def find_parquet_files(
    source: str | os.PathLike, columns: Mapping[str, str], argument: str = "source"
) -> list[ParquetFile]:
    """Finds the Parquet files of a source, in the order of their paths, and checks their columns.

    Args:
        source: A Parquet file, or a folder with some, also in folders of its own. Files
            and folders whose names begin with a dot or an underscore are passed over.
        columns: The columns that are needed, by the argument that names them.
        argument: What the source is called in messages.

    Raises:
        ImportError: If pyarrow is missing.
        FileNotFoundError: If there is no such file, or no Parquet file in the folder.
        ValueError: If a file is damaged, lacks a column, or has a column of another type than the
            first file.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{argument}={str(source)!r} needs pyarrow: pip install pyarrow"
        ) from error
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"{', '.join(columns)} must be different columns, got {dict(columns)}")
    source = Path(source)
    paths = [source]
    if source.is_dir():
        paths = [
            path
            for path in sorted(source.rglob("*.parquet"))
            if not any(name.startswith((".", "_")) for name in path.relative_to(source).parts)
        ]
    if not paths or not all(path.is_file() for path in paths):
        raise FileNotFoundError(
            f"{argument} must be a Parquet file or a folder with some, got {str(source)!r}"
        )
    found = [_describe(path, columns) for path in paths]
    for file in found[1:]:
        if file.schema != found[0].schema:
            raise ValueError(
                f"the files of {argument} must have the same types of columns, got "
                f"{_types(found[0].schema)} in {str(found[0].path)!r} and {_types(file.schema)} in "
                f"{str(file.path)!r}"
            )
    return found


def _describe(path: Path, columns: Mapping[str, str]) -> ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            rows = tuple(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
            file.seek(-_TAIL, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-_TAIL - length, os.SEEK_END)
            digest = hashlib.sha256(file.read()).hexdigest()
    except (pa.ArrowException, OSError) as error:
        advice = _convert(path) if isinstance(error, pa.ArrowException) else ""
        raise ValueError(
            f"{str(path)!r} is no {'' if advice else 'whole '}Parquet file: {advice or error}"
        ) from error
    for argument, column in columns.items():
        found = schema.names.count(column)
        if found != 1:
            reason = "is not a column" if not found else f"is the name of {found} columns"
            raise ValueError(
                f"{argument}={column!r} {reason} of {str(path)!r}; its columns are {schema.names}"
            )
    needed = [schema.field(name).remove_metadata() for name in columns.values()]
    return ParquetFile(path, rows, digest, pa.schema(needed))


def _convert(path: Path) -> str:
    """Says how a table of another kind becomes a Parquet file; `""` for a damaged Parquet file."""
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC))
    if start in (b"", _MAGIC):
        return ""
    new = path.name.split(".")[0] + ".parquet"
    return (
        f"nothing but Parquet is read here; pandas.read_csv({path.name!r}, dtype=str)"
        f".to_parquet({new!r}) converts a csv, with names as text"
    )


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
