r"""The pairwise log-likelihoods in plain PyTorch, with which every faster form is compared.

All three compute margins :math:`m = r_{\mathrm{left}} - r_{\mathrm{right}} + b` and then the
Bradley–Terry log-probability :math:`y\,m - \log(1 + e^m)`; they differ in where the utility r
comes from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.kernels.comparisons import Comparisons

__all__ = [
    "outcome_log_probs",
    "pairwise_bilinear",
    "pairwise_gather",
    "pairwise_log_prob",
    "pairwise_mlp",
    "run",
    "run_small",
]


def outcome_log_probs(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log σ(m) and log σ(−m), the log-probabilities of left and right, in nats."""
    return F.logsigmoid(margin), F.logsigmoid(-margin)


def pairwise_log_prob(margin: Tensor, choice: Tensor) -> Tensor:
    r"""Evaluates the Bradley–Terry log-probability :math:`y\,m - \log(1 + e^m)`.

    Written as :math:`y \log\sigma(m) + (1 - y) \log\sigma(-m)`, which loses no digits at either
    end: both terms are exact in float32 for margins of ±1e4.

    Args:
        margin: Utility of left minus utility of right, in nats, with shape (*, U, N).
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, with a shape
            that broadcasts against that of `margin`.

    Returns:
        Log-probability of each choice, in nats, with shape (*, U, N).

    References:
        Bradley & Terry (1952), Rank analysis of incomplete block designs.
    """
    left, right = outcome_log_probs(margin)
    return choice * left + (1 - choice) * right


def pairwise_gather(utility: Tensor, comparisons: Comparisons) -> Tensor:
    """Looks up the utilities (S, U, M) or (S, 1, M) of each comparison's two items."""
    draws, users = len(utility), len(comparisons.left)
    if utility.shape[1] != users:
        utility = utility.expand(draws, users, -1)
    left = utility.gather(-1, comparisons.left.expand(draws, -1, -1))
    right = utility.gather(-1, comparisons.right.expand(draws, -1, -1))
    return _finish(left - right, comparisons)


def pairwise_bilinear(
    item_factors: Tensor, user_factors: Tensor, comparisons: Comparisons
) -> Tensor:
    """Multiplies the difference of two items' factors (M, K) by the user's factors (S, U, K)."""
    left, right = _take(item_factors, comparisons)
    margin = torch.einsum("unk,suk->sun", left - right, user_factors)
    return _finish(margin, comparisons)


def pairwise_mlp(
    item_hidden: Tensor, user_hidden: Tensor, weight: Tensor, comparisons: Comparisons
) -> Tensor:
    """Applies w·relu(A + B) to both items, A from the item (M, H) and B from the user (S, U, H)."""
    hidden = _take(item_hidden, comparisons).unsqueeze(1) + user_hidden.unsqueeze(-2)
    left, right = F.relu(hidden) @ weight
    return _finish(left - right, comparisons)


def run(
    item: Tensor | None, user: Tensor, weight: Tensor | None, comparisons: Comparisons
) -> Tensor:
    """Evaluates the operation that has these inputs."""
    if weight is not None:
        return pairwise_mlp(item, user, weight, comparisons)
    if item is not None:
        return pairwise_bilinear(item, user, comparisons)
    return pairwise_gather(user, comparisons)


def _take(table: Tensor, comparisons: Comparisons) -> Tensor:
    """Looks up rows (2, U, N, H) of a table (M, H), zeros under the mask."""
    # The gradient of an embedding look-up is faster on a CPU than that of table[index].
    rows = F.embedding(torch.stack(comparisons[:2]), table)
    if comparisons.mask is None:
        return rows
    return rows.masked_fill(~comparisons.mask.unsqueeze(-1), 0.0)


def _finish(margin: Tensor, comparisons: Comparisons) -> Tensor:
    _, _, choice, mask, bias, form, _ = comparisons
    margin = margin if bias is None else margin + bias
    # Masked before the log-sigmoid, so that the gradient of a NaN under the mask is 0 too.
    margin = margin if mask is None else margin.masked_fill(~mask, 0.0)
    if form == "margin":
        return margin
    return _sum(pairwise_log_prob(margin, choice), mask, form)


def _sum(log_prob: Tensor, mask: Tensor | None, form: str) -> Tensor:
    log_prob = log_prob if mask is None else log_prob.masked_fill(~mask, 0.0)
    return log_prob.sum(-1) if form == "sum" else log_prob


def run_small(
    item: Tensor | None, user: Tensor, weight: Tensor | None, comparisons: Comparisons
) -> Tensor:
    """Evaluates a small problem with one log-sigmoid, if choices are 0 or 1 and none is masked.

    The time of a small problem is that of the calls of PyTorch.
    """
    _, _, choice, mask, _, form, is_certain = comparisons
    if mask is not None or not is_certain:
        return run(item, user, weight, comparisons)
    margin = run(item, user, weight, comparisons._replace(form="margin"))
    return _sum(F.logsigmoid(choice.mul(2).sub_(1) * margin), None, form)
