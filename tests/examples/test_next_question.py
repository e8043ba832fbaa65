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
        *("--real-people", "12", "--folds", "2", "--fit-draws", "16"),
    ]
    out = run("examples/next_question.py", *options)
    for problem in ("linear", "two modes"):
        assert f"## {problem}: means over 30 people ± standard error" in out
    assert "## electricity: means over 12 people ± standard error" in out
    assert (tmp_path / "next_question.png").stat().st_size > 10_000
    rows = [line.split() for line in out.splitlines() if line[:1].isdigit() and "±" in line]
    assert [row[0] for row in rows] == [*"0123", *"0123", *"012345678"]
    # Columns: loss and then regret of random, information and value, each with ± and an error.
    for before, after in ((rows[0], rows[3]), (rows[4], rows[7])):
        assert before[1] == before[4] == before[7]  # Nothing was asked yet.
        assert float(after[4]) < float(after[1]) < float(before[1])
    # Of real people: in whatever order, in the end the same choices are known.
    for row in (rows[8], rows[16]):
        assert row[1] == row[4] == row[7]
        assert row[10::3] == ["0.0000"] * 3
    assert len({rows[11][1], rows[11][4], rows[11][7]}) == 3
    assert float(rows[16][1]) < float(rows[8][1])
