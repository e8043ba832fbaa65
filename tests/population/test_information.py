"""Scores and information of the population's parameters against exact integrals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from two_feature_people import simulate

from fssa_bayes import HeterogeneousBTL, Preferences
from fssa_bayes.population.information import population_information, population_score


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "lognormal", "-lognormal"])
def test_standard_errors_by_louis_match_the_likelihood_on_a_grid(kind: str) -> None:
    """Scores and information of (w0, Λ) for K = 1 against derivatives of an exact integral."""
    data = simulate(people=60, comparisons=8)
    data.items[:, 1] = 0.0  # One feature, so that everything fits in a plane.
    model = HeterogeneousBTL(2, 1, utility="linear", coefficients=[kind, "normal"])
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.9, 0.0]))
        model.utility.loading.copy_(torch.tensor([[0.8], [0.0]]))
    eye = torch.eye(1).double()
    outer, information = population_information(model, data, eye, 20_000, 0)
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
    score = population_score(model, data, eye, 20_000, 0)
    torch.testing.assert_close(score[:2], jacobian.sum(0), rtol=0.03, atol=0.4)


def test_information_of_items_is_that_of_their_indicators() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([5, 0, 40, 17])
    left = rng.integers(6, size=counts.sum())
    right = (left + rng.integers(1, 6, size=counts.sum())) % 6
    choice, offsets = rng.choice([0, 0.5, 1], size=counts.sum()), np.r_[0, counts.cumsum()]
    weights = {"weights": [1.0, 2.0, 0.5, 3.0]}
    data = Preferences(left, right, choice, offsets, num_items=6, **weights)
    indicators = Preferences(left, right, choice, offsets, items=np.eye(6), **weights)
    model = HeterogeneousBTL(6, 0, utility="linear")
    with torch.no_grad():
        model.utility.mean.normal_(generator=torch.Generator().manual_seed(0))
    rotation = torch.zeros(0, 0, dtype=torch.float64)
    of_items = population_information(model, data, rotation, 1, 0)
    of_indicators = population_information(model, indicators, rotation, 1, 0)
    torch.testing.assert_close(of_items, of_indicators, rtol=1e-6, atol=1e-6)
    scores = (population_score(model, each, rotation, 1, 0) for each in (data, indicators))
    torch.testing.assert_close(*scores, rtol=1e-6, atol=1e-6)
