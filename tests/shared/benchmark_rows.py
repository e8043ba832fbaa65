"""What the rows of every benchmark have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from running import run

WRITTEN = {"population_uncertainty": "population"}
"""The name in a benchmark's rows, where it is not that of its module."""


def check_rows(name: str, document: dict) -> None:
    """Checks what a benchmark wrote: its rows, and the order of low, median and high."""
    assert document["environment"]["seeds"] == [0]
    rows = [row for row in document["rows"] if row["benchmark"] == WRITTEN.get(name, name)]
    known = [row for row in rows if row["median"] is not None]
    assert known
    for row in known:
        slack = 1e-9 * abs(row["median"])
        assert row["low"] - slack <= row["median"] <= row["high"] + slack, row


def run_benchmarks(names: Sequence[str], train_choices: Path, folder: Path) -> dict:
    """Runs benchmarks in one process, as imports take longer than most; returns what they wrote."""
    path = folder / "rows.json"
    options = ("--quick", "--seeds", "0", "--data", str(train_choices), "--json", str(path))
    run("-m", "benchmarks", *names, *options)
    document = json.loads(path.read_text())
    assert {row["benchmark"] for row in document["rows"]} == {WRITTEN.get(n, n) for n in names}
    return document
