"""`fssa-bayes score` writes what `score_table` returns."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from many_people import NAMES, save_model, simulate

from fssa_bayes import HeterogeneousBTL, Preferences, fit, save
from fssa_bayes.scale import score_table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Few people.
        return save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pq.write_table(simulate(20).rename_columns(["who", "a", "b", "won"]), tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


COLUMNS = ("--user", "who", "--left", "a", "--right", "b", "--choice", "won")


@pytest.mark.slow
def test_the_folder_holds_the_scores(command, model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (source, "--model", model, "--out", out, *COLUMNS, "--draws", "50", "--best", "2")
    arguments += ("--pair", "ash:fir", "--among", "ash,elm,fir", "--utilities", "--seed", "3")
    ended = command("score", *arguments, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told == {"out": str(out), "people": 20, "failed": 0, "parts": 1}
    expected = score_table(
        model,
        simulate(20),
        num_samples=50,
        best=2,
        pairs=[("ash", "fir")],
        among=["ash", "elm", "fir"],
        utilities=True,
        seed=3,
    )
    assert pyarrow.dataset.dataset(out, format="parquet").to_table().equals(expected)
    again = command("score", *arguments)
    assert again.out.startswith("20 people, 0 of whom could not be scored")
    other = command("score", *arguments, "--best", "1")
    assert other.code == 2
    assert "differs in options" in other.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--pair", "ash"), "--pair must read like ITEM:ITEM, got 'ash'"),
        (("--pair", "ash:oak"), "pairs must name items of the model"),
        (("--left", "c"), "left='c' is not a column of"),
        (("--items", "nothing.csv"), "--items must be an existing file"),
    ],
)
def test_what_is_wrong_is_named(
    command, model: Path, source: Path, tmp_path: Path, change: tuple, message: str
) -> None:
    out = tmp_path / "out"
    ended = command("score", source, "--model", model, "--out", out, *COLUMNS, *change)
    assert ended.code == 2
    assert message in ended.err
    assert not out.exists()


def test_items_are_asked_for_by_the_name_of_the_option(
    command, model: Path, source: Path, tmp_path: Path
) -> None:
    features = pd.DataFrame({"height": np.arange(6.0)}, index=pd.Index(NAMES, name="item"))
    features.to_csv(tmp_path / "items.csv")
    data = Preferences.from_dataframe(
        simulate(40).to_pandas(),
        user="user",
        left="left",
        right="right",
        choice="choice",
        items=features,
    )
    fitted = HeterogeneousBTL(1, 0, "linear")
    fit(fitted, None, data, progress_bar=False)
    save(tmp_path / "with", fitted)
    arguments = ("score", source, "--out", tmp_path / "out", *COLUMNS, "--draws", "50")
    ended = command(*arguments, "--model", tmp_path / "with")
    assert ended.code == 2
    assert "--items must be given: the model in" in ended.err
    ended = command(*arguments, "--model", model, "--items", tmp_path / "items.csv")
    assert ended.code == 2
    assert "--items must be left out: the model in" in ended.err
    ended = command(*arguments, "--model", tmp_path / "with", "--items", tmp_path / "items.csv")
    assert ended.code == 0, ended.err


def test_a_job_that_scores_nobody_fails_and_keeps_the_reasons(
    command, model: Path, tmp_path: Path
) -> None:
    table = simulate(3)
    bad = table.set_column(3, "choice", pa.array(["perhaps"] * len(table)))
    pq.write_table(bad, tmp_path / "bad.parquet")
    arguments = ("score", tmp_path / "bad.parquet", "--model", model, "--draws", "50")
    ended = command(*arguments, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "nobody could be scored, 3 people in all: choice 'perhaps' is not one of" in ended.err
    assert ended.out.endswith(f"in 1 part in {tmp_path / 'out'}\n")
    ended = command(*arguments, "--out", tmp_path / "out", "--json")  # Also of finished results.
    assert ended.code == 2
    assert json.loads(ended.out)["failed"] == 3
    reasons = pyarrow.dataset.dataset(tmp_path / "out", format="parquet").to_table()["reason"]
    assert reasons.null_count == 0
    fine = table.set_column(3, "choice", table["choice"].cast(pa.string())).slice(5, 5)
    pq.write_table(pa.concat_tables([bad.slice(0, 5), fine]), tmp_path / "some.parquet")
    ended = command("score", tmp_path / "some.parquet", *arguments[2:], "--out", tmp_path / "more")
    assert ended.code == 0, ended.err
    assert "2 people, 1 of whom" in ended.out


def test_how_a_csv_becomes_parquet_is_said(command, model: Path, tmp_path: Path) -> None:
    """What is said is done here, and the numbers of a csv are text then."""
    frame = simulate(3).to_pandas()
    frame.to_csv(tmp_path / "votes.csv", index=False)
    arguments = ("--model", model, "--out", tmp_path / "out", "--draws", "50")
    ended = command("score", tmp_path / "votes.csv", *arguments)
    assert ended.code == 2
    assert "votes.csv' is no Parquet file: nothing but Parquet is read here" in ended.err
    assert "pandas.read_csv('votes.csv', dtype=str).to_parquet('votes.parquet')" in ended.err
    pd.read_csv(tmp_path / "votes.csv", dtype=str).to_parquet(tmp_path / "votes.parquet")
    ended = command("score", tmp_path / "votes.parquet", *arguments)
    assert "3 people, 0 of whom could not be scored (column reason), in 1 part in" in ended.out
