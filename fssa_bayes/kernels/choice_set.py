r"""The log-probability of a choice from a set, with the sums inside and a gradient of its own.

With utilities :math:`v_j` the probability that w is chosen is :math:`e^{v_w} / \sum_j e^{v_j}`: the
multinomial logit of one stage. Its logarithm is :math:`(v_w - v_*) - \log(1 + r)`, where
:math:`v_*` is the largest utility and r the sum of :math:`e^{v_j - v_*}` over the others, so that
no digit is lost of a probability near 0 or near 1. The derivative by :math:`v_j` is 1 for the
chosen alternative, less the probability of j.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fssa_bayes.kernels.comparisons import is_transformed

__all__ = ["choose_log_prob"]


def choose_log_prob(utility: Tensor, chosen: Tensor) -> Tensor:
    """Evaluates the log-probability of the choice from each set, in nats, with shape (*, T).

    Args:
        utility: Utilities of the alternatives, in nats, −∞ where there is none, (*, T, J).
        chosen: Position of the chosen alternative, int64, broadcast against (*, T).
    """
    if is_transformed(utility):
        return _reference(utility, chosen)
    return _Choose.apply(utility, chosen)


def _reference(utility: Tensor, chosen: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(utility.shape[:-1], chosen.shape)
    utility, chosen = utility.expand(*lead, -1), chosen.expand(lead)
    return utility.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


class _Choose(Function):
    """Evaluates the log-probability, and its gradient without a graph of every alternative."""

    @staticmethod
    def forward(ctx: Any, utility: Tensor, chosen: Tensor) -> Tensor:
        largest, rest = utility[..., 0], torch.zeros_like(utility[..., 0])
        for value in utility[..., 1:].unbind(-1):
            above = value - largest
            small = torch.exp(-above.abs())
            rest = torch.where(above > 0, (1 + rest) * small, rest + small)
            largest = torch.maximum(largest, value)
        total = torch.log1p(rest)
        lead = torch.broadcast_shapes(largest.shape, chosen.shape)
        index = chosen.expand(lead).unsqueeze(-1)
        won = utility.expand(*lead, -1).gather(-1, index).squeeze(-1)
        ctx.save_for_backward(utility, chosen, largest, total)
        return (won - largest) - total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        utility, chosen, largest, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # A gradient that is itself to be differentiated.
            share = utility.log_softmax(-1).exp()
        else:
            share = (utility - (largest + total).unsqueeze(-1)).exp()
        lead = grad.shape
        index = chosen.expand(lead).unsqueeze(-1)
        slope = -(grad.unsqueeze(-1) * share)
        slope = slope.scatter_add(-1, index, grad.unsqueeze(-1))
        return slope.sum_to_size(utility.shape), None
