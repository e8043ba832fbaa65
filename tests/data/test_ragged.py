"""Rows of different lengths, stored end to end."""

from __future__ import annotations

import numpy as np

from fssa_bayes.data.ragged import list_ranges, number_runs, offsets_of, run_ends


def test_ranges_are_listed_one_after_another() -> None:
    found = list_ranges(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert found.tolist() == [5, 6, 9, 10, 11]
    assert offsets_of(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]


def test_runs_are_numbered_and_bounded() -> None:
    values = np.array([3, 3, 7, 8, 8, 8])
    distinct, place = number_runs(values)
    assert (distinct.tolist(), place.tolist()) == ([3, 7, 8], [0, 0, 1, 2, 2, 2])
    start, stop = run_ends(values)
    assert (start.tolist(), stop.tolist()) == ([0, 0, 2, 3, 3, 3], [2, 2, 3, 6, 6, 6])
    assert all(len(part) == 0 for part in (*number_runs(values[:0]), *run_ends(values[:0])))
