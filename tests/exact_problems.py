"""People and models whose posteriors are computed exactly."""

from __future__ import annotations

import numpy as np
import torch

from fssa_bayes import HeterogeneousBTL, Preferences


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
