"""Every example and benchmark runs, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def train_choices(tmp_path: Path) -> Path:
    """A small file of the train-choice format with price, time, change and comfort traded off."""
    rng = np.random.default_rng(0)
    rows = 240
    table = pd.DataFrame({"id": np.repeat(np.arange(30), 8)})
    cost = np.zeros((2, rows))
    for side in (1, 2):
        table[f"price{side}"] = rng.integers(20, 50, rows) * 100
        table[f"time{side}"] = rng.integers(90, 180, rows)
        table[f"change{side}"] = rng.integers(0, 3, rows)
        table[f"comfort{side}"] = rng.integers(0, 3, rows)
        cost[side - 1] = table[f"price{side}"] / 500 + table[f"time{side}"] / 20
    noise = rng.logistic(size=rows)
    table["choice"] = np.where(cost[0] + noise < cost[1], "choice1", "choice2")
    path = tmp_path / "choices.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    out = run(
        "examples/quickstart.py",
        *("--users", "200", "--test-users", "50", "--steps", "20", "--draws", "200"),
        *("--out", str(tmp_path)),
    )
    assert all(f"\n{utility}  (fitted" in out for utility in ("bilinear", "mlp", "homogeneous"))
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000


@pytest.mark.slow
def test_mixed_logit(tmp_path: Path, train_choices: Path) -> None:
    out = run(
        "examples/mixed_logit.py",
        *("--data", str(train_choices), "--steps", "20", "--draws", "100"),
        *("--out", str(tmp_path)),
    )
    assert "-1724.150" in out
    assert "Willingness to pay" in out
    assert (tmp_path / "mixed_logit.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "willingness_to_pay.csv")) == 30


@pytest.mark.slow
def test_benchmarks(tmp_path: Path, train_choices: Path) -> None:
    path = tmp_path / "rows.json"
    run(
        *("-m", "benchmarks", "--quick", "--seeds", "0", "--data", str(train_choices)),
        *("--json", str(path)),
    )
    document = json.loads(path.read_text())
    assert {row["benchmark"] for row in document["rows"]} == {
        "data", "two_mode", "train_choice", "recovery",
    }  # fmt: skip
    assert document["environment"]["seeds"] == [0]
    known = [row for row in document["rows"] if row["median"] is not None]
    assert len(known) > 50
    assert all(row["low"] <= row["median"] <= row["high"] for row in known)
