"""Distributions of coefficients: derivatives by automatic differentiation, units, errors."""

from __future__ import annotations

import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, load, save
from fssa_bayes.model import CoefficientMap

NAMES = ["price", "time", "change", "comfort"]
MAPS = [
    (["normal", "lognormal", "-lognormal", "fixed"], None),
    (["normal", "lognormal", "-lognormal", "fixed"], 2),
    (["-lognormal", "normal", "lognormal", "-lognormal"], 0),
    (["fixed", "normal", "normal", "lognormal"], 0),
]


@pytest.mark.parametrize(("kinds", "price"), MAPS)
def test_derivatives_are_those_of_the_map(kinds: list[str], price: int | None) -> None:
    torch.manual_seed(0)
    coefficients = CoefficientMap(kinds, price)
    eta, weight = torch.randn(2, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(coefficients, eta)
    torch.testing.assert_close(coefficients.jacobian(eta), jacobian)
    hessian = torch.autograd.functional.hessian(lambda x: (weight * coefficients(x)).sum(), eta)
    torch.testing.assert_close(coefficients.curvature(eta, weight), hessian)


@pytest.mark.parametrize(("kinds", "price"), MAPS)
def test_other_units_of_features_give_the_same_utilities(
    kinds: list[str], price: int | None
) -> None:
    torch.manual_seed(1)
    coefficients = CoefficientMap(kinds, price)
    mean, scale = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
    loading, z = torch.randn(4, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    location, slope = coefficients.in_units(mean, loading, scale)
    torch.testing.assert_close(
        coefficients(location + slope @ z), coefficients(mean + loading @ z) / scale
    )


def test_signs_and_willingness_to_pay_are_what_their_names_say() -> None:
    torch.manual_seed(2)
    model = HeterogeneousBTL(
        4,
        None,
        utility="linear",
        coefficients={"price": "-lognormal", "time": "lognormal", "comfort": "fixed"},
        feature_names=NAMES,
        correlation="none",
    )
    assert model.latent_dim == 3
    beta = model.utility.coefficients(torch.randn(1000, 5, 3))
    assert (beta[..., 0] < 0).all()
    assert (beta[..., 1] > 0).all()
    assert 0.1 < (beta[..., 2] > 0).float().mean() < 0.9
    assert (beta[..., 3] == 0).all()
    paying = HeterogeneousBTL(
        4,
        None,
        utility="linear",
        coefficients={"price": "-lognormal"},
        price="price",
        feature_names=NAMES,
    )
    z = torch.randn(7, 4)
    beta = paying.utility.coefficients(z)
    willing = z @ paying.utility.loading.T
    torch.testing.assert_close(-beta[:, 1:] / beta[:, :1], willing[:, 1:])


def test_a_coefficient_beyond_float_range_stays_finite() -> None:
    coefficients = CoefficientMap(["lognormal", "-lognormal"])
    beta = coefficients(torch.tensor([1e4, 1e4]))
    assert beta.isfinite().all()
    assert (coefficients(torch.tensor([-1e4, -1e4])) == 0).all()


def test_uncorrelated_coefficients_stay_uncorrelated_under_training() -> None:
    model = HeterogeneousBTL(3, None, utility="linear", correlation="none")
    z = torch.randn(4, 2, 3)
    (model.utility(torch.randn(6, 3), z) ** 2).sum().backward()
    gradient = model.utility.loading.grad
    assert (gradient[~torch.eye(3, dtype=torch.bool)] == 0).all()
    assert (gradient.diagonal() != 0).all()


def test_a_saved_model_keeps_its_distributions(tmp_path) -> None:
    model = HeterogeneousBTL(
        4,
        None,
        utility="linear",
        coefficients={"price": "-lognormal", 3: "fixed"},
        price="price",
        feature_names=NAMES,
    )
    guide = NeuralProcessGuide(model)
    save(tmp_path / "run", model, guide)
    again, _ = load(tmp_path / "run")
    z = torch.randn(5, 2, 3)
    assert torch.equal(again.utility.coefficients(z), model.utility.coefficients(z))
    assert list(again.feature_names) == NAMES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": {"cost": "fixed"}, "feature_names": NAMES}, "must name features.*'cost'"),
        ({"coefficients": {"price": "fixed"}}, "build it with feature_names=data.feature_names"),
        ({"coefficients": {0: "gamma"}}, r"must be of .*, got 'gamma' for 0"),
        ({"coefficients": ["fixed"]}, "one distribution a feature, 4, got 1"),
        ({"correlation": "some"}, "must be 'full' or 'none', got 'some'"),
        ({"correlation": "none", "latent_dim": 2}, "latent_dim must be 4 with correlation='none'"),
        ({"coefficients": {0: "fixed"}, "latent_dim": 4}, "between 1 and 3.*got 4"),
        ({"coefficients": ["fixed"] * 4, "latent_dim": 1}, "between 0 and 0.*got 1"),
        ({"coefficients": {0: "lognormal"}, "latent_dim": 0}, "between 1 and 4.*got 0"),
        ({"coefficients": {0: "fixed"}, "utility": "mlp", "latent_dim": 1}, "utility='linear'"),
        ({"feature_names": ["a"]}, "feature_names must have 4 names, got 1"),
        ({"price": "toll", "feature_names": NAMES}, "price must name features"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    options = {"latent_dim": None, "utility": "linear"} | options
    with pytest.raises(ValueError, match=message):
        HeterogeneousBTL(4, **options)


@pytest.mark.parametrize("options", [{"coefficients": {"price": "fixed"}}, {"price": "price"}])
def test_a_forgotten_utility_is_named_before_the_names_of_features(options: dict) -> None:
    data = Preferences([0], [1], [1.0], [0, 1], items=torch.eye(2), feature_names=["price", "time"])
    with pytest.raises(ValueError, match="concern utility='linear'.*got utility='bilinear'"):
        HeterogeneousBTL.for_data(data, 1, **options)
