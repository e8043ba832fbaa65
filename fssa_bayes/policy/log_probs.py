r"""Log-probabilities of responses, without a tensor of positions by vocabulary.

Only the positions whose token is scored enter the output layer, in chunks of the vocabulary. With
logits :math:`\ell_v = w_v \cdot h + b_v` the log-probability of token y is
:math:`\ell_y - \log\sum_v e^{\ell_v}`, whose sum and largest logit are carried from chunk to chunk.
Its derivative by h is :math:`J = w_y - \sum_v p_v w_v`. Where the output layer is frozen, J is
summed in the same pass and backward is a multiplication; otherwise backward computes the chunks
again. Sums are at least float32, whatever the precision of the factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from fssa_bayes.policy.head import contiguous_input

__all__ = ["response_log_prob", "token_log_prob"]

_CHUNK = {"cpu": 2**19}  # The optimum is flat: 2^16 and 2^24 cost a third more.
_LARGE_CHUNK = 2**26  # 256 MB of float32: large enough to hide the time of kernel launches.


def response_log_prob(
    hidden: Tensor,
    output_layer: nn.Module,
    targets: Tensor,
    mask: Tensor,
    *,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Sums the log-probabilities of a response's tokens, :math:`\sum_t \log p(y_t \mid h_t)`.

    Args:
        hidden: What the output layer takes, with shape (R, T, H).
        output_layer: The layer that computes logits of `hidden`; fastest as a plain `nn.Linear`.
        targets: The next token, which each position predicts, with shape (R, T).
        mask: True where the next token is scored, with shape (R, T).
        softcap: c of models that replace logits ℓ by c·tanh(ℓ/c), as Gemma 2.
        chunk_size: Logits held at a time; by default 2^19 on a CPU and 2^26 elsewhere.

    Returns:
        Log-probability of each row, in nats, with shape (R,), 0 for a row without scored tokens;
        float64 if `hidden` is, else float32.

    Raises:
        ValueError: If shapes disagree, a scored target is not in the vocabulary, or `softcap` or
            `chunk_size` is not positive.
        TypeError: If targets are not int64, the mask is not Boolean or `hidden` not floating.
    """
    return token_log_prob(
        hidden, output_layer, targets, mask, softcap=softcap, chunk_size=chunk_size
    ).sum(-1)


def token_log_prob(
    hidden: Tensor,
    output_layer: nn.Module,
    targets: Tensor,
    mask: Tensor,
    *,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Evaluates the log-probability of each scored token, in nats, with shape (R, T); 0 elsewhere.

    Arguments and errors are those of :func:`response_log_prob`.
    """
    _check_shapes(hidden, targets, mask)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive or None, got {softcap}")
    if chunk_size is None:
        chunk_size = _CHUNK.get(hidden.device.type, _LARGE_CHUNK)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    rows, target = hidden[mask], targets[mask]
    if _is_plain(output_layer):
        score = _score_plain(rows, output_layer, target, softcap, chunk_size)
    else:
        score = _score_any(rows, output_layer, target, softcap, chunk_size)
    return score.new_zeros(mask.shape).masked_scatter(mask, score)


def _check_shapes(hidden: Tensor, targets: Tensor, mask: Tensor) -> None:
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating, got {hidden.dtype}")
    if hidden.ndim != 3:
        raise ValueError(f"hidden must have shape (R, T, H), got {tuple(hidden.shape)}")
    for name, tensor, dtype in (("targets", targets, torch.int64), ("mask", mask, torch.bool)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.shape != hidden.shape[:2]:
            raise ValueError(
                f"{name} must have the shape {tuple(hidden.shape[:2])} of hidden's rows and "
                f"positions, got {tuple(tensor.shape)}"
            )


def _check_vocabulary(target: Tensor, size: int) -> None:
    wrong = target[(target < 0) | (target >= size)]
    if len(wrong):
        raise ValueError(f"targets must be in the vocabulary of {size} tokens, got {wrong[0]}")


def _is_plain(layer: nn.Module) -> bool:
    """Tells whether a layer is a matrix and a bias: not quantised, adapted or changed by hooks."""
    changes = [hook for hook in layer._forward_pre_hooks.values() if hook is not contiguous_input]
    return type(layer) is nn.Linear and not layer._forward_hooks and not changes


def _score_plain(
    rows: Tensor, layer: nn.Linear, target: Tensor, softcap: float | None, chunk_size: int
) -> Tensor:
    """Scores rows (N, H) by the weights, in chunks of the vocabulary."""
    weight, bias = layer.weight, layer.bias
    if rows.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden must have the output layer's width {weight.shape[1]}, got {rows.shape[-1]}"
        )
    _check_vocabulary(target, len(weight))
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        factor = torch.get_autocast_dtype(device)
    else:
        factor = torch.promote_types(rows.dtype, weight.dtype)
    settings = _Settings(factor, softcap, chunk_size, torch.is_grad_enabled())
    with torch.autocast(device, enabled=False):
        return _LogProb.apply(rows, weight, bias, target, settings)


def _score_any(
    rows: Tensor, layer: nn.Module, target: Tensor, softcap: float | None, chunk_size: int
) -> Tensor:
    """Scores rows (N, H) by calling the layer on a few rows at a time, again in backward."""
    with torch.no_grad():
        vocabulary = layer(rows[:1]).shape[-1]
    _check_vocabulary(target, vocabulary)

    def score(rows: Tensor, target: Tensor) -> Tensor:
        logits = layer(rows)
        logits = logits.to(_sum_dtype(logits.dtype))
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return logits.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)

    step = max(1, chunk_size // vocabulary)
    parts = zip(rows.split(step), target.split(step), strict=True)
    return torch.cat([checkpoint(score, *part, use_reentrant=False) for part in parts])


class _Settings(NamedTuple):
    """Holds what is not a tensor: the factors' precision, soft cap, logits at a time, gradients."""

    factor: torch.dtype
    softcap: float | None
    chunk_size: int
    differentiable: bool


class _Chunk(NamedTuple):
    """Holds the logits (n, v) of some rows and tokens, and the factors of the product.

    `slope` is the derivative of the soft cap, or None without one.
    """

    rows: slice
    tokens: slice
    logits: Tensor
    slope: Tensor | None
    hidden: Tensor
    weight: Tensor
    inside: Tensor
    index: Tensor


class _LogProb(Function):
    """Evaluates log-probabilities (N,) of tokens after rows (N, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        settings: _Settings,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        keep = settings.differentiable and needs[0] and not (needs[1] or needs[2])
        total = _Totals.start(hidden, weight, keep)
        for chunk in _chunks(hidden, weight, bias, target, settings):
            total.add(chunk)
        ctx.settings, ctx.dtype = settings, hidden.dtype
        if keep:
            ctx.save_for_backward(total.jacobian(weight, target))
        elif settings.differentiable:
            ctx.save_for_backward(total.largest, total.sum, hidden, weight, bias, target)
        return total.log_prob()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (jacobian,) = ctx.saved_tensors
            return (grad[:, None] * jacobian).to(ctx.dtype), None, None, None, None
        with torch.autocast(grad.device.type, enabled=False):
            grads = _gradients(grad, *ctx.saved_tensors, ctx.settings)
        needed = zip(ctx.needs_input_grad[:3], grads, strict=True)
        return *(g if need else None for need, g in needed), None, None


class _Totals:
    """Carries the largest logit, the sum of exponentials, the target's logit and Σ p w."""

    def __init__(self, largest: Tensor, weighted: Tensor | None) -> None:
        self.largest, self.weighted = largest, weighted
        self.sum = torch.zeros_like(largest)
        self.target = torch.zeros_like(largest)
        self.target_slope = torch.ones_like(largest)

    @classmethod
    def start(cls, hidden: Tensor, weight: Tensor, keep: bool) -> _Totals:
        dtype = _sum_dtype(torch.promote_types(hidden.dtype, weight.dtype))
        # Finite, so that the first chunk may hold only tokens with a bias of −∞.
        largest = hidden.new_full(hidden.shape[:1], torch.finfo(dtype).min, dtype=dtype)
        return cls(largest, torch.zeros_like(hidden, dtype=dtype) if keep else None)

    def add(self, chunk: _Chunk) -> None:
        rows, logits = chunk.rows, chunk.logits
        self._pick(self.target, logits, chunk)
        if chunk.slope is not None:
            self._pick(self.target_slope, chunk.slope, chunk)
        before = self.largest[rows]
        largest = torch.maximum(before, logits.amax(1))
        shrink = (before - largest).exp_()
        exponential = logits.sub_(largest[:, None]).exp_()
        self.sum[rows] = self.sum[rows] * shrink + exponential.sum(1)
        self.largest[rows] = largest
        if self.weighted is not None:
            if chunk.slope is not None:
                exponential = exponential.mul_(chunk.slope)
            product = _multiply(exponential.to(chunk.weight.dtype), chunk.weight)
            self.weighted[rows] = self.weighted[rows].mul_(shrink[:, None]).add_(product)

    @staticmethod
    def _pick(into: Tensor, values: Tensor, chunk: _Chunk) -> None:
        """Writes the target's value into (N,) where the target is in the chunk."""
        picked = values.gather(1, chunk.index).squeeze(1)
        into[chunk.rows] = torch.where(chunk.inside, picked, into[chunk.rows])

    def log_prob(self) -> Tensor:
        # In this order: the first difference is exact for the likeliest token, however large.
        return (self.target - self.largest) - self.sum.log()

    def jacobian(self, weight: Tensor, target: Tensor) -> Tensor:
        chosen = weight[target].to(self.sum.dtype) * self.target_slope[:, None]
        return chosen.sub_(self.weighted.div_(self.sum[:, None]))


def _gradients(
    grad: Tensor,
    largest: Tensor,
    total: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    settings: _Settings,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes the gradients of rows, weight and bias from recomputed logits."""
    hidden_grad = torch.zeros_like(hidden, dtype=total.dtype)
    weight_grad = torch.zeros_like(weight, dtype=total.dtype)
    bias_grad = None if bias is None else torch.zeros_like(bias, dtype=total.dtype)
    for chunk in _chunks(hidden, weight, bias, target, settings):
        rows, tokens = chunk.rows, chunk.tokens
        probability = chunk.logits.sub_(largest[rows, None]).exp_().div_(total[rows, None])
        hit = chunk.inside.to(probability.dtype)[:, None]
        # Residual 1[v = y] − p, times the incoming gradient.
        residual = probability.neg_().scatter_add_(1, chunk.index, hit).mul_(grad[rows, None])
        residual = residual if chunk.slope is None else residual.mul_(chunk.slope)
        if bias_grad is not None:
            bias_grad[tokens] += residual.sum(0)
        residual = residual.to(chunk.weight.dtype)
        hidden_grad[rows] += _multiply(residual, chunk.weight)
        weight_grad[tokens] += _multiply(residual.T, chunk.hidden)
    bias_grad = None if bias is None else bias_grad.to(bias.dtype)
    return hidden_grad.to(hidden.dtype), weight_grad.to(weight.dtype), bias_grad


def _chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, settings: _Settings
) -> Iterator[_Chunk]:
    """Yields the logits of all rows and tokens, the tokens in the outer loop."""
    count = min(len(hidden), math.isqrt(settings.chunk_size))
    if count == 0:
        return
    width = max(1, settings.chunk_size // count)
    hidden = _factor(hidden, settings.factor)
    for first in range(0, len(weight), width):
        tokens = slice(first, min(first + width, len(weight)))
        part = _factor(weight[tokens], settings.factor)
        for row in range(0, len(hidden), count):
            rows = slice(row, row + count)
            logits = _multiply(hidden[rows], part.T)
            logits = logits if bias is None else logits.add_(bias[tokens])
            logits, slope = _cap(logits, settings.softcap)
            index = target[rows, None] - first
            inside = ((index >= 0) & (index < len(part))).squeeze(1)
            index = index.clamp(0, len(part) - 1)
            yield _Chunk(rows, tokens, logits, slope, hidden[rows], part, inside, index)


def _cap(logits: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Applies c·tanh(ℓ/c), and returns the result and its derivative."""
    if softcap is None:
        return logits, None
    bounded = logits.div_(softcap).tanh_()
    slope = 1 - bounded.square()
    return bounded.mul_(softcap), slope


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _factor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds a factor to a precision, held as float32 where products cannot sum in float32."""
    rounded = tensor.to(dtype)
    return rounded if _sums_in_float32(rounded) else rounded.to(_sum_dtype(dtype))


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """Multiplies matrices of 16 or more bits; sums and result are at least float32."""
    if left.dtype == _sum_dtype(left.dtype):
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32)


def _sums_in_float32(tensor: Tensor) -> bool:
    """Tells whether the device multiplies this type with a float32 result; PyTorch 2.8 on CUDA."""
    return tensor.is_cuda and "dtype" in torch.ops.aten.mm.overloads()
