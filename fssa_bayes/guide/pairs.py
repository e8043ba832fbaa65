"""Comparisons as (chosen, rejected) pairs, as the encoder sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from fssa_bayes.data import Batch

__all__ = ["Pairs", "alternate"]


class Pairs:
    """Lists a batch's comparisons as R (chosen, rejected) pairs, person by person.

    Half a win each becomes both orders with weight ½, the second of which follows the first in an
    added column.

    Attributes:
        mask: True where there is a pair, with shape (U, N) or (U, 2 N).
        weight: Weight of each pair, 1, ½ or that of a ranking's, with the shape of `mask`.
        count: Sum of the weights, with shape (U,).
        winner: Position of the chosen item, with shape (R,).
        loser: Position of the rejected item, with shape (R,).
        person: Position of the person, with shape (R,).
        sign: 1 where the chosen item is the left one, −1 where it is the right one, (R, 1).
        side: 1 where the chosen item had the advantage of its place, −1 where the rejected one had
            it, 0 where neither had, with shape (R, 1).
    """

    def __init__(self, batch: Batch, dtype: torch.dtype) -> None:
        batch = batch.clean()
        left_wins = batch.choice >= 0.5
        winner = torch.where(left_wins, batch.left, batch.right)
        loser = torch.where(left_wins, batch.right, batch.left)
        tied = batch.half_wins
        half = 0.5 * tied.to(dtype)
        sign = left_wins.to(dtype) * 2 - 1
        side = sign if batch.side is None else sign * batch.side.to(dtype)
        self.mask, self.weight, self.count = batch.mask, 1.0 - half, batch.num_comparisons
        if batch.rankings is not None:
            inside = batch.rankings.inside
            self.mask = batch.mask & ~(inside & (batch.choice == 0.5))
            sizes = batch.rankings.stage_sizes(batch.choice).to(dtype)
            self.weight = torch.where(inside, 2 / sizes, self.weight)
            self.count = (self.weight * self.mask).sum(-1) + half.sum(-1)
        if tied.any():
            winner, loser = alternate(winner, loser), alternate(loser, winner)
            self.mask = alternate(self.mask, tied)
            self.weight = alternate(self.weight, half)
            sign, side = (alternate(which, -which) for which in (sign, side))
        self.sign, self.side = (which[self.mask].unsqueeze(-1) for which in (sign, side))
        self.winner, self.loser = winner[self.mask], loser[self.mask]
        self.person = self.mask.nonzero()[:, 0]

    def of_chosen(self, margin: Tensor) -> Tensor:
        """Turns margins of left over right (U, N) to those of chosen over rejected, (R, 1)."""
        if margin.shape[-1] < self.mask.shape[-1]:  # The second orders stand in added columns.
            margin = alternate(margin, margin)
        return self.sign * margin[self.mask].unsqueeze(-1)


def alternate(first: Tensor, second: Tensor) -> Tensor:
    """Puts each column of the second tensor after that of the first, (U, N) to (U, 2 N)."""
    return torch.stack([first, second], -1).flatten(-2)
