"""Log-normal coefficients whose data want the other sign, and prices without effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.population import describe_vanished

NAMES = ["price", "time"]


def answer(mean: list[float], spread: list[float]) -> Preferences:
    """People with normal coefficients of price and time."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(40, 2))
    left = rng.integers(40, size=2400)
    right = (left + rng.integers(1, 40, size=len(left))) % 40
    beta = rng.normal(mean, spread, size=(200, 2)).repeat(12, 0)
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(len(left)) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(0, len(left) + 1, 12)
    return Preferences(left, right, choice, offsets, items=items, feature_names=NAMES)


def build(data: Preferences, **options) -> HeterogeneousBTL:
    model = HeterogeneousBTL(2, None, utility="linear", feature_names=NAMES, **options)
    model.take_units(data)
    return model


@pytest.mark.parametrize("correlation", ["none", "full"])
@pytest.mark.parametrize("mean", [1.0, 0.3])
def test_a_coefficient_of_the_wrong_sign_is_named(mean: float, correlation: str) -> None:
    """Everybody, or most people, like what the model says that nobody likes."""
    data = answer([mean, 1.0], [0.3, 0.5])
    model = build(data, coefficients={"price": "-lognormal"}, correlation=correlation)
    with pytest.warns(UserWarning, match="estimated at 0, of 'price'.*'-lognormal' has one sign"):
        fit(model, None, data, progress_bar=False)


def test_coefficients_of_the_right_sign_are_not_named() -> None:
    data = answer([-1.0, 1.0], [0.3, 0.5])
    model = build(data, coefficients={"price": "-lognormal", "time": "lognormal"})
    fit(model, None, data, progress_bar=False)  # Warnings are errors.
    assert describe_vanished(model, data) == ""


def test_an_effect_counts_by_what_the_largest_difference_is_worth() -> None:
    data = answer([0.0, 0.0], [0.0, 0.0])
    model = build(data, coefficients=["lognormal", "normal"])
    items = data.items.double()
    largest = (items[data.left] - items[data.right]).abs().max(0).values / model.feature_scale
    with torch.no_grad():
        model.utility.loading.zero_()
        for worth, is_named in ((0.051, False), (0.049, True)):
            model.utility.mean[0] = np.log(worth / largest[0].item())
            assert bool(describe_vanished(model, data)) is is_named
        model.utility.loading[0, 0] = 0.1  # One in ten people has at least exp(.128) times that.
        assert describe_vanished(model, data) == ""


def test_a_price_without_effect_is_named_where_others_are_relative_to_it() -> None:
    data = answer([0.0, 1.0], [0.0, 0.5])
    model = build(data, coefficients={"price": "fixed"}, price="price")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([1e-4, 3.0]))
    assert "the price 'price' is estimated at 0" in describe_vanished(model, data)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([-0.5, 3.0]))
    assert describe_vanished(model, data) == ""


def test_a_price_that_may_be_0_is_said_beside_its_standard_error() -> None:
    data = answer([0.02, 1.0], [0.0, 0.0])
    model = build(data, coefficients=["fixed", "fixed"], price="price")
    result = fit(model, None, data, progress_bar=False)
    with pytest.warns(UserWarning, match="price 'price' is .* not distinct from 0: willingness"):
        table = result.population()
    row = table.loc[("mean", "price")]
    assert abs(row["estimate"]) < 2 * row["se_hessian"]


def test_models_without_such_coefficients_have_none() -> None:
    data = answer([0.0, 1.0], [0.0, 0.5])
    assert describe_vanished(build(data), data) == ""
    assert describe_vanished(HeterogeneousBTL(2, 1), data) == ""
