"""A file of comparisons becomes a folder of results."""

from __future__ import annotations

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
from running import ROOT, attempt, run

from fssa_bayes import load


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


@pytest.mark.slow
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
