"""A guide refined by `Sleep` comes close to the posterior of its model, at every context size."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, Sleep, fit

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports the benchmark, which is not installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.refinement")


@pytest.fixture
def data(benchmark: ModuleType) -> Preferences:
    return benchmark.simulate("linear", "normal", 2, 300, 6, items=40, seed=0)


def known_model(data: Preferences, prior: str) -> HeterogeneousBTL:
    """Builds a model of informative choices, with a prior that is no normal one if it is a flow."""
    model = HeterogeneousBTL(data.num_features, 2, "linear", prior)
    with torch.no_grad():
        model.set_standardisation(data.items)
        model.utility.loading.normal_().mul_(0.7)
        for parameter in model.prior_flow.parameters():
            nn.init.normal_(parameter, std=0.15)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_divergence_is_that_of_weighted_draws(
    prior: str, benchmark: ModuleType, data: Preferences
) -> None:
    model = known_model(data, prior)
    guide = NeuralProcessGuide(model)
    context, _ = model.simulate(benchmark.questions(data.items, 20, 3, seed=1), seed=1)
    batch = context.batch()
    with torch.no_grad():
        z = model.prior(20).sample((40_000,)).clone()
        log_lik = model.choice(batch, z).log_prob(batch.choice).double()
        log_guide = guide.posterior(batch).log_prob(z) - model.prior(20).log_prob(z)
    weights = log_lik.softmax(0)
    log_mean = log_lik.logsumexp(0) - torch.tensor(40_000.0).log()
    expected = (weights * (log_lik - log_mean - log_guide)).sum(0)
    result = benchmark.divergence(model, guide, context).double()
    torch.testing.assert_close(result, expected, atol=0.03, rtol=0.03)
    assert (expected > 0.01).sum() > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "prior"),
    [("normal", "normal"), ("multivariate_normal", "flow"), ("flow", "normal")],
)
def test_refinement_comes_closer_at_every_size(
    posterior: str, prior: str, benchmark: ModuleType, data: Preferences
) -> None:
    """Most of the divergence goes in seconds, also beyond the sizes that `Sleep` teaches."""
    model = known_model(data, prior)
    guide = NeuralProcessGuide(model, posterior, hidden_dim=32)
    sizes = (0, 4, 12, 20)  # Sleep teaches contexts of up to 12.
    before = [kl(benchmark, guide, data, size) for size in sizes]
    stage = Sleep(8, steps=150, batch_size=64)
    fit(model, guide, data, objective=stage, learning_rate=5e-3, progress_bar=False)
    after = [kl(benchmark, guide, data, size) for size in sizes]
    assert max(before[0], after[0]) < 1e-5, "an empty context has the prior"
    for unrefined, refined in zip(before[1:], after[1:], strict=True):
        assert refined < 0.25 * unrefined
        assert refined < 1.0


def kl(benchmark: ModuleType, guide: NeuralProcessGuide, data: Preferences, size: int) -> float:
    model = guide.model
    context, _ = model.simulate(benchmark.questions(data.items, 32, size, seed=2), seed=2)
    return benchmark.divergence(model, guide, context, num=81).mean().item()
