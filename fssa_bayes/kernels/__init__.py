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

Every choice of device and dtype runs `backend="reference"`: plain PyTorch, differentiable to any
order. What stands under the mask, NaN included, has no effect; a NaN elsewhere makes the user's
result NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fssa_bayes.kernels import reference

__all__ = ["pairwise_bilinear", "pairwise_gather", "pairwise_mlp"]

_BACKENDS = {"reference": reference}
_OUTPUTS = ("log_prob", "margin")


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
        backend: `"reference"`, or None for the fastest that fits.

    Returns:
        Log-likelihoods in nats with shape (S, U), or (S, U, N) with `reduce=False` or as margins.
        Masked entries are 0.

    Raises:
        ValueError: If shapes or options do not fit.
        TypeError: If an index is not int64 or a mask not Boolean.
    """
    _check_rank("utility", utility, 3, "(S, U, M) or (S, 1, M)")
    mask = _check_comparisons(left, right, choice, mask, position_bias, output)
    if utility.shape[1] not in (1, left.shape[0]):
        raise ValueError(
            f"utility must have 1 or U = {left.shape[0]} users, got shape {tuple(utility.shape)}"
        )
    run = _backend(backend).pairwise_gather
    return run(utility, left, right, choice, mask, position_bias, reduce, output)


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
    _check_rank("item_factors", item_factors, 2, "(M, K)")
    _check_rank("user_factors", user_factors, 3, "(S, U, K)")
    mask = _check_comparisons(left, right, choice, mask, position_bias, output)
    _check_users("user_factors", user_factors, left)
    _check_width("user_factors", user_factors, "item_factors", item_factors)
    run = _backend(backend).pairwise_bilinear
    return run(item_factors, user_factors, left, right, choice, mask, position_bias, reduce, output)


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
    _check_rank("item_hidden", item_hidden, 2, "(M, H)")
    _check_rank("user_hidden", user_hidden, 3, "(S, U, H)")
    _check_rank("weight", weight, 1, "(H,)")
    mask = _check_comparisons(left, right, choice, mask, position_bias, output)
    _check_users("user_hidden", user_hidden, left)
    _check_width("user_hidden", user_hidden, "item_hidden", item_hidden)
    _check_width("weight", weight, "item_hidden", item_hidden)
    run = _backend(backend).pairwise_mlp
    return run(
        item_hidden, user_hidden, weight, left, right, choice, mask, position_bias, reduce, output
    )


def _backend(name: str | None):
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"backend must be None or one of {tuple(_BACKENDS)}, got {name!r}")
    return _BACKENDS[name or "reference"]


def _check_rank(argument: str, tensor: Tensor, rank: int, shape: str) -> None:
    if tensor.ndim != rank:
        raise ValueError(f"{argument} must have shape {shape}, got {tuple(tensor.shape)}")


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


def _check_comparisons(
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor | None,
    position_bias: Tensor | float,
    output: str,
) -> Tensor:
    if isinstance(position_bias, Tensor) and position_bias.ndim:
        raise ValueError(f"position_bias must be a scalar, got shape {tuple(position_bias.shape)}")
    if output not in _OUTPUTS:
        raise ValueError(f"output must be one of {_OUTPUTS}, got {output!r}")
    _check_rank("left", left, 2, "(U, N)")
    for argument, index in (("left", left), ("right", right)):
        if index.dtype != torch.int64:
            raise TypeError(f"{argument} must be int64, got {index.dtype}")
    if mask is None:
        mask = torch.ones_like(left, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be Boolean, got {mask.dtype}")
    if choice is None and output == "log_prob":
        raise ValueError("choice must be given for output='log_prob', got None")
    for argument, tensor in (("right", right), ("choice", choice), ("mask", mask)):
        if tensor is not None and tensor.shape != left.shape:
            raise ValueError(
                f"{argument} must have the shape {tuple(left.shape)} of left, "
                f"got {tuple(tensor.shape)}"
            )
    return mask
