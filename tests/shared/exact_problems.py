"""People and models whose posteriors are computed exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences


def five_people() -> Preferences:
    """Comparisons of five people: none, one, three, eight and twenty."""
    rng = np.random.default_rng(0)
    counts = np.array([0, 1, 3, 8, 20])
    left = rng.integers(8, size=counts.sum())
    right = (left + rng.integers(1, 8, size=counts.sum())) % 8
    choice = rng.choice([0, 0.5, 1], size=counts.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)])
    names = [f"w{n}" for n in counts]
    return Preferences(
        left, right, choice, offsets, items=rng.normal(size=(8, 3)), user_names=names
    )


def make_model(latent_dim: int, utility: str, prior: str, scale: float = 1.0) -> HeterogeneousBTL:
    """A model with parameters away from where they start."""
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, latent_dim, utility=utility, prior=prior).eval()
    with torch.no_grad():
        for parameter in model.prior_flow.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        if utility == "linear":
            model.utility.mean.copy_(torch.tensor([0.5, -0.3, 0.2]))
            model.utility.loading.copy_(scale * torch.randn(3, latent_dim))
        else:
            for parameter in model.utility.parameters():
                parameter.mul_(1.3)
    return model


def six_people() -> Preferences:
    """Comparisons of six people: none, one, three, six, twelve and 24."""
    rng = np.random.default_rng(0)
    counts = np.array([0, 1, 3, 6, 12, 24])
    total = counts.sum()
    left = rng.integers(8, size=total)
    right = (left + rng.integers(1, 8, size=total)) % 8
    return Preferences(
        left,
        right,
        rng.choice([0, 0.5, 1], size=total),
        np.concatenate([[0], np.cumsum(counts)]),
        items=rng.normal(size=(8, 3)),
        item_names=list("abcdefgh"),
        user_names=[f"w{n}" for n in counts],
    )


def linear_pair() -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """A linear model with two latent dimensions, and an untrained guide."""
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, utility="linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.5, -0.3, 0.2]))
        model.utility.loading.copy_(torch.tensor([[1.0, 0.0], [0.4, 0.8], [-0.5, 0.6]]))
    return model, NeuralProcessGuide(model).eval()


def grid_posterior(model: HeterogeneousBTL, data: Preferences) -> tuple[Tensor, Tensor]:
    """Points (G, K) and exact probabilities (G, U), computed without the package's proposals."""
    axis = torch.linspace(-6, 6, 161)
    points = torch.cartesian_prod(axis, axis)
    batch = data.batch()
    log_prior = -0.5 * points.square().sum(-1, keepdim=True)
    with torch.no_grad():
        z = points.unsqueeze(1).expand(-1, len(data), -1)
        log_joint = log_prior + model.choice(batch, z).log_prob(batch.choice)
    return points, log_joint.softmax(0)


def grid_choice_prob(model: HeterogeneousBTL, context: Preferences, target: Preferences) -> Tensor:
    points, prob = grid_posterior(model, context)
    z = points.unsqueeze(1).expand(-1, len(target), -1)
    with torch.no_grad():
        mean = model.choice(target.batch(), z).mean
    return (prob.unsqueeze(-1) * mean).sum(0)
