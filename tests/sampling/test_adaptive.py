"""Adapted proposals: their weights against quadrature, and what the points are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_problems import linear_pair, six_people
from misled_guides import questions
from scipy import stats

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences, exact
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
    assert (draws.log_weights - likelihood).max() <= -torch.tensor(0.096).log() + 1e-4


@pytest.mark.parametrize(("number", "groups"), [(16, 1), (45, 1), (100, 2), (512, 2)])
def test_points_have_the_distributions_that_they_stand_for(number: int, groups: int) -> None:
    points = draw_points(number, 3, 2, Streams(5))
    assert points.number == number == groups * sum(points.sizes)
    assert min(points.sizes[:2]) >= 1
    for user in range(3):
        for group in points.normal[user]:
            # Sobol points lie closer to their law than independent ones.
            distance = stats.kstest(group[:, 0].numpy(), stats.norm.cdf).statistic
            assert distance < 2 / len(group) ** 0.7
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


def test_few_draws_estimate_the_evidence_without_bias() -> None:
    """Proposals that are adapted to the draws they weigh would take a tenth from it."""
    torch.manual_seed(0)
    users, width = 600, 4
    model = HeterogeneousBTL(width, width, "linear")
    with torch.no_grad():
        model.utility.mean.normal_()
        model.utility.loading.copy_(2.0 * torch.eye(width))
    items = torch.randn(12, width)
    left, right = np.tile(np.arange(6), users), np.tile(np.arange(6, 12), users)
    choice = np.tile([1.0, 1, 0, 1, 0, 0], users)
    data = Preferences(left, right, choice, 6 * np.arange(users + 1), items=items)
    batch = data.batch()
    many = draw_around_modes(model, data.batch([0]), 2**17, Streams(1))
    exact = many.log_weights.logsumexp(0) - 17 * np.log(2)
    draws = draw_around_modes(model, batch, 64, Streams(2))
    ratio = (draws.log_weights - exact).exp().mean(0)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / users**0.5
    assert ratio.std() / users**0.5 < 0.01


def test_skewed_posteriors_have_reliable_draws() -> None:
    torch.manual_seed(1)
    model = HeterogeneousBTL(2, None, utility="linear", coefficients=["-lognormal", "-lognormal"])
    with torch.no_grad():
        model.utility.mean.fill_(1.0)
        model.utility.loading.copy_(torch.tensor([[1.5, 0.0], [1.0, 1.0]]))
    data, _ = model.simulate(questions(200, 12), seed=2)
    posterior = Posterior(model, None, data)
    assert posterior.relative_ess.median() > 0.4
    assert posterior.reliable.float().mean() > 0.98
    assert (posterior.relative_ess * 1000).min() > 200
