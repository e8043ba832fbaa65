"""Comparisons with the preferred item last, and the log-probabilities of their margins."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fssa_bayes.kernels.chunked.blocks import Block, Scratch
from fssa_bayes.kernels.sums import halves, powers_below

__all__ = [
    "Oriented",
    "fold",
    "log_prob",
    "orient",
    "probability",
    "slack_terms",
    "softplus_parts",
    "sum_log1p",
    "sum_log_prob",
]

_FACTORS = 8  # Factors that are multiplied before a logarithm is taken.


class Oriented(NamedTuple):
    """Holds the comparisons with the preferred item last, so that margins need no sign.

    Attributes:
        pair: Positions of the item not preferred and of the preferred one, int64 with shape
            (2, U, N); for margins, positions of left and right.
        sign: −1 where left was preferred, else 1, with shape (U, N); None for margins.
        slack: 1 − choice where the choice is neither 0 nor 1 (½, or NaN), else 0, with shape
            (U, N); None if there is no such choice.
        mask: True where there is a comparison, with shape (U, N); None if there is one everywhere.
    """

    pair: Tensor
    sign: Tensor | None
    slack: Tensor | None
    mask: Tensor | None

    def signed(self, value: Tensor, block: Block) -> Tensor:
        """Multiplies by the sign, for a block (u, n, 1)."""
        return value if self.sign is None else self.sign[block[:2]].unsqueeze(-1) * value

    def fill(self, rows: Tensor, block: Block, value: float) -> Tensor:
        """Overwrites the masked rows of a block (u, n, *), NaN included."""
        if self.mask is not None:
            masked = (~self.mask[block[:2]]).reshape(-1).nonzero().squeeze(-1)
            rows.view(-1, rows.shape[-1]).index_fill_(0, masked, value)
        return rows


def orient(left: Tensor, right: Tensor, choice: Tensor | None, mask: Tensor | None) -> Oriented:
    """Orients comparisons by their choices (U, N); without choices, left stays before right."""
    if choice is None:
        return Oriented(torch.stack([left, right]), None, None, mask)
    lost = choice == 0
    slack = (1 - choice).masked_fill(lost, 0.0)
    return Oriented(
        pair=torch.stack([torch.where(lost, left, right), torch.where(lost, right, left)]),
        sign=2 * lost.to(choice.dtype) - 1,
        slack=slack if bool(slack.any()) else None,
        mask=mask,
    )


def probability(y: Tensor, oriented: Oriented, block: Block, out: Tensor) -> Tensor:
    r"""Evaluates σ(y) − slack, minus the derivative of the log-probability by y (u, n, s)."""
    torch.sigmoid(y, out=out)
    if oriented.slack is not None:
        out -= oriented.slack[block[:2]].unsqueeze(-1)
    return out


def log_prob(y: Tensor, oriented: Oriented, block: Block, scratch: Scratch) -> Tensor:
    r"""Evaluates slack·y − log(1 + eʸ) for margins y (u, n, s), which are overwritten."""
    extra = slack_terms(y, oriented, block)
    high, tail = softplus_parts(y, scratch)
    log_prob = tail.log1p_().add_(high).neg_()
    if extra is not None:
        log_prob.view(-1, y.shape[-1]).index_add_(0, *extra)
    return log_prob


def sum_log_prob(y: Tensor, oriented: Oriented, block: Block, scratch: Scratch) -> Tensor:
    r"""Sums slack·y − log(1 + eʸ) over comparisons to (u, s), for y (u, n, s)."""
    extra = slack_terms(y, oriented, block)
    high, tail = softplus_parts(y, scratch)
    total = fold(high).add_(sum_log1p(tail)).neg_()
    if extra is not None:
        total.index_add_(0, extra[0] // y.shape[1], extra[1])
    return total


def slack_terms(y: Tensor, oriented: Oriented, block: Block) -> tuple[Tensor, Tensor] | None:
    """Returns the rows of y (u n, s) with slack, and slack·y there."""
    if oriented.slack is None:
        return None
    slack = oriented.slack[block[:2]].reshape(-1)
    rows = slack.nonzero().squeeze(-1)
    return rows, y.view(-1, y.shape[-1])[rows] * slack[rows].unsqueeze(-1)


def softplus_parts(y: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    r"""Returns max(y, 0) and exp(−\|y\|): log(1 + eʸ) is the first plus log1p of the second."""
    high = torch.clamp_min(y, 0.0, out=scratch.take("high", y.shape))
    return high, y.sub_(high, alpha=2).exp_()


def sum_log1p(tail: Tensor) -> Tensor:
    r"""Sums log(1 + e) over the second axis of e (u, n, s) in [0, 1], which is overwritten.

    Products of eight factors in a row come first. A product less one,
    :math:`p \leftarrow a + b + ab`, keeps every digit of a small e. Zeros at the end of the axis,
    which are what padding is here, change no bit.
    """
    whole = tail.shape[1] // _FACTORS * _FACTORS
    eights = tail[:, :whole].unflatten(1, (whole // _FACTORS, _FACTORS)).transpose(1, 2)
    strides = powers_below(_FACTORS)
    for first, second in (*halves(eights, strides), *halves(tail[:, whole:], strides)):
        first.addcmul_(first, second).add_(second)
    return fold(tail[:, ::_FACTORS].log1p())


def fold(values: Tensor) -> Tensor:
    """Sums over the second axis of values (u, n, s), as `steady_sum` does, overwriting them."""
    for first, second in halves(values, powers_below(values.shape[1])):
        first += second
    return values[:, 0]
