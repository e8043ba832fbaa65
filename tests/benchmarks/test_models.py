"""Benchmarks of models, posteriors and fits run, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_rows import WRITTEN, check_rows
from running import run

NAMES = (
    "command",
    "data",
    "two_mode",
    "train_choice",
    "recovery",
    "inference",
    "training",
    "scale",
    "precision",
)


@pytest.fixture(scope="module")
def document(train_choices: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the benchmarks write, all run in one process: the imports take longer than most."""
    path = tmp_path_factory.mktemp("benchmarks") / "rows.json"
    options = ("--quick", "--seeds", "0", "--data", str(train_choices), "--json", str(path))
    run("-m", "benchmarks", *NAMES, *options)
    document = json.loads(path.read_text())
    assert {row["benchmark"] for row in document["rows"]} == {WRITTEN.get(n, n) for n in NAMES}
    return document


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs(name: str, document: dict) -> None:
    check_rows(name, document)
