r"""Pairwise log-likelihoods of many people's comparisons under many posterior draws.

Three operations, one for each form of the utility. Each takes positions `left` and `right`
(U, N) into an item table, choices from 0 to 1 and a mask, and returns log-likelihoods in nats:

=====================  ==============================================  =========================
operation              inputs                                          utility of item i
=====================  ==============================================  =========================
`pairwise_gather`      utility (S, U, M), or (S, 1, M) shared          its entry
`pairwise_bilinear`    item factors (M, K), user factors (S, U, K)     their product
`pairwise_mlp`         item (M, H), user (S, U, H), weight (H,)        weight · relu(item + user)
=====================  ==============================================  =========================

A fourth, `choice_set`, evaluates choices from sets of any size, given margins over a base item.

What runs where, unless `backend=` says otherwise:

==========  ==========================  =======================================================
device      dtype                       backend
==========  ==========================  =======================================================
CPU         float32, float64            `"chunked"`: hand-written backward, bounded memory;
                                        for few comparisons `"reference"`, with one log-sigmoid
CUDA        float32                     `"triton"`: one launch, margins never in memory;
                                        `"chunked"` where Triton is not installed
CUDA        float64                     `"chunked"`
any         float16, bfloat16           `"reference"`: plain PyTorch, differentiable to any order,
                                        whose memory is not bounded; there is no warning
==========  ==========================  =======================================================

The reference computes what no other backend offers, whichever backend is named, in memory that is
not bounded: everything under a transform of `torch.func` (`vmap`, `grad`, `vjp`, `jacrev`, `jvp`,
`jacfwd`, `hessian`) or with forward-mode derivatives, a gradient that is itself to be
differentiated (`create_graph=True`) and many gradients at once (`is_grads_batched=True`). It also
computes everything where the choices require a gradient, unless another backend is named.

`"triton"` takes float64 too, but is not tuned for it. On a CPU it needs Triton's interpreter
(`TRITON_INTERPRET=1`), which is slow and meant for tests.

Values under the mask, NaN included, have no effect; a NaN elsewhere makes the user's result NaN. A
position outside the item table and a choice outside of [0, 1] raise a ValueError on a CPU. On a
GPU, where a check would wait for the device, and under a transform such a choice makes the user's
result NaN. So does such a position with `"triton"`; with other backends it stops the GPU, and under
a transform it raises PyTorch's IndexError.

The fused forms. With m the margin of a comparison and y its choice, the log-probability is
:math:`y\,m - \log(1 + e^m)`, for every y from 0 to 1. For y of 0 or 1 turn the comparison so that
:math:`\tilde m = (1 - 2y)\,m` is the utility of the item not preferred less that of the preferred;
then the log-probability is :math:`-\log(1 + e^{\tilde m})`. For any other y let
:math:`\tilde m = -m`; the log-probability is :math:`(1 - y)\,\tilde m` more. Sums of
:math:`\log(1 + e^{-|\tilde m|})` are logarithms of products of a few factors. The margin itself is

- bilinear: :math:`(φ_l - φ_r) \cdot ψ`, the difference taken once for all draws;
- mlp: :math:`\sum_h w_h\,(\mathrm{relu}(A_{lh} + B_h) - \mathrm{relu}(A_{rh} + B_h))`. As
  relu(A + B) = max(A, −B) + B, the two terms B cancel: with T = −B and a ≤ b the ordered A of
  the two items the bracket is ±(b − min(max(T, a), b)). [S, U, N, 2, H] is never stored.

Their backward. The log-probability's derivative by m is y − σ(m): all that depends on the choice.
Let g be that, times the gradient of the result, for draw s, person u and comparison n. Then

- gather: g is added to the left item's entry and taken from the right one's;
- bilinear: ψ has the gradient :math:`\sum_n g\,(φ_l - φ_r)`, φ of the left item
  :math:`\sum_{su} g\,ψ`, of the right one minus that;
- mlp: relu's derivative is 1[A + B > 0]. With :math:`P_{ih} = \sum_{su} g\,1[A_{ih} > T_h]`, signed
  plus where i is the left item and minus where it is the right one, and Q the same sum over n for
  each draw and person, the gradient of A is w∘P and that of B is w∘Q. Relu is homogeneous,
  relu(x) = x·1[x > 0], so that of w is :math:`\sum A∘P + \sum B∘Q`, without another pass.

A position bias has the gradient :math:`\sum g`.
"""

from __future__ import annotations

from torch import Tensor

from fssa_bayes.kernels.backends import run
from fssa_bayes.kernels.choice_set import choice_set
from fssa_bayes.kernels.comparisons import (
    check_comparisons,
    check_inputs,
    check_users,
    check_width,
)

__all__ = ["choice_set", "pairwise_bilinear", "pairwise_gather", "pairwise_mlp"]


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
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, or any
            number between as the probability of left (a soft label), with shape (U, N). Not
            needed for `output="margin"`.
        mask: True where there is a comparison, with shape (U, N); None if there is one everywhere.
        position_bias: A scalar added to every margin, in nats.
        reduce: Whether to sum over a user's comparisons.
        output: `"log_prob"`, or `"margin"` for the margins themselves (never summed).
        backend: `"reference"`, `"chunked"` or `"triton"`; None for what the table says.

    Returns:
        Log-likelihoods in nats with shape (S, U), or (S, U, N) with `reduce=False` or as margins.
        Masked entries are 0.

    Raises:
        ValueError: If shapes, devices, positions, choices or options do not fit.
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
    return run(backend, None, utility, None, comparisons)


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
    check_users("user_factors", user_factors, left)
    check_width("user_factors", user_factors, "item_factors", item_factors)
    return run(backend, item_factors, user_factors, None, comparisons)


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
    check_users("user_hidden", user_hidden, left)
    check_width("user_hidden", user_hidden, "item_hidden", item_hidden)
    check_width("weight", weight, "item_hidden", item_hidden)
    return run(backend, item_hidden, user_hidden, weight, comparisons)
