"""Parts of a flow: inverses, Jacobians, densities and the identity."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.distributions import transforms as T
from torch import Tensor

from fssa_bayes.guide.couplings import AffineCoupling, BentCoupling, HeavyNoise, Whitening


def coupling(strength: float) -> BentCoupling:
    """Builds a coupling of 1 + 2 dimensions whose parameters depend on the first."""

    def hypernet(passive: Tensor) -> tuple[Tensor, ...]:
        wave = torch.cat([passive.sin(), (2 * passive).cos()], -1)
        return strength * wave, 0.5 * strength * wave.flip(-1), strength * (wave - 0.3)

    return BentCoupling(1, hypernet)


def affine() -> AffineCoupling:
    bent = coupling(0.7)
    return AffineCoupling(1, lambda passive: bent.hypernet(passive)[:2])


def whitening() -> Whitening:
    tril = torch.tensor([[2.0, 0.0, 0.0], [-1.0, 0.5, 0.0], [0.3, 0.2, 0.1]]).double()
    return Whitening(torch.tensor([[1.0, -2.0, 0.5]]).double(), tril[None], tril.inverse()[None])


TRANSFORMS = pytest.mark.parametrize(
    "transform",
    [affine(), coupling(0.7), coupling(8.0), whitening()],
    ids=["affine", "bent", "very bent", "whitening"],
)


@TRANSFORMS
def test_inverse_and_jacobian(transform: BentCoupling | Whitening) -> None:
    x = 3 * torch.randn(50, 1, 3, dtype=torch.float64)
    y = transform(x)
    torch.testing.assert_close(transform.inv(y.clone()), x, atol=1e-8, rtol=1e-8)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v).sum((0, 1)), x)
    expected = torch.linalg.slogdet(jacobian.permute(1, 2, 0, 3)).logabsdet
    remembered = transform.log_abs_det_jacobian(x, y)
    afresh = transform.log_abs_det_jacobian(x.clone(), y.clone())
    for result in (remembered, afresh):
        torch.testing.assert_close(result, expected, atol=1e-8, rtol=1e-8)


def test_affine_coupling_is_that_of_pyro_beyond_its_bounds_too() -> None:
    weight = torch.tensor([3.0, -4.0, 9.0, 2.0], dtype=torch.float64)  # Log-scales to ±30.

    def hypernet(passive: Tensor) -> tuple[Tensor, ...]:
        return (passive * parameters).chunk(2, -1)

    results = []
    for kind in (AffineCoupling, T.AffineCoupling):
        torch.manual_seed(0)
        parameters = weight.clone().requires_grad_()
        x = (2 * torch.randn(50, 3, dtype=torch.float64)).requires_grad_()
        transform = kind(1, hypernet)
        y = transform(x)
        log_det = transform.log_abs_det_jacobian(x, y)
        (y.sin().sum() + log_det.square().sum()).backward()
        results.append([y, log_det, transform.inv(y.detach().clone()), x.grad, parameters.grad])
    assert (results[0][1].abs() > 5).any()
    torch.testing.assert_close(*results)


def test_no_parameters_are_the_identity() -> None:
    x = 5 * torch.randn(20, 3)
    transform = coupling(0.0)
    transform.hypernet = lambda passive: (torch.zeros(len(passive), 2),) * 3
    torch.testing.assert_close(transform(x), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(transform.inv(x.clone()), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bend", [-0.6, 0.6])
def test_tails_have_slopes_of_their_own(bend: float) -> None:
    raw = math.atanh(bend / 0.95)
    transform = BentCoupling(0, lambda _: (torch.zeros(1), torch.zeros(1), torch.full((1,), raw)))
    far = torch.tensor([[-1001.0], [-1000.0], [1000.0], [1001.0]]).double()
    slope = transform(far).diff(dim=0).flatten()[[0, 2]]
    torch.testing.assert_close(
        slope, torch.tensor([1 - bend, 1 + bend]).double(), atol=1e-5, rtol=0
    )


def test_float32_survives_far_points() -> None:
    y = torch.tensor([[0.0, 1e4, -1e4], [0.5, -1e4, 1e4]])
    transform = coupling(2.0)
    x = transform.inv(y)
    torch.testing.assert_close(transform(x.clone()), y, atol=0.05, rtol=1e-4)
    assert torch.isfinite(transform.log_abs_det_jacobian(x, y)).all()


def test_noise_is_a_density_and_draws_follow_it() -> None:
    noise = HeavyNoise(torch.tensor([True, False]), 2, torch.float64)
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).unsqueeze(1).expand(-1, 2, -1)
    density = noise.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(density.sum(0), torch.ones(2).double())
    # E r⁴ of a two-dimensional normal of scale s is 8 s⁴.
    fourth = (density * grid.square().sum(-1).square()).sum(0)
    expected = torch.tensor([8 * (0.9 + 0.1 * 1.5**4), 8.0]).double()
    torch.testing.assert_close(fourth, expected)
    draws = noise.sample((200_000,)).square().sum(-1).square().mean(0)
    assert ((draws - expected).abs() < 0.03 * expected).all()


def test_noise_without_a_wider_part_is_standard_normal() -> None:
    noise = HeavyNoise(torch.tensor([False]), 3, torch.float32)
    value = torch.randn(10, 1, 3, requires_grad=True)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(value).sum(-1)
    result = noise.log_prob(value)
    torch.testing.assert_close(result, expected)
    (gradient,) = torch.autograd.grad(result.sum(), value)
    torch.testing.assert_close(gradient, -value)
