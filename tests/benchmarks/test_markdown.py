"""The page of results: made of the files, and not behind them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import markdown
from benchmarks.__main__ import PAGE


def test_the_page_is_that_of_the_files() -> None:
    """`python -m benchmarks --markdown` makes it again."""
    assert PAGE.read_text(encoding="utf-8") == markdown.make_page()


def test_a_table_has_every_figure_once(tmp_path: Path) -> None:
    row = {"benchmark": "two_mode", "case": "a < b", "unit": "s", "low": 1.0, "high": 1.0}
    row |= {"ratio_to": None, "ratio": None}
    rows = [
        row | {"implementation": "here", "metric": "time", "median": 1.0},
        row | {"implementation": "there", "metric": "time", "median": 2.5, "high": 3.0},
        row | {"implementation": "there", "metric": "a | b", "unit": "", "median": None},
    ]
    about = {"date": "2026-11-28T00:00:00", "processor": "P", "cores": 2, "gpu": None}
    about |= {"threads": 1, "seeds": [0], "versions": {"torch": "2"}, "commit": "abc", "load": 0.1}
    document = {"environment": about, "rows": rows}
    (tmp_path / "some.json").write_text(json.dumps(document), encoding="utf-8")
    page = markdown.make_page(tmp_path)
    assert "2026-11-28; P; 2 cores; no GPU; 1 thread; seeds 0; commit abc" in page
    assert "<summary>a &lt; b</summary>" in page
    assert "|  | time, s | a \\| b |\n| --- | --- | --- |\n" in page
    assert "| here | 1 |  |\n| there | 2.5 [1, 3] | – |" in page
