"""Comparisons as (chosen, rejected) pairs, as the encoder sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from fssa_bayes.data import Batch, StagePairs

__all__ = ["Pairs", "alternate"]


class Pairs:
    """Lists a batch's comparisons as R (chosen, rejected) pairs, person by person.

    Half a win each becomes both orders with weight ½, the second of which follows the first in an
    added column. Each stage of a ranking, such as a choice from a set, becomes the pairs of its
    winner and the other items that were left, so that the pairs depend neither on the order of the
    items nor on the base item.

    Attributes:
        mask: True where there is a pair, with shape (U, N), or more columns.
        weight: Weight of each pair, 1, ½ or that of a stage's, with the shape of `mask`.
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
        self._terms: tuple[Tensor, Tensor] | None = None
        if batch.rankings is not None:
            self._list_stages(batch, dtype)
            return
        left_wins = batch.choice >= 0.5
        winner = torch.where(left_wins, batch.left, batch.right)
        loser = torch.where(left_wins, batch.right, batch.left)
        tied = batch.half_wins
        half = 0.5 * tied.to(dtype)
        sign = left_wins.to(dtype) * 2 - 1
        side = sign if batch.side is None else sign * batch.side.to(dtype)
        self.mask, self.weight, self.count = batch.mask, 1.0 - half, batch.num_comparisons
        if tied.any():
            winner, loser = alternate(winner, loser), alternate(loser, winner)
            self.mask = alternate(self.mask, tied)
            self.weight = alternate(self.weight, half)
            sign, side = (alternate(which, -which) for which in (sign, side))
        self.sign, self.side = (which[self.mask].unsqueeze(-1) for which in (sign, side))
        self.winner, self.loser = winner[self.mask], loser[self.mask]
        self.person = self.mask.nonzero()[:, 0]

    def _list_stages(self, batch: Batch, dtype: torch.dtype) -> None:
        """Lists the pairs of stages, and comparisons that stand alone as stages of two items."""
        rankings, width = batch.rankings, batch.mask.shape[1]
        stages, alone = rankings.pairs(batch.choice), rankings.alone
        left, right, choice = (x.flatten() for x in (batch.left, batch.right, batch.choice))

        def items(row: Tensor, side: Tensor) -> Tensor:
            return torch.where(side > 0, left[row], right[row])

        side = torch.where(choice[alone] >= 0.5, 1, -1)
        half = alone[choice[alone] == 0.5]
        place = torch.cat([stages.place, alone, half])
        order = place.argsort(stable=True)
        own = torch.cat([items(stages.winner, stages.winner_side), items(alone, side), right[half]])
        other = torch.cat([items(stages.loser, stages.loser_side), items(alone, -side), left[half]])
        weight = torch.cat(
            [
                2 / stages.size.to(dtype),
                1 - 0.5 * (choice[alone] == 0.5).to(dtype),
                torch.full_like(half, 0.5, dtype=dtype),
            ]
        )
        sides = torch.cat([torch.ones_like(stages.place), side, torch.full_like(half, -1)])
        self.winner, self.loser, self.person = own[order], other[order], (place // width)[order]
        self.sign = self.side = sides[order].to(dtype).unsqueeze(-1)
        self._terms = self._terms_of(stages, alone, side, half, order)
        counts = torch.bincount(self.person, minlength=len(batch.mask))
        self.mask = torch.arange(int(counts.max()), device=counts.device) < counts.unsqueeze(-1)
        self.weight = torch.zeros_like(self.mask, dtype=dtype)
        self.weight[self.mask] = weight[order]
        # Added up pair by pair: a sum over a row depends on the number of columns.
        count = torch.zeros(len(self.mask), dtype=dtype, device=counts.device)
        self.count = count.index_add(0, self.person, weight[order])

    @staticmethod
    def _terms_of(
        stages: StagePairs, alone: Tensor, side: Tensor, half: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns rows (2, R) and factors (2, R): margins of pairs are sums of those of rows."""
        factor = torch.stack([stages.winner_side, -stages.loser_side]) * ~stages.is_base
        rows = torch.stack([stages.winner, stages.loser])
        of_alone = torch.cat([alone, half]), torch.cat([side, torch.full_like(half, -1)])
        rows = torch.cat([rows, of_alone[0].expand(2, -1)], -1)
        single = torch.stack([of_alone[1], torch.zeros_like(of_alone[1])])
        return rows[:, order], torch.cat([factor, single], -1)[:, order]

    def of_chosen(self, margin: Tensor) -> Tensor:
        """Turns margins of left over right (U, N) to those of chosen over rejected, (R, 1)."""
        if self._terms is not None:
            rows, factors = self._terms
            return (margin.flatten()[rows] * factors).sum(0).unsqueeze(-1)
        if margin.shape[-1] < self.mask.shape[-1]:  # The second orders stand in added columns.
            margin = alternate(margin, margin)
        return self.sign * margin[self.mask].unsqueeze(-1)


def alternate(first: Tensor, second: Tensor) -> Tensor:
    """Puts each column of the second tensor after that of the first, (U, N) to (U, 2 N)."""
    return torch.stack([first, second], -1).flatten(-2)
