"""The corrected posterior as a function of contexts: beside the grid, and beside Posterior."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior
from fssa_bayes.posterior import corrected


def test_draws_are_those_of_the_grid_whatever_the_guide_is(
    make_data: Callable, grid: Callable
) -> None:
    """An untrained guide: its own draws are far from the posterior, the corrected ones are not."""
    data = make_data((6, 0, 3))
    model = HeterogeneousBTL(3, 1, utility="bilinear")
    guide = NeuralProcessGuide(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    batch = data.batch()
    points, _ = grid(1, 6.0, 401)
    z = points[:, None].expand(-1, 3, -1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(points[:, 0])
    with torch.no_grad():
        likelihood = (model.choice(batch, z).log_prob(batch.choice)).view(401, 3)
    weight = (likelihood + prior[:, None]).softmax(0)
    mean = (weight * points).sum(0)
    second = (weight * points.square()).sum(0)
    assert mean.abs().max() > 0.2  # The choices tell something.
    torch.manual_seed(1)
    found = corrected(model, guide, 4000)(batch)
    draws = found.sample((4000,))
    assert draws.shape == (4000, 3, 1)
    torch.testing.assert_close(found.mean[:, 0], mean, atol=0.1, rtol=0)
    torch.testing.assert_close(draws.mean(0)[:, 0], mean, atol=0.1, rtol=0)
    torch.testing.assert_close(draws.square().mean(0)[:, 0], second, atol=0.15, rtol=0.1)
    served = Posterior(model, guide, data, 4000, fallback=None).z
    torch.testing.assert_close(draws.mean(0), served.mean(0), atol=0.1, rtol=0)


def test_draws_follow_the_random_state(make_data: Callable) -> None:
    data = make_data((6, 0, 3))
    model = HeterogeneousBTL(3, 2, utility="bilinear")
    posterior = corrected(model, NeuralProcessGuide(model), 50)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(posterior(data.batch()).sample((4,)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert posterior(data.batch()).sample().shape == (3, 2)


def test_models_that_have_no_z_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim of at least 1"):
        corrected(HeterogeneousBTL(3, 0))
    with pytest.raises(ValueError, match="num_samples must be"):
        corrected(HeterogeneousBTL(3, 2), num_samples=0)
