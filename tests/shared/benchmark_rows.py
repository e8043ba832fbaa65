"""What the rows of every benchmark have in common."""

from __future__ import annotations


def check_rows(name: str, document: dict) -> None:
    """Checks what a benchmark wrote: its rows, and the order of low, median and high."""
    assert document["environment"]["seeds"] == [0]
    expected = {"population_uncertainty": "population"}.get(name, name)
    assert {row["benchmark"] for row in document["rows"]} == {expected}
    known = [row for row in document["rows"] if row["median"] is not None]
    assert known
    for row in known:
        slack = 1e-9 * abs(row["median"])
        assert row["low"] - slack <= row["median"] <= row["high"] + slack, row
