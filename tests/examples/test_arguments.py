"""Absurd arguments of examples end with one line and exit code 2, before any work."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from running import ROOT, attempt

from fssa_bayes import Preferences

EXAMPLES = sorted(
    path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "arguments"
)
REQUIRED = {
    "analyse_csv": ["none.csv", "--user", "u", "--left", "l", "--right", "r", "--choice", "c"],
    "value_of_time": ["--data", "none.csv"],
    "paper_ultrafeedback": ["--data", "none.jsonl", "--embedder", "none"],
    "real_crowds": ["--data", "none"],
    "few_shot": ["--data", "yogurt"],
}
NUMBERS = {"most", "people", "rounds", "steps"}  # Those of them that have no default.
MAY_BE_ZERO = {
    "seed",
    "contexts",
    "components",
    "conflict",
    "sft",
    "classes",
    "populations",
    "sizes",
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


def numeric_options(parser: argparse.ArgumentParser) -> list[str]:
    """Names the options that take a number, or several."""
    names = re.findall(r"^  --([\w-]+)", parser.format_help(), flags=re.M)
    defaults = {name: parser.get_default(name.replace("-", "_")) for name in names}
    found = []
    for name, default in defaults.items():
        first = default[0] if isinstance(default, list) else default
        if (isinstance(first, int | float) and not isinstance(first, bool)) or (
            first is None and name in NUMBERS
        ):
            found.append(name)
    return found


def refuse(run: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs what must end with exit code 2 and one line, which is returned."""
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", EXAMPLES)
def test_numbers_out_of_range_are_refused(
    name: str, load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = load(name).make_parser()
    options = numeric_options(parser)
    assert {"seed"} <= set(options)
    assert name in ("calibration_study", "value_of_time") or len(options) >= 2
    for option in options:
        values = ["-1", "nan", "inf", "-1e9", "many", "", "9" * 30]
        for value in values if option in MAY_BE_ZERO else [*values, "0"]:
            if value == "9" * 30 and isinstance(
                parser.get_default(option.replace("-", "_")), float
            ):
                continue
            line = refuse(
                lambda value=value, option=option: parser.parse_args(
                    [*REQUIRED.get(name, []), f"--{option}={value}"]
                ),
                capsys,
            )
            assert re.search(rf"error: argument --{option}: must be .* got '{value}'", line)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_folder_that_cannot_be_written_is_refused(
    name: str,
    load: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, arguments = load(name), load("arguments")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        argv = [*REQUIRED.get(name, []), "--out", str(out)]
        line = refuse(
            lambda argv=argv: arguments.run(module.main, module.make_parser(), argv), capsys
        )
        assert f"error: --out must be a folder that can be written, got '{out}'" in line


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("analyse_csv", REQUIRED["analyse_csv"], "none.csv"),
        ("value_of_time", ["--data", "none.csv"], "--data must exist, got 'none.csv'"),
        ("value_of_time", ["--data", "empty.csv"], "path must be a csv file, 'empty.csv'"),
        ("value_of_time", ["--data", "binary.csv"], "path must be a csv file, 'binary.csv'"),
        ("rank_of_heterogeneity", ["--data", "none.csv"], "none.csv"),
        ("rankings_of_a_crowd", ["--data", "empty.csv"], "either --ranks or --orderings"),
        ("rankings_of_a_crowd", ["--data", "none.csv", "--ranks", "a,b"], "none.csv"),
        ("rankings_of_a_crowd", ["--left-out", ".001"], "--left-out=0.001 of 600 people must"),
        ("is_heterogeneity_real", ["--data", ".", "--user", "u"], "--left"),
        (
            "is_heterogeneity_real",
            ["--data", "none.csv", *REQUIRED["analyse_csv"][1:]],
            "none.csv",
        ),
        ("rank_of_heterogeneity", ["--people", "10", "--most", "6"], "--most must be at most 5"),
        ("real_crowds", ["--data", "."], "--data must hold llmfao.csv, '.' does not"),
        ("steer_policy", ["--quick", "--model", "none"], "none"),
        ("paper_ultrafeedback", REQUIRED["paper_ultrafeedback"], "none.jsonl"),
        ("steer_policy", ["--device", "abacus"], "must be a device that PyTorch has here"),
    ],
)
def test_what_is_wrong_is_named(
    name: str,
    options: list[str],
    message: str,
    load: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").write_bytes(b"")
    Path("binary.csv").write_bytes(bytes(range(128, 256)))
    module, arguments = load(name), load("arguments")
    line = refuse(lambda: arguments.run(module.main, module.make_parser(), options), capsys)
    assert line.startswith(f"{Path(sys.argv[0]).name}: error: ")
    assert message in line


def test_faults_show_their_traceback(
    load: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the library refuses takes a line; an error within NumPy or pandas is a fault."""
    arguments = load("arguments")
    parser, argv = arguments.Parser("An example."), ["--out", str(tmp_path)]

    def refused(args: argparse.Namespace) -> None:
        Preferences([0], [1], [7], [0, 1], num_items=2)

    def faulty(args: argparse.Namespace) -> None:
        pd.DataFrame({"a": [1]}).set_axis([1, 2], axis=1)

    assert "choice" in refuse(lambda: arguments.run(refused, parser, argv), capsys)
    with pytest.raises(ValueError, match="Length mismatch"):
        arguments.run(faulty, parser, argv)
    with pytest.raises(ValueError, match="choice"):
        arguments.run(refused, parser, [*argv, "--debug"])


@pytest.mark.slow
def test_a_process_ends_with_code_2_and_no_traceback() -> None:
    ended = attempt("examples/quickstart.py", "--users", "0")
    assert ended.returncode == 2
    assert ended.stderr == (
        "quickstart.py: error: argument --users: must be an integer from 10 to 2,147,483,647, got "
        "'0' (--help lists the arguments)\n"
    )


def test_one_process_of_several_prints_and_writes(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = load("arguments")

    def main(args: argparse.Namespace) -> None:
        print("found")
        (args.out / "found.txt").write_text("found")

    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        arguments.run(main, arguments.Parser("x"), ["--out", str(tmp_path / rank)])
    assert not (tmp_path / "1").exists()
    assert (tmp_path / "0" / "found.txt").exists()
    assert capsys.readouterr().out == "found\n"
