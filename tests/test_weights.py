"""Importance weights: Pareto smoothing against ArviZ's and against known tails."""

from __future__ import annotations

import numpy as np
import pytest

from fssa_bayes._weights import pareto_smooth

try:
    from arviz_stats.base import array_stats
except ImportError:
    from arviz import psislw

    IS_ARVIZ_1 = False
else:
    IS_ARVIZ_1 = True

    def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smooths as ArviZ 1.x does, whose argument is a log-likelihood, the negative."""
        rows = [array_stats.psislw(-row) for row in log_weights]
        return tuple(np.array(column) for column in zip(*rows, strict=True))


of_arviz_0 = pytest.mark.skipif(
    IS_ARVIZ_1,
    reason="ArviZ 1.3 rounds the tail's length down, fits no tail of five, and fits none that "
    "begins among equal weights or below the smallest double",
)


@pytest.mark.parametrize(
    ("draws", "largest"),
    [(60, 2), (100, 1), (400, 1), (2500, 1)]  # Their tails have a whole number of weights.
    + [pytest.param(draws, 2, marks=of_arviz_0) for draws in (25, 500, 2000)],
)
def test_smoothing_is_that_of_arviz(draws: int, largest: float) -> None:
    rng = np.random.default_rng(draws)
    scale = 10 ** rng.uniform(-3, largest, (400, 1))
    log_weights = scale * rng.standard_t(4, size=(400, draws))
    log_weights += rng.normal(size=(400, 1)) * 1e3
    smoothed, pareto_k = pareto_smooth(log_weights)
    expected, expected_k = psislw(log_weights.copy())
    np.testing.assert_allclose(pareto_k, expected_k, atol=1e-9)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-9, atol=1e-9)


@of_arviz_0
def test_equal_weights_share_the_smoothed_ones() -> None:
    log_weights = np.random.default_rng(0).normal(size=(200, 400)).round(1) * 3
    smoothed, pareto_k = pareto_smooth(log_weights)
    expected, expected_k = psislw(log_weights.copy())
    np.testing.assert_allclose(pareto_k, expected_k, atol=1e-9)
    # Which of equal weights becomes which quantile is left open.
    np.testing.assert_allclose(np.sort(smoothed), np.sort(expected), atol=1e-9)


def test_a_person_is_smoothed_alone() -> None:
    log_weights = np.random.default_rng(1).standard_t(3, size=(100, 300))
    smoothed, pareto_k = pareto_smooth(log_weights)
    for person in (0, 40, 99):
        alone, k = pareto_smooth(log_weights[person : person + 1])
        assert np.array_equal(alone[0], smoothed[person])
        assert k[0] == pareto_k[person]


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
