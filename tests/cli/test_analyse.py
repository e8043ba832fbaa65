"""`fssa-bayes analyse`: a folder of results from a file of comparisons."""

from __future__ import annotations

import json
import re
from pathlib import Path

import arviz
import numpy as np
import pandas as pd
import pytest
from running import run

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    fit,
    load,
    save,
)
from fssa_bayes.cli.output import Writer

pytestmark = pytest.mark.slow

OPTIONS = (
    *("--user", "rater no.", "--left", "A", "--right", "B", "--choice", "verdict"),
    *("--choice-labels", "a1=left,a2=right,equal=tie", "--ties", "half"),
    *("--bootstraps", "0", "--steps", "60", "--draws", "100"),
)
FILES = {
    *("model", "people.csv", "people.png", "person.png", "posterior.nc", "ranking.csv"),
    *("ranking.png", "ranks.png", "report.html", "results.json", "summary.md"),
}


@pytest.mark.parametrize("featured", [True, False])
def test_everything_is_in_one_folder(command, featured: bool, tmp_path: Path, votes: Path) -> None:
    out = tmp_path / "results"
    items = ("--items", votes.with_name("features.csv")) if featured else ()
    arguments = ("analyse", votes, *OPTIONS, *items, "--out", out)
    ended = command(*arguments)
    assert ended.code == 0, ended.err
    summary = (out / "summary.md").read_text(encoding="utf-8")
    page = (out / "report.html").read_text(encoding="utf-8")
    for finding in ("rows read", "600", "2 rows were left out", "people differ"):
        assert finding in ended.out
        assert finding in summary
        assert finding in page
    assert ("feature 'same' is the same for all items (1 such" in summary) == featured
    assert "one, with a comma" in summary
    assert r"ü \| ß" in summary
    assert {path.name for path in out.iterdir()} == FILES | (
        {"population.csv"} if featured else set()
    )
    assert page.count("data:image/png;base64") == 4
    # Title, data, number of people and model stand at the top, before the first part.
    top = page[: page.index("<h2>")]
    assert "Paired comparisons in votes.csv" in top
    assert "40 people, 597 comparisons of 6 items" in top
    assert "utility linear, 2 latent dimensions" in top
    assert ("32 people of the fit are fewer than" in top) == featured  # For a network.
    people = pd.read_csv(out / "people.csv", index_col="user")
    assert len(people) == 40
    ranks = pd.read_csv(out / "ranking.csv", dtype={"item": str})
    assert "007" in set(ranks["item"])
    exported = arviz.from_netcdf(out / "posterior.nc")
    assert exported.posterior["z"].shape[2] == 8
    model, guide = load(out / "model")
    assert model.latent_dim == 2
    assert guide.objectives == ["MaximumLikelihood", "Sleep"]

    again = command(*arguments)
    assert again.code == 2
    assert "--out must not exist yet" in again.err
    third = command(*arguments, "--overwrite", "--model", out / "model", "--json")
    assert third.code == 0, third.err
    figures = json.loads(third.out)
    assert figures["out"] == str(out)
    assert figures["people"] == 40
    assert figures["gain_standard_error"] > 0
    assert json.loads((out / "results.json").read_text())["figures"]["gain"] == figures["gain"]
    assert not list(tmp_path.glob(".results*"))
    (out / "thesis.txt").write_text("years of work")
    refused = command(*arguments, "--overwrite")
    assert refused.code == 2
    assert "--overwrite replaces nothing but earlier results" in refused.err
    assert (out / "thesis.txt").exists()


@pytest.mark.parametrize("utility", ["linear", "bilinear"])
def test_covariates(command, utility: str, tmp_path: Path, votes: Path) -> None:
    out = tmp_path / "results"
    files = ("--users", votes.with_name("raters.csv"), "--items", votes.with_name("features.csv"))
    ended = command("analyse", votes, *OPTIONS, *files, "--utility", utility, "--out", out)
    assert ended.code == 0, ended.err
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "What do covariates do?" in summary
    assert ("odd on place" in ended.out) == (utility == "linear")
    assert ("Coefficients of the population" in summary) == (utility == "linear")
    assert (out / "population.csv").exists() == (utility == "linear")
    assert ("10 refits" in summary) == (utility == "bilinear")
    assert ("32 people of the fit are few for the utility" in summary) == (utility == "bilinear")
    assert "does not use the covariates" not in summary
    effects = pd.read_csv(out / "covariates.csv", index_col=["covariate", "item"])
    # Even people like the first places, odd ones the last.
    assert effects.loc["odd", "007"]["wins"] < -3 * effects.loc["odd", "007"]["wins_se"] < 0
    assert effects.loc["odd", "$x^2$"]["wins"] > 3 * effects.loc["odd", "$x^2$"]["wins_se"] > 0
    assert load(out / "model")[0].num_covariates == 1


def test_ties_that_are_kept(command, tmp_path: Path, votes: Path) -> None:
    out = tmp_path / "results"
    arguments = ("analyse", votes, *OPTIONS, "--ties", "keep")
    ended = command(*arguments, "--out", out)
    assert ended.code == 0, ended.err
    assert "guessing scores −1.099" in ended.out
    assert "half a win" not in ended.out
    # A tenth of the answers are ties, at random; the average person has no taste.
    prob = float(re.search(r"same utility tie with probability (0\.\d+)", ended.out)[1])
    assert prob == pytest.approx(0.1, abs=0.04)
    assert load(out / "model")[0].config["ties"] == "davidson"
    exported = arviz.from_netcdf(out / "posterior.nc")
    assert 0.02 < exported.predictions["prob_tie"].mean() < 0.2
    other = command(*arguments[:-1], "half", "--model", out / "model", "--out", f"{out}2")
    assert other.code == 2
    assert "read the data with ties='keep'" in other.err
    assert not list(tmp_path.glob("*results2*"))


def test_few_people_and_separate_groups(command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(6), 12)
    group = rng.integers(2, size=72)  # Items 0 and 1, or 2 to 4.
    left = np.where(group == 0, rng.integers(2, size=72), rng.integers(2, 5, size=72))
    right = np.where(group == 0, 1 - left, 2 + (left - 2 + rng.integers(1, 3, size=72)) % 3)
    table = pd.DataFrame({"u": person, "l": left, "r": right, "c": rng.integers(2, size=72)})
    path = tmp_path / "few.csv"
    table.to_csv(path, index=False)
    columns = ("--user", "u", "--left", "l", "--right", "r", "--choice", "c")
    ended = command("analyse", path, *columns, *OPTIONS[-6:], "--out", tmp_path / "few")
    assert ended.code == 0, ended.err
    assert "cannot be judged by" in ended.out
    assert "2 groups that were never compared" in ended.out
    assert "take it as a description, not as a finding" in ended.out
    ranks = pd.read_csv(tmp_path / "few" / "ranking.csv")
    utility = ranks.groupby("group")["utility"].apply(list)
    assert utility.iloc[1] == pytest.approx([0, 0], abs=1e-12)  # Wins are even.
    assert ranks.groupby("group")["rank"].apply(list).tolist() == [[1, 2, 3], [1, 1]]
    assert ranks["standard_error"].notna().all()

    for people in (3, 1):  # Too few for an individual model: the ranking alone.
        table[person < people].to_csv(path, index=False)
        out = tmp_path / f"{people} people"
        ended = command("analyse", path, *columns, "--out", out)
        assert ended.code == 0, ended.err
        assert "too few for a model of individual people" in (out / "summary.md").read_text()
        assert len(pd.read_csv(out / "ranking.csv")) == 5
        assert not (out / "model").exists()


def test_a_model_describes_two_new_people(command, tmp_path: Path, votes: Path) -> None:
    options = (*OPTIONS, "--items", votes.with_name("features.csv"))
    first = command("analyse", votes, *options, "--out", tmp_path / "first")
    assert first.code == 0, first.err
    table = pd.read_csv(votes, dtype=str)
    table[table["rater no."].isin(["3", "8"])].to_csv(tmp_path / "new.csv", index=False)
    out, model = tmp_path / "new", tmp_path / "first" / "model"
    ended = command("analyse", tmp_path / "new.csv", *options, "--model", model, "--out", out)
    assert ended.code == 0, ended.err
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "2 people are too few to tell" in summary
    assert "take it as a description, not as a finding" in summary
    new = pd.read_csv(out / "people.csv", index_col="user")
    assert sorted(new.index) == [3, 8]
    assert new["direction_upper"].is_monotonic_increasing
    # The same draws of a person whom the model has seen among all others have the same law.
    before = pd.read_csv(tmp_path / "first" / "people.csv", index_col="user").loc[new.index]
    np.testing.assert_allclose(new["scale"], before["scale"], rtol=0.2)


def test_one_run_at_a_time_writes_a_folder(command, tmp_path: Path, votes: Path) -> None:
    out = tmp_path / "results"
    with Writer(out, "analyse", overwrite=False, quiet=True) as writer:
        (writer.folder / "half.csv").write_text("a")
        ended = command("analyse", votes, *OPTIONS, "--out", out)
        assert ended.code == 2
        assert "--out must belong to one run at a time" in ended.err
        assert (writer.folder / "half.csv").exists()
    assert list(tmp_path.iterdir()) == []


def test_runs_that_are_killed_end_with_the_same_results(votes: Path, tmp_path: Path) -> None:
    """Kills fits at random moments; what a later run finds of an earlier one decides nothing."""
    out = run("tests/shared/killed_runs.py", str(votes), str(tmp_path), "6")
    ended = json.loads(out)
    assert ended["killed"] >= 6
    assert set(ended["ends"]) == {ended["expected"]}


@pytest.fixture(scope="module")
def drinks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of five drinks with ties of their own, and the folder for other files."""
    folder = tmp_path_factory.mktemp("drinks")
    names = np.array(["tea", "cola", "milk", "water", "juice"])
    rng = np.random.default_rng(0)
    left = rng.integers(5, size=200)
    right = (left + rng.integers(1, 5, size=200)) % 5
    choice = rng.choice([0, 0.5, 1], size=200, p=[0.4, 0.2, 0.4])
    columns = {"u": np.arange(200) // 10, "l": names[left], "r": names[right], "c": choice}
    table = pd.DataFrame(columns).drop_duplicates()
    data = Preferences.from_dataframe(table, user="u", left="l", right="r", choice="c", ties="keep")
    model = HeterogeneousBTL(5, 1, "linear", ties="davidson")
    guide = NeuralProcessGuide(model, hidden_dim=8)
    options = {"objective": ELBO(steps=5), "validation": None, "progress_bar": False}
    fit(model, guide, data, **options)
    save(folder / "model", model, guide)
    table.to_csv(folder / "first.csv", index=False)
    return folder


def test_next_months_file_is_read_by_the_model_of_this_month(
    command, drinks: Path, tmp_path: Path
) -> None:
    """New people judge four of the five drinks, in another order; ties are those of the model."""
    columns = ("--user", "u", "--left", "l", "--right", "r", "--choice", "c", "--draws", "100")
    rows = [
        *[("ann", "juice", "milk", 1), ("ann", "tea", "juice", 0.5), ("bob", "milk", "tea", 0)],
        *[("bob", "juice", "tea", 1), ("eve", "cola", "milk", 0), ("eve", "tea", "cola", 0.5)],
    ]
    table = pd.DataFrame(rows, columns=["u", "l", "r", "c"])
    table.to_csv(tmp_path / "next.csv", index=False)
    model = ("--model", drinks / "model")
    out = tmp_path / "results"
    ended = command("analyse", tmp_path / "next.csv", *columns, *model, "--out", out)
    assert ended.code == 0, ended.err
    people = pd.read_csv(out / "people.csv", index_col="user")
    assert people.loc[["ann", "bob", "eve"], "comparisons"].tolist() == [2, 2, 2]
    exported = arviz.from_netcdf(out / "posterior.nc")
    assert sorted(exported.posterior["item"].values) == ["cola", "juice", "milk", "tea", "water"]
    pair, guide = load(drinks / "model")
    read = {"user": "u", "left": "l", "right": "r", "choice": "c", "ties": "keep"}
    data = Preferences.from_dataframe(table, **read)
    expected = Posterior(pair, guide, data, 100).utility(["milk", "water"]).mean(0)
    found = exported.posterior["utility"].sel(item=["milk", "water"]).mean(("chain", "draw"))
    found = found - found.mean("item")
    np.testing.assert_allclose(found.sel(user=data.user_names.tolist()), expected, atol=1e-5)

    # The file of the fit itself, its rows in another order.
    first = pd.read_csv(drinks / "first.csv").sample(frac=1, random_state=0)
    first.to_csv(tmp_path / "shuffled.csv", index=False)
    again = command(
        *("diagnose", tmp_path / "shuffled.csv", *columns[:8], *model, "--budget", "0.5"),
        *("--out", f"{out}2", "--json"),
    )
    assert again.code == 0, again.err
    assert json.loads(again.out)["error"] == 0

    table.assign(r=table["r"].replace("milk", "beer")).to_csv(tmp_path / "beer.csv", index=False)
    for subcommand in ("analyse", "diagnose"):
        arguments = (tmp_path / "beer.csv", *columns[:8], *model, "--out", f"{out}3")
        refused = command(subcommand, *arguments)
        assert refused.code == 2
        assert "--model " in refused.err
        assert "got ['beer'] in 2 of 6 comparisons: pass --skip-unknown to leave" in refused.err
