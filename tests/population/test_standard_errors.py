"""Inverses of information without full rank, and errors of functions of the estimates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssa_bayes.population import with_standard_errors
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


def test_errors_are_those_of_the_delta_method() -> None:
    theta = torch.tensor([0.5, -0.3, 0.0], dtype=torch.float64)
    outer = 2 * INFORMATION
    columns = with_standard_errors(
        lambda x: torch.stack([x[0] * x[1], x[0].exp(), x[2]]),
        theta,
        outer,
        INFORMATION,
        1,
        num_people=100,
        advice="",
    )
    gradient = np.array([[-0.3, 0.5], [np.exp(0.5), 0.0]])
    covariance = np.linalg.inv(INFORMATION[:2, :2].numpy())
    expected = np.sqrt(np.einsum("pi,ij,pj->p", gradient, covariance, gradient))
    np.testing.assert_allclose(columns["estimate"], [-0.15, np.exp(0.5), 0.0])
    for name, factor in (("se_hessian", 1), ("se_outer_product", 0.5), ("se_sandwich", 2)):
        np.testing.assert_allclose(columns[name], [*(factor**0.5 * expected), np.nan])
