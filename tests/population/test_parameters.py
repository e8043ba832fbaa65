"""The free parameters of a population, and models that take other values of them."""

from __future__ import annotations

import copy

import pytest
import torch
from two_feature_people import fresh, simulate

from fssa_bayes import HeterogeneousBTL
from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.population.parameters import (
    estimate_parameters,
    prior_score,
    rotate_to_triangle,
)


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (2, 5), (3, 0)])
def test_the_triangular_form_has_the_same_covariance(shape: tuple[int, int]) -> None:
    loading = torch.randn(shape, dtype=torch.float64)
    triangle, rotation = rotate_to_triangle(loading)
    torch.testing.assert_close(triangle @ triangle.T, loading @ loading.T)
    torch.testing.assert_close(loading @ rotation, triangle)
    assert torch.equal(triangle, triangle.tril())
    assert (triangle.diagonal() > 0).all()
    eye = torch.eye(min(shape), dtype=torch.float64)
    torch.testing.assert_close(rotation.T @ rotation, eye)


def test_a_model_takes_parameters_and_its_z_keeps_its_meaning() -> None:
    data = simulate(people=30)
    model, _ = fresh(data, utility="linear", ties="davidson", position_bias=True)
    estimate = estimate_parameters(model, data, 50, 0, "the test")
    same = copy.deepcopy(model)
    estimate.assign(same, estimate.theta)
    torch.testing.assert_close(dict(same.named_parameters()), dict(model.named_parameters()))
    other = copy.deepcopy(model)
    estimate.assign(other, 1.5 * estimate.theta)
    for name, value in model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), 1.5 * value)


def test_the_prior_adds_its_curvature_to_the_information() -> None:
    """Of utilities and of the position bias: p σ(w) σ(−w) twice, once for each of two terms."""
    data = simulate(people=30)
    information = {}
    fitted = HomogeneousBTL(penalty=0.5, position_bias=True).fit(data, progress_bar=False)
    model = fitted.result.model
    for penalty in (0.5, 0.0):
        model.penalty = penalty
        estimate = estimate_parameters(model, data, 1, 0, "the test")
        information[penalty] = estimate.uncertainty.information
    prob = estimate.theta.sigmoid()
    gained = information[0.5] - information[0.0]
    torch.testing.assert_close(gained, torch.diag(2 * 0.5 * prob * (1 - prob)))
    assert fitted.coefficients()["se_hessian"].notna().all()


def test_the_score_of_a_prior_is_the_derivative_of_its_log_density() -> None:
    """Ties have no prior; their parameter stands before the position bias."""
    model = HeterogeneousBTL(
        3, 0, "linear", ties="davidson", position_bias=True, penalty=0.7
    ).double()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([-2.0, 0.1, 1.3]))
        model.bias.fill_(0.4)
    gradients = torch.autograd.grad(model.log_prior(), [model.utility.mean, model.bias])
    expected = torch.cat([gradients[0], torch.zeros(1), gradients[1].reshape(1)])
    torch.testing.assert_close(prior_score(model, 5), expected.double())
