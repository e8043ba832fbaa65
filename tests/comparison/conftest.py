"""What the tests of comparison share."""

from __future__ import annotations

import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide


@pytest.fixture(scope="module")
def pair() -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Returns a model of two latent dimensions, and an untrained guide."""
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, utility="linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        model.utility.loading.copy_(torch.tensor([[1.0, 0.0], [0.2, 0.4], [-0.2, 0.2]]))
    return model, NeuralProcessGuide(model).eval()
