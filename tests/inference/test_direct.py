"""Losses evaluated without Pyro are those of Pyro's own objectives on the same draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.guide.couplings import HeavyNoise
from fssa_bayes.inference import ELBO, ImportanceWeightedELBO, NeuralProcessELBO
from fssa_bayes.inference.objectives import split_batch
from fssa_bayes.model import HeterogeneousBTL

MakeData = Callable[..., Preferences]
Pair = tuple[HeterogeneousBTL, NeuralProcessGuide]
CASES = {
    "linear": ({"utility": "linear"}, {"posterior": "normal"}),
    "bilinear": ({}, {"posterior": "flow"}),
    "mlp": ({"utility": "mlp"}, {"posterior": "multivariate_normal"}),
    "bent": ({}, {"posterior": "flow", "coupling": "bent"}),
    "learned prior": ({"prior": "flow"}, {"posterior": "flow"}),
    "covariates": ({"prior": "flow", "num_covariates": 2}, {"posterior": "flow"}),
    "answers": ({"ties": "davidson", "position_bias": True, "lapses": True}, {}),
}


def wide(batch: Batch) -> Batch:
    """Brings a batch to double precision."""
    names = ("items", "choice", "covariates")
    found = {name: getattr(batch, name) for name in names}
    return batch.replace(**{n: t.double() for n, t in found.items() if t is not None})


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, randomise: Callable) -> Pair:
    """Builds a model and its guide with random parameters, in double precision."""
    of_model, of_guide = CASES[request.param]
    model = HeterogeneousBTL(3, 2, hidden_dim=8, **of_model)
    guide = NeuralProcessGuide(model, hidden_dim=8, **of_guide)
    return randomise(model, 0.3).double(), randomise(guide, 0.3).double()


@pytest.fixture
def batch(make_data: MakeData) -> Batch:
    data = make_data([4, 1, 7, 0, 3], half_wins=True)
    covariates = np.random.default_rng(0).normal(size=(5, 2))
    return wide(data.batch()).replace(covariates=torch.from_numpy(covariates))


@pytest.fixture(autouse=True)
def heavy_noise_of_normal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Pyro draw the noise of bent flows as the steps of a fit do, by normal numbers alone."""

    def rsample(self: HeavyNoise, sample_shape: tuple[int, ...] = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, self.event_shape[0] + 1)
        return self.from_normal(torch.randn(shape, dtype=self.share.dtype))

    monkeypatch.setattr(HeavyNoise, "rsample", rsample)


def gradients(pair: Pair, loss: Callable[[], float]) -> tuple[float, list[Tensor]]:
    for module in pair:
        module.zero_grad()
    torch.manual_seed(1)
    value = loss()
    found = [parameter for module in pair for parameter in module.parameters()]
    return value, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in found]


def assert_same(first: tuple[float, list[Tensor]], second: tuple[float, list[Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-9)
    torch.testing.assert_close(first[1], second[1], rtol=1e-6, atol=1e-9)
    assert sum(gradient.abs().sum() for gradient in first[1]) > 0


@pytest.mark.parametrize("particles", [2, 16])
def test_importance_weighted_elbo_is_that_of_renyi(
    particles: int, pair: Pair, batch: Batch
) -> None:
    model, guide = pair
    elbo = RenyiELBO(
        alpha=0, num_particles=particles, vectorize_particles=True, max_plate_nesting=1
    )

    def program(batch: Batch) -> Tensor:
        # RenyiELBO takes gradients only where it has seen a parameter of Pyro's own.
        pyro.param("fit", torch.zeros(()))
        return model(batch, prepared=prepared)

    def of_pyro() -> float:
        nonlocal prepared
        prepared = model.prepare(batch)
        return elbo.loss_and_grads(program, lambda b: guide(b, prepared=prepared), batch)

    prepared = None
    loss, found = gradients(pair, of_pyro)
    expected = loss / batch.num_users, [gradient / batch.num_users for gradient in found]
    objective = ImportanceWeightedELBO(particles)
    assert_same(gradients(pair, lambda: objective.backward(model, guide, batch)), expected)


def test_elbo_is_that_of_a_trace(pair: Pair, batch: Batch) -> None:
    model, guide = pair

    def of_pyro() -> float:
        prepared = model.prepare(batch)
        elbo = Trace_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(model, guide, batch, prepared=prepared) / batch.num_users
        loss.backward()
        return loss.item()

    assert_same(
        gradients(pair, lambda: ELBO().backward(model, guide, batch)), gradients(pair, of_pyro)
    )


def test_neural_process_elbo_is_that_of_a_trace(pair: Pair, batch: Batch) -> None:
    """The model of the target has the guide's posterior given the context as its prior."""
    model, guide = pair

    def of_pyro() -> float:
        context_mask, target_mask = split_batch(batch)
        context, target = batch.replace(mask=context_mask), batch.replace(mask=target_mask)
        prepared = model.prepare(batch)

        def predict(everything: Batch) -> None:
            with pyro.plate("users", batch.num_users, dim=-1):
                z = pyro.sample("z", guide.posterior(context, prepared))
                pyro.sample("choice", model.choice(target, z, prepared), obs=target.choice)

        elbo = Trace_ELBO(max_plate_nesting=1)
        program = (predict, lambda everything: guide(everything, prepared=prepared))
        loss = elbo.differentiable_loss(*program, batch) / batch.num_users
        loss.backward()
        return loss.item()

    objective = NeuralProcessELBO()
    assert_same(
        gradients(pair, lambda: objective.backward(model, guide, batch)), gradients(pair, of_pyro)
    )


def test_weights_of_a_guide_that_is_the_prior_are_likelihoods(batch: Batch) -> None:
    """Nobody has answered: every weight is 1, whatever the prior."""
    model = HeterogeneousBTL(3, 2, prior="flow", hidden_dim=8)
    nobody = batch.replace(mask=torch.zeros_like(batch.mask), covariates=None)
    loss = ImportanceWeightedELBO(4).loss(model, NeuralProcessGuide(model, hidden_dim=8), nobody)
    assert math.isclose(loss.item(), 0.0, abs_tol=1e-5)
