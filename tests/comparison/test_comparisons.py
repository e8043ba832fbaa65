"""Comparisons left out: the posterior without each comparison on a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_people import linear

from fssa_bayes.comparison import leave_comparisons_out, score_users


@pytest.mark.parametrize("half_wins", [False, True])
def test_leave_one_out_matches_the_grid(half_wins: bool, pair, make_data, grid) -> None:
    """An untrained guide, corrected; the posterior without each comparison summed on a grid."""
    model, guide = pair
    data = make_data((1, 2, 4, 8), half_wins=half_wins, seed=2)
    score = leave_comparisons_out(model, guide, data, 8000, seed=1)
    points, _ = grid(2, 7.0, 181)
    batch = data.batch()
    with torch.no_grad():
        margin = model.choice(batch, points.unsqueeze(1).expand(-1, 4, -1)).margin.double()
    prior = -0.5 * points.double().square().sum(-1)
    expected, row = [], 0
    for person, count in enumerate(data.counts):
        m, y = margin[:, person, :count], torch.from_numpy(data.choice[row : row + count]).double()
        row += count
        log_prob = y * m - torch.nn.functional.softplus(m)
        for n in range(count):
            weights = (prior + log_prob.sum(-1) - log_prob[:, n]).softmax(0)
            prob = (weights * m[:, n].sigmoid()).sum()
            expected.append((y[n] * prob.log() + (1 - y[n]) * (1 - prob).log()).item())
    np.testing.assert_allclose(np.exp(score.values), np.exp(expected), atol=0.02)
    assert score.pareto_k.max() < 0.7
    # The total is as far off as it says, within three of its standard errors.
    assert abs(score.total - sum(expected)) < 3 * score.monte_carlo_error + 1e-3
    assert score.person.tolist() == np.repeat(np.arange(4), (1, 2, 4, 8)).tolist()
    np.testing.assert_allclose(score.by_person.sum(), score.total)


def test_a_homogeneous_score_is_the_log_likelihood(make_data) -> None:
    data = make_data((3, 1, 5))
    model, _ = linear(0, 3)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        batch = data.batch()
        exact = model.choice(batch, torch.zeros(3, 0)).log_prob(batch.choice)
    by_comparison = leave_comparisons_out(model, None, data)
    np.testing.assert_allclose(by_comparison.by_person, exact, rtol=1e-5)
    assert by_comparison.pareto_k is None
    by_person = score_users(model, None, data)
    np.testing.assert_allclose(by_person.values, exact, rtol=1e-5)
    assert by_person.monte_carlo_error == 0
