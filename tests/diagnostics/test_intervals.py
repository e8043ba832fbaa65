"""Coverage of intervals on posteriors that are exact, too narrow, too wide and shifted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diagnostic_studies import study
from scipy import stats

from fssa_bayes import diagnostics as dg


@pytest.mark.parametrize(
    ("fault", "sign"), [({}, 0), ({"scale": 0.7}, -1), ({"scale": 1.4}, 1), ({"shift": 0.8}, -1)]
)
def test_coverage_tells_the_direction(fault: dict, sign: int) -> None:
    people = study(1000, 200, sizes=(0, 4), **fault)
    pit = dg.weighted_pit(people.values[..., :2], None, people.truth[:, :2])
    direct = dg.coverage(pit, people.size)
    quantiles = dg.interval_coverage(
        people.values[..., :2], None, people.truth[:, :2], people.size, levels=(0.5, 0.8, 0.95)
    )
    assert len(direct) == 2 * 2 * 3
    for table in (direct, quantiles):
        if sign == 0:
            assert (table["z"].abs() < 3.5).all()
        else:
            assert (sign * table["z"] > 3).all()
    np.testing.assert_allclose(direct["covered"], quantiles["covered"], atol=0.02)
    if "scale" in fault:
        # P(|N(0, 1)| < scale · quantile), for intervals of a normal posterior.
        expected = (
            2 * stats.norm.cdf(fault["scale"] * stats.norm.ppf(0.5 + direct["level"] / 2)) - 1
        )
        np.testing.assert_allclose(direct["covered"], expected, atol=0.05)
    error = np.sqrt(direct["level"] * (1 - direct["level"]) / 1000)
    np.testing.assert_allclose(direct["standard_error"], error)


def test_interval_coverage_by_hand() -> None:
    # Draws 1 … 20 of equal weight: the 50 % interval is [5, 15], the inverse of the weighted
    # distribution function at .25 and .75.
    values = torch.arange(1.0, 21).reshape(20, 1, 1).expand(20, 40, 1)
    truth = torch.arange(0.5, 20.5, 0.5).reshape(40, 1)
    covered = dg.interval_coverage(values, None, truth, levels=(0.5,))["covered"].item()
    assert covered == ((truth >= 5) & (truth <= 15)).double().mean().item()
