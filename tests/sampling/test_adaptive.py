"""Adapted proposals: their weights against quadrature, and what the points are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_problems import linear_pair, six_people
from scipy import stats

from fssa_bayes import exact
from fssa_bayes.sampling import Streams, draw_adapted, draw_points, find_modes


def test_weights_integrate_to_the_evidence_and_average_to_the_posterior_mean() -> None:
    model, _ = linear_pair()
    data = six_people()
    batch = data.batch()
    with torch.no_grad():
        model.utility.loading.mul_(3.0)
    draws = draw_adapted(
        model, batch, find_modes(model, batch), draw_points(4000, 6, 2, Streams(0))
    )
    expected = exact.grid(model, data)
    evidence = draws.log_weights.logsumexp(0) - torch.tensor(4000.0).log()
    torch.testing.assert_close(evidence.float(), expected.log_evidence.float(), atol=5e-3, rtol=0)
    weights = draws.log_weights.softmax(0).unsqueeze(-1)
    mean = (weights * draws.z).sum(0)
    exact_mean = (expected.log_weights.exp().unsqueeze(-1) * expected.z).sum(0)
    torch.testing.assert_close(mean.float(), exact_mean.float(), atol=1e-2, rtol=0)
    # The prior is part of the mixture: no weight exceeds p(C|z) by more than its share allows.
    likelihood = model.choice(batch, draws.z.float()).log_prob(batch.choice)
    assert (draws.log_weights - likelihood).max() <= -torch.tensor(0.15).log() + 1e-4


@pytest.mark.parametrize("number", [16, 100, 512])
def test_points_have_the_distributions_that_they_stand_for(number: int) -> None:
    points = draw_points(number, 3, 2, Streams(5))
    assert points.number == number
    for part, law in (
        (points.around_mode, stats.t(5)),
        (points.prior, stats.norm),
        (points.adapted, stats.t(5)),
    ):
        for user in range(3):
            # Sobol points lie closer to their law than independent ones.
            assert (
                stats.kstest(part[:, user, 0].numpy(), law.cdf).statistic < 1.5 / len(part) ** 0.7
            )
    assert not torch.equal(points.prior[:, 0], points.prior[:, 1])
    again = draw_points(number, 2, 2, Streams(5), np.array([2, 1]))
    assert torch.equal(points.adapted[:, [2, 1]], again.adapted)  # Streams are those of people.
