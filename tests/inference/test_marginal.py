"""Maximum marginal likelihood of mixed logits, against quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_people import linear, people
from scipy import optimize
from torch import Tensor

from fssa_bayes import (
    HeterogeneousBTL,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    exact,
    fit,
)
from fssa_bayes.inference.marginal import MarginalLikelihood


def quadrature(data: Preferences, parameters: Tensor, *, is_log: bool = False) -> Tensor:
    """Log-likelihood of a mixed logit with one feature: mean and deviation of its coefficient."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    batch = data.batch()
    items = batch.items.double()[:, 0]
    difference = items[batch.left] - items[batch.right]
    coefficient = parameters[0] + parameters[1] * torch.from_numpy(nodes)
    coefficient = coefficient.exp() if is_log else coefficient
    margin = coefficient[:, None, None] * difference * (2 * batch.choice.double() - 1)
    log_prob = (torch.nn.functional.logsigmoid(margin) * batch.mask).sum(-1)
    log_weights = torch.from_numpy(np.log(weights / weights.sum()))
    return (log_prob + log_weights[:, None]).logsumexp(0).sum()


def test_value_and_gradient_are_those_of_quadrature() -> None:
    data = people(40, 12, 0, spread=1.5)
    model, _ = linear(1)
    model.take_units(data)
    model.double()
    with torch.no_grad():
        model.utility.mean.fill_(0.4)
        model.utility.loading.fill_(1.1)
    scale = model.feature_scale.item()
    value = MarginalLikelihood(model, data, 4000, 0).evaluate()
    theta = torch.tensor([0.4 / scale, 1.1 / scale], dtype=torch.float64, requires_grad=True)
    expected = quadrature(data, theta)
    (slope,) = torch.autograd.grad(expected, theta)
    assert value.log_likelihood == pytest.approx(expected.item(), abs=0.05)
    assert value.standard_error < 0.2
    assert value.relative_ess > 0.5
    got = torch.cat([model.utility.mean.grad, model.utility.loading.grad.flatten()]) * scale
    torch.testing.assert_close(got, slope, rtol=0, atol=0.2)


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_fit_finds_the_maximum_that_quadrature_has(kind: str) -> None:
    data, is_log = people(150, 12, 1, spread=1.5), kind == "lognormal"
    best = optimize.minimize(
        lambda x: -quadrature(data, torch.from_numpy(x), is_log=is_log).item(),
        [0.5, 1.0],
        method="Nelder-Mead",
    )
    model = HeterogeneousBTL(1, 1, utility="linear", coefficients=[kind])
    guide = NeuralProcessGuide(model)
    fit(model, guide, data, objective=MaximumLikelihood(), progress_bar=False)
    utility = model.utility
    found = utility.map.in_units(utility.mean, utility.loading, model.feature_scale)
    found = torch.cat([found[0], found[1].flatten().abs()]).detach().numpy()
    # A tenth of the standard errors, about .13 each.
    np.testing.assert_allclose(found, [best.x[0], abs(best.x[1])], atol=0.02)
    assert model.utility.mean.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:maximum likelihood did not converge in 4 iterations")
def test_steps_bound_the_iterations_and_the_seed_fixes_the_draws() -> None:
    data = people(30, 8, 2, spread=1.0, features=2)
    fits = []
    for _ in range(2):
        torch.manual_seed(0)
        model, guide = linear(2, features=2)
        objective = MaximumLikelihood(64)
        result = fit(model, guide, data, objective=objective, steps=4, progress_bar=False)
        fits.append(model.utility.loading.detach().clone())
        assert 1 <= len(result.history) <= 4
        assert (result.history["stage"] == "MaximumLikelihood").all()
    assert torch.equal(*fits)


def test_only_a_mixed_logit_has_this_likelihood() -> None:
    data = people(12, 4, 0, spread=1.0)
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 16, got 8"):
        MaximumLikelihood(8)
    for options in ({"utility": "bilinear"}, {"utility": "linear", "prior": "flow"}):
        model = HeterogeneousBTL(1, 1, **options)
        with pytest.raises(ValueError, match="needs utility='linear' and prior='normal'"):
            fit(model, NeuralProcessGuide(model), data, objective=MaximumLikelihood())


def test_the_population_is_fitted_without_a_guide() -> None:
    data = people(80, 10, 3, spread=1.0)
    torch.manual_seed(0)
    model, _ = linear(1)
    result = fit(model, None, data, progress_bar=False)
    assert set(result.history["stage"]) == {"MaximumLikelihood"}
    table = result.population()
    theta = torch.tensor(
        [table.loc[("mean", 0), "estimate"], table.loc[("sd", 0), "estimate"]],
        dtype=torch.float64,
    )
    estimate = result.log_marginal_likelihood(target_error=0.05)
    expected = quadrature(data, theta).item()
    assert abs(estimate.value - expected) < 4 * estimate.standard_error
    hessian = torch.autograd.functional.hessian(lambda x: -quadrature(data, x), theta)
    errors = torch.linalg.inv(hessian).diagonal().sqrt().numpy()
    np.testing.assert_allclose(table["se_hessian"].iloc[:2], errors, rtol=0.05)
    posterior = result.posterior(data, population="fixed")
    assert posterior.reliable.all()
    gold = exact.grid(model, data)
    expected = (gold.log_weights.exp().unsqueeze(-1) * gold.z).sum(0)
    z, log_weights = posterior.proposals
    mean = (log_weights.exp().unsqueeze(-1) * z).sum(0)
    torch.testing.assert_close(mean, expected, atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="guide must be given for a model with latent_dim=1"):
        Posterior(model, None, data, correct=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": Sleep()}, "guide must be given for Sleep; without a guide the population"),
        ({"validation": 0.2}, "validation must be None without a guide.*got 0.2"),
    ],
)
def test_what_needs_a_guide_says_so(options: dict, message: str) -> None:
    model, _ = linear(1)
    with pytest.raises(ValueError, match=message):
        fit(model, None, people(12, 4, 0, spread=1.0), **options)
