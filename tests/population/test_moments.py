"""Moments of coefficients against draws of the coefficients."""

from __future__ import annotations

import pytest
import torch

from fssa_bayes.model import CoefficientMap
from fssa_bayes.population import Moments

KINDS = ["normal", "lognormal", "-lognormal", "fixed", "normal"]


def test_moments_are_those_of_draws() -> None:
    torch.manual_seed(0)
    coefficients = CoefficientMap(KINDS)
    moments = Moments(coefficients, rank=3, has_features=True)
    location = torch.tensor([0.5, -0.4, 0.1, 0.7, -1.0], dtype=torch.float64)
    loading = 0.4 * torch.randn(5, 3, dtype=torch.float64)
    loading[3] = 0.0
    beta = coefficients(location + torch.randn(400_000, 3, dtype=torch.float64) @ loading.T)
    values = moments.values(location, loading).tolist()
    found = dict(zip(moments.labels(list("abcde")), values, strict=True))
    correlation = torch.corrcoef(beta[:, [0, 1, 2, 4]].T)
    for place, name in enumerate("abcde"):
        assert found["mean", name] == pytest.approx(beta[:, place].mean().item(), abs=0.01)
        if name != "d":
            assert found["sd", name] == pytest.approx(beta[:, place].std().item(), rel=0.02)
    assert ("sd", "d") not in found
    for pair, expected in (
        ("b, a", correlation[1, 0]),
        ("c, b", correlation[2, 1]),
        ("e, c", correlation[3, 2]),
        ("e, a", correlation[3, 0]),
    ):
        assert found["correlation", pair] == pytest.approx(expected.item(), abs=0.015)
    assert found["median", "c"] == pytest.approx(beta[:, 2].median().item(), abs=0.01)
    assert found["location of log", "b"] == pytest.approx(-0.4)
    assert found["share positive", "a"] == pytest.approx(
        (beta[:, 0] > 0).double().mean().item(), abs=0.01
    )
    assert ("share positive", "b") not in found


def test_uncorrelated_coefficients_have_no_correlations() -> None:
    moments = Moments(CoefficientMap(KINDS), rank=4, are_correlated=False)
    assert not [quantity for quantity, _ in moments.labels("abcde") if quantity == "correlation"]
    values = moments.values(torch.zeros(5), torch.eye(5)[:, :4])
    assert len(values) == len(moments.labels("abcde"))


def test_without_heterogeneity_there_are_means_alone() -> None:
    moments = Moments(CoefficientMap(["normal", "normal"]), rank=0, has_features=True)
    assert moments.labels("ab") == [("mean", "a"), ("mean", "b")]
    assert moments.values(torch.ones(2), torch.zeros(2, 0)).tolist() == [1.0, 1.0]
