"""Scores and information of the population's parameters against exact integrals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from two_feature_people import simulate

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide
from fssa_bayes.population.information import population_information


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "lognormal", "-lognormal"])
def test_standard_errors_by_louis_match_the_likelihood_on_a_grid(kind: str) -> None:
    """Scores and information of (w0, Λ) for K = 1 against derivatives of an exact integral."""
    data = simulate(people=60, comparisons=8)
    data.items[:, 1] = 0.0  # One feature, so that everything fits in a plane.
    model = HeterogeneousBTL(2, 1, utility="linear", coefficients=[kind, "normal"])
    guide = NeuralProcessGuide(model)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.9, 0.0]))
        model.utility.loading.copy_(torch.tensor([[0.8], [0.0]]))
    eye = torch.eye(1).double()
    outer, information = population_information(model, guide, data, eye, 40_000, 0)
    batch = data.batch()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    margin_of_one = (data.items[batch.left, 0] - data.items[batch.right, 0]).double()

    def per_person(theta: torch.Tensor) -> torch.Tensor:
        eta = theta[0] + theta[1] * nodes[:, None, None]
        beta = {"normal": eta, "lognormal": eta.exp(), "-lognormal": -eta.exp()}[kind]
        margin = margin_of_one * beta
        sign = (2 * batch.choice - 1).double()
        log_prob = torch.nn.functional.logsigmoid(sign * margin).sum(-1)
        return (log_prob + weights.log()[:, None]).logsumexp(0)

    theta = torch.tensor([0.9, 0.8], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(per_person, theta)
    hessian = torch.autograd.functional.hessian(lambda t: per_person(t).sum(), theta)
    torch.testing.assert_close(outer[:2, :2], jacobian.T @ jacobian, rtol=0.03, atol=0.4)
    torch.testing.assert_close(information[:2, :2], -hessian, rtol=0.03, atol=0.4)
