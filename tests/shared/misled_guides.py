"""People, a model of them and a guide that can be misled about their posteriors."""

from __future__ import annotations

import numpy as np
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences


def questions(users: int, width: int, seed: int = 0) -> Preferences:
    """Pairs of 12 items with two features for each of several people."""
    rng = np.random.default_rng(seed)
    left = rng.integers(12, size=users * width)
    right = (left + rng.integers(1, 12, size=users * width)) % 12
    items = np.random.default_rng(9).normal(size=(12, 2))
    offsets = width * np.arange(users + 1)
    return Preferences(left, right, np.ones(users * width), offsets, items=items)


def make_pair(scale: float, mean: float = 1.0) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """A model with one latent dimension, whose proposals need its guide, which learned nothing.

    With a learned prior, here as it starts, proposals come from the guide, not from around modes.
    """
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 1, utility="linear", prior="flow").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([mean, -mean]))
        model.utility.loading.copy_(torch.tensor([[scale], [scale / 2]]))
    return model, NeuralProcessGuide(model, "normal").eval()


def mislead(guide: NeuralProcessGuide, shift: float) -> NeuralProcessGuide:
    """Makes every pair push z to one side, wherever the posterior is."""
    with torch.no_grad():
        for parameter in guide.direction.parameters():
            parameter.zero_()
        last = guide.potential[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 3.0, shift]))
    return guide
