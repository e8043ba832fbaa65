"""The comparisons and inputs of an operation, checked before any work is done."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Comparisons",
    "can_wait",
    "check_comparisons",
    "check_inputs",
    "check_positions",
    "check_users",
    "check_width",
]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OUTPUTS = ("log_prob", "margin")


class Comparisons(NamedTuple):
    """Holds everything about the comparisons but the utilities.

    Attributes:
        left: Position of the left item, int64 with shape (U, N); 0 if masked.
        right: The same for the right item.
        choice: Choices with shape (U, N), in the utilities' dtype; None for margins.
        mask: True where there is a comparison, (U, N); None if there is one everywhere.
        bias: Scalar added to every margin, in the utilities' dtype; None for 0.
        form: `"sum"` for log-likelihoods (S, U), `"each"` or `"margin"` for (S, U, N).
    """

    left: Tensor
    right: Tensor
    choice: Tensor | None
    mask: Tensor | None
    bias: Tensor | None
    form: str


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
    for argument, tensor in (("left", left), ("right", right), ("choice", choice), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape != left.shape:
            raise ValueError(
                f"{argument} must have the shape {tuple(left.shape)} of left, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.device != like.device:
            raise ValueError(
                f"{argument} must be on {like.device} as the utilities are, got {tensor.device}"
            )
    if mask is not None and can_wait(mask) and bool(mask.all()):
        mask = None
    if mask is not None:
        left, right = left.masked_fill(~mask, 0), right.masked_fill(~mask, 0)
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
    return Comparisons(left, right, choice.to(like.dtype), mask, bias, form)


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
    """Says whether looking at values is cheap: on a CPU, and not while a program is traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


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
