r"""The Plackett–Luce probability of whole rankings, from the margins of their pairs.

Stage by stage the best of the items that are left is chosen: with :math:`m_{wj}` the margin of the
winner w over item j, the probability of a stage is :math:`1 / (1 + \sum_j e^{-m_{wj}})`, over the
items j that w stands above. A stage of two items is a Bradley–Terry comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.kernels.sums import log_add

__all__ = ["Rankings", "find_anchors"]


@dataclass(frozen=True)
class Rankings:
    """Holds which comparisons of U people make up rankings, and of which items; no outcome.

    A *slot* is an item in a ranking. There are P slots, and the slots of a ranking are contiguous.
    The R = U · N *places* are those of the comparisons, person by person.

    Attributes:
        inside: True where a comparison is part of a ranking, with shape (U, N).
        head: The first comparison of every ranking, (U, N).
        alone: Places of the comparisons that stand alone, with shape (T,).
        place: Places of the rankings' comparisons, (Q,).
        pair: Slots of left and right of each of these, (2, Q).
        owner: Number of each slot's ranking, from 0 up, (P,).
        start: First slot of that ranking, (P,).
        most: Largest number of items in a ranking.
        first: Place of the first comparison of each slot's ranking, (P,).
        anchor: Place of a pair of the slot and the first slot of its ranking, (P,).
        anchor_side: 1 or −1 for the slot's side there; 0 for the first slot itself, (P,).
        num_below: Number of items that are not ranked in each slot's ranking, at least 1, (P,).
    """

    inside: Tensor
    head: Tensor
    alone: Tensor
    place: Tensor
    pair: Tensor
    owner: Tensor
    start: Tensor
    most: int
    first: Tensor
    anchor: Tensor
    anchor_side: Tensor
    num_below: Tensor

    @classmethod
    def find(
        cls, left: Tensor, right: Tensor, choice: Tensor, mask: Tensor, ranking: Tensor
    ) -> Rankings | None:
        """Finds the rankings among comparisons (U, N); None where every comparison stands alone.

        Args:
            left: Position of each comparison's left item, int64.
            right: The same for the right item.
            choice: 1, 0 or ½, of which only the number of ½ in a ranking matters.
            mask: True where there is a comparison.
            ranking: Equal numbers for a person's comparisons that belong to one ranking.

        Raises:
            ValueError: If a ranking is masked in part.
        """
        person, column = mask.nonzero(as_tuple=True)
        key = _joint(person, ranking[mask])
        group, size = torch.unique(key, return_inverse=True, return_counts=True)[1:]
        whole = size[group] > 1
        if not whole.any():
            return None
        place = person * mask.shape[1] + column
        place, alone = place[whole], place[~whole]
        group = torch.unique(group[whole], return_inverse=True)[1]
        inside = torch.zeros_like(mask).flatten()
        inside[place] = True
        inside = inside.view_as(mask)
        items = torch.stack([left[inside], right[inside]])
        slot, pair = torch.unique(_joint(group.expand_as(items), items), return_inverse=True)
        owner = torch.zeros_like(slot).index_put((pair[0],), group).index_put((pair[1],), group)
        size, count = group.bincount(), owner.bincount()
        if (size != count * (count - 1) // 2).any():
            raise ValueError(
                "mask must keep or hide a ranking as a whole, got one that is hidden in part"
            )
        open_pairs = torch.zeros_like(size).index_add(0, group, (choice[inside] == 0.5).long())
        num_below = ((1 + (1 + 8 * open_pairs.double()).sqrt()) / 2).round().long()
        start = torch.full_like(size, mask.numel()).scatter_reduce(0, group, place, "amin")
        head = torch.zeros_like(inside).flatten()
        head[start] = True
        first_slot = torch.searchsorted(owner, owner)
        return cls(
            inside,
            head.view_as(mask),
            alone,
            place,
            pair,
            owner,
            first_slot,
            int(count.max()),
            start[owner],
            *find_anchors(first_slot, start[owner], place, pair),
            num_below[owner],
        )

    def log_prob(self, margin: Tensor, choice: Tensor) -> Tensor:
        """Evaluates the log-probability of each ranking, in nats, at its first comparison.

        Args:
            margin: Margins in nats with shape (*, U, N).
            choice: Choices with a shape that broadcasts against it.

        Returns:
            Log-probabilities with the shape of the two, 0 at the other comparisons.
        """
        batch = torch.broadcast_shapes(margin.shape, choice.shape)
        stage = self.stages(margin, choice)
        total = stage.new_zeros((*batch[:-2], self.inside.numel()))
        return total.index_add(-1, self.first, stage).unflatten(-1, self.inside.shape)

    def stages(self, margin: Tensor, choice: Tensor) -> Tensor:
        """Evaluates the log-probability of the stage that each slot won, (*, P); 0 if none.

        A stage is the choice of the best among the items left. Items are ordered from the last to
        the best, so that the items left at a stage come before its winner.
        """
        order = self.order(choice)
        rankings = int(self.owner[-1]) + 1
        cell, utility = order * rankings + self.owner, self.utility(margin)
        lead = torch.broadcast_shapes(cell.shape, utility.shape)
        cell, utility = cell.expand(lead), utility.expand(lead)
        cells = utility.new_zeros((*lead[:-1], self.most * rankings)).scatter(-1, cell, utility)
        total, *others = cells.split(rankings, -1)
        stages = [torch.zeros_like(total)]
        for value in others:
            # log σ keeps every digit of a probability near 0 and of one near 1.
            stages.append(F.logsigmoid(value - total))
            total = log_add(total, value)
        stage = torch.cat(stages, -1).gather(-1, cell)
        return stage.masked_fill(order < self.num_below, 0.0)

    def gradient(self, margin: Tensor, choice: Tensor) -> Tensor:
        """Differentiates by the margins, as if each were free.

        The derivative by the winner's margin over item j is the probability that j is chosen in
        the stage. Shapes are those of :meth:`log_prob`.
        """
        won = 2 * choice.flatten(-2)[..., self.place] - 1
        winner = torch.where(won > 0, *self.pair).expand(*margin.shape[:-2], -1)
        log_prob = self.stages(margin, choice).gather(-1, winner)
        slope = won * (log_prob - won * margin.flatten(-2)[..., self.place]).exp()
        total = margin.new_zeros((*margin.shape[:-2], self.inside.numel()))
        return total.index_add(-1, self.place, slope).view_as(margin)

    def utility(self, margin: Tensor) -> Tensor:
        """Returns the utility of each slot less that of its ranking's first, (*, P)."""
        utility = margin.flatten(-2).index_select(-1, self.anchor)
        return utility * self.anchor_side.to(margin.dtype)

    def order(self, choice: Tensor) -> Tensor:
        """Numbers the items of each ranking from the last, 0, to the best, (*, P)."""
        won = choice.flatten(-2)[..., self.place]
        winner = torch.where(won > 0.5, *self.pair)
        wins = torch.zeros_like(self.owner).expand(*won.shape[:-1], -1)
        wins = wins.scatter_add(-1, winner, (won != 0.5).long())
        below = (wins == 0).long()
        number = below.cumsum(-1) - below
        return torch.where(wins > 0, wins, number - number[..., self.start])

    def sample(self, margin: Tensor) -> Tensor:
        """Draws rankings given margins (*, U, N) in nats, as choices of that shape.

        Utilities with Gumbel noise, sorted, are a draw of Plackett–Luce (Yellott 1977). The number
        of ranked items stays the same; comparisons outside of rankings are 0.
        """
        utility = self.utility(margin)
        return self._ordered(utility - torch.empty_like(utility).exponential_().log(), margin)

    def decide(self, margin: Tensor, uniform: Tensor) -> Tensor:
        """Makes rankings of uniform numbers from [0, 1), one for each comparison, (*, U, N).

        A ranking of three items or more has as many comparisons as items, at least: each item takes
        the number of one of them.
        """
        number = torch.arange(len(self.start), device=self.start.device) - self.start
        ranking, order = self.owner[self.pair[0]].sort(stable=True)
        taken = order[torch.searchsorted(ranking, self.owner) + number]
        own = uniform.flatten(-2)[..., self.place[taken]]
        # −log E of an exponential E = −log(1 − uniform) is Gumbel noise.
        return self._ordered(self.utility(margin) - (-torch.log1p(-own)).log(), margin)

    def _ordered(self, value: Tensor, margin: Tensor) -> Tensor:
        """Ranks items by their values (*, P), and returns the choices (*, U, N)."""
        left, right = value[..., self.pair[0]], value[..., self.pair[1]]
        left_wins = left > right
        winner = torch.where(left_wins, *self.pair)
        wins = torch.zeros_like(value, dtype=torch.int64)
        wins = wins.scatter_add(-1, winner, torch.ones_like(winner))
        is_ranked = wins.gather(-1, winner) >= self.num_below[winner]
        drawn = torch.where(is_ranked, left_wins.to(margin.dtype), 0.5)
        choice = margin.new_zeros((*margin.shape[:-2], self.inside.numel()))
        choice[..., self.place] = drawn
        return choice.view_as(margin)

    def winner(self, choice: Tensor) -> Tensor:
        """Returns the slot that won each of the rankings' comparisons, (Q,), by choices (U, N).

        The comparisons that a slot won are a stage. Where a ranking says nothing about a pair, the
        winner is either slot.
        """
        return torch.where(choice.flatten()[self.place] > 0.5, *self.pair)

    def stage_sizes(self, choice: Tensor) -> Tensor:
        """Counts the items among which the winner of each comparison was chosen, (U, N).

        2 for a comparison that stands alone, and where a ranking says nothing about the pair.
        """
        winner = self.winner(choice)
        is_open = choice.flatten()[self.place] == 0.5
        wins = torch.zeros_like(self.first).index_add(0, winner, (~is_open).long())
        size = torch.full_like(self.inside, 2, dtype=torch.int64).flatten()
        size[self.place] = torch.where(is_open, 2, 1 + wins[winner])
        return size.view_as(self.inside)


def _joint(first: Tensor, second: Tensor) -> Tensor:
    """Numbers pairs of numbers from 0 up, in their order."""
    return first * (second.max() + 1 if second.numel() else 1) + second


def find_anchors(
    start: Tensor, first: Tensor, place: Tensor, pair: Tensor
) -> tuple[Tensor, Tensor]:
    """Finds the pair of each slot with the first slot of its ranking, and the slot's side in it."""
    is_first = start == torch.arange(len(start), device=start.device)
    anchor, side = first.clone(), torch.zeros_like(first)
    for one, other, sign in ((pair[1], pair[0], 1), (pair[0], pair[1], -1)):
        with_first = is_first[one]
        anchor[other[with_first]] = place[with_first]
        side[other[with_first]] = sign
    return anchor, side
