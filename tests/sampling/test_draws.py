"""Laws of weighted draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssa_bayes.sampling import Draws
from fssa_bayes.sampling.draws import thin


def test_thinning_keeps_expectations_and_repeats_no_draw() -> None:
    uneven = torch.distributions.Gamma(0.3, 1.0).sample((60, 1)).log().log_softmax(0)
    z = torch.arange(60.0).reshape(60, 1, 1)
    draws = Draws.of_posterior(z, log_joint=torch.zeros(60, 1), log_weights=uneven)
    weights = uneven.double().exp()[:, 0]
    total, repeats = torch.zeros(60, dtype=torch.float64), 1500
    for seed in range(repeats):
        thinned = thin(draws, 20, seed, np.zeros(1, dtype=np.uint64))
        index = thinned.z[:, 0, 0].long()
        assert len(index.unique()) == 20
        new = thinned.log_weights[:, 0].double().exp()
        assert new.sum().item() == pytest.approx(1, abs=1e-5)
        total[index] += new
    largest = weights.topk(3).indices
    assert (weights[largest] > 1 / 20).any()
    error = 5 * (weights.clamp(max=0.05) * 0.05 / repeats).sqrt() + 1e-6
    assert ((total / repeats - weights).abs() < error).all()
