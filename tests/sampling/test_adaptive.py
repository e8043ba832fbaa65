"""Adapted proposals: their weights against quadrature, and what the points are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_problems import linear_pair, six_people
from misled_guides import questions
from scipy import stats

from fssa_bayes import HeterogeneousBTL, Posterior, exact
from fssa_bayes.sampling import (
    Streams,
    draw_adapted,
    draw_around_modes,
    draw_points,
    find_modes,
    normal_points,
)


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
    assert (draws.log_weights - likelihood).max() <= -torch.tensor(384 / 4000).log() + 1e-4


@pytest.mark.parametrize("number", [16, 100, 512])
def test_points_have_the_distributions_that_they_stand_for(number: int) -> None:
    points = draw_points(number, 3, 2, Streams(5))
    assert points.number == number == sum(points.sizes)
    assert min(points.sizes[:2]) >= 1
    for user in range(3):
        # Sobol points lie closer to their law than independent ones.
        distance = stats.kstest(points.normal[user, :, 0].numpy(), stats.norm.cdf).statistic
        assert distance < 1.5 / number**0.7
    assert not torch.equal(points.normal[0], points.normal[1])
    again = draw_points(number, 2, 2, Streams(5), np.array([2, 1]))
    assert torch.equal(points.normal[[2, 1]], again.normal)  # Streams are those of people.


def test_points_in_many_dimensions_are_independent() -> None:
    points = normal_points(4000, 17, Streams(1), [3])[0]
    assert np.abs(np.corrcoef(points.T.numpy()) - np.eye(17)).max() < 5 / 4000**0.5


@pytest.mark.parametrize("number", [8, 30, 1000])
def test_proposals_of_any_number_estimate_the_evidence_without_bias(number: int) -> None:
    model, _ = linear_pair()
    data = six_people()
    expected = exact.grid(model, data).log_evidence
    mean = torch.stack(
        [
            draw_around_modes(model, data.batch(), number, Streams(seed)).log_weights.exp().mean(0)
            for seed in range(400)
        ]
    )
    ratio = mean / expected.double().exp()
    error = ratio.std(0) / 20
    assert ((ratio.mean(0) - 1).abs() < 4 * error + 1e-5).all()


def test_skewed_posteriors_have_reliable_draws() -> None:
    torch.manual_seed(1)
    model = HeterogeneousBTL(2, None, utility="linear", coefficients=["-lognormal", "-lognormal"])
    with torch.no_grad():
        model.utility.mean.fill_(1.0)
        model.utility.loading.copy_(torch.tensor([[1.5, 0.0], [1.0, 1.0]]))
    data, _ = model.simulate(questions(200, 12), seed=2)
    posterior = Posterior(model, None, data)
    assert posterior.relative_ess.median() > 0.4
    assert posterior.reliable.all()
