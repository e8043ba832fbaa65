"""The heart of an analysis, through the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import run

from fssa_bayes import load


@pytest.mark.slow
def test_analyse_csv(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    left = rng.integers(6, size=600)
    right = (left + rng.integers(1, 6, size=600)) % 6
    taste = np.where(np.arange(600) // 15 % 2, 1.5, -1.5)  # Of odd and even people.
    wins = rng.random(600) < 1 / (1 + np.exp(-taste * (left - right)))
    path = tmp_path / "votes.csv"
    columns = {"u": np.arange(600) // 15, "l": left, "r": right, "c": wins.astype(int)}
    pd.DataFrame(columns).to_csv(path, index=False)
    out = run(
        *("examples/analyse_csv.py", str(path), "--steps", "100", "--out", str(tmp_path)),
        *("--user", "u", "--left", "l", "--right", "r", "--choice", "c"),
    )
    gain, error = out.split("Gain from 5 known choices: ")[1].split(" nats")[0].split(" ± ")
    assert float(gain) > 2 * float(error) > 0
    assert "standard errors clustered by person" in out
    assert (tmp_path / "analyse_csv.png").stat().st_size > 10_000
    assert load(tmp_path / "model")[0].latent_dim == 2
