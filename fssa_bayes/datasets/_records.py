"""Records of JSON lines, parquet files and the Hugging Face hub, each with its place."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["read_file", "read_records"]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_records(
    source: str | os.PathLike, *, columns: Sequence[str], hub_name: str
) -> Iterator[tuple[str, Any]]:
    """Yields records, each with words for its place in messages.

    Args:
        source: A .jsonl (or .jsonl.gz) or .parquet file, a folder of such files, or the name of a
            data set on the hub.
        columns: Columns to read of parquet files.
        hub_name: Name of the data set on the hub that messages advise.

    Raises:
        FileNotFoundError: If a path is given and nothing is there.
        ImportError: If the package that reads the source is not installed.
        OSError: If the hub cannot be reached.
        ValueError: If a file is damaged, or of another kind.
    """
    path = Path(source).expanduser()
    if path.is_file():
        yield from read_file(path, columns)
        return
    if path.is_dir():
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.name.endswith(_SUFFIXES)
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not files:
            raise FileNotFoundError(f"source must hold {', '.join(_SUFFIXES)}: {str(path)!r}")
        for file in files:
            yield from read_file(file, columns)
        return
    name = str(source)
    is_path = name.startswith((".", "~", os.sep)) or name.endswith(_SUFFIXES)
    if not isinstance(source, str) or is_path or name.count("/") != 1:
        raise FileNotFoundError(f"source must be a file, a folder or {hub_name!r}, got {name!r}")
    yield from _read_hub(name, hub_name)


def read_file(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields the records of one file, each with words for its place."""
    if path.name.endswith(".parquet"):
        yield from _read_parquet(path, columns)
        return
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(f"source must end in one of {', '.join(_SUFFIXES)}, got {str(path)!r}")
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"line {number} of {str(path)!r}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"every line must be a JSON object, {where}: {error}") from error
        yield where, record


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"source {str(path)!r} must be text in UTF-8: {error}") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"source {str(path)!r} is no whole gzip file, fetch it again: {error}"
            ) from error


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # The kinds of pyarrow's own errors.
        raise ValueError(
            f"source {str(path)!r} is no whole parquet file, fetch it again: {error}"
        ) from error
    present = [name for name in columns if name in file.schema_arrow.names]
    number = 0
    for batch in file.iter_batches(1000, columns=present):
        for record in batch.to_pylist():
            yield f"row {number} of {str(path)!r}", record
            number += 1


def _read_hub(name: str, hub_name: str) -> Iterator[tuple[str, Any]]:
    advice = (
        f"fetch the files where there is a connection (hf download {hub_name} --repo-type dataset "
        "--local-dir FOLDER) and pass the folder's path, or that of a .jsonl or .parquet file"
    )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no file here, and to fetch it from the hub needs the package datasets: "
            f"pip install datasets; or {advice}"
        ) from error
    try:
        table = load_dataset(name, split="train")
    except Exception as error:  # The client raises a dozen kinds of errors.
        raise OSError(f"{name!r} could not be loaded from the hub ({error}); {advice}") from error
    for number, record in enumerate(table):
        yield f"record {number} of {name!r}", record
