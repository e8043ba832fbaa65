"""Willingness to pay: quantiles of ratios against closed forms and against draws."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from fssa_bayes import (
    HeterogeneousBTL,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    fit,
)
from fssa_bayes.population import willingness_to_pay

KINDS = {"price": "-lognormal", "time": "-lognormal"}


def trips(people: int, comparisons: int) -> Preferences:
    """Trips compared by people, without answers, prices in units of 10."""
    rng = np.random.default_rng(0)
    items = pd.DataFrame(rng.normal(size=(40, 2)) * [10, 1], columns=["price", "time"])
    left = rng.integers(40, size=people * comparisons)
    right = (left + rng.integers(1, 40, size=len(left))) % 40
    offsets = np.arange(0, len(left) + 1, comparisons)
    options = {"items": items.to_numpy(), "feature_names": items.columns}
    return Preferences(left, right, np.zeros(len(left)), offsets, **options)


def log_normal_model(data: Preferences) -> HeterogeneousBTL:
    """Coefficients of log price N(-3, .5²) and log time N(.5, .7²), independent."""
    options = {"coefficients": KINDS, "feature_names": data.feature_names, "correlation": "none"}
    model = HeterogeneousBTL(2, None, utility="linear", **options)
    model.take_units(data)
    with torch.no_grad():
        location = torch.tensor([-3.0, 0.5], dtype=torch.float64) + model.feature_scale.log()
        model.utility.mean.copy_(location)
        model.utility.loading.copy_(torch.diag(torch.tensor([0.5, 0.7])))
    return model


def test_quantiles_of_log_normal_ratios_are_known_and_lie_within_their_errors() -> None:
    data = trips(400, 12)
    truth = log_normal_model(data)
    answered, _ = truth.simulate(data, seed=1)
    model = log_normal_model(data)
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=16)
    # The table of the truth itself: log of the ratio is N(3.5, .5² + .7²), the value negative.
    law = stats.lognorm(np.sqrt(0.74), scale=np.exp(3.5))
    exact = -law.ppf([0.5, 0.95, 0.05])
    table = willingness_to_pay(truth, NeuralProcessGuide(truth), answered, "price")
    row = table.loc["time"]
    np.testing.assert_allclose(row[["median", "lower", "upper"]], exact, rtol=0.02)
    assert row["price_positive"] == 0
    result = fit(model, guide, answered, objective=MaximumLikelihood(), progress_bar=False)
    row = result.willingness_to_pay("price").loc["time"]
    assert abs(row["median"] - exact[0]) < 4 * row["se_median"]
    assert row["se_median"] < 0.2 * abs(exact[0])


def test_a_person_has_the_quantiles_of_their_draws_and_no_interval_where_the_sign_is_open() -> None:
    data = trips(4, 3)
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, utility="linear", feature_names=data.feature_names)
    model.take_units(data)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([-3.0, -2.0]))
        model.utility.loading.copy_(torch.tensor([[0.5, 0.0], [0.2, 1.0]]))
    answered, _ = model.simulate(data, seed=2)
    guide = NeuralProcessGuide(model)
    posterior = Posterior(model, guide, answered, num_samples=500, fallback=None)
    table = posterior.willingness_to_pay("price", level=0.8)
    z, log_weights = posterior.proposals
    beta = model.coefficients(z).detach().double()
    ratio = (-beta[..., 1] / beta[..., 0])[:, 2].numpy()
    order = ratio.argsort()
    cumulative = log_weights[:, 2].double().exp().numpy()[order].cumsum()
    expected = [ratio[order][np.searchsorted(cumulative, q)] for q in (0.1, 0.5, 0.9)]
    row = table.loc[(2, "time")]
    np.testing.assert_allclose(row[["lower", "median", "upper"]], expected, rtol=1e-4)
    with torch.no_grad():
        model.utility.mean[0] = -0.2
    unsure = Posterior(model, guide, answered, num_samples=500, fallback=None)
    table = unsure.willingness_to_pay("price")
    assert (table["price_positive"] > 0.05).any()
    assert table["lower"].isna().equals(table["price_positive"] > 0.05)
    assert table["median"].notna().all()


def test_bad_arguments_are_named() -> None:
    data = trips(4, 3)
    model = HeterogeneousBTL(2, 2, utility="linear")
    model.take_units(data)
    posterior = Posterior(model, NeuralProcessGuide(model), data, num_samples=50, fallback=None)
    with pytest.raises(ValueError, match="price must be known names, got 'toll'"):
        posterior.willingness_to_pay("toll")
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1, got 1\.5"):
        posterior.willingness_to_pay("price", level=1.5)
    other = HeterogeneousBTL(2, 2)
    posterior = Posterior(other, NeuralProcessGuide(other), data, num_samples=50, fallback=None)
    with pytest.raises(ValueError, match="needs utility='linear'"):
        posterior.willingness_to_pay("price")
