"""fit(): known maxima, likelihoods, reproducibility, and data that belong to a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from linear_people import people as draw_people
from scipy import stats
from two_feature_people import fresh, simulate, with_features

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessELBO,
    NeuralProcessGuide,
    Posterior,
    PredictiveLikelihood,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.datasets import two_mode
from fssa_bayes.inference import FitResult
from fssa_bayes.inference.average import fit_average


@pytest.mark.slow
def test_heterogeneous_fit_recovers_mean_and_spread_within_its_standard_errors() -> None:
    data = simulate(people=1000)
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=16)
    stages = [MaximumLikelihood(), Sleep(steps=200)]
    result = fit(model, guide, data, objective=stages, learning_rate=6e-3, progress_bar=False)
    table = result.population(num_samples=500)
    truth = [1.0, -0.5, 1.0, 0.5, 0.0, *stats.norm.cdf([1.0, -1.0])]
    error = (table["estimate"] - truth) / table["se_sandwich"]
    assert error.abs().max() < 3.5, table
    assert (table["se_sandwich"] < 0.15).all()


def test_log_marginal_likelihood_matches_quadrature_and_its_own_error() -> None:
    data = simulate(people=40, comparisons=6)
    model = HeterogeneousBTL(2, 1, utility="linear")
    guide = NeuralProcessGuide(model)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.9, -0.4]))
        model.utility.loading.copy_(torch.tensor([[0.8], [0.3]]))
    result = fit(model, guide, data, objective=Sleep(), steps=1, learning_rate=1e-8,
                 progress_bar=False)  # fmt: skip
    batch = data.batch()
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    z = torch.tensor(nodes, dtype=torch.float32).reshape(-1, 1, 1).expand(-1, 40, 1)
    with torch.no_grad():
        log_prob = model.choice(batch, z).log_prob(batch.choice).double()
    exact = (log_prob + torch.tensor(weights / weights.sum()).log()[:, None]).logsumexp(0).sum()
    estimates = [result.log_marginal_likelihood(seed=seed, num_samples=400) for seed in range(8)]
    error = [(e.value - exact.item()) / e.standard_error for e in estimates]
    assert np.abs(error).max() < 4
    # The stated error is that of independent draws; Sobol points have a smaller one.
    assert np.std(error) < 1
    precise = result.log_marginal_likelihood(target_error=0.05)
    assert precise.standard_error <= 0.05
    assert precise.value == pytest.approx(exact.item(), abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeightedELBO(4),
        ImportanceWeightedELBO(4, subset=True),
        ELBO(),
        NeuralProcessELBO(),
        PredictiveLikelihood(4),
        PredictiveLikelihood(deterministic=True),
        Sleep(),
    ],
    ids=lambda objective: objective.name,
)
@pytest.mark.parametrize("posterior", ["normal", "multivariate_normal", "flow"])
def test_every_objective_lowers_its_loss_and_repeats_bitwise(objective, posterior) -> None:
    data = two_mode.simulate(200, 8, seed=0).data
    states, losses = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = HeterogeneousBTL(1, 2, hidden_dim=16)
        guide = NeuralProcessGuide(model, posterior, hidden_dim=16)
        before = torch.get_rng_state()
        result = fit(model, guide, data, objective=objective, steps=60, learning_rate=1e-2,
                     validation=None, seed=7, progress_bar=False)  # fmt: skip
        assert torch.equal(before, torch.get_rng_state())
        states.append({**model.state_dict(), **guide.state_dict(prefix="guide.")})
        losses.append(result.history["loss"].to_numpy())
    assert np.array_equal(*losses)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert losses[0][-15:].mean() < losses[0][:15].mean()
    assert not list(pyro.get_param_store().keys())


@pytest.mark.slow
def test_items_without_features_are_fitted_by_look_up() -> None:
    """Two kinds of people who rank three items in opposite orders."""
    order = np.array([[0, 1], [1, 2], [0, 2]])
    left, right = np.tile(order, (40, 1)).T
    choice = np.repeat(np.arange(40) % 2, 3).astype(float)
    data = Preferences(
        left, right, choice, np.arange(0, 121, 3), num_items=3, item_names=list("abc")
    )
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 1, utility="linear")
    guide = NeuralProcessGuide(model, hidden_dim=16)
    fit(model, guide, data, steps=150, learning_rate=1e-2, progress_bar=False)
    posterior = Posterior(model, guide, data.subset([0, 1]), num_samples=400)
    utility = posterior.utility().mean(0)
    assert utility[0].argsort().tolist() == [0, 1, 2]
    assert utility[1].argsort().tolist() == [2, 1, 0]


def test_columns_are_known_by_their_names() -> None:
    """Positions and columns have a meaning that the width alone does not check."""
    data = simulate(people=12)
    model, guide = fresh(data, utility="linear")
    fit(model, guide, data, steps=1, progress_bar=False)
    swapped = with_features(data, data.items.flip(-1), ["price", "size"])
    one, other = (Posterior(model, guide, some, num_samples=50) for some in (data, swapped))
    assert torch.equal(one.z, other.z)
    unnamed = with_features(data, data.items, [0, 1])
    with pytest.raises(ValueError, match=r"features .* \['size', 'price'\], got \[0, 1\] without"):
        Posterior(model, guide, unnamed)
    far = with_features(data, 1000 * data.items, ["size", "price"])
    with pytest.warns(UserWarning, match="'price' lies .* standard deviations"):
        Posterior(model, guide, far, num_samples=50)


def test_covariances_of_coefficients_and_of_items() -> None:
    """Utilities are linear in the coefficients, so one covariance follows from the other."""
    data = simulate(people=30)
    result = fit(HeterogeneousBTL(2, 0, "linear"), None, data, progress_bar=False)
    of_features = result.vcov()
    assert of_features.index.tolist() == ["size", "price"]
    error = result.population().loc["mean", "se_sandwich"]
    np.testing.assert_allclose(np.sqrt(np.diag(of_features)), error)
    design = data.items.double().numpy()
    for reference, base in ((None, design.mean(0)), (5, design[5])):
        of_items = result.vcov(of="items", reference=reference)
        away = design - base
        np.testing.assert_allclose(of_items, away @ of_features @ away.T, rtol=1e-4, atol=1e-7)
    pair = result.contrast((7, 3), of="items")["standard_error"].iloc[0]
    variance = of_items.loc[7, 7] + of_items.loc[3, 3] - 2 * of_items.loc[7, 3]
    assert pair == pytest.approx(variance**0.5)
    with pytest.raises(ValueError, match="of must be 'population' or 'items', got 'users'"):
        result.estimates("users")


def test_few_people_are_said_to_be_few_and_their_population_is_drawn() -> None:
    data = draw_people(19, 6, 0, spread=2.0)  # Ten for each of two parameters would be enough.
    model = HeterogeneousBTL(1, 1, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=8)
    options = {"objective": MaximumLikelihood(64), "progress_bar": False}
    with pytest.warns(UserWarning, match="19 people are few for the 2 parameters of their pop"):
        result = fit(model, guide, data, **options)
    context = data.subset(range(3))
    drawn = result.posterior(context, 60, seed=4)
    assert len(drawn.population) == 50
    given = Posterior(
        model, guide, context, 60, seed=4, population=result.choose_population(seed=4)
    )
    assert torch.equal(drawn.z, given.z)
    fixed = result.posterior(context, 60, seed=4, population="fixed")
    assert torch.equal(fixed.z, Posterior(model, guide, context, 60, seed=4).z)


@pytest.mark.parametrize(
    "taste", [{"correlation": "none"}, {"coefficients": {0: "fixed"}}], ids=["independent", "fixed"]
)
def test_people_alike_beside_restricted_coefficients_are_a_logit(taste: dict) -> None:
    """The homogeneous model beside independent or fixed coefficients has the logit's maximum."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(48, 2))
    margin = (items[::2] - items[1::2]) @ [1, -1]
    choice = (rng.random(24) < 1 / (1 + np.exp(-margin))) * 1.0
    left = np.arange(0, 48, 2)
    data = Preferences(left, left + 1, choice, np.arange(0, 25, 3), items=items)
    model = HeterogeneousBTL.for_data(data, None, utility="linear", **taste)
    model.take_units(data)
    average = fit_average(model, data, fit, seed=0)
    plain = HeterogeneousBTL(2, 0, utility="linear")
    fit(plain, None, data, progress_bar=False)
    found, expected = (m.coefficients(torch.zeros(1, 1, 0)) for m in (average, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    result = FitResult(model, None, data, pd.DataFrame())
    drawn = result.choose_population(2, 64)
    assert all(not member.utility.loading.any() for member, _ in drawn.members)  # 24 choices.
    assert Posterior(model, None, data, 25, population=drawn).z.shape[:2] == (25, 8)


def test_people_who_are_enough_are_held_to_their_population(recwarn) -> None:
    data = draw_people(40, 6, 0, spread=2.0)  # Twenty for each parameter.
    model = HeterogeneousBTL(1, 1, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=8)
    result = fit(model, guide, data, objective=MaximumLikelihood(64), progress_bar=False)
    assert result.choose_population() == "fixed"
    assert result.posterior(data, 25).population is None
    assert not [w for w in recwarn if "few" in str(w.message)]
