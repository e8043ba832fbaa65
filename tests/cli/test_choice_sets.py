"""`fssa-bayes rank` and `analyse` on a file of choice sets, as mlogit and xlogit users have it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import pytest

from fssa_bayes.datasets import electricity
from fssa_bayes.io import load

PAGE = Path(__file__).parents[2] / "docs" / "command.md"
COLUMNS = (
    *("--user", "user", "--situation", "situation", "--item", "alternative"),
    *("--chosen", "chosen", "--features", "pf,cl,loc,wk,tod,seas"),
)


@pytest.fixture
def suppliers(tmp_path: Path) -> Path:
    """The first six people of the shipped data."""
    table = electricity.table()
    path = tmp_path / "electricity.csv"
    table[table["user"] <= 6].to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--price", "cost"), "--price must be one of the features ['pf', 'cl', 'loc', 'wk',"),
        (("--price", "pf", "--utility", "mlp"), "--price needs --utility linear, got mlp"),
        (("--price", "pf", "--model", "m"), "--price needs a fit for its standard errors"),
    ],
)
def test_a_price_that_cannot_be_asked_for(
    command, suppliers: Path, tmp_path: Path, options: tuple, message: str
) -> None:
    ended = command("analyse", suppliers, *COLUMNS, *options, "--out", tmp_path / "out")
    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_the_title_says_what_a_file_holds(command, suppliers: Path, tmp_path: Path) -> None:
    ended = command("rank", suppliers, *COLUMNS, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("# Multinomial logit of electricity.csv")
    assert "4 a situation; 4 distinct names" in ended.out
    assert "Multinomial (conditional) logit" in ended.out
    assert "ranking.csv" not in summary


def printed_on_the_page() -> list[str]:
    """Returns the blocks of text of the section on choice sets."""
    section = PAGE.read_text(encoding="utf-8").split("## Choice sets")[1].split("\n## ")[0]
    return re.findall(r"```text\n(.*?)```", section, re.DOTALL)


@pytest.mark.slow
def test_three_commands_print_what_the_page_shows(command, tmp_path: Path) -> None:
    """xlogit and torch-choice print a log-likelihood of −4958.649 of the multinomial logit."""
    path, out = tmp_path / "electricity.csv", tmp_path / "results"
    electricity.table().to_csv(path, index=False)
    ranked = command("rank", path, *COLUMNS)
    assert ranked.code == 0, ranked.err
    assert "Log-likelihood -4,958.649" in ranked.out
    logit, population, payments = printed_on_the_page()
    lines = {" ".join(line.split()) for line in ranked.out.splitlines()}
    assert {" ".join(line.split()) for line in logit.splitlines()} <= lines
    ended = command("analyse", path, *COLUMNS, "--price", "pf", "--out", out)
    assert ended.code == 0, ended.err
    for block, name, keys in (
        (population, "population.csv", ["quantity", "term"]),
        (payments, "wtp.csv", ["attribute"]),
    ):
        table = pd.read_csv(out / name).round(3)
        shown = pd.read_csv(io.StringIO(block), sep=r"\s+")
        merged = shown.merge(table, on=keys, suffixes=("", " now"))
        assert len(merged) == len(shown) > 0
        for column in shown.columns.difference(keys):
            assert (merged[column] - merged[f"{column} now"]).abs().max() < 0.02, column
    people = pd.read_csv(out / "people.csv")
    assert len(people) == 361 * 6
    model, guide = load(out / "model")
    assert guide is None
    assert model.latent_dim == 6
