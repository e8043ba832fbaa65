"""The comparisons of some people, padded to a rectangle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.kernels.plackett_luce import Rankings

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Holds the comparisons of U people, padded to N columns.

    Padding has left = right = 0 and mask False; whatever stands under the mask has no effect.

    Attributes:
        items: Features of the items in the batch, in the units and the precision given, with shape
            (M, D); or, where items have no features, their positions in the item table, int64 with
            shape (M,).
        left: Position in `items` of each comparison's left item, int64 with shape (U, N).
        right: The same for the right item.
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, (U, N).
        mask: True for comparisons, False for padding, with shape (U, N).
        covariates: User covariates with shape (U, W), or None.
        people: Positions of the people in the data they come from, or None if simulated.
        ranking: Number of the judgement that a comparison belongs to, different for each judgement
            of a person, −1 in padding, int64 with shape (U, N); None where all stand alone.
        side: Whose place is an advantage: 1 for left's, −1 for right's, 0 for neither's, NaN where
            it is not known, (U, N); None where it is left's everywhere.
        count: How many equal comparisons each stands for in a fit by maximum likelihood, which
            alone merges them, (U, N); None for one each.
        weights: How many times each person counts in estimates, double precision with shape (U,);
            None for once each.
        keys: Keys of the people's random streams, uint64 with shape (U,); None if simulated.
        part: Where these people stand among those of a whole batch, and the number of people of the
            whole batch; None where it is all of them.
    """

    items: Tensor
    left: Tensor
    right: Tensor
    choice: Tensor
    mask: Tensor
    covariates: Tensor | None = None
    people: np.ndarray | None = None
    ranking: Tensor | None = None
    side: Tensor | None = None
    count: Tensor | None = None
    weights: Tensor | None = None
    keys: np.ndarray | None = None
    part: tuple[int, int] | None = None

    @property
    def num_users(self) -> int:
        """Number of people U."""
        return self.mask.shape[0]

    @property
    def num_comparisons(self) -> Tensor:
        """Number of comparisons of each person, int64 with shape (U,)."""
        return self.mask.sum(-1)

    @cached_property
    def rankings(self) -> Rankings | None:
        """What the likelihood needs to know of rankings; None without any."""
        if self.ranking is None:
            return None
        return Rankings.find(self.left, self.right, self.choice, self.mask, self.ranking)

    @property
    def judgement_mask(self) -> Tensor:
        """True at the first comparison of every judgement: the mask where all stand alone."""
        if self.rankings is None:
            return self.mask
        return self.mask & (self.rankings.head | ~self.rankings.inside)

    def whole_judgements(self, first: Tensor) -> Tensor:
        """Marks all comparisons of the judgements whose first comparison is marked, (U, N)."""
        if self.rankings is None:
            return self.mask & first
        number = self.ranking.masked_fill(~self.mask, 0)
        marked = torch.zeros(len(number), int(number.max()) + 1, device=number.device)
        marked.scatter_reduce_(1, number, first.to(marked.dtype), "amax")
        return self.mask & marked.gather(1, number).bool()

    @property
    def half_wins(self) -> Tensor:
        """True where a comparison that stands alone has the choice ½, with shape (U, N)."""
        tied = self.mask & (self.choice == 0.5)
        return tied if self.rankings is None else tied & ~self.rankings.inside

    def to(self, device: torch.device | str | None) -> Batch:
        """Moves every tensor to `device`."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def double(self) -> Batch:
        """Returns a copy with features and choices in double precision."""
        items = self.items if self.items.dtype == torch.int64 else self.items.double()
        return self.replace(items=items, choice=self.choice.double())

    def take(self, people: slice) -> Batch:
        """Returns a stretch of the people as a `part`, with the same width, and with their items.

        The padding must be 0, as data make it.
        """
        pairs = torch.stack([self.left[people], self.right[people]])
        used, position = torch.unique(pairs, return_inverse=True)
        own = {
            field.name: getattr(self, field.name)[people]
            for field in dataclasses.fields(self)
            if field.name not in ("items", "left", "right", "part")
            and getattr(self, field.name) is not None
        }
        part = people.indices(self.num_users)[0], self.num_users
        left, right = position
        return self.replace(items=self.items[used], left=left, right=right, part=part, **own)

    def replace(self, **changes: Any) -> Batch:
        """Returns a copy with some fields replaced, for example `mask=` or `choice=`."""
        return dataclasses.replace(self, **changes)

    def clean(self) -> Batch:
        """Returns a copy in which the padding is 0, whatever it held, and has no ranking."""
        return self.replace(
            left=self.left.masked_fill(~self.mask, 0),
            right=self.right.masked_fill(~self.mask, 0),
            choice=self.choice.masked_fill(~self.mask, 0.0),
            ranking=None if self.ranking is None else self.ranking.masked_fill(~self.mask, -1),
            side=None if self.side is None else self.side.masked_fill(~self.mask, 0.0),
        )
