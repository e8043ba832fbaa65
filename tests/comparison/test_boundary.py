"""The law of the likelihood ratio if everybody is alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_people import linear, people
from scipy import optimize, stats

from fssa_bayes import fit
from fssa_bayes.comparison.boundary import boundary_draws, cone_maximum, half_chi_square_tail


def test_one_variance_has_the_even_mixture() -> None:
    data = people(300, 8, 0, spread=0.0)
    model, _ = linear(0)
    fit(model, None, data, progress_bar=False)
    draws = boundary_draws(model, data, 1, 4000)
    assert np.mean(draws == 0) == pytest.approx(0.5, abs=0.03)
    assert stats.kstest(draws[draws > 0], stats.chi2(1).cdf).pvalue > 0.01
    for statistic in (0.5, 3.0):
        assert np.mean(draws >= statistic) == pytest.approx(
            half_chi_square_tail(statistic), abs=0.02
        )


@pytest.mark.parametrize("rank", [1, 2])
def test_cone_maximum_against_a_general_optimiser(rank: int) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    quadratic = root @ root.T
    # vec(Σ) is symmetric, and so may the information be taken to be.
    turn = np.eye(4)[[0, 2, 1, 3]]
    quadratic = (quadratic + turn @ quadratic @ turn) / 2 + np.eye(4)
    linear = rng.normal(size=(6, 2, 2)) * 2
    linear = linear + linear.transpose(0, 2, 1)
    found = cone_maximum(torch.from_numpy(linear), torch.from_numpy(quadratic), rank, 2000)
    for matrix, value in zip(linear, found, strict=True):

        def loss(entries: np.ndarray, matrix: np.ndarray = matrix) -> float:
            factor = entries.reshape(2, rank)
            sigma = (factor @ factor.T).ravel()
            return sigma @ quadratic @ sigma - 2 * matrix.ravel() @ sigma

        best = min(optimize.minimize(loss, rng.normal(size=2 * rank)).fun for _ in range(10))
        assert value.item() == pytest.approx(max(0.0, -best), abs=2e-3)


def test_p_values_are_uniform_if_all_are_alike() -> None:
    """Likelihood ratios of 200 data sets, both models maximised by quadrature and a grid."""
    rng = np.random.default_rng(0)
    difference = rng.normal(size=(200, 250, 6)) * 1.5  # Data sets, people, comparisons.
    choice = rng.random(difference.shape) < 1 / (1 + np.exp(-0.5 * difference))
    sign = torch.from_numpy(np.where(choice, 1.0, -1.0) * difference)
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(8))
    log_weights = (weights / weights.sum()).log()

    def log_likelihood(mean: torch.Tensor, variance: float) -> torch.Tensor:
        beta = mean[:, None] + variance**0.5 * nodes
        likelihood = torch.sigmoid(sign[..., None] * beta[:, None, None, :]).prod(2)
        return (likelihood.log() + log_weights).logsumexp(-1).sum(-1)

    mean, step, profile = torch.full((200,), 0.5, dtype=torch.float64), 0.02, []
    for variance in (0.0, 0.01, 0.03, 0.05, 0.08, 0.11, 0.15, 0.2, 0.26):
        low, centre, high = (log_likelihood(mean + side * step, variance) for side in (-1, 0, 1))
        # The parabola through three means; the next variance starts at its vertex.
        slope, curvature = (high - low) / 2, high - 2 * centre + low
        profile.append(centre - slope**2 / curvature / 2)
        mean = mean - step * slope / curvature
    profile = torch.stack(profile)
    statistic = 2 * (profile.max(0).values - profile[0])
    p_values = np.array([half_chi_square_tail(value) for value in statistic.tolist()])
    for level in (0.05, 0.1, 0.3):
        share = np.mean(p_values <= level)
        assert share == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 200))
    # Half of the data sets show no variance, which an ordinary chi-square does not foresee.
    assert np.mean(statistic.numpy() == 0) == pytest.approx(0.5, abs=0.12)
