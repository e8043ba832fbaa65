"""The model and the guide, unmodified, under Pyro's own tools."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL

MakeData = Callable[..., Preferences]
BOUND, NUM = 8.0, 2001


def line_model(slope: float = 1.5) -> HeterogeneousBTL:
    """Builds a model with one feature and K = 1: margin (.3 + slope z)(x_left - x_right)."""
    model = HeterogeneousBTL(1, 1, "linear")
    with torch.no_grad():
        model.utility.mean.fill_(0.3)
        model.utility.loading.fill_(slope)
    return model


@pytest.fixture
def batch(make_data: MakeData) -> Batch:
    """Returns three people's comparisons of items with one feature."""
    return make_data([4, 1, 7], num_features=1).batch()


@pytest.fixture
def exact(batch: Batch, grid: Callable) -> dict[str, Tensor]:
    """Returns log prior and log likelihood (G, U) on a grid of z, without the package."""
    z, cell = grid(1, BOUND, NUM)
    x = batch.items[:, 0]
    margin = (0.3 + 1.5 * z[:, :, None]) * (x[batch.left] - x[batch.right])
    sign = 2 * batch.choice - 1
    log_lik = (F.logsigmoid(sign * margin) * batch.mask).sum(-1).double()
    log_prior = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).double()
    log_cell = math.log(cell)
    evidence = (log_prior + log_lik).logsumexp(0) + log_cell
    posterior = (log_prior + log_lik - evidence + log_cell).exp()
    mean = (posterior * z).sum(0)
    variance = (posterior * (z - mean).square()).sum(0)
    return {
        "z": z,
        "log_prior": log_prior,
        "log_lik": log_lik,
        "log_cell": torch.tensor(log_cell),
        "evidence": evidence,
        "mean": mean,
        "sd": variance.sqrt(),
    }


def on_grid(guide: NeuralProcessGuide, batch: Batch, exact: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return guide.posterior(batch).log_prob(exact["z"][:, None].expand(-1, 3, -1)).double()


# Traces.


@pytest.mark.parametrize("particles", [None, 5])
def test_trace_sums_prior_and_likelihood(batch: Batch, particles: int | None) -> None:
    model = line_model()

    def program() -> None:
        if particles is None:
            model(batch)
        else:
            with pyro.plate("particles", particles, dim=-2):
                model(batch)

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    x = batch.items[:, 0]
    margin = (0.3 + 1.5 * z) * (x[batch.left] - x[batch.right])
    choices = (F.logsigmoid((2 * batch.choice - 1) * margin) * batch.mask).sum(-1)
    factors = -0.5 * z.square().sum(-1) - 0.5 * math.log(2 * math.pi)
    shape = (3,) if particles is None else (particles, 3)
    assert z.shape == (*shape, 1)
    torch.testing.assert_close(trace.nodes["choice"]["log_prob"], choices.expand(shape))
    torch.testing.assert_close(trace.log_prob_sum(), (choices + factors).sum())


def test_homogeneous_model_has_no_site_z(make_data: MakeData) -> None:
    batch = make_data([2, 3]).batch()
    trace = poutine.trace(HeterogeneousBTL(3, 0, "linear")).get_trace(batch)
    assert "z" not in trace.nodes
    # With w0 = 0 every choice has probability one half.
    torch.testing.assert_close(trace.log_prob_sum(), torch.tensor(5 * math.log(0.5)))


# Predictive.


@pytest.mark.parametrize(("parallel", "num_samples"), [(True, 20_000), (False, 1000)])
def test_prior_predictive_has_the_marginal_frequencies(
    parallel: bool, num_samples: int, batch: Batch, exact: dict[str, Tensor]
) -> None:
    predictive = Predictive(line_model(), num_samples=num_samples, parallel=parallel)
    draws = predictive(batch, observe=False)
    weight = (exact["log_prior"] + exact["log_cell"]).exp()
    x = batch.items[:, 0]
    margin = (0.3 + 1.5 * exact["z"][:, :, None]) * (x[batch.left] - x[batch.right])
    prob = (weight[:, :, None] * margin.sigmoid()).sum(0)
    error = (draws["choice"].mean(0) - prob).abs() / (prob * (1 - prob) / num_samples).sqrt()
    assert draws["z"].shape == (num_samples, 3, 1)
    assert error[batch.mask].max() < 4
    assert not draws["choice"][:, ~batch.mask].any()


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_uses_posterior_draws(parallel: bool, batch: Batch) -> None:
    """With z = ±100 every choice is certain, and follows the sign of z."""
    z = torch.tensor([100.0, -100.0, 100.0])[:, None, None].expand(-1, 3, -1)
    batch = batch.replace(items=torch.arange(len(batch.items))[:, None].float())
    predictive = Predictive(line_model(), {"z": z}, return_sites=["choice"], parallel=parallel)
    larger_is_left = batch.mask & (batch.left > batch.right)
    expected = [larger_is_left, batch.mask & ~larger_is_left, larger_is_left]
    choice = predictive(batch, observe=False)["choice"]
    assert torch.equal(choice, torch.stack(expected).float())


# Variational inference.


def bounds() -> list:
    """Lists ELBOs with their number of particles."""
    plain = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 1}
    loop = {"num_particles": 100, "max_plate_nesting": 1}
    cases = [(Trace_ELBO, {}), (TraceMeanField_ELBO, {}), (RenyiELBO, {"alpha": 0})]
    return [
        pytest.param(elbo, options | how, id=f"{elbo.__name__}-{name}")
        for elbo, options in cases
        for name, how in (("vectorised", plain), ("loop", loop))
    ]


@pytest.mark.parametrize("posterior", ["normal", "flow"])
@pytest.mark.parametrize(("elbo", "options"), bounds())
def test_bound_is_that_of_the_grid(
    elbo: type, options: dict, posterior: str, batch: Batch, exact: dict[str, Tensor]
) -> None:
    model = line_model()
    guide = NeuralProcessGuide(model, posterior, hidden_dim=8)
    with torch.no_grad():  # Contexts tell little, so that q is wide and the weights are tame.
        guide.potential[-1].bias[-2] = -4.0
    log_q = on_grid(guide, batch, exact)
    q = (log_q + exact["log_cell"]).exp()
    log_ratio = exact["log_prior"] + exact["log_lik"] - log_q
    if elbo is RenyiELBO:
        weight = (log_ratio - exact["evidence"]).exp()
        expected = exact["evidence"].sum()
        variance = ((q * weight.square()).sum(0) - 1).sum()
    else:
        mean = (q * log_ratio).sum(0)
        expected = mean.sum()
        variance = (q * (log_ratio - mean).square()).sum()
    error = (variance / options["num_particles"]).sqrt()
    loss = elbo(**options).loss(model, guide, batch)
    assert error < 0.5
    assert abs(-loss - expected) < 4 * error


@pytest.mark.parametrize("posterior", ["normal", "multivariate_normal", "flow"])
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(max_plate_nesting=1),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(max_plate_nesting=1),
    ],
    ids=["one", "vectorised", "mean field"],
)
def test_svi_steps_along_the_gradient(
    elbo: Trace_ELBO, posterior: str, make_data: MakeData
) -> None:
    """A step of plain gradient descent on registered parameters is −rate × gradient."""
    batch = make_data().batch()
    model = HeterogeneousBTL(3, 2, hidden_dim=8)
    guide = NeuralProcessGuide(model, posterior, hidden_dim=8)

    def registered_model(batch: Batch) -> Tensor:
        model.register()
        return model(batch)

    def registered_guide(batch: Batch) -> Tensor:
        guide.register()
        return guide(batch)

    parameters = [*model.parameters(), *guide.parameters()]
    torch.manual_seed(1)
    elbo.differentiable_loss(model, guide, batch).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(1)
    svi = SVI(registered_model, registered_guide, pyro.optim.SGD({"lr": 0.01}), elbo)
    svi.step(batch)
    names = set(pyro.get_param_store().keys())
    assert {name.split("$$$")[0] for name in names} == {"model", "guide"}
    assert len(names) == len(parameters)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
    for parameter, start, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(parameter, start - 0.01 * gradient, atol=1e-6, rtol=1e-5)


def test_auto_normal_finds_the_posterior(batch: Batch, exact: dict[str, Tensor]) -> None:
    guide = AutoNormal(line_model())
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(line_model(), guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), elbo)
    for _ in range(300):
        svi.step(batch)
    # The best normal is not the posterior's own mean and deviation, but within a tenth of it.
    median = guide.median(batch)["z"][:, 0].double()
    assert ((median - exact["mean"]).abs() < 0.1 * exact["sd"] + 0.03).all()
    assert (exact["mean"].abs() > 0.3).any()
    scale = pyro.param("AutoNormal.scales.z").detach()[:, 0].double()
    torch.testing.assert_close(scale, exact["sd"], atol=0, rtol=0.15)


# One weight per person.


class TestWeightPerPerson:
    """The bound of people together is the sum of their own bounds, for the same draws of each.

    A weight that were shared would put the product of their likelihoods under one logarithm.
    """

    num_particles = 6

    def loss(self, data: Preferences, people: list[int], z: Tensor, log_q: Tensor) -> float:
        def guide(batch: Batch) -> None:
            with pyro.plate("users", batch.num_users, dim=-1):
                pyro.sample("z", dist.Delta(z[:, people], log_q[:, people], event_dim=1))

        elbo = RenyiELBO(
            alpha=0,
            num_particles=self.num_particles,
            vectorize_particles=True,
            max_plate_nesting=1,
        )
        return elbo.loss(HeterogeneousBTL(3, 2, "linear"), guide, data.batch(people))

    def test_unrelated_person_changes_nothing(self, make_data: MakeData) -> None:
        data = make_data([4, 1, 7])
        z = torch.randn(self.num_particles, 3, 2)
        log_q = torch.randn(self.num_particles, 3)

        def loss(people: list[int]) -> float:
            torch.manual_seed(2)  # The same utility for all.
            return self.loss(data, people, z, log_q)

        alone = [loss([person]) for person in range(3)]
        assert loss([0, 1]) == pytest.approx(alone[0] + alone[1], abs=1e-4)
        assert loss([2, 0, 1]) == pytest.approx(sum(alone), abs=1e-4)

    def test_bound_is_that_by_hand(self, make_data: MakeData) -> None:
        data = make_data([4, 1, 7])
        z = torch.randn(self.num_particles, 3, 2)
        log_q = torch.randn(self.num_particles, 3)
        torch.manual_seed(2)
        utility = HeterogeneousBTL(3, 2, "linear").utility
        batch = data.batch()
        x = batch.items[batch.left] - batch.items[batch.right]
        margin = torch.einsum("und,dk,suk->sun", x, utility.loading, z)
        log_lik = (F.logsigmoid((2 * batch.choice - 1) * margin) * batch.mask).sum(-1)
        log_prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        expected = (log_lik + log_prior - log_q).logsumexp(0) - math.log(self.num_particles)
        torch.manual_seed(2)
        assert self.loss(data, [0, 1, 2], z, log_q) == pytest.approx(
            -expected.sum().item(), abs=1e-4
        )


# NUTS.


@pytest.mark.slow
def test_nuts_finds_the_posterior(batch: Batch, exact: dict[str, Tensor]) -> None:
    kernel = NUTS(line_model(), max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=200, warmup_steps=50, disable_progbar=True)
    mcmc.run(batch)
    z = mcmc.get_samples()["z"][:, :, 0].double()
    # About 100 independent draws, so that 4 standard errors are .4 deviations.
    assert ((z.mean(0) - exact["mean"]).abs() < 0.4 * exact["sd"]).all()
    torch.testing.assert_close(z.std(0), exact["sd"], atol=0, rtol=0.3)
    assert (exact["mean"].abs() > 0.8 * exact["sd"]).any(), "the prior mean must not pass"
