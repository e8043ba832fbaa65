"""The seam between ArviZ 0.x and 1.x: coordinates, groups, Pareto smoothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
from arviz_groups import group, names

from fssa_bayes._arviz import Group, build, coordinate, pareto_smooth


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


def test_weights_whose_tail_cannot_be_fitted_are_not_smoothed() -> None:
    rng = np.random.default_rng(0)
    two_values = np.where(np.arange(100) < 50, 0.0, -1.0)
    log_weights, pareto_k = pareto_smooth(np.stack([two_values, rng.normal(size=100)]))
    assert pareto_k[0] == np.inf
    assert np.isfinite(pareto_k[1])
    np.testing.assert_allclose(
        np.exp(log_weights[0]), np.exp(two_values) / np.exp(two_values).sum()
    )
    _, too_few = pareto_smooth(rng.normal(size=(1, 10)))
    assert too_few == np.inf


def test_pareto_k_recovers_the_tail_of_known_weights() -> None:
    rng = np.random.default_rng(0)
    shapes = np.array([0.2, 0.5, 0.9])
    weights = rng.pareto(1 / shapes, size=(20_000, 3)).T + 1
    _, pareto_k = pareto_smooth(np.log(weights))
    assert np.abs(pareto_k - shapes).max() < 0.15
    log_weights, pareto_k = pareto_smooth(np.zeros((2, 50)))
    assert (pareto_k == 0).all()
    np.testing.assert_allclose(np.exp(log_weights), 1 / 50)
