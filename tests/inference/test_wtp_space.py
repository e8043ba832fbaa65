"""Willingness-to-pay space with a fixed price is preference space in other parameters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.inference import FitResult

NAMES = ["price", "time", "comfort"]


def answers(people: int = 150, comparisons: int = 12) -> Preferences:
    """People with a common coefficient of price, and normal ones of time and comfort."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(40, 3)) * [10.0, 1.0, 2.0]
    left = rng.integers(40, size=people * comparisons)
    right = (left + rng.integers(1, 40, size=len(left))) % 40
    beta = rng.multivariate_normal([-1.0, 0.4], [[0.8, 0.1], [0.1, 0.09]], size=people)
    beta = np.c_[np.full(people, -0.12), beta].repeat(comparisons, 0)
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(len(left)) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(0, len(left) + 1, comparisons)
    return Preferences(left, right, choice, offsets, items=items, feature_names=NAMES)


def fitted(data: Preferences, kinds: list[str], price: str | None) -> FitResult:
    torch.manual_seed(0)
    options = {"coefficients": kinds, "feature_names": NAMES, "price": price}
    model = HeterogeneousBTL(3, None, utility="linear", **options)
    return fit(model, None, data, progress_bar=False)


def test_without_heterogeneity_both_spaces_have_one_maximum_and_one_covariance() -> None:
    data = answers()
    plain, paid = (fitted(data, ["fixed"] * 3, price) for price in (None, "price"))
    values = [result.log_marginal_likelihood().value for result in (plain, paid)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    beta, omega = (result.population().loc["mean", "estimate"] for result in (plain, paid))
    expected = -beta / beta["price"]
    np.testing.assert_allclose(omega.drop("price"), expected.drop("price"), rtol=1e-4)
    assert omega["price"] == pytest.approx(beta["price"], rel=1e-4)
    for kind in ("hessian", "sandwich"):
        ratio = np.c_[beta[NAMES[1:]] / beta["price"] ** 2, -np.eye(2) / beta["price"]]
        covariance = ratio @ plain.vcov(kind).loc[NAMES, NAMES].to_numpy() @ ratio.T
        found = paid.vcov(kind).loc[NAMES[1:], NAMES[1:]]
        np.testing.assert_allclose(found, covariance, rtol=2e-3)


def test_the_models_own_price_need_not_be_named() -> None:
    data = answers(40)
    plain, paid = (fitted(data, ["fixed"] * 3, price) for price in (None, "price"))
    tables = [paid.willingness_to_pay(*named, num_populations=20) for named in ((), ("price",))]
    pd.testing.assert_frame_equal(*tables)
    for result in (plain, plain.posterior(data, num_samples=50)):
        with pytest.raises(ValueError, match=r"price must be one of the features .*, got None"):
            result.willingness_to_pay()


def test_parameters_of_either_space_give_the_other_ones_choices() -> None:
    """β = −β_price ω for every z, so that log-probabilities are equal draw by draw."""
    data = answers(20)
    kinds = ["fixed", "normal", "normal"]
    models = []
    for price in (None, "price"):
        model = HeterogeneousBTL(
            3, None, utility="linear", coefficients=kinds, feature_names=NAMES, price=price
        )
        model.take_units(data)
        models.append(model.double())
    plain, paid = models
    with torch.no_grad():
        plain.utility.mean.copy_(torch.tensor([-1.3, -0.9, 0.7], dtype=torch.float64))
        plain.utility.loading.copy_(torch.tensor([[0.0, 0.0], [0.8, 0.0], [0.2, 0.5]]))
        paid.utility.mean.copy_(plain.utility.mean)
        paid.utility.mean[1:] = plain.utility.mean[1:] / -plain.utility.mean[0]
        paid.utility.loading.copy_(plain.utility.loading / -plain.utility.mean[0])
    batch = data.batch()
    batch = batch.replace(items=batch.items.double(), choice=batch.choice.double())
    z = torch.randn(5, 20, 2, generator=torch.Generator().manual_seed(0)).double()
    one, two = (model.choice(batch, z).log_prob(batch.choice) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7)


@pytest.mark.slow
def test_fits_of_correlated_normals_agree_within_monte_carlo_error() -> None:
    data = answers()
    kinds = ["fixed", "normal", "normal"]
    plain, paid = (fitted(data, kinds, price) for price in (None, "price"))
    values = [result.log_marginal_likelihood(target_error=0.2) for result in (plain, paid)]
    error = np.hypot(values[0].standard_error, values[1].standard_error)
    # A fit ends within a twentieth of a nat of its maximum.
    assert abs(values[0].value - values[1].value) < 3 * error + 0.05
    of_plain, of_paid = (result.population(512) for result in (plain, paid))
    scale = -of_plain.loc[("mean", "price"), "estimate"]
    for quantity in ("mean", "sd"):
        for name in NAMES[1:]:
            row = of_paid.loc[quantity, name]
            expected = of_plain.loc[(quantity, name), "estimate"] / scale
            assert abs(row["estimate"] - expected) < 0.15 * row["se_hessian"], (quantity, name)
    found, expected = (
        table.loc["correlation", "estimate"].iloc[0] for table in (of_paid, of_plain)
    )
    error = of_paid.loc["correlation", "se_hessian"].iloc[0]
    assert abs(found - expected) < 0.15 * error


def test_the_price_may_have_the_sign_against_which_a_search_starts() -> None:
    """From the other sign no ascent leads across a price of 0, where willingness to pay is not."""
    data = answers(60, 8)
    found = []
    for factor in (1.0, -1.0):
        torch.manual_seed(0)
        kinds = {"coefficients": ["fixed", "fixed", "normal"], "feature_names": NAMES}
        model = HeterogeneousBTL(3, None, utility="linear", price="price", **kinds)
        with torch.no_grad():
            model.utility.mean.copy_(factor * torch.tensor([-0.1, -5.0, 5.0]))
        result = fit(model, None, data, progress_bar=False)
        found.append(result.log_marginal_likelihood(target_error=0.05).value)
        assert result.population().loc[("mean", "price"), "estimate"] < 0
    assert found[0] == pytest.approx(found[1], abs=0.2)
