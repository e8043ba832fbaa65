r"""The Plackett–Luce probability of whole rankings, from the margins over their base item.

Stage by stage the best of the items that are left is chosen. With :math:`v_j` the utility of item j
less that of the base item of its ranking, the probability that w wins a stage is
:math:`e^{v_w} / \sum_j e^{v_j}`, over the items j that are left. A choice from a set has one stage;
a stage of two items is a Bradley–Terry comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.kernels.choice_set import choice_set
from fssa_bayes.kernels.sums import log_add, steady_sum

__all__ = ["Rankings", "StagePairs", "StageShares"]


class StageShares(NamedTuple):
    """Holds the probabilities of the items in the stages of rankings.

    Attributes:
        first: Derivatives of the log-probabilities by the rows' margins, with shape (*, U, N).
        place: Places u · N + n of the rows that take part in stages, (Q,).
        stage: Number of the stage that each of these takes part in, (Q,).
        share: Probability that the row's item is chosen in that stage, (*, Q).
        person: The person of each stage, (P,).
    """

    first: Tensor
    place: Tensor
    stage: Tensor
    share: Tensor
    person: Tensor


class StagePairs(NamedTuple):
    """Lists the pairs of each stage's winner and another item that was left.

    Attributes:
        person: The person of each of Q pairs, with shape (Q,).
        place: Place of the first row of the pair's ranking, (Q,).
        winner: Place of the row of the item with the higher utility, (Q,).
        loser: The same for the other item, (Q,).
        winner_side: 1 where that item stands on the left of its row, −1 on the right, (Q,).
        loser_side: The same for the other item, (Q,).
        is_base: Whether winner and loser are the base item, whose row is that of the other, (2, Q).
        size: Number of items in the stage, (Q,).
    """

    person: Tensor
    place: Tensor
    winner: Tensor
    loser: Tensor
    winner_side: Tensor
    loser_side: Tensor
    is_base: Tensor
    size: Tensor


@dataclass(frozen=True)
class Rankings:
    """Holds which rows of U people make up rankings, and how many items are ranked; no outcome.

    The U · N *places* are those of the rows, person by person. The rows of a ranking lie together.
    A ranking of J items has J − 1 rows and J *slots*: first that of the base item, then those of
    the rows' other items, as :mod:`fssa_bayes.data.rankings` lays them out.

    Attributes:
        inside: True where a row is part of a ranking, with shape (U, N).
        head: The first row of every ranking, (U, N).
        alone: Places of the comparisons that stand alone, with shape (T,).
        first: Place of the first row of each of G rankings, (G,).
        size: Number of rows of each ranking, (G,).
        num_below: Number of items of each that are not ranked, at least 1, (G,).
        is_worst: Whether the ranking begins with the worst item, and the base is on the left, (G,).
    """

    inside: Tensor
    head: Tensor
    alone: Tensor
    first: Tensor
    size: Tensor
    num_below: Tensor
    is_worst: Tensor

    @classmethod
    def find(
        cls, left: Tensor, right: Tensor, choice: Tensor, mask: Tensor, ranking: Tensor
    ) -> Rankings | None:
        """Finds the rankings among rows (U, N); None where every comparison stands alone.

        Args:
            left: Position of each row's left item, int64.
            right: The same for the right item.
            choice: The outcome, of which only the number of unranked items matters.
            mask: True where there is a row.
            ranking: Equal numbers for a person's rows that belong to one ranking.

        Raises:
            ValueError: If a ranking is masked in part.
        """
        number = ranking.masked_fill(~mask, -1)
        before = F.pad(number, (1, 0), value=-2)[:, :-1]
        begins = mask & (number != before)
        place = mask.flatten().nonzero()[:, 0]
        first = begins.flatten().nonzero()[:, 0]
        size = torch.diff(torch.searchsorted(place, first), append=first.new_tensor([len(place)]))
        several = size > 1
        if not several.any():
            return None
        alone, first, size = first[~several], first[several], size[several]
        start = _starts(size)
        rows = torch.repeat_interleave(first - start, size) + _count(size)
        inside, head = torch.zeros_like(mask).flatten(), torch.zeros_like(mask).flatten()
        inside[rows] = True
        head[first] = True
        left = left.flatten()
        found = cls(
            inside=inside.view_as(mask),
            head=head.view_as(mask),
            alone=alone,
            first=first,
            size=size,
            num_below=torch.ones_like(size),
            is_worst=left[first] == left[first + 1],
        )
        place = found.order(choice)
        last = place.masked_fill(found.is_padding, 0).amax(-1, keepdim=True)
        num_below = (place == last).sum(-1)
        if ((last.squeeze(-1) + num_below != size + 2) | (last.squeeze(-1) == 1)).any():
            raise ValueError(
                "mask must keep or hide a ranking as a whole, got one that is hidden in part"
            )
        object.__setattr__(found, "num_below", num_below)
        return found

    @property
    def most(self) -> int:
        """Largest number of items in a ranking."""
        return self.cells.shape[1] + 1

    @cached_property
    def cells(self) -> Tensor:
        """Places of the rows of each ranking, padded by its first row, (G, J − 1)."""
        column = torch.arange(int(self.size.max()), device=self.size.device)
        column = torch.where(column < self.size.unsqueeze(-1), column, 0)
        return self.first.unsqueeze(-1) + column

    @cached_property
    def is_padding(self) -> Tensor:
        """True for the slots (G, J) that are none."""
        return torch.arange(self.most, device=self.size.device) > self.size.unsqueeze(-1)

    @cached_property
    def stages(self) -> Tensor:
        """Number of stages of each ranking, (G,)."""
        return self.size + 1 - self.num_below

    def utility(self, margin: Tensor) -> Tensor:
        """Returns the utility of each slot less that of the base, (*, G, J); −∞ in padding."""
        utility = F.pad(self._rows(margin), (1, 0))
        return utility.masked_fill(self.is_padding, -torch.inf)

    def _rows(self, values: Tensor) -> Tensor:
        """Returns the values (*, U, N) of the rankings' rows, (*, G, J − 1)."""
        flat = values.flatten(-2)
        if self._are_contiguous:
            return flat.unflatten(-1, self.cells.shape)
        return flat.index_select(-1, self.cells.flatten()).unflatten(-1, self.cells.shape)

    @cached_property
    def _are_contiguous(self) -> bool:
        """Whether all places are rows of rankings of one size."""
        return self._are_of_one_size and bool(self.inside.all())

    def order(self, choice: Tensor) -> Tensor:
        """Returns the place from 1 of each slot, (*, G, J), by choices (*, U, N).

        The unranked share the place after the last; in padding it is 2³¹.
        """
        ahead = (2 * self._rows(choice) - 1).round().long()
        ahead = ahead.masked_fill(self.is_padding[:, 1:], -(2**31))
        base = 1 + ahead.amax(-1, keepdim=True).clamp(min=0)
        return torch.cat([base, base - ahead], -1)

    def log_prob(self, margin: Tensor, choice: Tensor) -> Tensor:
        """Evaluates the log-probability of each ranking, in nats, at its first row.

        Args:
            margin: Margins in nats with shape (*, U, N).
            choice: Choices with a shape that broadcasts against it.

        Returns:
            Log-probabilities with the shape of the two, 0 at the other rows.
        """
        each = self.log_prob_of_rankings(margin, choice)
        total = each.new_zeros((*each.shape[:-1], self.inside.numel()))
        return total.index_copy(-1, self.first, each).unflatten(-1, self.inside.shape)

    def log_prob_of_rankings(self, margin: Tensor, choice: Tensor) -> Tensor:
        """Evaluates the log-probability of each ranking, in nats, with shape (*, G)."""
        place = self.order(choice)
        if self._have_one_stage:
            available = None if self._are_of_one_size else ~self.is_padding[:, 1:]
            return choice_set(self._rows(margin), place.argmin(-1), available)
        return self._log_prob_of_stages(self.utility(margin), place).sum(-1)

    def log_prob_of_people(self, margin: Tensor, choice: Tensor) -> Tensor:
        """Sums the log-probabilities of the rankings of each person, in nats, to shape (*, U)."""
        each, users = self.log_prob_of_rankings(margin, choice), len(self.inside)
        person = self.first // self.inside.shape[1]
        count = torch.bincount(person, minlength=users)
        most = int(count.max())
        if users * most == len(person):
            return steady_sum(each.unflatten(-1, (users, most)))
        number = torch.arange(most, device=count.device)
        index = (count.cumsum(0) - count).unsqueeze(-1) + number
        index = torch.where(number < count.unsqueeze(-1), index, len(person))
        padded = F.pad(each, (0, 1)).index_select(-1, index.flatten())
        return steady_sum(padded.unflatten(-1, (users, most)))

    def log_prob_of_first(self, margin: Tensor) -> Tensor:
        """Evaluates the log-probability that each slot wins the first stage, (*, G, J), in nats.

        It is −∞ in padding. Slots are taken in order, so that padding changes no digit.

        Args:
            margin: Margins in nats with shape (*, U, N).
        """
        utility = self.utility(margin)
        total, *others = utility.unbind(-1)
        for number, value in enumerate(others, 1):
            is_slot = number <= self.size
            total = torch.where(is_slot, log_add(total, value.masked_fill(~is_slot, 0.0)), total)
        return utility - total.unsqueeze(-1)

    @cached_property
    def _have_one_stage(self) -> bool:
        """Whether all rankings are choices from a set."""
        return int(self.stages.max()) == 1

    @cached_property
    def _are_of_one_size(self) -> bool:
        return bool((self.size == self.size[0]).all())

    def _log_prob_of_stages(self, utility: Tensor, place: Tensor) -> Tensor:
        """Evaluates the log-probability of the stage that each slot won, in order, (*, G, J).

        Slots are taken from the last to the best, so that the items left at a stage come before
        its winner; the first `num_below` of them won none.
        """
        order = place.masked_fill(self.is_padding, -1).argsort(dim=-1, descending=True, stable=True)
        lead = torch.broadcast_shapes(order.shape, utility.shape)
        value = utility.expand(lead).gather(-1, order.expand(lead))
        total, *others = value.unbind(-1)
        stages = [torch.zeros_like(total)]
        for number, value in enumerate(others, 1):
            is_slot = number <= self.size
            value = value.masked_fill(~is_slot, 0.0)
            # log σ keeps every digit of a probability near 0 and of one near 1.
            won = F.logsigmoid(value - total)
            stages.append(won.masked_fill(~is_slot | (number < self.num_below), 0.0))
            total = torch.where(is_slot, log_add(total, value), total)
        return torch.stack(stages, -1)

    def shares(self, margin: Tensor, choice: Tensor) -> StageShares:
        """Returns the probabilities of items in stages, of which derivatives by margins are made.

        The first derivative by the margin of item j is 1 for the winner, less p_j, the probability
        that j is chosen; the second ones are p_j p_k, less p_j on the diagonal, summed over stages.

        Args:
            margin: Margins in nats with shape (*, U, N).
            choice: Choices with shape (U, N).
        """
        place, utility = self.order(choice), self.utility(margin)
        firsts, places, stages, shares, people = [], [], [], [], []
        is_row = ~self.is_padding[:, 1:]
        number = 0
        for stage in range(int(self.stages.max())):
            runs = stage < self.stages
            left = (place > stage) & ~self.is_padding
            share = _softmax(utility.masked_fill(~left, -torch.inf))[..., 1:]
            won = (place == stage + 1)[:, 1:]
            firsts.append(
                (won.to(share.dtype) - share).masked_fill(~(left[:, 1:] & runs.unsqueeze(-1)), 0.0)
            )
            takes_part = left[:, 1:] & is_row & runs.unsqueeze(-1)
            ranking = takes_part.nonzero()[:, 0]
            numbers = runs.long().cumsum(0) - 1 + number
            number += int(runs.sum())
            places.append(self.cells[takes_part])
            stages.append(numbers[ranking])
            shares.append(share[..., takes_part])
            people.append(self.first[runs] // self.inside.shape[1])
        first = sum(firsts)[..., is_row]
        total = margin.new_zeros((*margin.shape[:-2], self.inside.numel()))
        total = total.index_copy(-1, self.cells[is_row], first.to(total.dtype))
        return StageShares(
            total.unflatten(-1, self.inside.shape),
            torch.cat(places),
            torch.cat(stages),
            torch.cat(shares, -1),
            torch.cat(people),
        )

    def pairs(self, choice: Tensor) -> StagePairs:
        """Lists the pairs that rankings tell, by choices (U, N), ranking by ranking."""
        place = self.order(choice)
        order = place.masked_fill(self.is_padding, 2**31).argsort(dim=-1, stable=True)
        slot = torch.arange(self.most, device=order.device)
        # The slot in order i won over all slots that follow it, if it won a stage.
        wins = (slot < self.stages.unsqueeze(-1)).unsqueeze(-1) & (slot.unsqueeze(-1) < slot)
        wins = wins & ~self.is_padding.unsqueeze(1)
        ranking, high, low = wins.nonzero(as_tuple=True)
        size = self.size[ranking] + 1 - high
        high, low = order[ranking, high], order[ranking, low]
        is_worst = self.is_worst[ranking]
        winner, loser = torch.where(is_worst, low, high), torch.where(is_worst, high, low)
        is_base = torch.stack([winner == 0, loser == 0])
        rows = [self.cells[ranking, (x - 1).clamp(min=0)] for x in (winner, loser)]
        # The base has no row of its own, and stands in that of the other item.
        rows = torch.where(is_base[0], rows[1], rows[0]), torch.where(is_base[1], rows[0], rows[1])
        side = 1 - 2 * is_worst.long()
        sides = [torch.where(base, -side, side) for base in is_base]
        first = self.first[ranking]
        person = first // self.inside.shape[1]
        return StagePairs(person, first, *rows, *sides, is_base, size)

    def sample(self, margin: Tensor) -> Tensor:
        """Draws rankings given margins (*, U, N) in nats, as choices of that shape.

        Utilities with Gumbel noise, sorted, are a draw of Plackett–Luce (Yellott 1977). The number
        of ranked items stays the same; rows outside of rankings are 0.
        """
        utility = self.utility(margin)
        value = utility - torch.empty_like(utility).exponential_().log()
        order = value.masked_fill(self.is_padding, -torch.inf).argsort(dim=-1, descending=True)
        number = torch.arange(1, self.most + 1, device=order.device).expand_as(order)
        return self._as_choices(torch.zeros_like(order).scatter(-1, order, number), margin)

    def decide(self, margin: Tensor, uniform: Tensor) -> Tensor:
        """Makes rankings of uniform numbers from [0, 1), one for each row, (*, U, N).

        The winner of each stage is drawn by the number of one row; a ranking has as many rows as
        stages, at least.
        """
        utility, own = self.utility(margin), self._rows(uniform)
        slot = torch.arange(self.most, device=utility.device)
        place = torch.full_like(utility, self.most + 1, dtype=torch.int64)
        for stage in range(int(self.stages.max())):
            total = _softmax(utility).nan_to_num().cumsum(-1)
            winner = (total <= own[..., stage, None] * total[..., -1:]).sum(-1, keepdim=True)
            last = slot.where(utility > -torch.inf, 0).amax(-1, keepdim=True)
            winner = torch.minimum(winner, last)
            runs = (stage < self.stages).unsqueeze(-1)
            place = torch.where(runs, place.scatter(-1, winner, stage + 1), place)
            utility = utility.scatter(-1, winner, -torch.inf)
        return self._as_choices(place, margin)

    def _as_choices(self, place: Tensor, margin: Tensor) -> Tensor:
        """Returns the choices (*, U, N) of slots' places (*, G, J), of which the first count."""
        place = torch.minimum(place, (self.stages + 1).unsqueeze(-1))
        drawn = (1 + place[..., :1] - place[..., 1:]).to(margin.dtype) / 2
        is_row = ~self.is_padding[:, 1:]
        choice = margin.new_zeros((*margin.shape[:-2], self.inside.numel()))
        choice[..., self.cells[is_row]] = drawn[..., is_row]
        return choice.unflatten(-1, self.inside.shape)


def _softmax(utility: Tensor) -> Tensor:
    """Returns the probabilities of the items (*, J), which absent ones at the end do not change."""
    weight = (utility - utility.amax(-1, keepdim=True)).exp()
    first, *others = weight.unbind(-1)
    return weight / sum(others, first).unsqueeze(-1)


def _starts(size: Tensor) -> Tensor:
    return size.cumsum(0) - size


def _count(size: Tensor) -> Tensor:
    """Counts 0, 1, 2, … through all entries, to be added to starts less their position."""
    return torch.arange(int(size.sum()), device=size.device)
