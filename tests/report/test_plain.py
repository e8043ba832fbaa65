"""Names are data in text, Markdown and CSV: shown as they are, whatever they hold."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from fssa_bayes.report import Figure, Report, Section, to_csv, to_markdown, to_text

NAMES = [
    "<script>alert(1)</script>",
    "![x](x.png)<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "a | b",
    "**bold** _it_ ~~gone~~ `code`",
    "C #",
    "# heading",
    "- item",
    "+ item",
    "12. item",
    "> quoted",
    "===",
    "---",
    "a\\*b*",
    "&lt;b&gt; &amp; AT&T",
    "$x^2$ and $y$",
    "two\nlines\n\n# and more",
    "snake_case_name",
    "<https://example.org>",
]
TAGS = {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "img", "em", "code"}


def read_html(text: str) -> tuple[list[str], str]:
    """Renders Markdown; returns the names of its tags, and its text."""
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    return re.findall(r"<([^\s>/]+)", page), page


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_names_as_they_are(name: str) -> None:
    line = " ".join(name.split())
    table = pd.DataFrame({name: [name], "n": [1.0]})
    section = Section(name, [name], table, [Figure(b"", name, "a.png")], warnings=[name])
    tags, page = read_html(Report(name, [section], [name], name).to_markdown())
    assert set(tags) <= TAGS | {"blockquote"}
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for before, after in (
        ("<h1>", "</h1>"),
        ("<h2>", "</h2>"),
        ("<p>", "</p>"),
        ("<th>", "</th>"),
        ("<td>", "</td>"),
        ("<p>Warning: ", ".</p>"),
        ("<em>", "</em>"),
    ):
        assert before + escaped.replace('"', "&quot;") + after in page


def test_a_terminal_is_not_steered() -> None:
    table = pd.DataFrame({"item": ["\x1b[2Jb", "\x9b2J"]})
    text = to_text(Section("a\x1b]0;title\x07", ["text"], table))
    assert text.replace("\n", "").isprintable()
    for shown in (r"\x1b]0;title\x07", r"\x1b[2Jb", r"\x9b2J"):
        assert shown in text


FORMULAS = ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x", '=HYPERLINK("a,b")']
PLAIN = ["a", "-1", "+2.5", "-1e3", "'quoted'", "don't", "a=1", "", "−3", "é@x"]


def test_a_spreadsheet_does_not_calculate_with_names() -> None:
    names = FORMULAS + PLAIN
    values = np.linspace(-1, 1, len(names))
    table = pd.DataFrame({"=x": values, "who": names[::-1]}, index=pd.Index(names, name="@item"))
    text = to_csv(table)
    (head, *rows) = csv.reader(io.StringIO(text, newline=""))
    assert head == ["'@item", "'=x", "who"]
    for row, name, value, who in zip(rows, names, values, names[::-1], strict=True):
        assert row[0] == (f"'{name}" if name in FORMULAS else name)
        assert float(row[1]) == value
        assert row[2] == (f"'{who}" if who in FORMULAS else who)
        back = re.sub(r"^'(?='*[=+@\t\r-])", "", row[0])
        assert back == name  # The rule of the docstring takes the apostrophe off again.
    harmless = pd.DataFrame({"a": [1, -2], "b": [0.1, np.nan], "c": ["x, y", 'z "w"']})
    assert to_csv(harmless) == harmless.to_csv()
    assert to_csv(harmless, index=False) == harmless.to_csv(index=False)


def test_tables_of_a_report_are_guarded(tmp_path: Path) -> None:
    table = pd.DataFrame({"utility": [-0.5]}, index=pd.Index(["=cmd"], name="item"))
    Report("t", [Section("Ranking", files={"r.csv": table})], ["s"], "f").write(tmp_path)
    assert (tmp_path / "r.csv").read_text() == "item,utility\n'=cmd,-0.5\n"


def test_numbers_of_a_table_stand_as_they_are() -> None:
    table = pd.DataFrame({"name": ["-1.5", "a"], "n": [-1.5, 0.25], "m": [-1, 2]})
    assert "| \\-1.5 | -1.5 | -1 |\n| a | 0.25 | 2 |" in to_markdown(
        Section("Numbers", table=table)
    )
