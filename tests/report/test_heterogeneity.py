"""The test of whether people differ, as it stands in a report."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fssa_bayes import HeterogeneousBTL, Preferences
from fssa_bayes.comparison import heterogeneity_test
from fssa_bayes.datasets import linear_factors
from fssa_bayes.report import to_text
from fssa_bayes.report.heterogeneity import judge_heterogeneity


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_the_test_is_that_of_the_library(spread: float) -> None:
    population = linear_factors.draw_population(2, 2, spread=spread, seed=0)
    data = linear_factors.simulate(40, 12, population, seed=1).data
    found = judge_heterogeneity(data, 8, None, seed=3)
    build = lambda: (HeterogeneousBTL(2, 2, "linear"), None)  # noqa: E731
    expected = heterogeneity_test(build, data, seed=3)
    assert found.p_value == expected.p_value
    assert found.differ == (spread > 0) == (expected.p_value <= 0.05)
    assert found.numbers == {
        "heterogeneity_p_value": expected.p_value,
        "heterogeneity_p_lower": expected.p_interval[0],
        "heterogeneity_p_upper": expected.p_interval[1],
    }
    shown = to_text(found.section) + found.verdict
    assert f"p = {expected.p_value:.2g}, {expected.p_interval[0]:.2g} to" in shown
    assert ("The 40 people do differ" if spread else "These 40 people do not show") in shown


@pytest.mark.filterwarnings("ignore:choices are separated")
def test_a_test_that_takes_long_is_left_out_with_its_call() -> None:
    """A hundred items without features have 5,050 variances and covariances, for a bootstrap."""
    rng = np.random.default_rng(0)
    left = rng.integers(100, size=400)
    right = (left + rng.integers(1, 100, size=400)) % 100
    data = Preferences(left, right, left % 2, np.arange(0, 401, 10), num_items=100)
    found = judge_heterogeneity(data, 2, None, seed=0)
    assert np.isnan(found.p_value)
    assert not found.differ
    assert (found.verdict, found.numbers) == ("", {})
    text = to_text(found.section)
    assert "data sets of 400 comparisons and 100 coefficients" in text
    assert "--bootstraps 19 (num_bootstrap=19 in Python)" in text
    call = re.search(r"The call: (heterogeneity_test\(.*\)) of fssa_bayes.comparison", text)[1]
    # The call is one that the library takes: what it refuses is the one person of the data.
    names = {"heterogeneity_test": heterogeneity_test, "HeterogeneousBTL": HeterogeneousBTL}
    with pytest.raises(ValueError, match="at least 2 people"):
        eval(call, names | {"data": data.subset([0])})


@pytest.mark.filterwarnings("ignore:choices are separated")
def test_choices_that_are_certain_leave_the_test_out() -> None:
    """Everybody prefers the first of two items, and one person has not been asked."""
    data = Preferences([0] * 40, [1] * 40, [1.0] * 40, [0, 0, *range(2, 41, 2)], num_items=2)
    found = judge_heterogeneity(data, 2, None, seed=0)
    assert np.isnan(found.p_value)
    assert "was left out: data must leave the average person's choices uncertain" in to_text(
        found.section
    )
