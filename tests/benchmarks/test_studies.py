"""Benchmarks of kernels, calibration, the policy and the experiments run, small."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_rows import check_rows, run_benchmarks

NAMES = (
    "kernels",
    "at_scale",
    "proposals",
    "refinement",
    "calibration",
    "nuts",
    "population_uncertainty",
    "interval_coverage",
    "few_judges",
    "few_people",
    "few_shot",
    "personal_answers",
    "questions",
    "page",
    "policy",
    "experiments",
)


@pytest.fixture(scope="module")
def document(train_choices: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What these benchmarks write."""
    return run_benchmarks(NAMES, train_choices, tmp_path_factory.mktemp("benchmarks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs(name: str, document: dict) -> None:
    check_rows(name, document)
