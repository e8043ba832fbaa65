"""Examples on files of real data run, small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models
from running import attempt, run


@pytest.mark.slow
def test_paper_ultrafeedback(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = run(
        "examples/paper_ultrafeedback.py",
        *("--data", str(tiny_models.write_ultrafeedback(tmp_path / "uf.jsonl", 120))),
        *("--embedder", str(tiny_models.save_encoder(tmp_path / "m", "llama", tiny_models.WORDS))),
        *("--cache", str(tmp_path / "cache"), "--components", "8", "--users", "60"),
        *(
            "--comparisons",
            "8",
            "--test-users",
            "45",
            "--contexts",
            "0",
            "3",
            "--steps",
            "8",
            "--iterations",
            "5",
            "40",
        ),
        *("--latent-dim", "2", "--draws", "50", "--out", str(tmp_path), "--device", "cpu"),
    )
    assert "HH: " in out
    assert "100.0 % conflicting (helpfulness / honesty / truthfulness)" in out
    table = pd.read_csv(tmp_path / "paper_ultrafeedback.csv")
    assert len(table) == 3 * 2 * (3 + 4)
    assert set(table["objective"]) == {"all", "helpfulness", "honesty", "truthfulness"}
    assert table["accuracy"].between(0, 1 + 1e-9).all()
    assert (table["log_loss_se"] > 0).all()
    # On pairs that divide the two objectives nobody who treats both alike beats a coin.
    hh = table[(table["set"] == "HH") & (table["model"] == "homogeneous BTL")]
    assert hh.loc[hh["objective"] == "all", "accuracy"].between(0.4, 0.6).all()
    told = table[(table["model"] == "one BTL per objective") & (table["objective"] == "all")]
    assert (told["accuracy"] > 0.7).all()
    assert (tmp_path / "paper_ultrafeedback.png").stat().st_size > 10_000


@pytest.mark.slow
def test_paper_ultrafeedback_draws_people_before_it_embeds(tmp_path: Path) -> None:
    """With HH no rating of truthfulness is asked for; too few prompts show without an encoder."""
    path = tiny_models.write_ultrafeedback(tmp_path / "uf.jsonl", 30)
    records = [json.loads(line) for line in path.read_text().splitlines() if line]
    for record in records:
        for completion in record["completions"]:
            completion["annotations"].pop("truthfulness", None)
    path.write_text("\n".join(map(json.dumps, records)))
    options = ("--data", str(path), "--embedder", str(tmp_path / "none"), "--sets", "HH")
    result = attempt("examples/paper_ultrafeedback.py", *options, "--out", str(tmp_path))
    assert "num_comparisons must be at most the number of prompts" in result.stderr
    assert "name_or_path" not in result.stderr


@pytest.mark.slow
def test_value_of_time(tmp_path: Path, train_choices: Path) -> None:
    out = run(
        "examples/value_of_time.py",
        *("--data", str(train_choices), "--steps", "20", "--draws", "100"),
        *("--out", str(tmp_path)),
    )
    assert "-1724.150" in out
    assert "Willingness to pay" in out
    assert re.search(r"log-normal +-\d", out)
    assert (tmp_path / "value_of_time.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "willingness_to_pay.csv")) == 30


@pytest.mark.slow
def test_mixed_logit(tmp_path: Path) -> None:
    few = (
        "--people",
        "40",
        "--fit-draws",
        "64",
        "--draws",
        "100",
        "--populations",
        "5",
        "--error-draws",
        "32",
    )
    out = run("examples/mixed_logit.py", *few, "--out", str(tmp_path))
    assert "-4958.649 (xlogit" in out
    assert re.search(r"price log-normal, correlated +-\d", out)
    assert (tmp_path / "mixed_logit.png").stat().st_size > 10_000
    # Five features for each of forty people, all with an interval.
    table = pd.read_csv(tmp_path / "willingness_to_pay.csv")
    assert len(table) == 200
    assert (table["lower"] < table["upper"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["simulated", "train choices"])
def test_is_heterogeneity_real(source: str, tmp_path: Path, train_choices: Path) -> None:
    data = ("--data", str(train_choices)) if source == "train choices" else ("--people", "40")
    out = run(
        "examples/is_heterogeneity_real.py",
        *(*data, "--steps", "4", "--replicates", "20", "--draws", "50", "--latent-dim", "1"),
        *("--out", str(tmp_path)),
    )
    assert "no variance between people is the boundary" in out.lower()
    assert "3. Do a person's other choices" in out
    assert "agreement on shared pairs" in out
    assert "latent dimensions were chosen" in out
    assert (tmp_path / "is_heterogeneity_real.png").stat().st_size > 10_000


@pytest.fixture
def crowds(tmp_path: Path) -> Path:
    """Small files of the two crowds' formats: votes with ties, and arguments with embeddings."""
    rng = np.random.default_rng(0)
    rows, folder = 400, tmp_path / "crowds"
    folder.mkdir()
    first = rng.integers(12, size=rows)
    second = (first + rng.integers(1, 12, size=rows)) % 12
    names = np.array([f"item {number}" for number in range(12)])
    columns = {"worker": np.repeat(np.arange(20), 20), "left": names[first], "right": names[second]}
    winner = rng.choice(["left", "right", "tie"], rows)
    pd.DataFrame(columns | {"winner": winner}).to_csv(folder / "llmfao.csv", index=False)
    columns = {"worker": columns["worker"], "arg1": names[first], "arg2": names[second]}
    label = rng.choice(["a1", "a2", "equal"], rows)
    table = pd.DataFrame(columns | {"label": label})
    table.to_csv(folder / "ukp_comparisons.csv.gz", index=False)
    embedding = rng.normal(size=(12, 4)).astype(np.float16)
    np.savez(folder / "ukp_argument_embeddings.npz", arg=names, embedding=embedding)
    return folder


@pytest.mark.slow
def test_real_crowds(tmp_path: Path, crowds: Path) -> None:
    options = [
        *("--data", str(crowds), "--rounds", "1", "--folds", "2", "--steps", "5", "--draws", "50"),
        *("--replicates", "20", "--processes", "1", "--out", str(tmp_path)),
    ]
    out = run("examples/real_crowds.py", *options)
    assert out.count("the heterogeneous model") == 2
    assert out.count("taste: alike choices on alike pairs") == 2
    assert out.count("Do people differ in their answers?") == 1  # Of llmfao alone.
    assert "20 people do not show that they differ in how readily they call a tie" in out
    assert "Elo points" in out
    assert (tmp_path / "real_crowds.png").stat().st_size > 10_000
    scores = pd.read_csv(tmp_path / "real_crowds_ukp.csv")
    assert sorted(scores["known"].unique()) == [0, 1, 3, 5, 10]
    assert (scores.groupby(["known", "predictor"]).size() == 10).all()


@pytest.mark.slow
def test_few_shot(tmp_path: Path) -> None:
    """On votes of people who call ties more or less readily, a file of one's own."""
    rng = np.random.default_rng(0)
    left = rng.integers(5, size=900)
    right = (left + rng.integers(1, 5, size=900)) % 5
    person = np.arange(900) // 15
    wins = rng.random(900) < 1 / (1 + np.exp(-0.8 * (left - right)))
    ties = rng.random(900) < np.where(person % 2, 0.6, 0.05)
    winner = np.where(ties, "tie", np.where(wins, "left", "right"))
    path = tmp_path / "votes.csv"
    columns = {"user": person, "left": left, "right": right, "winner": winner}
    pd.DataFrame(columns).to_csv(path, index=False)
    run(
        *("examples/few_shot.py", "--data", str(path), "--ties", "keep", "--personal", "ties"),
        *("--user", "user", "--left", "left", "--right", "right", "--choice", "winner"),
        *("--latent-dim", "1", "--classes", "2", "--populations", "2", "--draws", "100"),
        *("--rounds", "2", "--sizes", "0", "8", "--out", str(tmp_path)),
    )
    gains = pd.read_csv(tmp_path / "few_shot.csv").set_index(["known", "predictor"])
    row = gains.loc[(8, "personal answers")]
    assert row["gain"] > 2 * row["standard_error"] > 0
    assert row["gain"] > gains.loc[(8, "posterior"), "gain"]
    assert (tmp_path / "few_shot.png").stat().st_size > 10_000
    command = ("examples/few_shot.py", "--data", "nowhere.csv", "--out", str(tmp_path))
    assert "nowhere.csv" in attempt(*command).stderr
