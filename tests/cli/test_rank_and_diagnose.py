"""`fssa-bayes rank` and `fssa-bayes diagnose`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, fit, save

COLUMNS = ("--user", "rater no.", "--left", "A", "--right", "B", "--choice", "verdict")
LABELS = ("--choice-labels", "a1=left,a2=right,equal=tie")


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """Counts of wins among three items, one judge a row, with a closed-form maximum."""
    rows = [
        ("a", "b", 6),
        ("b", "a", 3),
        ("b", "c", 6),
        ("c", "b", 3),
        ("a", "c", 12),
        ("c", "a", 3),
    ]
    table = pd.DataFrame(
        [(winner, loser) for winner, loser, number in rows for _ in range(number)],
        columns=["left", "right"],
    )
    table["user"], table["choice"] = np.arange(len(table)), 1
    table.to_csv(tmp_path / "counts.csv", index=False)
    return tmp_path / "counts.csv"


def test_an_item_that_won_everything_leaves_the_others_ranked(
    command, counts: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(counts)
    new = pd.DataFrame({"left": ["new"] * 2, "right": ["a", "c"], "user": [0, 1], "choice": 1})
    pd.concat([table, new]).to_csv(counts, index=False)
    out = tmp_path / "ranks"
    columns = ("--user", "user", "--left", "left", "--right", "right", "--choice", "choice")
    ended = command("rank", counts, *columns, "--out", out, "--json")
    assert ended.code == 0, ended.err
    figures = json.loads(ended.out)
    assert figures["leader"] == "new"  # Nobody preferred another item.
    assert figures["leader_utility"] is None  # Infinite.
    assert figures["no_finite_utility"] == ["new"]
    ranks = pd.read_csv(out / "ranking.csv", index_col="item")
    assert ranks.index.tolist() == ["new", "a", "b", "c"]
    np.testing.assert_allclose(ranks["utility"], [np.inf, np.log(2), 0, -np.log(2)], atol=1e-6)
    assert ranks["rank"].tolist() == [1, 2, 3, 4]
    assert (out / "ranking.png").exists()
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "Without a finite utility, 1 of 4 items: 'new'" in text
    assert "no finite utility | 'new' won every comparison with the other items" in text


def test_the_ranking_is_that_of_bradley_and_terry(command, counts: Path, tmp_path: Path) -> None:
    """Wins of 2 : 1, 2 : 1 and 4 : 1 are those of utilities log 2, 0 and -log 2."""
    out = tmp_path / "ranks"
    columns = ("--user", "user", "--left", "left", "--right", "right", "--choice", "choice")
    ended = command("rank", counts, *columns, "--out", out)
    assert ended.code == 0, ended.err
    table = pd.read_csv(out / "ranking.csv", index_col="item")
    assert table.index.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(table["utility"], [np.log(2), 0, -np.log(2)], atol=1e-4)
    assert {path.name for path in out.iterdir()} == {
        *("ranking.csv", "ranking.png", "report.html", "results.json", "summary.md")
    }
    figures = json.loads(command("rank", counts, *columns, "--json").out)
    assert figures["leader"] == "a"
    assert figures["comparisons"] == 33
    assert command("rank", counts, *columns, "--quiet").out == ""


def test_warnings_stand_beside_the_ranking(command, votes: Path) -> None:
    ended = command("rank", votes, *COLUMNS, *LABELS)
    assert ended.code == 0, ended.err
    data = ended.out[ended.out.index("The data") :]
    assert "Warning: " in data
    assert "2 rows were left out: nothing in column 'A'" in data
    assert "UserWarning" not in ended.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* rows repeat an earlier row:UserWarning")
def test_a_saved_model_is_diagnosed_within_a_budget(command, votes: Path, tmp_path: Path) -> None:
    table = pd.read_csv(votes, dtype=str).dropna()
    table["verdict"] = table["verdict"].map({"a1": 1, "a2": 0, "equal": 0.5})
    data = Preferences.from_dataframe(
        table, user="rater no.", left="A", right="B", choice="verdict", ties="half"
    )
    model = HeterogeneousBTL(data.num_features, 1, utility="linear")
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=20, progress_bar=False)
    save(tmp_path / "model", model, guide)
    arguments = ("diagnose", votes, *COLUMNS, *LABELS, "--ties", "half", "--budget", "5")
    ended = command(*arguments, "--model", tmp_path / "model", "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    figures = json.loads(ended.out)
    checks = pd.read_csv(tmp_path / "out" / "checks.csv")
    assert figures["error"] == 0
    assert figures["skipped"] == (checks["verdict"] == "skipped").sum() > 0
    skipped = checks.loc[checks["verdict"] == "skipped", "what to do"]
    assert skipped.str.contains("s left: a budget of [0-9]+0 s reaches this check").any()
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("# Can the posteriors of model be believed, on votes.csv?")
    assert "where they did, the checks on real people flatter the model" in summary
    assert "connected components" in summary


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* rows repeat an earlier row:UserWarning")
def test_unknown_items_are_left_out_when_asked(command, counts: Path, tmp_path: Path) -> None:
    columns = {"user": "user", "winner": "left", "loser": "right"}
    table = pd.read_csv(counts).assign(user=lambda frame: frame.index % 11)
    data = Preferences.from_dataframe(table, **columns)
    model = HeterogeneousBTL(data.num_features, 1, utility="linear")
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=2, progress_bar=False)
    save(tmp_path / "model", model, guide)
    new = pd.DataFrame({"left": "new", "right": ["a", "b"], "user": [0, 99], "choice": 1})
    pd.concat([table, new]).to_csv(counts, index=False)
    options = [part for name in columns for part in (f"--{name}", columns[name])]
    options += ["--model", tmp_path / "model", "--out", tmp_path / "out"]
    ended = command("analyse", counts, *options, "--draws", "25")
    assert ended.code == 2
    assert "got ['new'] in 2 of 35 comparisons: pass --skip-unknown" in ended.err
    ended = command("analyse", counts, *options, "--draws", "25", "--skip-unknown")
    assert ended.code == 0, ended.err
    for finding in (
        "2 of 35 comparisons were left out (--skip-unknown), with items that the model does not",
        "not know: 'new'. 1 of 12 people have no other comparisons.",
    ):
        assert finding in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


def test_a_penalty_is_a_number_from_0(command, counts: Path) -> None:
    ended = command("rank", counts, "--winner", "left", "--loser", "right", "--penalty", "nan")
    assert ended.code == 2
    assert "--penalty must be a number of at least 0, got nan" in ended.err
