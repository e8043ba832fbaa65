"""Files of preference rows: JSON lines, JSON, Parquet, CSV."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fssa_bayes.policy import PreferenceRows

__all__ = ["list_records", "read_records", "read_rows"]


def read_rows(path: str | os.PathLike, user: str | None = None) -> PreferenceRows:
    """Reads prompt, chosen, rejected and user, in the formats of TRL, from a file.

    Args:
        path: A file of JSON lines (`.jsonl`), of a JSON list, Parquet or CSV (of strings).
        user: The person of all rows, in place of the column `user`; None where there is one.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If the file is none of these, or a row is wrong.
    """
    records = read_records(path)
    if user is not None:
        records = [{**record, "user": user} for record in records]
    return PreferenceRows.from_records(records)


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a file as dictionaries; see :func:`read_rows`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data must be an existing file, got {str(path)!r}")
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson", ".json"):
        records = _read_json(path, lines=kind != ".json")
    elif kind in (".parquet", ".csv"):
        try:
            if kind == ".csv":
                table = pd.read_csv(path, keep_default_na=False, encoding="utf-8-sig")
            else:
                table = pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"data must be a {kind} file, got {str(path)!r}: {error}") from error
        records = table.to_dict("records")
    else:
        raise ValueError(f"data must be .jsonl, .json, .parquet or .csv, got {str(path)!r}")
    if not records:
        raise ValueError(f"data must hold rows, got none in {str(path)!r}")
    return records


def list_records(name: str, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns records as a list.

    Args:
        name: What the records are, for messages.
        records: The records.

    Raises:
        TypeError: If they are something else.
    """
    listed = None
    if isinstance(records, Iterable) and not isinstance(records, str | Mapping):
        listed = list(records)
    if listed is None or not all(isinstance(record, Mapping) for record in listed):
        wrong = records if listed is None else next(r for r in listed if not isinstance(r, Mapping))
        raise TypeError(
            f"{name} must be PreferenceRows, or a list of records with 'prompt', 'chosen' and "
            f"'rejected', got {'' if listed is None else 'a list with '}{type(wrong).__name__}"
        )
    return listed


def _read_json(path: Path, *, lines: bool) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise ValueError(f"data must be UTF-8, got {str(path)!r}: {error}") from error
    try:
        found = json.loads(text) if not lines else None
    except ValueError as error:
        raise ValueError(f"data must be JSON, got {str(path)!r}: {error}") from error
    if lines:
        found = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    found.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(
                        f"data must be a JSON object a line, got {str(path)!r} with line {number}: "
                        f"{error}"
                    ) from error
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise ValueError(f"data must be a list of objects, got something else in {str(path)!r}")
    return found
