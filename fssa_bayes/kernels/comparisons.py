"""The comparisons and inputs of an operation, checked before any work is done."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "Comparisons",
    "can_wait",
    "check_comparisons",
    "check_inputs",
    "check_positions",
    "check_users",
    "check_width",
    "is_batched",
    "is_transformed",
]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OUTPUTS = ("log_prob", "margin")


class Comparisons(NamedTuple):
    """Holds everything about the comparisons but the utilities.

    Attributes:
        left: Position of the left item, int64 with shape (U, N); 0 if masked.
        right: The same for the right item.
        choice: Choices with shape (U, N), in the utilities' dtype, 0 if masked; None for margins.
        mask: True where there is a comparison, (U, N); None if there is one everywhere.
        bias: Scalar added to every margin, in the utilities' dtype; None for 0.
        form: `"sum"` for log-likelihoods (S, U), `"each"` or `"margin"` for (S, U, N).
        is_certain: Whether every choice is known to be 0 or 1.
    """

    left: Tensor
    right: Tensor
    choice: Tensor | None
    mask: Tensor | None
    bias: Tensor | None
    form: str
    is_certain: bool = False


def check_comparisons(
    like: Tensor,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor | None,
    position_bias: Tensor | float,
    reduce: bool,
    output: str,
) -> Comparisons:
    """Checks the comparisons against each other and brings them to the dtype of `like`."""
    if output not in _OUTPUTS:
        raise ValueError(f"output must be one of {_OUTPUTS}, got {output!r}")
    if not isinstance(reduce, bool):
        raise TypeError(f"reduce must be True or False, got {reduce!r}")
    if choice is None and output == "log_prob":
        raise ValueError("choice must be given for output='log_prob', got None")
    if left.ndim != 2:
        raise ValueError(f"left must have shape (U, N), got {tuple(left.shape)}")
    for argument, index in (("left", left), ("right", right)):
        if index.dtype != torch.int64:
            raise TypeError(f"{argument} must be int64, got {index.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be Boolean, got {mask.dtype}")
    shape, device = left.shape, like.device
    for argument, tensor in (("left", left), ("right", right), ("choice", choice), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{argument} must have the shape {tuple(shape)} of left, got {tuple(tensor.shape)}"
            )
        if tensor.device != device:
            raise ValueError(
                f"{argument} must be on {device} as the utilities are, got {tensor.device}"
            )
    wait = can_wait(like)
    if mask is not None and wait and bool(mask.all()):
        mask = None
    hidden = None if mask is None else ~mask
    if hidden is not None:
        left, right = left.masked_fill(hidden, 0), right.masked_fill(hidden, 0)
    if isinstance(position_bias, Tensor):
        if position_bias.ndim:
            raise ValueError(
                f"position_bias must be a scalar, got shape {tuple(position_bias.shape)}"
            )
        bias = position_bias.to(like)
    else:
        bias = None if position_bias == 0 else like.new_full((), position_bias)
    if output == "margin":
        return Comparisons(left, right, None, mask, bias, "margin")
    form = "sum" if reduce else "each"
    choice = choice.to(like.dtype)
    choice = choice if hidden is None else choice.masked_fill(hidden, 0.0)
    if not wait:  # The check of a choice would wait for a device, or be lost in a trace.
        choice = choice.where((choice >= 0) & (choice <= 1), torch.nan)
        return Comparisons(left, right, choice, mask, bias, form)
    is_certain = torch.equal(choice.square(), choice)
    if not is_certain:
        wrong = choice[(choice < 0) | (choice > 1)]
        if len(wrong):
            raise ValueError(f"choice must be from 0 to 1, got {wrong[0].item():g}")
    return Comparisons(left, right, choice, mask, bias, form, is_certain)


def check_inputs(inputs: dict[str, tuple[Tensor, int, str]]) -> None:
    """Checks that the inputs of the utility have their shapes, one dtype and one device.

    Args:
        inputs: For each argument the tensor, its number of axes and its shape in words.
    """
    first, (like, *_) = next(iter(inputs.items()))
    for argument, (tensor, axes, shape) in inputs.items():
        if tensor.ndim != axes:
            raise ValueError(f"{argument} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{argument} must be floating-point, got {tensor.dtype}")
        if tensor.dtype != like.dtype:
            raise TypeError(f"{argument} must be {like.dtype} as {first} is, got {tensor.dtype}")
        if tensor.device != like.device:
            raise ValueError(
                f"{argument} must be on {like.device} as {first} is, got {tensor.device}"
            )


def check_positions(comparisons: Comparisons, num_items: int) -> None:
    """Raises a ValueError unless all positions are in the table."""
    for argument, index in (("left", comparisons.left), ("right", comparisons.right)):
        wrong = index[(index < 0) | (index >= num_items)]
        if len(wrong):
            raise ValueError(
                f"{argument} must be positions from 0 to M - 1 = {num_items - 1}, "
                f"got {wrong[0].item()}"
            )


def can_wait(tensor: Tensor) -> bool:
    """Says whether looking at values is possible and cheap: on a CPU, outside of transforms."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active()


def is_batched(grad: Tensor) -> bool:
    """Says whether a gradient stands for many, by `torch.func.vmap` or `is_grads_batched=True`."""
    if torch._C._are_functorch_transforms_active():
        return True
    # torch.autograd.grad uses an older vmap, which has no other sign.
    return torch._C._functorch.is_legacy_batchedtensor(grad)


def is_transformed(*tensors: Tensor | None) -> bool:
    """Says whether a `torch.func` transform is at work, or a tensor has a forward derivative."""
    # The question that torch.autograd.Function asks before it looks for the rule of a transform.
    if torch._C._are_functorch_transforms_active():
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def check_users(argument: str, tensor: Tensor, left: Tensor) -> None:
    """Raises a ValueError unless a tensor (S, U, *) has the users of `left` (U, N)."""
    if tensor.shape[1] != left.shape[0]:
        raise ValueError(
            f"{argument} must have U = {left.shape[0]} users as left has, "
            f"got shape {tuple(tensor.shape)}"
        )


def check_width(argument: str, tensor: Tensor, other: str, table: Tensor) -> None:
    """Raises a ValueError unless a tensor (*, H) has the width of the table `other` (M, H)."""
    if tensor.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"{argument} must have the width {table.shape[-1]} of {other}, "
            f"got shape {tuple(tensor.shape)}"
        )
