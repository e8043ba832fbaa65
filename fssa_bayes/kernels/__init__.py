r"""Pairwise log-likelihoods of many people's comparisons under many posterior draws.

Three operations, one for each way a utility comes about. Each takes positions `left` and `right`
(U, N) into an item table, choices in {0, ½, 1} and a mask, and returns log-likelihoods in nats:

=====================  ==============================================  =========================
operation              inputs                                          utility of item i
=====================  ==============================================  =========================
`pairwise_gather`      utility (S, U, M), or (S, 1, M) shared          its entry
`pairwise_bilinear`    item factors (M, K), user factors (S, U, K)     their product
`pairwise_mlp`         item (M, H), user (S, U, H), weight (H,)        weight · relu(item + user)
=====================  ==============================================  =========================

What runs where, unless `backend=` says otherwise:

==========  ==========================  =======================================================
device      dtype                       backend
==========  ==========================  =======================================================
CPU         float32, float64            `"chunked"`: hand-written backward, bounded memory;
                                        for few comparisons `"reference"`, with one log-sigmoid
CUDA        float32                     `"triton"`: one launch, margins never in memory;
                                        `"chunked"` where Triton is not installed
CUDA        float64                     `"chunked"`
any         float16, bfloat16           `"reference"`: plain PyTorch, differentiable to any order
==========  ==========================  =======================================================

A gradient that is itself to be differentiated (`create_graph=True`) is computed by the reference,
with its memory; so is everything where the choices require a gradient. `torch.func.vmap` and
forward-mode derivatives need `backend="reference"`; elsewhere PyTorch raises an error.

`"triton"` takes float64 too, but is not tuned for it. On a CPU it needs Triton's interpreter
(`TRITON_INTERPRET=1`), which is slow and meant for tests.

What stands under the mask, NaN included, has no effect; a NaN elsewhere makes the user's result
NaN. A position outside the item table raises an error on a CPU; on a GPU, where looking would mean
waiting, it makes the user's result NaN (`"triton"`) or stops the device (the others).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from fssa_bayes.kernels import chunked, reference
from fssa_bayes.kernels._comparisons import (
    Comparisons,
    can_wait,
    check_comparisons,
    check_inputs,
    check_positions,
)

__all__ = ["pairwise_bilinear", "pairwise_gather", "pairwise_mlp"]

_BACKENDS = ("reference", "chunked", "triton")
_EXACT = (torch.float32, torch.float64)
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Below these numbers of margins (of hidden units for the mlp) the calls cost more than the work.
_SMALL_MARGINS = 2**15
_SMALL_HIDDEN = 2**17


def pairwise_gather(
    utility: Tensor,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    position_bias: Tensor | float = 0.0,
    reduce: bool = True,
    output: str = "log_prob",
    backend: str | None = None,
) -> Tensor:
    r"""Evaluates the log-likelihood of paired comparisons from a table of utilities.

    Args:
        utility: Utilities in nats with shape (S, U, M), or (S, 1, M) if shared by all users.
        left: Position of the left item in the table, int64 with shape (U, N).
        right: The same for the right item.
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, with shape
            (U, N). Not needed for `output="margin"`.
        mask: True where there is a comparison, with shape (U, N); None if there is one everywhere.
        position_bias: A scalar added to every margin, in nats.
        reduce: Whether to sum over a user's comparisons.
        output: `"log_prob"`, or `"margin"` for the margins themselves (never summed).
        backend: `"reference"`, `"chunked"` or `"triton"`; None for what the table says.

    Returns:
        Log-likelihoods in nats with shape (S, U), or (S, U, N) with `reduce=False` or as margins.
        Masked entries are 0.

    Raises:
        ValueError: If shapes, devices, positions or options do not fit.
        TypeError: If an index is not int64, a mask not Boolean, or the utility's inputs are not
            of one floating-point dtype.
    """
    check_inputs({"utility": (utility, 3, "(S, U, M) or (S, 1, M)")})
    comparisons = check_comparisons(
        utility, left, right, choice, mask, position_bias, reduce, output
    )
    if utility.shape[1] not in (1, left.shape[0]):
        raise ValueError(
            f"utility must have 1 or U = {left.shape[0]} users, got shape {tuple(utility.shape)}"
        )
    return _run(backend, None, utility, None, comparisons)


def pairwise_bilinear(
    item_factors: Tensor,
    user_factors: Tensor,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    position_bias: Tensor | float = 0.0,
    reduce: bool = True,
    output: str = "log_prob",
    backend: str | None = None,
) -> Tensor:
    r"""Evaluates the log-likelihood of paired comparisons for a utility φ(x)·ψ(z).

    Args:
        item_factors: φ of every item in the table, with shape (M, K).
        user_factors: ψ of every draw and user, with shape (S, U, K).

    The other arguments, the result and the errors are those of :func:`pairwise_gather`.
    """
    check_inputs(
        {
            "item_factors": (item_factors, 2, "(M, K)"),
            "user_factors": (user_factors, 3, "(S, U, K)"),
        }
    )
    comparisons = check_comparisons(
        user_factors, left, right, choice, mask, position_bias, reduce, output
    )
    _check_users("user_factors", user_factors, left)
    _check_width("user_factors", user_factors, "item_factors", item_factors)
    return _run(backend, item_factors, user_factors, None, comparisons)


def pairwise_mlp(
    item_hidden: Tensor,
    user_hidden: Tensor,
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    position_bias: Tensor | float = 0.0,
    reduce: bool = True,
    output: str = "log_prob",
    backend: str | None = None,
) -> Tensor:
    r"""Evaluates the log-likelihood of paired comparisons for a utility w·relu(A + B).

    Args:
        item_hidden: A, the item's part of the hidden layer, with shape (M, H).
        user_hidden: B, the user's part for every draw, with shape (S, U, H).
        weight: w, the output layer, with shape (H,).

    The other arguments, the result and the errors are those of :func:`pairwise_gather`.
    """
    check_inputs(
        {
            "item_hidden": (item_hidden, 2, "(M, H)"),
            "user_hidden": (user_hidden, 3, "(S, U, H)"),
            "weight": (weight, 1, "(H,)"),
        }
    )
    comparisons = check_comparisons(
        user_hidden, left, right, choice, mask, position_bias, reduce, output
    )
    _check_users("user_hidden", user_hidden, left)
    _check_width("user_hidden", user_hidden, "item_hidden", item_hidden)
    _check_width("weight", weight, "item_hidden", item_hidden)
    return _run(backend, item_hidden, user_hidden, weight, comparisons)


def _run(
    backend: str | None,
    item: Tensor | None,
    user: Tensor,
    weight: Tensor | None,
    comparisons: Comparisons,
) -> Tensor:
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"backend must be None or one of {_BACKENDS}, got {backend!r}")
    run = (
        _fastest(user, weight, comparisons)
        if backend is None
        else _backend(backend, item, user, comparisons)
    )
    try:
        return run(item, user, weight, comparisons)
    except (IndexError, RuntimeError):
        # Looking at all positions first would cost small problems a tenth of their time.
        if can_wait(user):
            check_positions(comparisons, len(item) if item is not None else user.shape[-1])
        raise


def _fastest(
    user: Tensor, weight: Tensor | None, comparisons: Comparisons
) -> Callable[..., Tensor]:
    choice = comparisons.choice
    if user.dtype not in _EXACT or (choice is not None and choice.requires_grad):
        return reference.run
    hidden = 1 if weight is None else len(weight)
    limit = _SMALL_MARGINS if weight is None else _SMALL_HIDDEN
    if can_wait(user) and len(user) * comparisons.left.numel() * hidden < limit:
        return reference.run_small
    if user.device.type == "cuda" and user.dtype == torch.float32 and _HAS_TRITON:
        return _triton()
    return chunked.operation


def _backend(
    name: str, item: Tensor | None, user: Tensor, comparisons: Comparisons
) -> Callable[..., Tensor]:
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
    if not _HAS_TRITON:
        raise ValueError("backend must not be 'triton' where Triton is not installed, got 'triton'")
    operation = _triton()
    if user.device.type != "cuda" and not (user.device.type == "cpu" and _interprets()):
        raise ValueError(
            "inputs must be on a CUDA device with backend='triton' (or on a CPU, with "
            f"TRITON_INTERPRET=1 in the environment from the start), got {user.device}"
        )
    if can_wait(user):
        check_positions(comparisons, len(item) if item is not None else user.shape[-1])
    return operation


def _triton() -> Callable[..., Tensor]:
    """Imports the backend for GPUs when it is first used: Triton takes long to import."""
    from fssa_bayes.kernels import triton

    return triton.operation


def _interprets() -> bool:
    from fssa_bayes.kernels import triton

    return triton.INTERPRETED


def _check_users(argument: str, tensor: Tensor, left: Tensor) -> None:
    if tensor.shape[1] != left.shape[0]:
        raise ValueError(
            f"{argument} must have U = {left.shape[0]} users as left has, "
            f"got shape {tuple(tensor.shape)}"
        )


def _check_width(argument: str, tensor: Tensor, other: str, table: Tensor) -> None:
    if tensor.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"{argument} must have the width {table.shape[-1]} of {other}, "
            f"got shape {tuple(tensor.shape)}"
        )
