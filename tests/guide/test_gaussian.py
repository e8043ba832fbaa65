"""Normal distributions of sums of potentials, with gradients in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fssa_bayes.guide.gaussian import FromPrecision


def precision_of(directions: Tensor) -> Tensor:
    """Returns I + Σ v vᵀ for directions (U, N, K)."""
    eye = torch.eye(directions.shape[-1], dtype=directions.dtype)
    return eye + directions.mT @ directions


@pytest.fixture(params=[1, 2, 5])
def potentials(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Returns directions (3, 4, K) and shifts (3, K) in double precision."""
    directions = torch.randn(3, 4, request.param, dtype=torch.float64, requires_grad=True)
    return directions, torch.randn(3, request.param, dtype=torch.float64, requires_grad=True)


def test_mean_and_scale_are_those_of_the_precision(potentials: tuple[Tensor, Tensor]) -> None:
    directions, shift = potentials
    precision = precision_of(directions)
    covariance = torch.linalg.inv(precision)
    loc, tril, inverse = FromPrecision.apply(precision, shift)
    torch.testing.assert_close(loc, (covariance @ shift.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(tril, torch.linalg.cholesky(covariance))
    torch.testing.assert_close(inverse @ tril, torch.eye(len(tril.mT[0])).double().expand_as(tril))


def test_gradients_are_finite_differences(potentials: tuple[Tensor, Tensor]) -> None:
    def distribution(directions: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        return FromPrecision.apply(precision_of(directions), shift)

    assert torch.autograd.gradcheck(distribution, potentials)
    for result in range(3):  # Gradients of the others are missing, not 0.
        assert torch.autograd.gradcheck(
            lambda *given, at=result: distribution(*given)[at], potentials
        )


def test_what_is_not_finite_is_nan_for_its_person_alone() -> None:
    precision = torch.eye(2).repeat(2, 1, 1)
    precision[1, 0, 0] = torch.nan
    loc, tril, _ = FromPrecision.apply(precision, torch.ones(2, 2))
    assert torch.equal(loc[0], torch.ones(2))
    assert tril[1].isnan().any()
