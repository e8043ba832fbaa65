"""The page of results, made of the files in `results`, so that no figure is typed."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pandas as pd

from benchmarks.harness import digits

__all__ = ["RESULTS", "make_page"]

RESULTS = Path(__file__).parent / "results"
_TOP = """# Measured

Made by `python -m benchmarks --markdown` from the files in [results](results); do not edit. Each
table says when and where it was measured, and with which version. Cells are medians with the
smallest and the largest of the seeds or repetitions in brackets (quantiles where the benchmark says
so). Times are of a machine that other programs used too, unless a benchmark says otherwise: compare
within a table. `python -m benchmarks NAME --json FILE` measures again.
"""


def make_page(results: Path = RESULTS) -> str:
    """Writes the page, one part a file of results."""
    return "\n".join([_TOP, *(_part(path) for path in sorted(results.glob("*.json")))])


def _part(path: Path) -> str:
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = pd.DataFrame(document["rows"])
    lines = [f"## {path.stem}", "", _describe(document["environment"]), ""]
    for benchmark in rows["benchmark"].unique():
        lines += [f"`{benchmark}`: {_purpose(benchmark)}", ""]
    if path.with_suffix(".png").exists():
        lines += [f"![{path.stem}](results/{path.stem}.png)", ""]
    for case, table in rows.groupby("case", sort=False):
        lines += ["<details>", f"<summary>{_plain(case)}</summary>", "", _table(table)]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def _describe(environment: dict) -> str:
    """Says when, where and with what the rows were measured."""
    threads = environment["threads"]
    parts = [
        environment["date"][:10],
        environment["processor"],
        f"{environment['cores']} cores",
        environment["gpu"] or "no GPU",
        "1 thread" if threads == 1 else f"{threads} threads",
        f"seeds {', '.join(map(str, environment['seeds']))}",
        f"commit {environment.get('commit') or 'not recorded'}",
        f"load at the end {environment.get('load', 'not recorded')}",
        ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
    ]
    return "; ".join(parts) + "."


def _purpose(benchmark: str) -> str:
    """Returns the first sentence of a benchmark's docstring."""
    source = Path(__file__).with_name(f"{benchmark}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source))
    return " ".join(text.split("\n\n")[0].split())


def _table(rows: pd.DataFrame) -> str:
    """Lists implementations by metrics, or the other way round, as a table of Markdown."""
    rows = rows.assign(
        metric=[f"{m}, {u}" if u else m for m, u in zip(rows["metric"], rows["unit"], strict=True)],
        cell=[_cell(row) for row in rows.itertuples()],
    )
    cells = rows.pivot_table(
        index="implementation", columns="metric", values="cell", aggfunc="; ".join, sort=False
    )
    cells = cells.T if cells.shape[1] > cells.shape[0] else cells
    lines = [["", *cells.columns], ["---"] * (1 + cells.shape[1])]
    lines += [[name, *values] for name, values in cells.fillna("").T.items()]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _cell(row: object) -> str:
    if pd.isna(row.median):
        return "–"
    text = digits(row.median)
    if row.low != row.high:
        text += f" [{digits(row.low)}, {digits(row.high)}]"
    if row.ratio is not None and not pd.isna(row.ratio):
        text += f"; {row.ratio:.2f} x {row.ratio_to}"
    return text


def _plain(text: str) -> str:
    """Keeps a text from ending a cell of a table, or from being read as HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")
