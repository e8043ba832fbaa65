"""The normal distribution that Gaussian potentials add up to, with its gradient in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["FromPrecision"]


class FromPrecision(Function):
    r"""Finds mean, triangular scale and its inverse of :math:`N(P^{-1} a, P^{-1})`.

    With :math:`P^{-1} = T T^T` and T lower triangular, a change of P changes the results by

    .. math:: dT = -T\,Φ(T^T\,dP\,T), \quad dm = P^{-1}(da - dP\,m), \quad
        dT^{-1} = -T^{-1}\,dT\,T^{-1},

    where Φ takes the lower triangle and half the diagonal. The gradients are the transposed maps: a
    few products of small matrices, where autograd goes back through two solutions of triangular
    systems.

    Args:
        precision: P with shape (U, K, K), symmetric and at least I; the results are NaN where it
            has no factor because something is not finite.
        shift: a with shape (U, K).

    Returns:
        The mean m (U, K), T and its inverse, both (U, K, K).

    References:
        Murray (2016), Differentiation of the Cholesky decomposition, arXiv 1602.07527.
    """

    @staticmethod
    def forward(ctx: Any, precision: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # P = F Fᵀ with F upper triangular, which reversing the order twice gives, and T = F⁻ᵀ.
        factor, failed = torch.linalg.cholesky_ex(precision.flip(-2, -1))
        factor = factor.masked_fill(failed.bool()[:, None, None], torch.nan).flip(-2, -1)
        eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
        tril = torch.linalg.solve_triangular(factor, eye, upper=True).mT
        loc = _covariance_times(tril, shift)
        ctx.save_for_backward(loc, tril, factor)
        ctx.set_materialize_grads(False)
        return loc, tril, factor.mT

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_loc: Tensor | None, of_tril: Tensor | None, of_inverse: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        loc, tril, factor = ctx.saved_tensors
        total = torch.zeros_like(tril) if of_tril is None else of_tril
        if of_inverse is not None:
            total = total - torch.bmm(torch.bmm(factor, of_inverse), factor)
        inner = torch.bmm(tril.mT, total).tril_()
        inner.diagonal(dim1=-2, dim2=-1).mul_(0.5)
        of_precision = torch.bmm(torch.bmm(tril, inner), tril.mT)
        of_shift = torch.zeros_like(loc)
        if of_loc is not None:
            of_shift = _covariance_times(tril, of_loc)
            of_precision.addcmul_(of_shift.unsqueeze(-1), loc.unsqueeze(-2))
        return (of_precision + of_precision.mT).mul_(-0.5), of_shift


def _covariance_times(tril: Tensor, vector: Tensor) -> Tensor:
    """Computes T Tᵀ x for vectors x (U, K)."""
    return torch.bmm(tril, torch.bmm(tril.mT, vector.unsqueeze(-1))).squeeze(-1)
