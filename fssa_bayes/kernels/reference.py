r"""The pairwise log-likelihoods written plainly: what every faster form is compared with.

All three compute margins :math:`m = r_{\mathrm{left}} - r_{\mathrm{right}} + b` and then the
Bradley–Terry log-probability :math:`y\,m - \log(1 + e^m)`; they differ in where the utility r
comes from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["pairwise_bilinear", "pairwise_gather", "pairwise_log_prob", "pairwise_mlp"]


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
    return choice * F.logsigmoid(margin) + (1 - choice) * F.logsigmoid(-margin)


def pairwise_gather(
    utility: Tensor,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor,
    position_bias: Tensor | float,
    reduce: bool,
    output: str,
) -> Tensor:
    """Looks up the utilities (S, U, M) of each comparison's two items."""
    draws, users = utility.shape[0], left.shape[0]
    utility = utility.expand(draws, users, -1)
    index = torch.stack([left, right]).masked_fill(~mask, 0)
    left_utility, right_utility = (utility.gather(-1, side.expand(draws, -1, -1)) for side in index)
    return _finish(left_utility - right_utility, choice, mask, position_bias, reduce, output)


def pairwise_bilinear(
    item_factors: Tensor,
    user_factors: Tensor,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor,
    position_bias: Tensor | float,
    reduce: bool,
    output: str,
) -> Tensor:
    """Multiplies the difference of two items' factors (M, K) by the user's factors (S, U, K)."""
    difference = _take(item_factors, left, mask) - _take(item_factors, right, mask)
    margin = torch.einsum("unk,suk->sun", difference, user_factors)
    return _finish(margin, choice, mask, position_bias, reduce, output)


def pairwise_mlp(
    item_hidden: Tensor,
    user_hidden: Tensor,
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor,
    position_bias: Tensor | float,
    reduce: bool,
    output: str,
) -> Tensor:
    """Applies w·relu(A + B) to both items, A from the item (M, H) and B from the user (S, U, H)."""
    user_hidden = user_hidden.unsqueeze(-2)
    left_utility = F.relu(_take(item_hidden, left, mask) + user_hidden) @ weight
    right_utility = F.relu(_take(item_hidden, right, mask) + user_hidden) @ weight
    return _finish(left_utility - right_utility, choice, mask, position_bias, reduce, output)


def _take(table: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Looks up rows (U, N, H) of a table (M, H), zeros under the mask."""
    # An embedding look-up, because its gradient is faster on a CPU than that of table[index].
    rows = F.embedding(index.masked_fill(~mask, 0), table)
    return rows.masked_fill(~mask.unsqueeze(-1), 0.0)


def _finish(
    margin: Tensor,
    choice: Tensor | None,
    mask: Tensor,
    position_bias: Tensor | float,
    reduce: bool,
    output: str,
) -> Tensor:
    # The margin is masked before it is used, so that a NaN under the mask has no gradient either.
    margin = (margin + position_bias).masked_fill(~mask, 0.0)
    if output == "margin":
        return margin
    log_prob = pairwise_log_prob(margin, choice.masked_fill(~mask, 0.0)).masked_fill(~mask, 0.0)
    return log_prob.sum(-1) if reduce else log_prob
