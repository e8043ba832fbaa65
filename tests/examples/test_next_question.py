"""The example of adaptive questions runs, small."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import run


@pytest.mark.slow
def test_next_question(tmp_path: Path) -> None:
    options = [
        *("--people", "30", "--questions", "3", "--items", "8", "--draws", "100"),
        *("--users", "200", "--steps", "20", "--out", str(tmp_path)),
    ]
    out = run("examples/next_question.py", *options)
    for problem in ("linear", "two modes"):
        assert f"## {problem}: means over 30 people ± standard error" in out
    assert (tmp_path / "next_question.png").stat().st_size > 10_000
    rows = [line.split() for line in out.splitlines() if line[:1].isdigit() and "±" in line]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"] * 2
    # Columns: loss and then regret of random, information and value, each with ± and an error.
    for before, after in ((rows[0], rows[3]), (rows[4], rows[7])):
        assert before[1] == before[4] == before[7]  # Nothing was asked yet.
        assert float(after[4]) < float(after[1]) < float(before[1])
