"""Grids: against Simpson's rule, closed forms and finer grids, and what they say when they fail."""

from __future__ import annotations

import math

import pytest
import torch
from exact_problems import five_people, make_model
from scipy import integrate
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences, exact


@pytest.fixture(scope="module")
def data() -> Preferences:
    return five_people()


def log_joint(model: HeterogeneousBTL, person: Preferences, z: Tensor) -> Tensor:
    """Log p(z) p(C|z) of one person's z (S, 1, K), with shape (S,)."""
    batch = person.batch()
    with torch.no_grad():
        likelihood = model.choice(batch, z).log_prob(batch.choice)
        return (model.prior(1).log_prob(z) + likelihood)[:, 0]


def integral(model: HeterogeneousBTL, person: Preferences, power: int) -> float:
    """Integrates z^power p(z) p(C|z) of a model with one latent dimension."""
    z = torch.linspace(-10, 10, 20_001)
    density = log_joint(model, person, z[:, None, None]).double().exp() * z.double() ** power
    return float(integrate.simpson(density.numpy(), x=z.double().numpy()))


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("utility", ["linear", "bilinear"])
def test_grid_of_one_dimension_is_quadrature(data, utility: str, prior: str) -> None:
    """Evidence, mean and variance of z, by Simpson's rule in z: no ε."""
    model = make_model(1, utility, prior, scale=3.0)
    posterior = exact.grid(model, data, num=201)
    assert posterior.converged.all()
    for user in (0, 2, 4):
        evidence, first, second = (integral(model, data.subset([user]), n) for n in range(3))
        weights, z = posterior.log_weights[:, user].exp(), posterior.z[:, user, 0]
        mean = (weights * z).sum().item()
        variance = (weights * (z - mean).square()).sum().item()
        assert posterior.log_evidence[user].item() == pytest.approx(math.log(evidence), abs=2e-4)
        assert mean == pytest.approx(first / evidence, abs=1e-3)
        assert variance == pytest.approx(second / evidence - (first / evidence) ** 2, abs=2e-3)


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_empty_context_has_evidence_1_and_the_prior(data, latent_dim: int, prior: str) -> None:
    model = make_model(latent_dim, "linear", prior)
    posterior = exact.grid(model, data.subset([0]))
    assert posterior.log_evidence.item() == pytest.approx(0, abs=1e-5)
    weights = posterior.log_weights.exp().unsqueeze(-1)
    draws = model.prior(1).sample((200_000,)).detach()
    error = 5 * draws.std(0) / math.sqrt(len(draws))
    assert (((weights * posterior.z).sum(0) - draws.mean(0)).abs() < error).all()
    ratio = (weights * posterior.z.square()).sum(0) / draws.square().mean(0)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=0.03, rtol=0)


@pytest.mark.parametrize("scale", [0.05, 1.0, 10.0])
def test_grid_of_two_dimensions_does_not_depend_on_its_points(data, scale: float) -> None:
    """Boxes move to posteriors a tenth as wide as the prior, and a finer grid agrees."""
    model = make_model(2, "linear", "normal", scale)
    coarse, fine = exact.grid(model, data), exact.grid(model, data, num=251, bound=7.0)
    torch.testing.assert_close(coarse.log_evidence, fine.log_evidence, atol=1e-3, rtol=0)
    assert coarse.converged.all()
    means = [
        Posterior.from_draws(model, data, posterior).choice_prob(data).mean
        for posterior in (coarse, fine)
    ]
    torch.testing.assert_close(*means, atol=1e-3, rtol=0, equal_nan=True)


def test_grid_follows_a_posterior_beyond_its_first_box() -> None:
    """Forty choices against the prior push ε out of the first box; the evidence stays right."""
    model = HeterogeneousBTL(1, 1, utility="linear")
    with torch.no_grad():
        model.utility.mean.fill_(0.0)
        model.utility.loading.fill_(0.5)
    data = Preferences([0] * 40, [1] * 40, [1] * 40, [0, 40], items=[[1.0], [-1.0]])
    narrow, wide = (exact.grid(model, data, bound=bound) for bound in (4.5, 8.0))
    expected = integrate.quad(
        lambda e: math.exp(-0.5 * e * e) / math.sqrt(2 * math.pi) * (1 + math.exp(-e)) ** -40, -9, 9
    )[0]
    assert wide.log_evidence.item() == pytest.approx(math.log(expected), abs=1e-5)
    mean = (narrow.log_weights.exp()[:, 0] * narrow.z[:, 0, 0]).sum().item()
    assert mean > 2
    assert narrow.z.amax() > 4.6


def test_too_coarse_a_grid_is_named(data) -> None:
    model = make_model(2, "linear", "normal", scale=60.0)
    with pytest.warns(UserWarning, match="the posterior of . of 5 people has not converged"):
        posterior = exact.grid(model, data, num=41)
    assert not posterior.converged.all()
    assert posterior.converged[0]
    assert (posterior.summary()["grid_error"][~posterior.converged.numpy()] > 0.01).all()


def test_grid_gives_a_person_the_same_posterior_in_any_company(data) -> None:
    model = make_model(2, "bilinear", "flow")
    together, alone = exact.grid(model, data), exact.grid(model, data.subset([3]))
    torch.testing.assert_close(together.z[:, 3], alone.z[:, 0])
    torch.testing.assert_close(together.log_evidence[3], alone.log_evidence[0])


def test_bad_input_is_refused(data) -> None:
    model = make_model(2, "linear", "normal")
    posterior = exact.grid(model, data)
    for call, match in [
        (lambda: exact.grid(make_model(3, "linear", "normal"), data), "1 or 2 for a grid, got 3"),
        (lambda: exact.grid(HeterogeneousBTL(3, 0), data), "got 0: a homogeneous model"),
        (lambda: exact.grid(model, data, num=100), "odd integer of at least 11, got 100"),
        (lambda: exact.grid(model, data, bound=50.0), "between 4 and 20 .* got 50"),
        (lambda: exact.grid(model, data, num=20_001), "GiB: take fewer"),
        (lambda: Posterior.from_draws(model, data.subset([1]), posterior), "same people"),
        (lambda: Posterior.from_draws(model, data.swap(), posterior), "exact must be of this"),
        (
            lambda: Posterior.from_draws(make_model(1, "linear", "normal"), data, posterior),
            "latent_dim=1",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    with torch.no_grad():
        model.utility.mean[0] = torch.nan
    with pytest.raises(FloatingPointError, match="posterior of user"):
        exact.grid(model, data)
