"""The two passes over a problem's blocks, the same for every operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fssa_bayes.kernels.chunked.bilinear import Bilinear
from fssa_bayes.kernels.chunked.blocks import limits
from fssa_bayes.kernels.chunked.decoder import Decoder
from fssa_bayes.kernels.chunked.gather import Gather, OneHot, Shared
from fssa_bayes.kernels.chunked.mlp import MLP, MLPTable
from fssa_bayes.kernels.chunked.oriented import (
    Oriented,
    log_prob,
    orient,
    probability,
    sum_log_prob,
)
from fssa_bayes.kernels.workers import run_in_parts

__all__ = ["backward", "choose", "forward"]


def forward(
    item: Tensor | None,
    user: Tensor,
    weight: Tensor | None,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    form: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Evaluates log-likelihoods or margins block by block.

    Args:
        item: The items' part of the utility, with shape (M, *); None for `gather`.
        user: The users' part with shape (S, U, *), or utilities.
        weight: The output layer with shape (H,); None but for `mlp`.
        left: See :class:`~fssa_bayes.kernels.comparisons.Comparisons`, as for all up to `form`.
        right: Positions of the right items.
        choice: Choices.
        mask: Mask.
        bias: Position bias.
        form: `"sum"`, `"each"` or `"margin"`.
        save: Whether a backward is to follow.

    Returns:
        The result in its form, and what the backward cannot compute again cheaply: for `mlp` the
        derivatives by the oriented margins with shape (U, N, S), negated; otherwise nothing.
    """
    oriented = orient(left, right, choice, mask)
    shape = (*left.shape, user.shape[0])
    first = choose(item, user, weight, oriented, save)
    total = user.new_zeros(shape[0], shape[2])
    each = user.new_empty(0 if form == "sum" else shape)
    residual = user.new_empty(shape if save and weight is not None and form != "margin" else 0)

    def evaluate(decoder: Decoder) -> None:
        for block in decoder.blocks():
            decoder.load(block)
            y = decoder.oriented_margin(block, bias, form)
            if residual.numel():
                probability(y, oriented, block, out=residual[block])
            if form == "margin":
                each[block] = y
            elif form == "each":
                each[block] = log_prob(y, oriented, block, decoder.scratch)
            else:
                part = sum_log_prob(y, oriented, block, decoder.scratch)
                total[block.users, block.draws] += part

    run_in_parts(evaluate, first.divide())
    return (total.T.contiguous() if form == "sum" else each.permute(2, 0, 1)), residual


def backward(
    grad: Tensor,
    residual: Tensor,
    item: Tensor | None,
    user: Tensor,
    weight: Tensor | None,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    form: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pulls the gradient of the result back to item, user, weight and bias, block by block.

    Args:
        grad: Gradient of the result, in the result's shape.
        residual: What :func:`forward` saved, or nothing.
        item: As for :func:`forward`, like all up to `form`.
        user: The users' part.
        weight: The output layer.
        left: Positions of the left items.
        right: Positions of the right items.
        choice: Choices.
        mask: Mask.
        bias: Position bias.
        form: `"sum"`, `"each"` or `"margin"`.
        needs: Which of the four gradients are asked for; the others are empty, the bias's is 0.
    """
    oriented = orient(left, right, choice, mask)
    first = choose(item, user, weight, oriented, True)
    first.start(needs)
    grad = grad.T.neg().contiguous().unsqueeze(1) if form == "sum" else grad.permute(1, 2, 0)

    def pull(decoder: Decoder) -> Tensor:
        grad_bias = user.new_zeros(())
        for block in decoder.blocks():
            decoder.load(block)
            part = grad[block.users, :, block.draws] if form == "sum" else grad[block]
            part = -part if form == "each" else part
            if form == "margin":
                g = decoder.scratch.take("y", block.shape).copy_(part)
                oriented.fill(g, block, 0.0)
            elif residual.numel():
                g = torch.mul(residual[block], part, out=decoder.scratch.take("y", block.shape))
            else:
                y = decoder.oriented_margin(block, bias, form)
                g = probability(y, oriented, block, out=y).mul_(part)
            if any(needs[:3]):
                decoder.pull(block, g)
            if needs[3]:
                grad_bias += oriented.signed(g.sum(-1, keepdim=True), block).sum()
        return grad_bias

    parts = first.divide()
    grad_bias = sum(run_in_parts(pull, parts))
    return *first.finish(parts[1:]), grad_bias


def choose(
    item: Tensor | None, user: Tensor, weight: Tensor | None, oriented: Oriented, save: bool
) -> Decoder:
    """Chooses how margins are computed, by which inputs there are and what is fastest.

    Without a backward, as in a posterior, the last digits of an mlp's margins must not depend on
    which items other people compared.
    """
    if weight is not None:
        few = save and len(item) <= limits.table_items * oriented.pair.shape[-1]
        table = few and bool(item.sum().isfinite())
        return (MLPTable if table else MLP)(item, user, weight, oriented)
    if item is not None:
        return Bilinear(item, user, weight, oriented)
    if user.shape[1] != oriented.pair.shape[1]:
        return Shared(item, user, weight, oriented)
    exact = user.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"
    # A product with one-hot rows multiplies every item, and 0 times NaN or infinity is NaN.
    if exact and user.shape[-1] <= limits.one_hot_items and bool(user.sum().isfinite()):
        return OneHot(item, user, weight, oriented)
    return Gather(item, user, weight, oriented)
