"""The parts of a data set, checked: what `Preferences` hold, and copies with other parts.

Whatever else is asked of data is computed from the fields of :class:`Comparisons`. A copy is made
by :func:`replace` from these fields alone, so that no cached value of the old data is carried over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import keys_of
from fssa_bayes.data.batch import Batch
from fssa_bayes.data.judgements import Judgements
from fssa_bayes.data.ragged import list_ranges, offsets_of

__all__ = [
    "TIES",
    "Comparisons",
    "covariates_of",
    "pad",
    "replace",
    "rows_of",
    "select",
    "select_where",
    "weights_of",
]

Data = TypeVar("Data", bound="Comparisons")
TIES = ("drop", "keep", "half")
"""What becomes of ties that are read."""


@dataclass(eq=False, repr=False)
class Comparisons:
    """Holds the comparisons of many people, ragged, and the tables that they point into.

    Attributes:
        left: Position of each comparison's left item in the item table, int32 with shape (R,).
        right: The same for the right item.
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, (R,).
        offsets: Person u owns comparisons `offsets[u]` to `offsets[u + 1] - 1`; shape (U + 1,).
        items: Item features with shape (M, D), or None for one indicator per item.
        num_items: Number of items M.
        item_names: Names of the items.
        feature_names: Names of the features; those of the items where these have no features.
        user_names: Names of the people.
        covariates: User covariates with shape (U, W), or None.
        covariate_names: Names of the covariates.
        ties: What a choice of ½ means: `"half"`, half a win each, or `"keep"`, a tie proper.
        dropped_ties: Number of ties that were left out.
        judgements: Which comparisons belong together.
        broken: Numbers of rankings that were broken into pairs and of their stages.
        side: Whose place is an advantage: 1 for left's, −1 for right's, 0 for neither's, NaN where
            it is not known, (R,); None where it is left's everywhere.
        weights: How many times each person's log-likelihood counts in estimates, (U,); None where
            everybody's counts once.
        people_are_named: Whether the data say who answered; else every row is a judge of its own.
        feature_levels: Levels of categorical features by column, the reference level first.
        covariate_levels: The same of categorical covariates.
        alternatives: Name of the alternative that each item is, (M,), where every alternative on
            offer is an item of its own; None elsewhere, where an item may stand in many situations.
    """

    left: np.ndarray
    right: np.ndarray
    choice: np.ndarray
    offsets: np.ndarray
    items: Tensor | None
    num_items: int
    item_names: pd.Index
    feature_names: pd.Index
    user_names: pd.Index
    covariates: Tensor | None
    covariate_names: pd.Index
    ties: str
    dropped_ties: int
    judgements: Judgements
    broken: tuple[int, int] = (0, 0)
    side: np.ndarray | None = None
    weights: np.ndarray | None = None
    people_are_named: bool = True
    feature_levels: Mapping[Hashable, tuple] = field(default_factory=dict)
    covariate_levels: Mapping[Hashable, tuple] = field(default_factory=dict)
    alternatives: pd.Categorical | None = None

    def __len__(self) -> int:
        """Returns the number of people U."""
        return len(self.offsets) - 1

    @property
    def num_comparisons(self) -> int:
        """Number of comparisons of all people together."""
        return len(self.left)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of comparisons of each person, with shape (U,)."""
        return np.diff(self.offsets)

    @cached_property
    def person(self) -> np.ndarray:
        """Position of the person whom each comparison belongs to, with shape (R,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    @cached_property
    def keys(self) -> np.ndarray:
        """Keys of the people's random streams, which follow from their names, uint64 (U,)."""
        return keys_of(self.user_names)

    @property
    def num_judgements(self) -> int:
        """Number of rankings, and of comparisons that stand alone, of all people together."""
        return int(self.judgement_counts.sum())

    @cached_property
    def judgement_counts(self) -> np.ndarray:
        """Number of judgements of each person, with shape (U,); `counts` without rankings."""
        return np.diff(self.judgements.count_before(self.offsets))

    @property
    def judgement_heads(self) -> np.ndarray:
        """Number of the first comparison of each judgement, with shape (J,)."""
        return self.judgements.heads

    @property
    def ranking(self) -> np.ndarray | None:
        """Number of each comparison's judgement, with shape (R,); None where all stand alone."""
        return self.judgements.ranking

    @property
    def has_rankings(self) -> bool:
        """Whether some comparisons make up a ranking."""
        return self.judgements.has_rankings

    @property
    def half_wins(self) -> np.ndarray:
        """Whether a comparison stands alone and has the choice ½, with shape (R,)."""
        return (self.choice == 0.5) & ~self.judgements.inside

    @property
    def places_are_known(self) -> bool:
        """Whether the data say, for every comparison, whose place was an advantage."""
        return self.side is None or not np.isnan(self.side).any()

    @property
    def num_features(self) -> int:
        """Number of features D of an item; the number of items where these have no features."""
        return self.num_items if self.items is None else self.items.shape[1]

    @property
    def num_covariates(self) -> int:
        """Number of covariates W of a person; 0 where people have none."""
        return 0 if self.covariates is None else self.covariates.shape[1]

    @property
    def items_are_shared(self) -> bool:
        """Whether some item was compared by two people, so that the table is common to them."""
        owner = np.full(self.num_items, -1, dtype=np.int64)
        for side in (self.left, self.right):
            owner[side] = self.person
        return len(self) == 1 or any(
            (owner[side] != self.person).any() for side in (self.left, self.right)
        )


def replace(data: Data, **parts: Any) -> Data:
    """Returns a copy of data with other parts, which are not checked."""
    own = {field.name: getattr(data, field.name) for field in dataclasses.fields(Comparisons)}
    copy = object.__new__(type(data))
    Comparisons.__init__(copy, **(own | parts))
    return copy


def select(data: Data, rows: np.ndarray, counts: np.ndarray, **parts: Any) -> Data:
    """Returns a copy with some comparisons, judgements whole, and with other parts.

    Args:
        data: The data.
        rows: Numbers of the comparisons, person by person.
        counts: Number of comparisons of each person of the copy.
        parts: What belongs to other people, such as `user_names` and `covariates`.
    """
    return replace(
        data,
        left=data.left[rows],
        right=data.right[rows],
        choice=data.choice[rows],
        offsets=offsets_of(counts),
        judgements=data.judgements.select(rows),
        side=None if data.side is None else data.side[rows],
        **parts,
    )


def select_where(data: Data, which: np.ndarray, **parts: Any) -> Data:
    """Returns a copy of everybody's data with the comparisons where `which` (R,) is True."""
    counts = np.bincount(data.person[which], minlength=len(data))
    return select(data, np.flatnonzero(which), counts, **parts)


def rows_of(data: Comparisons, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists the comparisons of people given by position, and how many each has."""
    counts = data.counts[people]
    return list_ranges(data.offsets[people], counts), counts


def covariates_of(data: Comparisons, people: np.ndarray | None) -> Tensor | None:
    """Returns the covariates of people given by position; None for nobody, or without any."""
    return None if people is None or data.covariates is None else data.covariates[people]


def weights_of(data: Comparisons, people: np.ndarray) -> np.ndarray | None:
    """Returns the weights of people given by position; None where they are all 1."""
    if data.weights is None:
        return None
    weights = data.weights[people]
    return None if (weights == 1).all() else weights


def pad(
    data: Comparisons,
    rows: np.ndarray,
    counts: np.ndarray,
    people: np.ndarray | None = None,
) -> Batch:
    """Pads comparisons given by number to a batch, with only the items that it needs.

    Args:
        data: The data.
        rows: Numbers of the comparisons, person by person.
        counts: Number of comparisons of each of U people, with shape (U,).
        people: Positions of the people whose covariates the batch holds, (U,); None for none.
    """
    mask = np.arange(counts.max(initial=0)) < counts[:, None]

    def padded(values: np.ndarray, dtype: type) -> np.ndarray:
        table = np.zeros(mask.shape, dtype=dtype)
        table[mask] = values
        return table

    used, position = np.unique(np.stack([data.left[rows], data.right[rows]]), return_inverse=True)
    left, right = position.reshape(2, -1)
    used = torch.from_numpy(used.astype(np.int64))
    ranking, begins = None, data.judgements.begins(rows)
    if begins is not None:
        number = np.cumsum(padded(begins, bool), -1) - 1
        ranking = torch.from_numpy(np.where(mask, number, -1))
    return Batch(
        items=used if data.items is None else data.items[used],
        left=torch.from_numpy(padded(left, np.int64)),
        right=torch.from_numpy(padded(right, np.int64)),
        choice=torch.from_numpy(padded(data.choice[rows], np.float32)),
        mask=torch.from_numpy(mask),
        covariates=covariates_of(data, people),
        ranking=ranking,
        side=None if data.side is None else torch.from_numpy(padded(data.side[rows], np.float32)),
    )
