"""Random utilities, drawn anew for each judgement; recovery is tested with the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import special
from torch import Tensor

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.model.distributional import probit_logit

UTILITIES = ["distributional", "distributional-linear"]


def evaluate(model: HeterogeneousBTL, batch: Batch, z: Tensor) -> list[Tensor]:
    """Returns the log-probability of the choices and its gradients."""
    model.zero_grad()
    log_prob = model.choice(batch, z).log_prob(batch.choice)
    log_prob.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [log_prob.detach(), *gradients]


@pytest.mark.parametrize("t", [0.0, 3.0, -25.0, 29.9, -30.1, 120.0, -1e3, 1e4, -1e4])
def test_the_logit_of_a_normal_probability_has_right_gradients(t: float) -> None:
    """In single precision against the slope in double, φ(t) / (Φ(t) Φ(−t))."""
    x = torch.tensor(t, requires_grad=True)
    value = probit_logit(x)
    value.backward()
    point = x.item()
    # Beyond 30 the hazard φ/Φ(−t) is t + 1/t − 2/t³ + …; within, double precision has all of it.
    hazard = abs(point) + 1 / abs(point) - 2 / abs(point) ** 3 if abs(point) > 30 else None
    if hazard is None:
        log_density = -(point**2) / 2 - math.log(2 * math.pi) / 2
        hazard = math.exp(log_density - special.log_ndtr(point) - special.log_ndtr(-point))
    tails = special.log_ndtr(point) - special.log_ndtr(-point)
    assert value.item() == pytest.approx(tails, rel=1e-6, abs=1e-6)
    assert x.grad.item() == pytest.approx(hazard, rel=2e-5)


@pytest.mark.parametrize("utility", UTILITIES)
def test_garbage_under_the_mask_changes_nothing(
    utility: str, make_data: Callable[..., Preferences], soil: Callable, randomise: Callable
) -> None:
    data = make_data()
    model = randomise(HeterogeneousBTL(3, 0, utility, hidden_dim=8))
    clean, dirty = (
        evaluate(model, batch, torch.zeros(2, len(data), 0))
        for batch in (data.batch(), soil(data.batch()))
    )
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@pytest.mark.parametrize("utility", UTILITIES)
def test_position_bias_is_added_to_the_margin(
    utility: str, make_data: Callable[..., Preferences], randomise: Callable
) -> None:
    data = make_data()
    batch, z = data.batch(), torch.zeros(2, len(data), 0)
    biased = randomise(HeterogeneousBTL(3, 0, utility, hidden_dim=8, position_bias=True))
    plain = HeterogeneousBTL(3, 0, utility, hidden_dim=8)
    plain.load_state_dict({k: v for k, v in biased.state_dict().items() if k != "bias"})
    with torch.no_grad():
        biased.bias.fill_(0.7)
        expected = (plain.choice(batch, z).margin + 0.7) * batch.mask
        torch.testing.assert_close(biased.choice(batch, z).margin, expected)


@pytest.mark.parametrize("utility", UTILITIES)
def test_people_are_alike(utility: str) -> None:
    with pytest.raises(ValueError, match="latent_dim must be 0 .* got 2"):
        HeterogeneousBTL(3, 2, utility)
