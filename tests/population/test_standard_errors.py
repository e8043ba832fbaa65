"""Inverses of information without full rank, and covariances of functions of the estimates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fssa_bayes.population import Uncertainty
from fssa_bayes.population.standard_errors import find_unidentified, invert_information

ROOT = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
INFORMATION = ROOT.T @ ROOT  # The third parameter has none.


def test_directions_without_information_are_left_out() -> None:
    inverse = invert_information(INFORMATION)
    torch.testing.assert_close(inverse, torch.linalg.pinv(INFORMATION))
    assert torch.equal(invert_information(INFORMATION, 1, "expected"), inverse)
    with pytest.warns(UserWarning, match="not positive in 1 of 3 directions, as here"):
        invert_information(INFORMATION, 0, "as here")


def test_quantities_without_information_are_found() -> None:
    jacobian = torch.tensor([[1.0, 0, 0], [1, -1, 0], [0, 0, 1], [1, 0, 0.1], [1, 0, 1]]).double()
    found = find_unidentified(jacobian, invert_information(INFORMATION), INFORMATION)
    assert found.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("people", [2, 3, 30, 99, 100, 1000])
def test_covariances_are_those_of_the_delta_method(people: int) -> None:
    """Fewer than 100 people: enlarged by G / (G − 1), with G − 1 degrees of freedom."""
    jacobian = torch.tensor([[-0.3, 0.5, 0.0], [1.6, 0.0, 0.0], [0.0, 0.0, 1.0]]).double()
    known = Uncertainty(INFORMATION, 2 * INFORMATION, people, None, 1, "")
    covariance = torch.linalg.inv(INFORMATION[:2, :2])
    expected = jacobian[:2, :2] @ covariance @ jacobian[:2, :2].T
    factor = people / (people - 1) if people < 100 else 1
    for kind, scale in (("hessian", 1), ("outer_product", 0.5), ("sandwich", 2 * factor)):
        shown = known.covariance_of(jacobian, kind)
        assert torch.cat([shown[2], shown[:, 2]]).isnan().all()
        error = known.standard_errors(jacobian, kind).numpy()
        if people == 2 and kind != "hessian":  # No more people than parameters.
            assert np.isnan(error).all()
            assert not known.has(kind)
            continue
        torch.testing.assert_close(shown[:2, :2], scale * expected)
        np.testing.assert_allclose(error[:2], (scale * expected.diagonal()).sqrt())
    df = people - 1 if people < 100 else math.inf
    assert (known.degrees_of_freedom(jacobian, "sandwich") == df).all()
    assert known.degrees_of_freedom(jacobian, "hessian").isinf().all()
    assert known.choose(None) == ("hessian" if people == 2 else "sandwich")


def test_an_unknown_kind_is_named() -> None:
    known = Uncertainty(INFORMATION, INFORMATION, 9, None, 1, "")
    with pytest.raises(ValueError, match="kind must be one of hessian, .* got 'robust'"):
        known.choose("robust")
