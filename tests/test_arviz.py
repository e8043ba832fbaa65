"""The seam between ArviZ 0.x and 1.x: coordinates and groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from arviz_groups import group, names

from fssa_bayes._arviz import Group, build, coordinate


def test_mixed_names_become_distinct_strings() -> None:
    mixed = pd.Index(["ann", 3, 2.5, ("a", 1)], tupleize_cols=False)
    assert coordinate(mixed).tolist() == ["ann", "3", "2.5", "('a', 1)"]
    assert coordinate(pd.Index([1, "1", "b"], dtype=object)).tolist() == ["1", "'1'", "'b'"]
    assert coordinate(pd.Index([True, False])).tolist() == ["True", "False"]
    assert coordinate(pd.Index([2, 1])).tolist() == [2, 1]


def test_build_writes_what_netcdf_cannot_hold_as_json() -> None:
    one = Group({"x": (("user",), np.ones(2)), "y": (("item",), np.ones(0))}, {})
    empty = Group({"y": (("item",), np.ones(0))}, {"item": (("item",), np.ones(0))})
    attrs = {"flag": True, "nothing": None, "sizes": {"a": [1]}, "word": "x", "count": 3}
    built = build({"posterior": one, "prior": empty}, attrs)
    assert names(built) == {"posterior"}
    assert set(group(built, "posterior").data_vars) == {"x"}
    expected = {"flag": "true", "nothing": "null", "sizes": '{"a": [1]}', "word": "x", "count": 3}
    assert dict(built.attrs) == expected
