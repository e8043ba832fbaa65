"""Answers as files: CSV for spreadsheets and for `fssa-bayes analyse`, JSON, netCDF for ArviZ."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from fssa_bayes.data import names_from_json
from fssa_bayes.posterior import Posterior
from fssa_bayes.serve.security import guard_cell
from fssa_bayes.serve.store import Invited, Question

__all__ = ["to_csv", "to_json", "to_netcdf"]

_COLUMNS = (
    *("number", "purpose", "arm", "goal", "score", "prob_best", "side", "seconds", "prob"),
    *("model", "consent_version"),
)


def to_csv(people: Sequence[tuple[Invited, Sequence[Question]]]) -> str:
    """Writes answers and skips as CSV, a row each, without what was taken back.

    Columns `person`, `left`, `right` and `choice` are those that `fssa-bayes analyse` reads; of
    more than two items `left` and `right` are empty and `items` lists them, and of a skip `choice`
    is empty. Text that a spreadsheet would take for a formula begins with a quote.

    Args:
        people: Interviews and their questions.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    header = ["person", "left", "right", "choice", "items", *_COLUMNS, "pilot"]
    writer.writerow([*header, "asked_at", "answered_at"])
    for who, asked in people:
        for question in asked:
            if question.answered_at is None or question.undone_at is not None:
                continue
            items = names_from_json("items", question.items).tolist()
            pair = items if len(items) == 2 else ["", ""]
            row = [who.code, *pair, _choice(question), json.dumps(question.items)]
            row += [getattr(question, name) for name in _COLUMNS]
            row += [int(who.pilot), _iso(question.asked_at), _iso(question.answered_at)]
            writer.writerow(["" if cell is None else guard_cell(cell) for cell in row])
    return file.getvalue()


def to_json(people: Sequence[tuple[Invited, Sequence[Question]]]) -> str:
    """Writes all of it as JSON, with what was taken back; times are Unix times in seconds.

    Args:
        people: Interviews and their questions.
    """
    rows = [
        {"person": who.code} | asdict(who) | {"questions": [asdict(q) for q in asked]}
        for who, asked in people
    ]
    return json.dumps({"format": "fssa_bayes answers", "version": 1, "people": rows}, indent=1)


def to_netcdf(posterior: Posterior) -> bytes:
    """Writes a posterior as netCDF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posterior.nc"
        posterior.to_inference_data().to_netcdf(str(path))
        return path.read_bytes()


def _choice(question: Question) -> object:
    if question.answer is None:
        return "tie" if question.side == "tie" else None
    return names_from_json("answer", [question.answer]).tolist()[0]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
