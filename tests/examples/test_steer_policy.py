"""The example of a steered language model runs, small."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from running import run


@pytest.mark.slow
def test_steer_policy(tmp_path: Path) -> None:
    command = ("examples/steer_policy.py", "--quick", "--out")
    out = run(*command, str(tmp_path / "small"))
    for title in ("Accuracy of the implicit reward", "Answers that are long", "rank correlation"):
        assert title in out
    table = pd.read_csv(tmp_path / "small" / "accuracy_of_the_implicit_reward.csv")
    assert len(table) == 4 * 5
    assert table["value"].between(0, 1).all()
    assert table["oracle"].notna().all()
    for name in ("steer_policy.png", "steer_policy_samples.png"):
        assert (tmp_path / "small" / name).stat().st_size > 10_000
    # A model from a folder takes the same way.
    model = str(tmp_path / "small" / "language_model")
    out = run(*command, str(tmp_path / "given"), "--model", model, "--no-oracle")
    assert "of the way" not in out
    assert not (tmp_path / "given" / "language_model").exists()
    assert pd.read_csv(tmp_path / "given" / "line.csv").shape == (11, 3)
