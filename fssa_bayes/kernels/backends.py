"""Which backend runs an operation: the one that is asked for, or else the fastest."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from fssa_bayes.kernels import chunked, reference
from fssa_bayes.kernels.comparisons import (
    Comparisons,
    can_wait,
    check_positions,
    is_transformed,
)

__all__ = ["BACKENDS", "HAS_TRITON", "fastest", "named", "run", "triton_operation"]

BACKENDS = ("reference", "chunked", "triton")
HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed, which is found out without importing it."""

_EXACT = (torch.float32, torch.float64)
# Below these numbers of margins (of hidden units for the mlp) the calls cost more than the work.
_SMALL_MARGINS = 2**15
_SMALL_HIDDEN = 2**17


def run(
    backend: str | None,
    item: Tensor | None,
    user: Tensor,
    weight: Tensor | None,
    comparisons: Comparisons,
) -> Tensor:
    """Evaluates the operation that has these inputs by a backend; None for the fastest."""
    if backend is None:
        operation = fastest(user, weight, comparisons)
    else:
        operation = named(backend, item, user, comparisons)
    if is_transformed(item, user, weight, comparisons.choice, comparisons.bias):
        operation = reference.run
    try:
        return operation(item, user, weight, comparisons)
    except (IndexError, RuntimeError):
        # Checking all positions beforehand would cost small problems a tenth of their time.
        if can_wait(user):
            check_positions(comparisons, len(item) if item is not None else user.shape[-1])
        raise


def fastest(
    user: Tensor,
    weight: Tensor | None,
    comparisons: Comparisons,
    *,
    has_triton: bool = HAS_TRITON,
) -> Callable[..., Tensor]:
    """Returns the operation of the backend that the table in :mod:`fssa_bayes.kernels` names."""
    choice = comparisons.choice
    if user.dtype not in _EXACT or (choice is not None and choice.requires_grad):
        return reference.run
    hidden = 1 if weight is None else len(weight)
    limit = _SMALL_MARGINS if weight is None else _SMALL_HIDDEN
    if can_wait(user) and len(user) * comparisons.left.numel() * hidden < limit:
        return reference.run_small
    if user.device.type == "cuda" and user.dtype == torch.float32 and has_triton:
        return triton_operation()[0]
    return chunked.operation


def named(
    name: str,
    item: Tensor | None,
    user: Tensor,
    comparisons: Comparisons,
    *,
    has_triton: bool = HAS_TRITON,
) -> Callable[..., Tensor]:
    """Returns the operation of a backend.

    Raises:
        ValueError: If there is no such backend, if it is not installed, if it does not run on the
            inputs' device, if choices require a gradient that it does not have, or if a position
            is not in the table.
        TypeError: If the backend does not take the inputs' dtype.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {name!r}")
    if name == "reference":
        return reference.run
    if user.dtype not in _EXACT:
        raise TypeError(
            f"inputs must be float32 or float64 with backend={name!r}, got {user.dtype}"
        )
    if comparisons.choice is not None and comparisons.choice.requires_grad:
        raise ValueError(
            f"choice must not require a gradient with backend={name!r}: use 'reference', got one "
            "that does"
        )
    if name == "chunked":
        return chunked.operation
    if not has_triton:
        raise ValueError("backend must not be 'triton' where Triton is not installed, got 'triton'")
    operation, interpreted = triton_operation()
    if user.device.type != "cuda" and not (user.device.type == "cpu" and interpreted):
        raise ValueError(
            "inputs must be on a CUDA device with backend='triton' (or on a CPU, with "
            f"TRITON_INTERPRET=1 in the environment from the start), got {user.device}"
        )
    if can_wait(user):
        check_positions(comparisons, len(item) if item is not None else user.shape[-1])
    return operation


def triton_operation() -> tuple[Callable[..., Tensor], bool]:
    """Returns the operation in Triton, and whether an interpreter runs it.

    Triton is imported by the first call, because the import takes long.
    """
    from fssa_bayes.kernels import triton

    return triton.operation, triton.INTERPRETED
