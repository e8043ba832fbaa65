r"""The log-probability of choices from sets, with the sums inside and a gradient of its own.

With :math:`v_j` the utility of alternative j less that of the base alternative, whose own is 0,
the probability that w is chosen is :math:`e^{v_w} / (1 + \sum_j e^{v_j})`: the multinomial logit.
Its logarithm is :math:`(v_w - v_*) - \log(1 + r)`, where :math:`v_*` is the largest utility and r
the sum of :math:`e^{v_j - v_*}` over the other alternatives, so that no digit is lost of a
probability near 0 or near 1. The derivative by :math:`v_j` is 1 for the chosen alternative, less
the probability of j. Draws are taken a few at a time, so that what lies between stays in the
processor's cache, and no exponential is held for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from fssa_bayes.kernels.comparisons import is_transformed

__all__ = ["choice_set"]

_PART = 2**15  # Utilities taken at once: a quarter of a megabyte in double precision.


def choice_set(
    margin: Tensor, chosen: Tensor, available: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    r"""Evaluates the log-probability of the choice from each set, in nats.

    Args:
        margin: Utilities of the alternatives less that of the base alternative, in nats, with shape
            (*, T, J − 1) for T sets of up to J alternatives.
        chosen: Which alternative was chosen, 0 for the base and j for the j-th of the others, int64
            with a shape that broadcasts against (*, T).
        available: True where there is an alternative, with shape (T, J − 1); everywhere if None.
            What stands elsewhere in `margin`, NaN included, has no effect.
        backend: `"reference"`, plain PyTorch, or `"chunked"`; None for the latter, but under
            transforms of `torch.func`, whose derivatives the reference computes.

    Returns:
        Log-probabilities with shape (*, T).

    Raises:
        ValueError: If shapes do not fit or a backend is unknown.

    References:
        McFadden (1974), Conditional logit analysis of qualitative choice behavior.
    """
    if available is not None and available.shape != margin.shape[-2:]:
        raise ValueError(
            f"available must have shape (T, J − 1) = {tuple(margin.shape[-2:])} as margin has, got "
            f"{tuple(available.shape)}"
        )
    if backend not in (None, "reference", "chunked"):
        raise ValueError(f"backend must be 'reference', 'chunked' or None, got {backend!r}")
    if available is not None:
        margin = margin.masked_fill(~available, -torch.inf)
    if backend == "reference" or is_transformed(margin):
        return reference(margin, chosen)
    return _ChoiceSet.apply(margin, chosen)


def reference(margin: Tensor, chosen: Tensor) -> Tensor:
    """Does what :func:`choice_set` does, in plain PyTorch; alternatives of −∞ are not available."""
    utility = F.pad(margin, (1, 0))
    lead = torch.broadcast_shapes(utility.shape[:-1], chosen.shape)
    log_prob = utility.log_softmax(-1).expand(*lead, -1)
    return log_prob.gather(-1, chosen.expand(lead).unsqueeze(-1)).squeeze(-1)


class _ChoiceSet(Function):
    """Evaluates a few draws at a time, forward and backward."""

    @staticmethod
    def forward(ctx: Any, margin: Tensor, chosen: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(margin.shape[:-1], chosen.shape)
        flat, own = _flatten(margin, chosen, lead)
        log_prob, total = (margin.new_empty(flat.shape[:-1]) for _ in range(2))
        for part in _parts(flat):
            largest, rest = _largest_and_rest(flat[part])
            total[part] = largest + torch.log1p(rest)
            won = torch.zeros_like(largest)
            for number, value in enumerate(flat[part].unbind(-1), 1):
                won = torch.where(_of(own, part) == number, value, won)
            log_prob[part] = (won - largest) - torch.log1p(rest)
        ctx.save_for_backward(margin, chosen, total)
        return log_prob.view(lead)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        margin, chosen, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # A gradient that is itself to be differentiated.
            lead = grad.shape
            share = F.pad(margin, (1, 0)).softmax(-1)[..., 1:].expand(*lead, -1)
            numbers = torch.arange(1, margin.shape[-1] + 1, device=margin.device)
            won = chosen.expand(lead).unsqueeze(-1) == numbers
            slope = grad.unsqueeze(-1) * (won.to(share) - share)
            return slope.sum_to_size(margin.shape), None
        flat, own = _flatten(margin, chosen, grad.shape)
        slope = margin.new_empty(flat.shape)
        numbers = torch.arange(1, flat.shape[-1] + 1, device=margin.device)
        rows = grad.reshape(total.shape)
        for part in _parts(flat):
            share = (flat[part] - total[part].unsqueeze(-1)).exp_()
            won = _of(own, part).unsqueeze(-1) == numbers
            torch.mul(won.to(share.dtype).sub(share), rows[part].unsqueeze(-1), out=slope[part])
        return slope.view(*grad.shape, margin.shape[-1]).sum_to_size(margin.shape), None


def _flatten(margin: Tensor, chosen: Tensor, lead: torch.Size) -> tuple[Tensor, Tensor]:
    """Returns margins (L, T, J − 1), and choices (L, T), or (1, T) where they are the same."""
    rows = lead[:-1].numel()
    flat = margin.expand(*lead, margin.shape[-1]).reshape(rows, *margin.shape[-2:])
    if chosen.numel() == lead[-1]:
        return flat, chosen.reshape(1, -1)
    return flat, chosen.expand(lead).reshape(rows, lead[-1])


def _of(chosen: Tensor, part: slice) -> Tensor:
    return chosen if len(chosen) == 1 else chosen[part]


def _parts(flat: Tensor) -> list[slice]:
    size = max(1, _PART // max(1, flat[0].numel())) if len(flat) else 1
    return [slice(start, start + size) for start in range(0, len(flat), size)]


def _largest_and_rest(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest utility of each set, and the others' exponentials relative to it.

    Sums are taken alternative by alternative, so that absent ones change no bit.
    """
    first, *others = margin.unbind(-1)
    largest, rest = first.clamp(min=0.0), torch.exp(-first.abs())
    for value in others:
        above = value - largest
        small = torch.exp(-above.abs())
        rest = torch.where(above > 0, (1 + rest) * small, rest + small)
        largest = torch.maximum(largest, value)
    return largest, rest
