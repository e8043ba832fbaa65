"""Uncertain utilities: closed forms, recovery, storage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from class_people import CLASSES, SHARES, simulate
from scipy import special
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences
from fssa_bayes.baselines import (
    DistributionalBTL,
)
from fssa_bayes.io import load, save


def fitted_head(parameters: Tensor) -> tuple[DistributionalBTL, Preferences]:
    """Returns a model of items without features whose parameters are given, (M, 2)."""
    count = len(parameters)
    pairs = np.array([(i, j) for i in range(count) for j in range(count) if i != j])
    data = Preferences(
        pairs[:, 0], pairs[:, 1], np.arange(len(pairs)) % 2, [0, len(pairs)], num_items=count
    )
    baseline = DistributionalBTL("linear")
    baseline.model = HeterogeneousBTL(count, 0, "distributional-linear")
    with torch.no_grad():
        baseline.model.utility.net.weight.copy_(parameters.T)
        baseline.model.utility.net.bias.zero_()
    return baseline, data


def unbounded(log_sd: Tensor) -> Tensor:
    """Inverts the bound of log σ, 3 tanh(x / 3)."""
    return 3 * torch.atanh(log_sd / 3)


def test_equal_variances_are_a_probit() -> None:
    mean = torch.tensor([0.0, 0.7, -1.9, 3.1])
    log_sd = torch.full((4,), math.log(1.7))
    baseline, data = fitted_head(torch.stack([mean, unbounded(log_sd)], -1))
    prob = baseline.predict(data).choice_prob(data).mean[0].numpy()
    difference = (mean[data.left] - mean[data.right]).numpy()
    np.testing.assert_allclose(prob, special.ndtr(difference / (1.7 * math.sqrt(2))), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.05, 1.0, 100.0])
def test_normal_utilities_by_their_closed_form_and_in_the_tails(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 4 * scale * torch.randn(6, generator=generator)
    log_sd = 0.5 * torch.randn(6, generator=generator)
    baseline, data = fitted_head(torch.stack([mean, unbounded(log_sd)], -1))
    left, right = torch.from_numpy(data.left), torch.from_numpy(data.right)
    sd = log_sd.double().exp()
    t = (mean[left] - mean[right]).double() / (sd[left].square() + sd[right].square()).sqrt()
    batch = data.batch()
    choice = baseline.model.choice(batch, torch.zeros(1, 1, 0))
    log_prob = choice.log_prob_each(batch.choice)[0, 0].detach().double()
    expected = special.log_ndtr(((2 * batch.choice[0] - 1) * t).numpy())
    np.testing.assert_allclose(log_prob.numpy(), expected, rtol=2e-5, atol=1e-7)
    if scale == 100:
        assert expected.min() < -1e4  # Where 1 − Φ is nothing but rounding.
    choice.log_prob(batch.choice).sum().backward()
    assert torch.isfinite(baseline.model.utility.net.weight.grad).all()


def test_normal_utilities_are_recovered() -> None:
    """Item 3 divides people; its spread shows, although its mean is that of item 1."""
    rng = np.random.default_rng(0)
    mean, sd = np.array([0.0, 1.0, 2.0, 1.0]), np.array([0.7, 0.7, 0.7, 2.5])
    total = 40_000
    left = rng.integers(4, size=total)
    right = (left + rng.integers(1, 4, size=total)) % 4
    noise = rng.normal(size=(2, total))
    choice = mean[left] + sd[left] * noise[0] > mean[right] + sd[right] * noise[1]
    data = Preferences(left, right, choice, np.arange(0, total + 1, 20), num_items=4)
    table = DistributionalBTL("linear").fit(data, progress_bar=False).item_table(data)
    unit = np.exp(np.log(sd).mean())
    np.testing.assert_allclose(table["sd"], sd / unit, rtol=0.12)
    np.testing.assert_allclose(table["mean"], (mean - mean.mean()) / unit, atol=0.06)


def test_distributional_learning_says_nothing_that_needs_the_spread() -> None:
    """Ranks of the means are no ranks of utilities that vary."""
    data, _ = simulate(CLASSES, SHARES, 20, 4)
    baseline = DistributionalBTL("linear").fit(data, progress_bar=False)
    posterior = baseline.predict(data)
    for method in (posterior.rank_prob, posterior.differences):
        with pytest.raises(ValueError, match="item_table"):
            method(data.items[:3])


@pytest.mark.parametrize("utility", ["linear", "mlp"])
def test_a_distributional_model_is_saved_and_loaded(utility: str, tmp_path: Path) -> None:
    data, _ = simulate(CLASSES, SHARES, 30, 4)
    baseline = DistributionalBTL(utility, hidden_dim=8).fit(data, progress_bar=False)
    save(tmp_path / "model", baseline.model)
    model, guide = load(tmp_path / "model")
    assert guide is None
    expected = baseline.predict(data).log_score(data)
    assert torch.equal(Posterior(model, None, data).log_score(data), expected)
