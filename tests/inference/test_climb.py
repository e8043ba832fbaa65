"""Climbs to the maximum of a log-likelihood, and the scale in which they are made."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from linear_people import people
from torch import Tensor, nn

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.inference.climb import Climb, root_of_covariance
from fssa_bayes.population import population_estimates


class Parabola:
    """A log-likelihood −½ (θ − θ̂)ᵀ I (θ − θ̂), which counts how often it is evaluated."""

    def __init__(self, parameter: nn.Parameter) -> None:
        root = torch.tensor([[3.0, 0, 0], [40, 20, 0], [0.1, 0, 0.5]], dtype=torch.float64)
        self.information = root @ root.T
        self.maximum = torch.tensor([1.0, -2, 5], dtype=torch.float64)
        self.parameter, self.evaluations = parameter, 0

    def evaluate(self) -> SimpleNamespace:
        self.evaluations += 1
        off = self.parameter - self.maximum
        value = -0.5 * off @ self.information @ off
        value.backward()
        return SimpleNamespace(log_likelihood=value.item(), standard_error=1e-6)


@pytest.mark.parametrize("is_newton", [True, False])
def test_a_climb_ends_at_the_maximum_and_newtons_step_leads_there(is_newton: bool) -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    parabola = Parabola(parameter)
    root = torch.eye(3, dtype=torch.float64)
    if is_newton:
        root = torch.linalg.cholesky(torch.linalg.inv(parabola.information))
    climb = Climb(parabola.evaluate, [parameter], root, gain=0.01)
    steps: list[float] = []
    climb.run(
        100,
        is_newton=is_newton,
        callback=lambda intermediate_result: steps.append(intermediate_result.fun),
    )
    torch.testing.assert_close(parameter.detach(), parabola.maximum, rtol=0, atol=1e-3)
    start = 0.5 * parabola.maximum @ parabola.information @ parabola.maximum
    assert climb.gained == pytest.approx(start.item())
    assert climb.noise == 1e-6
    if is_newton:
        assert steps[0] == pytest.approx(0.0, abs=1e-9)
        assert parabola.evaluations <= 3
    else:
        assert parabola.evaluations > 3


def test_a_climb_that_finds_nothing_better_leaves_the_parameters() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def falls() -> SimpleNamespace:
        """Has a gradient that points down."""
        value = -(parameter - torch.tensor([1.0, 2.0])).abs().sum()
        parameter.grad = torch.ones_like(parameter)
        return SimpleNamespace(log_likelihood=value.item(), standard_error=0.1)

    climb = Climb(falls, [parameter], torch.eye(2, dtype=torch.float64), gain=0.01)
    climb.run(10, is_newton=False, callback=lambda intermediate_result: None)
    assert parameter.tolist() == [1.0, 2.0]
    assert climb.has_failed
    assert climb.gained == 0.0


def of_normals(data: Preferences) -> HeterogeneousBTL:
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, utility="linear", correlation="none")
    fit(model, None, data, progress_bar=False)
    return model.double()


def test_the_root_is_of_about_the_covariance_of_the_estimates() -> None:
    data = people(400, 12, 0, spread=1.0, features=2)
    model = of_normals(data)
    parameters = list(model.parameters())
    root = root_of_covariance(model, parameters, data, 0)
    covariance = root @ root.T
    assert model.utility.loading[~model.utility.free].eq(0).all()
    free = torch.cat([torch.ones(2), model.utility.free.flatten()]).bool()
    estimates = population_estimates(model, data)
    expected = estimates.uncertainty.inverse  # Of means, then of loadings.
    found = covariance[free][:, free]
    # 64 draws, and the weight of six people of 400 for a multiple of the identity.
    torch.testing.assert_close(found, expected, rtol=0.15, atol=0.0005)


def test_the_root_of_weighted_people_is_that_of_people_who_come_again() -> None:
    data = people(60, 8, 1, spread=1.0, features=2)
    model = of_normals(data)
    parameters = list(model.parameters())
    alone = root_of_covariance(model, parameters, data, 0)
    weighted = root_of_covariance(model, parameters, data.with_weights(np.full(60, 4.0)), 0)

    def information(root: Tensor) -> Tensor:
        return torch.linalg.inv(root @ root.T)

    torch.testing.assert_close(information(weighted), 4 * information(alone))


def test_many_parameters_have_no_root() -> None:
    model = HeterogeneousBTL(200, 1, utility="linear").double()
    data = people(20, 4, 0, spread=1.0, features=200)
    assert root_of_covariance(model, list(model.parameters()), data, 0) is None


def test_a_fit_of_many_people_starts_with_some_and_finds_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = people(300, 10, 2, spread=1.0)
    found = []
    for number in (300, 50):
        monkeypatch.setattr("fssa_bayes.inference.marginal._COARSE_PEOPLE", number)
        torch.manual_seed(0)
        model = HeterogeneousBTL(1, 1, utility="linear")
        fit(model, None, data, progress_bar=False)
        found.append([model.utility.mean.item(), abs(model.utility.loading.item())])
    # A tenth of the standard errors, which are .06 and .08.
    np.testing.assert_allclose(*found, atol=0.006)
