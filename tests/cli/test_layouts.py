"""Every layout of a file gives the ranking that the long table gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.data import Preferences
from fssa_bayes.datasets import table

WINS = [("a", "b", 6, 3), ("b", "c", 6, 3), ("a", "c", 12, 3)]
UTILITIES = [np.log(2), 0.0, -np.log(2)]
Save = Callable[[pd.DataFrame], Path]


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    """Returns a function that writes a table and returns its path."""

    def save(frame: pd.DataFrame) -> Path:
        frame.to_csv(tmp_path / "table.csv", index=False)
        return tmp_path / "table.csv"

    return save


def counts() -> pd.DataFrame:
    return pd.DataFrame(WINS, columns=["i", "j", "ij", "ji"])


def winners() -> pd.DataFrame:
    rows = [(i, j, n) for i, j, n, _ in WINS] + [(j, i, n) for i, j, _, n in WINS]
    return pd.DataFrame(rows, columns=["w", "l", "n"])


def columns_of_pairs() -> pd.DataFrame:
    """Fifteen people, of whom not everybody was asked everything."""
    answers = {f"{i}/{j}": ["1"] * n + ["-1"] * m for i, j, n, m in WINS}
    frame = pd.DataFrame({name: pd.Series(cells) for name, cells in answers.items()})
    return frame.assign(age=30)


LAYOUTS = {
    "counts": (
        counts(),
        ("--left", "i", "--right", "j", "--left-wins", "ij", "--right-wins", "ji"),
    ),
    "winners": (winners(), ("--winner", "w", "--loser", "l", "--count", "n")),
    "long": (
        winners().assign(y="w"),
        ("--left", "w", "--right", "l", "--choice", "y", "--choice-labels", "w=left"),
    ),
    "pair columns": (
        columns_of_pairs(),
        ("--pair-columns", "/", "--choice-labels", "1=left,0=tie,-1=right"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_maximum_is_the_closed_form(command, saved: Save, layout: str, tmp_path: Path) -> None:
    """Wins of 2 : 1, 2 : 1 and 4 : 1 are those of utilities log 2, 0 and -log 2."""
    frame, options = LAYOUTS[layout]
    if layout == "long":
        frame = frame.loc[frame.index.repeat(frame["n"])]
    ended = command("rank", saved(frame), *options, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    ranking = pd.read_csv(tmp_path / "out" / "ranking.csv", index_col="item")
    assert ranking.index.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(ranking["utility"], UTILITIES, atol=1e-4)
    if layout == "long":
        assert "pass --winner 'w', --loser 'l'" in ended.out


BALLOTS = [
    *[("a", "b", "c")] * 4,
    *[("b", "a", "c")] * 3,
    *[("c", "a", None)] * 2,
    *[("b", "c", "a")] * 2,
]


def rankings() -> dict[str, tuple[pd.DataFrame, dict[str, str]]]:
    wide = pd.DataFrame(BALLOTS, columns=["1st", "2nd", "3rd"])
    people = [f"p{number:02}" for number in range(len(wide))]
    long = wide.assign(who=people).melt("who", value_name="item").dropna()
    long["place"] = long["variable"].str[0].astype(int)
    ranks = long.pivot(index="who", columns="item", values="place").reset_index()
    return {
        "orderings": (wide, {"orderings": "1st,2nd,3rd"}),
        "ranks": (ranks, {"ranks": "a,b,c", "user": "who"}),
        "items": (long, {"user": "who", "item": "item", "rank": "place"}),
    }


@pytest.mark.parametrize("layout", ["orderings", "ranks", "items"])
def test_rankings_of_every_layout_are_the_lists(command, saved: Save, layout: str) -> None:
    frame, columns = rankings()[layout]
    lists = [[item for item in ballot if item] for ballot in BALLOTS]
    expected = Preferences.from_rankings(lists)
    listed = {name: own.split(",") if "," in own else own for name, own in columns.items()}
    data = table.read(saved(frame), **listed).data
    parts = ("left", "right", "choice", "offsets", "ranking")
    assert all((getattr(data, name) == getattr(expected, name)).all() for name in parts)
    assert data.item_names.tolist() == expected.item_names.tolist()
    options = [text for name, own in columns.items() for text in (f"--{name}", own)]
    ended = command("rank", saved(frame), *options, "--json")
    assert ended.code == 0, ended.err
    model = HomogeneousBTL().fit(expected, progress_bar=False).model
    utility = model.utility.mean - model.utility.mean.mean()
    figures = json.loads(ended.out)
    leader = int(utility.argmax())
    assert figures["leader"] == expected.item_names[leader]


HERE = {True: "true", False: "FALSE"}
SETS = pd.DataFrame(
    [
        (
            f"p{person}",
            situation,
            item,
            price,
            "FALSE" if item == "c" and person != 2 else "true",
            item == best,
        )
        for person, own in enumerate(["aab", "bad", "cba", "bda", "add", "dba"])
        for situation, best in enumerate(own)
        for item, price in zip("abcd", np.random.default_rng(person).random(4), strict=True)
    ],
    columns=["who", "when", "what", "price", "here", "best"],
)
SET_COLUMNS = {"user": "who", "situation": "when", "item": "what", "chosen": "best"}


@pytest.mark.parametrize("more", [{}, {"features": ["price"], "constants": True}])
def test_choice_sets_are_those_of_the_table(command, saved: Save, more: dict) -> None:
    options = SET_COLUMNS | {"available": "here"} | more
    expected = Preferences.from_choices(
        SETS.assign(here=SETS["here"] == "true", when=SETS["when"].astype(str)), **options
    )
    for marks in (
        SETS["best"],
        SETS["best"].astype(int),
        SETS["best"].map({True: "1.0", False: "0"}),
    ):
        assert (
            table.read(saved(SETS.assign(best=marks)), **options).data.digest() == expected.digest()
        )


def test_choice_sets_are_ranked_as_their_maximum_says(command, saved: Save) -> None:
    columns = [text for name, own in SET_COLUMNS.items() for text in (f"--{name}", own)]
    ended = command("rank", saved(SETS), *columns, "--available", "here", "--json")
    assert ended.code == 0, ended.err
    here = SETS[SETS["here"] == "true"]
    names = ["a", "b", "d", "c"]

    def loss(utility: np.ndarray) -> float:
        values = here["what"].map(dict(zip(names, [*utility, 0.0], strict=True)))
        groups = [here["who"], here["when"]]
        return np.log(np.exp(values).groupby(groups).sum()).sum() - values[here["best"]].sum()

    best = minimize(loss, np.zeros(3), options={"gtol": 1e-8}).x
    assert json.loads(ended.out)["leader"] == names[int(np.append(best, 0.0).argmax())]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {},
            ("--situation", "when", "--features", "price,here,cost"),
            "--features 'cost' is not a column of",
        ),
        ({}, ("--situation", "when", "--rank", "best"), "--chosen, --item, --rank, --situation"),
        ({}, ("--situation", "when", "--constants"), "constants=True goes with features="),
        ({}, (), "an alternative must stand once in a situation, got 'a' again at row 6"),
        (
            {"price": ""},
            ("--situation", "when", "--features", "price"),
            "no missing values, got one",
        ),
        ({"best": 0}, ("--situation", "when"), "--chosen 'best' must mark one alternative of each"),
        ({"best": ""}, ("--situation", "when"), "--chosen 'best' must have no missing values"),
        (
            {"price": SETS["price"].astype(str).where(SETS["when"] > 0, "dear")},
            ("--situation", "when", "--features", "price"),
            "must hold numbers in the column 'price' of features, got 'dear' at row 2",
        ),
    ],
)
def test_wrong_choice_sets_are_named(command, saved: Save, change, options, message) -> None:
    columns = ("--user", "who", "--item", "what", "--chosen", "best")
    ended = command("rank", saved(SETS.assign(**change)), *columns, *options)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--winner", "w"), "one layout of FILE (--left, --right, --choice; --winner, --loser;"),
        (("--winner", "w"), "got --winner"),
        (("--winner", "w", "--loser", "l", "--choice", "n"), "got --choice, --loser, --winner"),
        (
            ("--winner", "w", "--loser", "l", "--choice-labels", "1=left"),
            "got --choice-labels, --l",
        ),
        ((), "got none"),
        (("--item", "w", "--rank", "n"), "--item and --rank need --user"),
        (("--winner", "w", "--loser", "l", "--users", "x.csv"), "--users needs --user"),
        (("--winner", "w", "--loser", "l", "--count", "w"), "must be different columns"),
        (("--winner", "w", "--loser", "l", "--count", "m"), "--count 'm' is not a column of"),
        (("--winner", "w", "--loser", "l", "--side", "n"), "--side 'n' must hold 1"),
        (("--orderings", "w,x"), "--orderings 'x' is not a column of"),
        (
            ("--left", "w", "--right", "l", "--left-wins", "n"),
            "got --left, --left-wins, --right; add --right-wins",
        ),
        (("--item", "w"), "got --item; add --rank or --chosen"),
        (("--pair-columns", ":"), "must have columns named like 'a:b'"),
    ],
)
def test_options_that_make_no_layout_are_named(command, saved, options, message) -> None:
    ended = command("rank", saved(winners()), *options)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize("name", ["analyse", "diagnose"])
def test_people_must_be_told_apart_to_differ(command, saved: Save, tmp_path, name: str) -> None:
    more = ("--model", tmp_path) if name == "diagnose" else ()
    columns = ("--winner", "w", "--loser", "l", "--count", "n")
    ended = command(name, saved(winners()), *columns, "--out", tmp_path / "out", *more)
    assert ended.code == 2
    assert "--user must name the column of people" in ended.err
