"""What the rows of every benchmark have in common."""

from __future__ import annotations

WRITTEN = {"population_uncertainty": "population"}
"""The name in a benchmark's rows, where it is not that of its module."""


def check_rows(name: str, document: dict) -> None:
    """Checks what a benchmark wrote: its rows, and the order of low, median and high."""
    assert document["environment"]["seeds"] == [0]
    rows = [row for row in document["rows"] if row["benchmark"] == WRITTEN.get(name, name)]
    known = [row for row in rows if row["median"] is not None]
    assert known
    for row in known:
        slack = 1e-9 * abs(row["median"])
        assert row["low"] - slack <= row["median"] <= row["high"] + slack, row
