"""The learned prior: densities far out, and the ratio of two densities of the same draws."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, distributions, nn

from fssa_bayes import HeterogeneousBTL


@pytest.fixture(params=[1, 2, 5])
def model(request: pytest.FixtureRequest) -> HeterogeneousBTL:
    """Returns a model whose learned prior is far from the normal that it starts from."""
    torch.manual_seed(request.param)
    model = HeterogeneousBTL(2, request.param, utility="linear", prior="flow")
    for parameter in model.prior_flow.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def spread(latent_dim: int) -> Tensor:
    """Returns points in random directions, from 0.1 to 10,000 from the origin, (S, 1, K)."""
    direction = torch.randn(2000, 1, latent_dim)
    radius = torch.logspace(-1, 4, 2000).reshape(-1, 1, 1)
    return radius * direction / direction.norm(dim=-1, keepdim=True)


@torch.no_grad()
def test_single_precision_inverts_and_scores_points_far_out(model: HeterogeneousBTL) -> None:
    z = spread(model.latent_dim)
    transforms = distributions.ComposeTransform(model.prior_transforms())
    noise = transforms.inv(z)
    error = (transforms(noise.clone()) - z).norm(dim=-1) / (z.norm(dim=-1) + 10.0)
    assert error.max() < 1e-4
    exact = copy.deepcopy(model).double().prior(1).log_prob(z.double())
    torch.testing.assert_close(model.prior(1).log_prob(z).double(), exact, rtol=2e-3, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("centre", [0.0, 20.0, 500.0])
def test_ratio_of_densities_of_the_same_draws_is_that_of_their_noise(
    centre: float, model: HeterogeneousBTL
) -> None:
    """The map that both densities share cancels, though it cannot be inverted to every digit."""
    narrow = distributions.Normal(torch.full((3, model.latent_dim), centre), 1e-3)
    transforms = model.prior_transforms()
    guide = model.push_forward(distributions.Independent(narrow, 1), transforms=transforms)
    prior = model.prior(3, transforms=transforms)
    torch.manual_seed(0)
    z = guide.sample((50,))
    torch.manual_seed(0)
    noise = narrow.sample((50,)).double()
    standard = distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    of_guide = distributions.Normal(centre, torch.tensor(1e-3).double()).log_prob(noise).sum(-1)
    for first, second in ((prior, guide), (guide, prior)):  # In either order.
        ratio = {first: first.log_prob(z).double(), second: second.log_prob(z).double()}
        ratio = ratio[prior] - ratio[guide]
        torch.testing.assert_close(ratio, standard - of_guide, rtol=5e-7, atol=1e-3)


def test_the_model_keeps_no_draws(model: HeterogeneousBTL) -> None:
    """A copy can be made after a gradient, and threads do not see each other's draws."""
    model.prior(4).rsample((3,)).sum().backward()
    twin, z = copy.deepcopy(model), torch.ones(1, model.latent_dim)
    assert torch.equal(twin.prior(1).log_prob(z), model.prior(1).log_prob(z))
