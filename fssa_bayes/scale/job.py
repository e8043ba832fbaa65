"""Scores a Parquet source of people on one machine, part by part, by several processes.

A part that is written is a part that is done: it appears whole, with a digest in a file beside it,
and a rerun goes on with the others. Workers and the process that started them may be killed at any
moment.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from fssa_bayes._files import whole_file, write_file
from fssa_bayes.data import names_to_json
from fssa_bayes.scale.pieces import Piece, deal, find_source, list_pieces, read_part
from fssa_bayes.scale.table import Scorer, model_digest
from fssa_bayes.scale.workers import Workers

__all__ = ["Job", "score_parquet"]

_FORMAT = 1
_MANIFEST = "_manifest.json"
_PIECES, _DIGESTS = "_pieces", "_digests"
_ROWS_OF_PIECE = 2**20
_ROWS_OF_PART = 2**17  # 13,000 people of ten comparisons: about ten seconds of work.


@dataclass(frozen=True)
class Job:
    """Says what became of a job.

    Attributes:
        out: Folder of the results, a dataset of Parquet files.
        num_parts: Number of parts.
        written: Number of parts that this run has written; the others were there.
        num_people: Number of people, those who could not be scored among them.
        num_failed: Number of people who could not be scored, who have a `reason`.
        reason: That of one of them; None where everybody was scored.
    """

    out: Path
    num_parts: int
    written: int
    num_people: int
    num_failed: int
    reason: str | None = None


def score_parquet(
    model_dir: str | os.PathLike,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    workers: int = 1,
    num_parts: int | None = None,
    tell: Callable[[str], None] | None = None,
    **options: object,
) -> Job:
    """Scores the people of a Parquet source on one machine.

    Rows may lie in any order and in any file: a first pass deals them to parts by person, so that
    nobody is scored twice. The parts are the same, byte for byte, for any number of workers and any
    order of the rows. An interrupted job goes on where it was when it is called again with the same
    arguments; finished parts are verified by their digests, and a damaged one is written again. The
    first pass needs as much disk as the four columns of the source without compression, until the
    job ends.

    Args:
        model_dir: Folder of a model that :func:`fssa_bayes.save` wrote.
        source: A Parquet file, or a folder with some, of comparisons.
        out: Folder of the results. `pyarrow.dataset`, Spark and pandas read it as one table.
        workers: Number of processes, each with one thread. They import the main module of the
            program, which therefore needs `if __name__ == "__main__":`. 0 starts none.
        num_parts: Number of parts; None for parts of about 130,000 comparisons.
        tell: Called with a line of text now and then, such as `print`; None for nothing.
        **options: Arguments of :class:`fssa_bayes.scale.Scorer`.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If the model or the source is not there.
        FileExistsError: If `out` holds the parts of another model, of other options or of another
            source, or something else, or if another job is writing to it.
        ValueError: If the model or a file of the source is damaged or of a newer format, a column
            is missing, an option is out of range, or `out` lies in the model or the source.
        RuntimeError: If workers die again and again.

    Warns:
        UserWarning: If a worker has died, or a finished part is damaged: both are made good.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be an integer of at least 0, got {workers!r}")
    is_whole = isinstance(num_parts, int) and not isinstance(num_parts, bool)
    if num_parts is not None and not (is_whole and num_parts >= 1):
        raise ValueError(f"num_parts must be an integer of at least 1 or None, got {num_parts!r}")
    for name, folder in (("source", source), ("model_dir", model_dir)):
        if Path(out).resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(
                f"out must lie outside of {name}={str(folder)!r}, whose files would be taken for "
                f"those of the job, got {str(out)!r}"
            )
    scorer = Scorer(model_dir, **options)  # Everything that is wrong with options is found here.
    files = find_source(source, scorer.columns)
    total = sum(sum(file.row_groups) for file in files)
    if num_parts is None:
        num_parts = max(1, math.ceil(total / _ROWS_OF_PART))
    about = {
        "format": _FORMAT,
        "model": model_digest(model_dir),
        "options": _describe_options(options),
        "num_parts": num_parts,
        "source": [[file.path.name, file.digest] for file in files],
    }
    out = Path(out)
    with _own(out, about):
        tell = tell or (lambda text: None)
        left = [part for part in range(num_parts) if not _is_done(out, part)]
        if left:
            pieces = list_pieces(files, _ROWS_OF_PIECE)
            work = _Work(str(model_dir), dict(options), out, tuple(pieces), num_parts)
            with Workers(workers, work) as pool:
                for step, numbers in (("deal", range(len(pieces))), ("score", left)):
                    for done, _ in enumerate(pool.run(step, numbers), 1):
                        tell(f"{step}: {done} of {len(numbers)}")
        shutil.rmtree(out / _PIECES, ignore_errors=True)
        totals = [json.loads(_digest_path(out, part).read_text()) for part in range(num_parts)]
    people, failed = (sum(each[name] for each in totals) for name in ("people", "failed"))
    reason = next((each["reason"] for each in totals if each.get("reason")), None)
    return Job(out, num_parts, len(left), people, failed, reason)


def _describe_options(options: dict[str, object]) -> dict[str, object]:
    """Describes options as JSON can hold them, so that two jobs can be compared."""
    described: dict[str, object] = {}
    for name, value in sorted(options.items()):
        if isinstance(value, pd.DataFrame):
            content = value.to_csv().encode()
            value = hashlib.sha256(content).hexdigest()
        elif name == "among" and value is not None:
            value = names_to_json(pd.Index(list(value), dtype=object))
        elif name == "pairs":
            value = [names_to_json(pd.Index(list(pair), dtype=object)) for pair in value]
        described[name] = value
    return json.loads(json.dumps(described))


@contextmanager
def _own(out: Path, about: dict[str, object]) -> Iterator[None]:
    """Makes the folder of a job, or goes on with it, and keeps other jobs out meanwhile."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out must be a folder, got the file {str(out)!r}")
    manifest = out / _MANIFEST
    if out.is_dir() and not manifest.is_file() and any(not _is_ours(p) for p in out.iterdir()):
        raise FileExistsError(
            f"out must be a new folder or that of an earlier run, got {str(out)!r} with other files"
        )
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"out must belong to one job at a time, and another job writes to {str(out)!r}"
        ) from None
    try:
        if manifest.is_file():
            _compare(manifest, about)
        else:
            write_file(manifest, json.dumps(about, indent=1).encode())
        for folder in (out, out / _PIECES, out / _DIGESTS):
            folder.mkdir(exist_ok=True)
            for stale in folder.glob(".*.part"):  # Left by a process that was killed.
                stale.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _is_ours(path: Path) -> bool:
    """Tells what a job leaves that is killed before it has a manifest."""
    return path.name == ".lock" or (path.name.startswith(".") and path.name.endswith(".part"))


def _compare(manifest: Path, about: dict[str, object]) -> None:
    """Refuses a folder with the parts of another job."""
    try:
        former = json.loads(manifest.read_text())
        different = [name for name in about if former.get(name) != about[name]]
    except (ValueError, AttributeError) as error:
        raise FileExistsError(
            f"{str(manifest)!r} is damaged ({error}): choose another folder, or delete this one"
        ) from error
    if different:
        raise FileExistsError(
            f"out must be a new folder or that of the same job, got {str(manifest.parent)!r} with "
            f"the parts of {' and '.join(map(_other, different))}: choose another folder"
        )


def _other(name: str) -> str:
    return f"other {name}" if name == "options" else f"another {name}"


def _part_path(out: Path, part: int) -> Path:
    return out / f"part-{part:06d}.parquet"


def _digest_path(out: Path, part: int) -> Path:
    return out / _DIGESTS / f"part-{part:06d}.json"


def _is_done(out: Path, part: int) -> bool:
    """Tells whether a part is there and whole; warns where it is damaged."""
    path, digest = _part_path(out, part), _digest_path(out, part)
    if not (path.is_file() and digest.is_file()):
        return False
    try:
        known = json.loads(digest.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        known = None
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == known:
            return True
    warnings.warn(f"{str(path)!r} is damaged, and is written again", stacklevel=3)
    return False


@dataclass(frozen=True)
class _Work:
    """Holds what a worker needs to know of a job.

    Attributes:
        model_dir: Folder of the model.
        options: Arguments of the scorer.
        out: Folder of the results.
        pieces: The pieces of the source.
        num_parts: Number of parts.
    """

    model_dir: str
    options: dict[str, Any]
    out: Path
    pieces: tuple[Piece, ...]
    num_parts: int

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The model, loaded once a process."""
        return Scorer(self.model_dir, **self.options)

    def piece_path(self, number: int) -> Path:
        """Names the file of a piece that was dealt."""
        return self.out / _PIECES / f"piece-{number:06d}.arrow"

    def do(self, step: str, number: int) -> None:
        """Deals a piece or scores a part, as `step` says."""
        {"deal": self.deal, "score": self.score}[step](number)

    def deal(self, number: int) -> None:
        """Deals a piece, unless it was dealt before."""
        path = self.piece_path(number)
        if not path.exists():
            deal(self.pieces[number], path, self.scorer.columns, self.num_parts)

    def score(self, part: int) -> None:
        """Scores a part and writes it, then its digest."""
        paths = [self.piece_path(number) for number in range(len(self.pieces))]
        table = read_part(paths, part, self.num_parts)
        if table is None:  # A source without rows.
            schema = (
                find_source(self.pieces[0].path, self.scorer.columns)[0].schema
                if self.pieces
                else None
            )
            table = (schema or pa.schema([])).empty_table()
        scores = self.scorer.score(table)
        path = _part_path(self.out, part)
        with whole_file(path) as new:
            pq.write_table(scores, new, write_page_checksum=True, compression="zstd")
            with open(new, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        reasons = scores["reason"].drop_null()
        failed, reason = len(reasons), reasons[0].as_py() if len(reasons) else None
        people = len(scores["user"].unique()) if len(scores) else 0
        known = {"sha256": digest, "rows": len(scores), "people": people}
        known |= {"failed": failed, "reason": reason}
        write_file(_digest_path(self.out, part), json.dumps(known).encode())
