"""Every example and benchmark runs, small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import arviz
import numpy as np
import pandas as pd
import pytest
import tiny_models

from fssa_bayes import load

ROOT = Path(__file__).parents[1]


def attempt(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(*command: str) -> str:
    result = attempt(*command)
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
def test_paper_synthetic(tmp_path: Path) -> None:
    options = ("--users", "100", "--test-users", "60", "--steps", "5", "--draws", "50")
    out = run("examples/paper_synthetic.py", *options, "--out", str(tmp_path))
    assert "Bayes limit, expected" in out
    assert (tmp_path / "paper_synthetic.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "paper_synthetic.csv").set_index(["model", "contexts"])
    assert len(table) == 20
    # A model of one utility cannot use a context: the same people, other pairs.
    assert table.loc["BTL", "accuracy"].between(60, 85).all()
    assert (table["ece"] >= table["ece_lower"]).all()


@pytest.mark.slow
def test_calibration_study(tmp_path: Path) -> None:
    options = [
        *("--users", "150", "--steps", "10", "--refine", "10", "--study-users", "200"),
        *("--draws", "100", "--contexts", "0", "3", "--out", str(tmp_path)),
    ]
    out = run("examples/calibration_study.py", *options)
    assert "simulation-based calibration of the posterior" in out
    assert "People simulated from the truth: estimation error too" in out
    assert "data:image/png;base64" in (tmp_path / "report.html").read_text(encoding="utf-8")
    checks = pd.read_csv(tmp_path / "checks.csv")
    assert set(checks["verdict"]) <= {"pass", "fail", "note", "skipped"}


@pytest.mark.slow
def test_misspecification(tmp_path: Path) -> None:
    options = ("--users", "100", "--test-users", "100", "--steps", "10", "--draws", "100")
    out = run("examples/misspecification.py", *options, "--out", str(tmp_path))
    for people in ("none", "lapses", "shrunken model", "informative contexts"):
        assert f"\n{people}" in out
    assert (tmp_path / "misspecification.png").stat().st_size > 10_000


@pytest.mark.slow
def test_conflict_study(tmp_path: Path) -> None:
    options = ("--users", "200", "--test-users", "50", "--steps", "10", "--draws", "100")
    out = run("examples/conflict_study.py", *options, "--out", str(tmp_path))
    assert "10 known choices" in out
    table = pd.read_csv(tmp_path / "conflict_study.csv")
    assert len(table) == 3 * 6 * 3
    limits = table[(table["contexts"] == 3) & (table["metric"] == "accuracy")]["limit"]
    assert limits.tolist() == pytest.approx([0.5, 0.6355, 0.789, 0.9375, 0.9922, 1], abs=1e-4)
    assert (tmp_path / "conflict_study.png").stat().st_size > 10_000


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
def test_compare_with_nuts(tmp_path: Path) -> None:
    options = [
        *("--people", "2", "--users", "50", "--steps", "5", "--draws", "100"),
        *("--chains", "2", "--samples", "8", "--warmup", "8", "--processes", "1"),
        *("--cache", str(tmp_path / "cache"), "--out", str(tmp_path)),
    ]
    out = run("examples/compare_with_nuts.py", *options)
    assert "2 chains of 8 + 8 a person" in out
    assert (tmp_path / "compare_with_nuts.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "compare_with_nuts.csv", header=[0, 1], index_col=0)
    assert table.index.tolist() == ["0", "1", "all"]
    assert table["corrected", "rms Δprob"].between(0, 1).all()
    assert len(list((tmp_path / "cache").glob("*.nc"))) == 2


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
@pytest.mark.parametrize("source", ["simulated", "train choices"])
def test_is_heterogeneity_real(source: str, tmp_path: Path, train_choices: Path) -> None:
    data = ("--data", str(train_choices)) if source == "train choices" else ("--people", "40")
    out = run(
        "examples/is_heterogeneity_real.py",
        *(*data, "--steps", "8", "--replicates", "30", "--draws", "100", "--latent-dim", "1"),
        *("--out", str(tmp_path)),
    )
    assert "no variance between people is the edge" in out.lower()
    assert "3. Do a person's other choices" in out
    assert "agreement on shared pairs" in out
    assert "latent dimensions were chosen" in out
    assert (tmp_path / "is_heterogeneity_real.png").stat().st_size > 10_000


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    """Votes of 40 people of two opposite tastes, with awkward names, ties and missing cells."""
    rng = np.random.default_rng(0)
    names = np.array(["007", "12", 'a "quoted" one', "one, with a comma", "ü | ß", "$x^2$"])
    left = rng.integers(6, size=600)
    right = (left + rng.integers(1, 6, size=600)) % 6
    taste = np.where(np.arange(600) // 15 % 2, 1.5, -1.5)
    wins = rng.random(600) < 1 / (1 + np.exp(-taste * (left - right)))
    verdict = np.where(rng.random(600) < 0.1, "equal", np.where(wins, "a1", "a2"))
    table = pd.DataFrame(
        {"rater no.": np.arange(600) // 15, "A": names[left], "B": names[right], "verdict": verdict}
    )
    table.loc[[3, 50], "A"] = None
    table.loc[[4], "verdict"] = None
    table.to_csv(tmp_path / "votes.csv", index=False)
    features = pd.DataFrame({"item": names, "place": np.arange(6.0), "same": 1.0})
    features.to_csv(tmp_path / "features.csv", index=False)
    return tmp_path / "votes.csv"


ANALYSE = (
    *("--user", "rater no.", "--left", "A", "--right", "B", "--choice", "verdict"),
    *("--choice-labels", "a1=left,a2=right,equal=tie", "--ties", "half"),
    *("--steps", "60", "--draws", "100"),
)


@pytest.mark.slow
@pytest.mark.parametrize("featured", [True, False])
def test_analyse_csv(featured: bool, tmp_path: Path, votes: Path) -> None:
    out = tmp_path / "results"
    items = ("--items", str(tmp_path / "features.csv")) if featured else ()
    command = ("examples/analyse_csv.py", str(votes), *ANALYSE, *items, "--out", str(out))
    printed = run(*command)
    summary = (out / "summary.md").read_text()
    for finding in ("rows read             600", "2 rows were left out", "people differ"):
        assert finding in printed
        assert finding in summary
    assert ("feature 'same' is the same for all items (1 such" in summary) == featured
    assert "one, with a comma" in summary
    assert r"ü \| ß" in summary
    assert {path.name for path in out.iterdir()} == {
        "model", "people.csv", "people.png", "person.png", "posterior.nc", "ranking.csv",
        "ranking.png", "ranks.png", "summary.md",
    }  # fmt: skip
    people = pd.read_csv(out / "people.csv", index_col="user")
    assert len(people) == 40
    ranks = pd.read_csv(out / "ranking.csv", dtype={"item": str})
    assert "007" in set(ranks["item"])
    exported = arviz.from_netcdf(out / "posterior.nc")
    assert exported.posterior["z"].shape[2] == 8
    model, guide = load(out / "model")
    assert model.latent_dim == 2
    assert guide.objectives == ["ImportanceWeightedELBO", "Sleep"]

    process = attempt(*command)
    assert process.returncode == 1
    assert "--out must not exist yet" in process.stderr
    printed = run(*command, "--overwrite", "--model", str(out / "model"))
    assert f"loaded from {out / 'model'}" in printed
    assert not list(tmp_path.glob("results.*"))
    (out / "thesis.txt").write_text("years of work")
    process = attempt(*command, "--overwrite")
    assert "--overwrite replaces nothing but earlier results" in process.stderr
    assert (out / "thesis.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("utility", ["linear", "bilinear"])
def test_analyse_csv_tells_what_covariates_do(utility: str, tmp_path: Path, votes: Path) -> None:
    # The two tastes are those of odd and even people, which a covariate tells.
    raters = pd.DataFrame({"rater no.": np.arange(40), "odd": np.arange(40) % 2})
    raters.to_csv(tmp_path / "raters.csv", index=False)
    out = tmp_path / "results"
    options = ("--users", str(tmp_path / "raters.csv"), "--items", str(tmp_path / "features.csv"))
    command = ("examples/analyse_csv.py", str(votes), *ANALYSE, *options, "--utility", utility)
    printed = run(*command, "--out", str(out))
    summary = (out / "summary.md").read_text()
    assert "What do covariates do?" in summary
    assert ("odd on place" in printed) == (utility == "linear")
    assert ("10 refits" in summary) == (utility == "bilinear")
    assert "does not use the covariates" not in summary
    effects = pd.read_csv(out / "covariates.csv", index_col=["covariate", "item"])
    # Even people like the first places, odd ones the last.
    assert effects.loc["odd", "007"]["wins"] < -3 * effects.loc["odd", "007"]["wins_se"] < 0
    assert effects.loc["odd", "$x^2$"]["wins"] > 3 * effects.loc["odd", "$x^2$"]["wins_se"] > 0
    assert load(out / "model")[0].num_covariates == 1


@pytest.mark.slow
def test_analyse_csv_keeps_ties(tmp_path: Path, votes: Path) -> None:
    out = tmp_path / "results"
    command = ("examples/analyse_csv.py", str(votes), *ANALYSE, "--ties", "keep")
    printed = run(*command, "--out", str(out))
    assert "guessing scores −1.099" in printed
    assert "half a win" not in printed
    # A tenth of the answers are ties, at random; the average person has no taste.
    prob = float(re.search(r"same utility tie with probability (0\.\d+)", printed)[1])
    assert prob == pytest.approx(0.1, abs=0.04)
    model, _ = load(out / "model")
    assert model.config["ties"] == "davidson"
    exported = arviz.from_netcdf(out / "posterior.nc")
    assert 0.02 < exported.predictions["prob_tie"].mean() < 0.2
    process = attempt(*command[:-1], "half", "--model", str(out / "model"), "--out", str(out) + "2")
    assert process.returncode == 1
    assert "read the data with ties='keep'" in process.stderr


@pytest.mark.slow
def test_analyse_csv_goes_on_where_it_was_stopped(tmp_path: Path, votes: Path) -> None:
    command = ("examples/analyse_csv.py", str(votes), *ANALYSE, "--steps", "400")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(*command, "--out", str(whole))
    process = subprocess.Popen(
        [sys.executable, *command, "--out", str(stopped)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    checkpoint = tmp_path / "stopped.part" / "checkpoint"
    while process.poll() is None and not list(checkpoint.glob("state-00000002")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() != 0
    assert not stopped.exists()
    run(*command, "--out", str(stopped))
    for name in ("model/model.safetensors", "people.csv", "ranking.csv"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_analyse_csv_names_what_is_wrong(tmp_path: Path, votes: Path) -> None:
    for change, message in (
        (("--left", "C"), "'C'"),
        (("--choice-labels", "a1=left,a2=right"), "equal"),
        (("--items", str(tmp_path / "nothing.csv")), "nothing.csv"),
        (("--delimiter", ";"), "delimiter"),
        (("--user", "A"), "four columns"),
    ):
        command = ("examples/analyse_csv.py", str(votes), *ANALYSE, *change)
        process = attempt(*command, "--out", str(tmp_path / "results"))
        assert process.returncode == 1
        assert process.stderr.startswith("error: ")
        assert message in process.stderr
        assert "Traceback" not in process.stderr
        assert not (tmp_path / "results.part").exists()


@pytest.mark.slow
def test_analyse_csv_of_few_people_and_separate_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(6), 12)
    group = rng.integers(2, size=72)  # Items 0 and 1, or 2 to 4.
    left = np.where(group == 0, rng.integers(2, size=72), rng.integers(2, 5, size=72))
    right = np.where(group == 0, 1 - left, 2 + (left - 2 + rng.integers(1, 3, size=72)) % 3)
    table = pd.DataFrame({"u": person, "l": left, "r": right, "c": rng.integers(2, size=72)})
    table.to_csv(tmp_path / "few.csv", index=False)
    columns = ("--user", "u", "--left", "l", "--right", "r", "--choice", "c")
    command = ("examples/analyse_csv.py", str(tmp_path / "few.csv"), *columns, *ANALYSE[-4:])
    printed = run(*command, "--out", str(tmp_path / "few"))
    assert "Too few to judge by" in printed
    assert "2 groups that were never compared" in printed
    assert "take it as a description, not as a finding" in printed
    ranks = pd.read_csv(tmp_path / "few" / "ranking.csv")
    assert ranks.groupby("group")["rank"].apply(list).tolist() == [[1, 2, 3], [1, 2]]
    assert ranks["standard_error"].notna().all()

    table[person < 3].to_csv(tmp_path / "few.csv", index=False)
    process = attempt(*command, "--out", str(tmp_path / "fewer"))
    assert "must have at least 5 people" in process.stderr


@pytest.mark.slow
def test_choosing(tmp_path: Path) -> None:
    run(
        "examples/choosing.py",
        *("--users", "60", "--test-users", "40", "--steps", "5", "--draws", "50"),
        *("--out", str(tmp_path)),
    )
    table = pd.read_csv(tmp_path / "which_objective.csv", index_col=0)
    assert len(table) == 6
    assert (table["less than the best"] <= 0).all()
    dimensions = pd.read_csv(tmp_path / "how_many_latent_dimensions.csv", index_col=0)
    assert dimensions.index.tolist() == [0, 1, 2, 3, 5]
    assert dimensions.loc[0, "variance / truth"] == 0


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--replicates", "5"), "--replicates must be at least 20, got 5"),
        (("--data", "none"), "--data must hold llmfao.csv, 'none' does not"),
    ],
)
def test_real_crowds_checks_before_it_fits(tmp_path: Path, change: tuple, message: str) -> None:
    result = attempt("examples/real_crowds.py", "--data", str(tmp_path), *change)
    assert result.returncode == 1
    assert result.stderr.strip() == message


@pytest.mark.slow
def test_real_crowds(tmp_path: Path, crowds: Path) -> None:
    options = [
        *("--data", str(crowds), "--rounds", "1", "--folds", "2", "--steps", "5", "--draws", "50"),
        *("--replicates", "20", "--processes", "1", "--out", str(tmp_path)),
    ]
    out = run("examples/real_crowds.py", *options)
    assert out.count("the heterogeneous model") == 2
    assert out.count("how readily they call a tie") == 2
    assert (tmp_path / "real_crowds.png").stat().st_size > 10_000
    scores = pd.read_csv(tmp_path / "real_crowds_ukp.csv")
    assert sorted(scores["known"].unique()) == [0, 1, 3, 5, 10]
    assert (scores.groupby(["known", "predictor"]).size() == 10).all()


@pytest.mark.slow
def test_rank_of_heterogeneity(tmp_path: Path) -> None:
    options = ["--people", "60", "--most", "2", "--steps", "10", "--draws", "100"]
    out = run("examples/rank_of_heterogeneity.py", *options, "--out", str(tmp_path))
    assert "Eigenvalues of ΛΛᵀ" in out
    assert "dimensions are shown" in out
    assert (tmp_path / "rank_of_heterogeneity.png").stat().st_size > 10_000


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


@pytest.mark.slow
def test_benchmarks(tmp_path: Path, train_choices: Path) -> None:
    path = tmp_path / "rows.json"
    run(
        *("-m", "benchmarks", "--quick", "--seeds", "0", "--data", str(train_choices)),
        *("--json", str(path)),
    )
    document = json.loads(path.read_text())
    assert {row["benchmark"] for row in document["rows"]} == {
        "data", "two_mode", "train_choice", "recovery", "inference", "training", "scale",
        "kernels", "precision", "refinement", "calibration", "nuts", "population",
        "experiments", "policy",
    }  # fmt: skip
    assert document["environment"]["seeds"] == [0]
    known = [row for row in document["rows"] if row["median"] is not None]
    assert len(known) > 50
    for row in known:
        slack = 1e-9 * abs(row["median"])
        assert row["low"] - slack <= row["median"] <= row["high"] + slack, row
