"""The simultaneous band and its p-values, against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fssa_bayes import diagnostics as dg


@pytest.mark.parametrize("num_values", [20, 137, 2000])
@pytest.mark.parametrize("num_tests", [1, 10])
def test_the_band_holds_all_points_with_its_probability(num_values: int, num_tests: int) -> None:
    band = dg.ecdf_band(num_values, num_tests, prob=0.9)
    cells = len(band.points) + 1
    rng = np.random.default_rng(num_values)
    counts = rng.multinomial(num_values, np.full(cells, 1 / cells), size=20_000)
    difference = counts.cumsum(1)[:, :-1] / num_values - band.points
    inside = (difference > band.lower - 1e-9) & (difference < band.upper + 1e-9)
    outside = 1 - inside.all(1).mean()
    error = math.sqrt(0.1 / num_tests / 20_000)
    # Counts are whole numbers, so that 20 values cannot use all that is allowed.
    assert outside < 0.1 / num_tests + 3 * error
    assert outside > (0.1 if num_values > 100 else 0.05) / num_tests - 3 * error


def simulated_levels(num_values: int, num_simulations: int = 20_000) -> np.ndarray:
    """Smallest pointwise p-value of uniform samples, from the definition."""
    cells = min(num_values, 100)
    points, table = np.arange(1, cells) / cells, np.arange(num_values + 1)[:, None]
    p_value = 2 * np.minimum(
        stats.binom.cdf(table, num_values, points), stats.binom.sf(table - 1, num_values, points)
    )
    even = np.full(cells, 1 / cells)
    counts = np.random.default_rng(0).multinomial(num_values, even, size=num_simulations)
    return p_value[counts.cumsum(1)[:, :-1], np.arange(cells - 1)].min(1)


def test_the_level_is_the_one_that_simulation_finds() -> None:
    # Säilynoja et al. (2022) find it as a quantile over simulated samples.
    gamma = np.quantile(simulated_levels(250), 0.05)
    assert dg.ecdf_band(250).level == pytest.approx(gamma, rel=0.06)


def test_p_values_of_few_values_count_what_is_as_extreme() -> None:
    # 20 values have few distinct ECDFs, so that p-values have large atoms.
    simulated = simulated_levels(20)
    for seed in range(30):
        pit = np.random.default_rng(seed).random((20, 1))
        points = np.arange(1, 20) / 20
        count = (pit <= points).sum(0)
        at_most, at_least = (
            stats.binom.cdf(count, 20, points),
            stats.binom.sf(count - 1, 20, points),
        )
        extreme = 2 * np.minimum(at_most, at_least).min()
        expected = (simulated <= extreme + 1e-12).mean()
        assert dg.sbc_test(pit).p_value == pytest.approx(expected, abs=0.015)


def test_the_test_rejects_where_the_band_is_left() -> None:
    rng = np.random.default_rng(1)
    band = dg.ecdf_band(200, 2, prob=0.8)
    for _ in range(50):
        pit = rng.random((200, 2)) ** rng.choice([0.8, 1.0, 1.2], size=2)
        ecdf = (pit[:, None] <= band.points[:, None]).mean(0) - band.points[:, None]
        left = (ecdf < band.lower[:, None] - 1e-9) | (ecdf > band.upper[:, None] + 1e-9)
        result = dg.sbc_test(pit, prob=0.8)
        assert result.table["rejected"].tolist() == left.any(0).tolist()
        assert result.rejected == (result.p_value <= 1 - 0.8 + 1e-12)


def test_p_values_are_uniform() -> None:
    pit = np.random.default_rng(2).random((100, 500))
    p_value = dg.sbc_test(pit).table["p_value"].to_numpy()
    for level in (0.01, 0.05, 0.2, 0.5):
        error = math.sqrt(level * (1 - level) / len(p_value))
        assert abs((p_value <= level).mean() - level) < 3.5 * error
