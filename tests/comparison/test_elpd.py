"""Differences of scores: paired, clustered by person, with verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from linear_people import linear

from fssa_bayes.comparison import Elpd, compare, leave_comparisons_out, score_users


def test_differences_are_paired_and_clustered_by_person() -> None:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(30), 4)
    taste = rng.normal(size=30)[person]
    first, second = taste - 1.0, taste - 1.1 + 0.01 * rng.normal(size=120)
    scores = {
        name: Elpd(values, person, 30, "comparison", None, 0.0, "data")
        for name, values in (("second", second), ("first", first))
    }
    table = compare(scores)
    assert table.index.tolist() == ["first", "second"]
    difference = (first - second).reshape(30, 4).sum(-1)
    assert table.loc["second", "elpd_diff"] == pytest.approx(difference.sum())
    expected = np.sqrt(30 * difference.var(ddof=1))
    assert table.loc["second", "dse"] == pytest.approx(expected)
    # Pooled over comparisons the error of the total would be half as large.
    expected = np.sqrt(30 * first.reshape(30, 4).sum(-1).var(ddof=1))
    assert table.loc["first", "se"] == pytest.approx(expected)
    assert table.loc["second", "verdict"].startswith("worse")
    assert table.loc["first", ["elpd_diff", "dse"]].tolist() == [0, 0]


def test_verdicts_of_doubtful_differences() -> None:
    def score(values: np.ndarray) -> Elpd:
        return Elpd(values, np.arange(len(values)), len(values), "person", None, 0.0, "data")

    zero, noise = np.zeros(50), np.random.default_rng(0).normal(size=50)
    noise -= noise.mean()
    assert "not told apart" in compare({"a": score(zero), "b": score(noise - 0.2)})["verdict"]["b"]
    small = compare({"a": score(zero), "b": score(0.01 * noise - 0.02)})["verdict"]["b"]
    assert small.startswith("less than 4 nats")
    few = compare({"a": score(zero[:5]), "b": score(zero[:5] - 10)})["verdict"]["b"]
    assert few == "too few people to judge by: 5"
    assert str(score(zero - 1)) == "-50.0 ± 0.0 nats, leaving out a person"


def test_only_the_same_data_are_compared(make_data) -> None:
    model, _ = linear(0, 3)
    one, other = make_data((3, 4)), make_data((3, 4), seed=1)
    scores = {"one": score_users(model, None, one), "other": score_users(model, None, other)}
    with pytest.raises(ValueError, match="scores must be of the same data"):
        compare(scores)
    with pytest.raises(ValueError, match="scores must be of the same data"):
        compare({"one": scores["one"], "two": leave_comparisons_out(model, None, one)})
    with pytest.raises(ValueError, match="at least 2 models, got \\['one'\\]"):
        compare({"one": scores["one"]})
