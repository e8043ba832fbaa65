"""The command answers without PyTorch, and says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fssa_bayes.cli import SUBCOMMANDS

COLUMNS = ("--user", "rater no.", "--left", "A", "--right", "B", "--choice", "verdict")
STEER = ("steer", "train", "--model", "m", "--encoder", "e", "--out", "x")
LOADED = """
import sys
sys.argv[0] = "fssa-bayes"
try:
    from fssa_bayes.cli import main
    main()
finally:
    heavy = {"torch", "pandas", "numpy", "scipy", "arviz", "matplotlib"} & set(sys.modules)
    print("loaded:", sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *(([name, "--help"], 0) for name in SUBCOMMANDS),
        ([], 2),
        (["analyze"], 2),
        (["rank", "votes.csv"], 2),
        (["rank", "no.csv", *COLUMNS], 2),
        (["rank", "no.csv", *COLUMNS, "--debug"], 1),
        (["analyse", __file__, *COLUMNS, "--out", "x", "--test-size", "2"], 2),
        (["analyse", __file__, *COLUMNS, "--out", "x", "--latent-dim", "0"], 2),
        (["analyse", __file__, *COLUMNS, "--out", "x", "--latent-dim", "many"], 2),
        (["analyse", __file__, *COLUMNS, "--out", "x", "--choice-labels", "a1=won"], 2),
        (["analyse", __file__, *COLUMNS, "--out", __file__], 2),
        (["analyse", __file__, *COLUMNS, "--out", "x", "--model", "nowhere"], 2),
        (["diagnose", __file__, *COLUMNS, "--out", "x", "--model", "nowhere"], 2),
        (["score", __file__, *COLUMNS, "--out", "x", "--model", "nowhere"], 2),
        (["ask", "nowhere", "--items", __file__, "--db", "x.sqlite"], 2),
        (["ask", "nowhere", "--items", "no.csv", "--db", "x.sqlite"], 2),
        *((["steer", name, "--help"], 0) for name in ("train", "generate", "export", "serve")),
        ([*STEER, "--data", "no.jsonl"], 2),
        ([*STEER, "--data", __file__, "--model-option", "eager"], 2),
        (["steer", "generate", "nowhere", "--prompt", "hello"], 2),
        (["steer", "generate", "nowhere"], 2),
        (["steer", "export", "nowhere", "--out", "x", "--data", "no.jsonl"], 2),
        (["steer", "serve", "nowhere", "--db", "x.sqlite"], 2),
    ],
)
def test_help_and_wrong_arguments_load_no_torch(arguments: list[str], code: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == code, run.stderr
    assert "loaded: []" in run.stderr
    assert ("Traceback" in run.stderr) == ("--debug" in arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--user", "usr"), "--user 'usr' is not a column of"),
        (("--choice", "column 5", "--penalty", "-1"), "--penalty must be"),
    ],
)
def test_a_column_that_is_not_there_loads_no_torch(
    change: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """The header of a text file, here of a spreadsheet, is read before anything is imported."""
    votes = tmp_path / "votes.tsv"
    votes.write_text('\ufeffrater no.\tA\t"B"\tverdict\t\n', encoding="utf-8")
    command = [sys.executable, "-c", LOADED, "rank", str(votes), *COLUMNS, *change]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {message}")
    if "--user" in change:
        assert "its columns are 'rater no.', 'A', 'B', 'verdict', 'column 5'" in run.stderr
    assert "loaded: []" in run.stderr


def test_help_names_every_subcommand(command) -> None:
    ended = command("--help")
    assert all(f" {name} " in ended.out for name in SUBCOMMANDS)


@pytest.mark.parametrize("name", [name for name in SUBCOMMANDS if name not in ("ask", "steer")])
def test_help_of_a_subcommand_says_how_to_read_a_file(command, name: str) -> None:
    ended = command(name, "--help")
    assert ended.code == 0
    for option in ("FILE", "--user", "--left", "--ties", "--json", "--quiet"):
        assert option in ended.out
    assert ("--choice-labels" in ended.out) == (name != "score")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--left", "C"), "--left 'C' is not a column of"),
        (("--choice-labels", "a1=left,a2=right"), "choice_labels has no translation for 'equal'"),
        (("--choice-labels", "a1:left"), "--choice-labels must read like a1=left,a2=right"),
        (("--items", "nothing.csv"), "--items must be an existing file, got 'nothing.csv'"),
        (("--delimiter", ";"), "delimiter"),
        (("--user", "A"), "must be different columns"),
        (("--overwrite",), "--overwrite replaces results in --out, which is not given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_named(command, votes: Path, change: tuple, message: str) -> None:
    labels = ("--choice-labels", "a1=left,a2=right,equal=tie")
    ended = command("rank", votes, *COLUMNS, *labels, *change)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.out == ""


def test_debug_shows_where_an_error_arose(votes: Path) -> None:
    command = ["-m", "fssa_bayes", "rank", str(votes), *COLUMNS, "--left", "C", "--debug"]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "Traceback" in run.stderr
