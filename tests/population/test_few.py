"""People who are few for the parameters of their population."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from linear_people import linear, people

from fssa_bayes import HeterogeneousBTL, MaximumLikelihood, Preferences, fit
from fssa_bayes.population import PopulationDraws, cautious_population, describe_few_people
from fssa_bayes.population.cautious import akaike_gains, of_people_alike, share_of_individuals
from fssa_bayes.population.few import number_of_parameters


def test_parameters_are_the_directions_that_data_identify() -> None:
    """Utilities of items are known up to a constant of each person, a covariance up to rotation."""
    data = people(4, 3, 0, spread=1.0, features=3)
    for latent_dim, expected in ((0, 3), (1, 3 + 3), (2, 3 + 5), (3, 3 + 6), (5, 3 + 6)):
        model = HeterogeneousBTL(3, latent_dim, utility="linear")
        assert number_of_parameters(model, data) == expected
    items = Preferences(data.left, data.right, data.choice, data.offsets, num_items=50)
    model = HeterogeneousBTL(50, 2, utility="linear", position_bias=True, num_covariates=3)
    assert number_of_parameters(model, items) == 49 + (49 + 48) + 2 * 3 + 1


def test_people_are_few_below_ten_for_each_parameter() -> None:
    model = HeterogeneousBTL(1, 1, utility="linear")
    assert describe_few_people(model, people(20, 2, 0, spread=1.0)) is None
    few = describe_few_people(model, people(19, 2, 0, spread=1.0))
    assert few.startswith("19 people are few for the 2 parameters of their population")
    for other in (
        HeterogeneousBTL(1, 0, utility="linear"),
        HeterogeneousBTL(1, 1),
        HeterogeneousBTL(1, 1, utility="linear", prior="flow"),
    ):
        assert describe_few_people(other, people(19, 2, 0, spread=1.0)) is None


def fitted(spread: float, num: int = 40) -> tuple:
    data = people(num, 6, 3, spread=spread)
    torch.manual_seed(0)
    average, (model, guide) = linear(0)[0], linear(1)
    fit(average, None, data, progress_bar=False)
    fit(model, guide, data, objective=MaximumLikelihood(64), progress_bar=False)
    return model, guide, data, average


def test_gain_is_that_of_akaike() -> None:
    model, guide, data, average = fitted(2.0)
    own = fit(*linear(0), data, progress_bar=False)
    expected = quadrature(model, data) - 2 - (own.log_marginal_likelihood().value - 1)
    gains = akaike_gains(model, guide, data, average)
    assert gains.sum().item() == pytest.approx(expected, abs=1.0)
    # Twenty choices are needed for two parameters, and three people have made eighteen.
    few = cautious_population(model, guide, data.subset(range(3)), lambda: average, num=4)
    assert not any(one.utility.loading.any() for one, _ in few.members)


def test_weights_are_averaged_over_people() -> None:
    """Equal gains give the Akaike weight; a gain that rests on one person of many is less sure."""
    assert share_of_individuals(torch.full((50,), 0.04)) == pytest.approx(1 / (1 + math.exp(-2)))
    alone = torch.full((50,), -0.1)
    alone[0] = 6.9  # The sum is 2 again.
    # The share of one person is Beta(1, 49): 7 of 50 such shares, less 5, by quadrature.
    share = np.linspace(0, 1, 200_001)
    exact = np.trapezoid(49 * (1 - share) ** 48 / (1 + np.exp(-(50 * (7 * share) - 5))), share)
    assert share_of_individuals(alone) == pytest.approx(exact, abs=0.05)


def quadrature(model: HeterogeneousBTL, data: Preferences) -> float:
    """Integrates over the normal z of a model with one latent dimension, by Gauss and Hermite."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    z = torch.as_tensor(points).float().reshape(-1, 1, 1).expand(-1, len(data), 1)
    batch = data.batch()
    with torch.no_grad():
        log_prob = model.choice(batch, z).log_prob(batch.choice).double()
    weights = torch.as_tensor(weights / weights.sum()).log().unsqueeze(-1)
    return (log_prob + weights).logsumexp(0).sum().item()


def blend(spread: float, num: int) -> tuple[HeterogeneousBTL, str | PopulationDraws]:
    model, guide, data, average = fitted(spread, num)
    options = {"num": 8, "num_samples": 200}
    return model, cautious_population(model, guide, data, lambda: average, **options)


def test_populations_of_few_people_who_differ_are_drawn() -> None:
    _, drawn = blend(3.0, 18)  # Nine for each parameter.
    assert len({one.utility.loading.item() for one, _ in drawn.members} - {0.0}) == len(drawn) == 8


def test_people_differ_in_few_populations_if_the_data_do_not_show_that_they_do() -> None:
    model, drawn = blend(0.0, 30)
    loadings = [one.utility.loading.item() for one, _ in drawn.members]
    assert sum(value == 0.0 for value in loadings) >= 5
    assert set(loadings) <= {0.0, model.utility.loading.item()}  # Fifteen for each parameter.
    assert len(drawn) == 8


def test_the_estimate_is_left_alone_where_the_data_tell_enough() -> None:
    assert blend(3.0, 30)[1] == "fixed"  # That they differ is plain.
    assert blend(0.0, 40)[1] == "fixed"  # Twenty for each parameter.


def test_people_alike_choose_as_the_homogeneous_model_says() -> None:
    model, _, data, average = fitted(1.0, num=5)
    batch = data.batch()
    with torch.no_grad():
        twin = of_people_alike(model, average).choice(batch, torch.randn(3, 5, 1)).mean
        same = average.choice(batch, torch.zeros(3, 5, 0)).mean
    torch.testing.assert_close(twin[..., batch.mask], same[..., batch.mask])
