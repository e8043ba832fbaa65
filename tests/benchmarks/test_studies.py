"""Benchmarks of kernels, calibration, the policy and the experiments run, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_rows import check_rows
from running import run

NAMES = (
    "kernels",
    "refinement",
    "calibration",
    "nuts",
    "population_uncertainty",
    "policy",
    "experiments",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs(name: str, tmp_path: Path, train_choices: Path) -> None:
    path = tmp_path / "rows.json"
    data = ("--data", str(train_choices))
    run("-m", "benchmarks", name, "--quick", "--seeds", "0", *data, "--json", str(path))
    check_rows(name, json.loads(path.read_text()))
