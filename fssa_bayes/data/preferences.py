r"""Paired comparisons of many people: storage, splits and batches.

The convention, stated once: a *comparison* shows a person two items, `left` and `right`; its
`choice` is 1 if left was preferred, 0 if right was, and ½ for half a win each (or for a tie proper:
data remember which, by `ties="half"` or `"keep"`, and the latter need a model with ties). The
*margin* is utility(left) − utility(right), in nats, and the log-likelihood of a choice y at margin
m is :math:`y\,m - \log(1 + e^m)`; `distributions.py` adds ties, a position bias and lapses.

A *ranking* of n items is stored as its n (n − 1) / 2 comparisons, which carry its number: choice is
1 where left stands above right, and ½ where the ranking says nothing, as both stand below the
ranked ones. A *judgement* is a ranking, or a comparison that stands alone; what is split, drawn
or left out is a judgement, never a part of one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data.batch import Batch
from fssa_bayes.data.frame import (
    check_frame,
    decode_choices,
    lookup_items,
    name_items,
    neutral_order,
    read_covariates,
)
from fssa_bayes.data.rankings import break_into_pairs, check_rankings, read_rankings
from fssa_bayes.data.summary import Summary

__all__ = ["Preferences"]

_TIES = ("drop", "keep", "half")
_METHODS = ("plackett_luce", "pairs")


class Preferences:
    """Stores the paired comparisons of many people, ragged, in memory proportional to their number.

    Most users start from :meth:`from_dataframe`. Objects are immutable: splits and subsets return
    new ones that share the item table.

    Args:
        left: Position of the left item of each comparison in the item table, with shape (R,),
            the comparisons of a person lying together.
        right: The same for the right item.
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, (R,).
        offsets: Person u owns comparisons `offsets[u]` to `offsets[u + 1] - 1`; shape (U + 1,).
        items: Item features with shape (M, D), or None for one indicator per item.
        num_items: Number of items M where `items` is None.
        item_names: Names of the items; positions if None.
        feature_names: Names of the features; positions if None.
        user_names: Names of the people; positions if None.
        covariates: User covariates with shape (U, W), or None.
        covariate_names: Names of the covariates; positions if None.
        ties: What a choice of ½ means: `"half"`, half a win each, or `"keep"`, a tie proper.
        dropped_ties: Number of ties that were left out, for :meth:`summary`.
        ranking: Equal numbers for the comparisons of a person that are the pairs of one ranking,
            with shape (R,); None where every comparison stands alone. See :meth:`from_rankings`.

    Attributes:
        broken: Numbers of rankings that were broken into pairs and of their stages.

    Raises:
        ValueError: If shapes disagree, an index is out of range, an item is compared with itself,
            a choice lies outside {0, ½, 1}, a feature or covariate is not finite, or the
            comparisons of a ranking are not its pairs.
    """

    broken: tuple[int, int] = (0, 0)

    def __init__(
        self,
        left: np.ndarray,
        right: np.ndarray,
        choice: np.ndarray,
        offsets: np.ndarray,
        *,
        items: np.ndarray | Tensor | None = None,
        num_items: int | None = None,
        item_names: Sequence | pd.Index | None = None,
        feature_names: Sequence | None = None,
        user_names: Sequence | pd.Index | None = None,
        covariates: np.ndarray | Tensor | None = None,
        covariate_names: Sequence | None = None,
        ties: str = "half",
        dropped_ties: int = 0,
        ranking: np.ndarray | None = None,
    ) -> None:
        if ties not in _TIES:
            raise ValueError(f"ties must be one of {_TIES}, got {ties!r}")
        offsets = np.asarray(offsets, dtype=np.int64)
        if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError(
                "offsets must be non-decreasing, start at 0 and have one entry more than there are "
                f"people (at least one), got shape {offsets.shape}"
            )
        if items is None and num_items is None:
            raise ValueError("one of items and num_items must be given, got neither")
        self.items = None if items is None else _finite_table("items", items)
        self.num_items = int(num_items if self.items is None else self.items.shape[0])
        if items is not None and num_items not in (None, self.num_items):
            raise ValueError(f"num_items must equal the {self.num_items} rows of items")
        self.left = _item_positions("left", left, offsets[-1], self.num_items)
        self.right = _item_positions("right", right, offsets[-1], self.num_items)
        self.choice = _choices(choice, offsets[-1])
        same = np.flatnonzero(self.left == self.right)
        if len(same):
            raise ValueError(
                f"an item cannot be compared with itself: left = right = {self.left[same[0]]} in "
                f"comparison {same[0]} ({len(same)} such comparisons)"
            )
        self.offsets = offsets
        self.item_names = _names("item_names", item_names, self.num_items)
        self.user_names = _names("user_names", user_names, len(offsets) - 1)
        width = 0 if self.items is None else self.items.shape[1]
        self.feature_names = (
            self.item_names if self.items is None else _names("feature_names", feature_names, width)
        )
        self.covariates = None if covariates is None else _finite_table("covariates", covariates)
        if self.covariates is not None and len(self.covariates) != len(self):
            raise ValueError(
                f"covariates must have one row per person: {len(self)} people, "
                f"{len(self.covariates)} rows"
            )
        width = 0 if self.covariates is None else self.covariates.shape[1]
        self.covariate_names = _names("covariate_names", covariate_names, width)
        self.ties = ties
        self.dropped_ties = int(dropped_ties)
        self.ranking = None
        if ranking is not None:
            number = check_rankings(self.left, self.right, self.choice, ranking, self._person())
            self.ranking = number if np.bincount(number).max(initial=0) > 1 else None

    # ------------------------------------------------------------------ construction

    @classmethod
    def from_dataframe(
        cls,
        df: pd.DataFrame,
        *,
        user: str,
        left: str,
        right: str,
        choice: str,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        choice_labels: Mapping[Any, str] | None = None,
        ties: str = "drop",
    ) -> Preferences:
        """Reads comparisons from a table with one row per comparison.

        Args:
            df: The comparisons.
            user: Column that names the person.
            left: Column that names the left item.
            right: Column that names the right item.
            choice: Column with the answer, in one of three codings: numbers 1 / 0 / 0.5 or
                booleans (True: left); the words "left" / "right" / "tie"; or the name of the
                preferred item (and "tie").
            items: Numeric features, one row per item, indexed by item name. None gives every item
                an indicator of its own.
            users: Numeric covariates, one row per person, indexed by user name. Every row must
                belong to a person with comparisons.
            choice_labels: Translation of the data's own words into "left", "right" and "tie", for
                example `{"a1": "left", "a2": "right", "equal": "tie"}`.
            ties: `"drop"` leaves ties out, `"half"` counts them as half a win each, `"keep"` keeps
                them for a model with ties. A numeric 0.5 is a tie.

        Returns:
            The comparisons, people in order of first appearance.

        Raises:
            TypeError: If `df`, `items` or `users` is not a DataFrame.
            ValueError: If a column, item or person is unknown, a cell is missing, a feature is not
                finite, a choice has no or more than one meaning, or an item meets itself.

        Warns:
            UserWarning: For duplicate rows, for people left without comparisons by `ties="drop"`,
                for items that are never compared, and, where items have no features, for a
                comparison graph that is not connected.
        """
        if ties not in _TIES:
            raise ValueError(f"ties must be one of {_TIES}, got {ties!r}")
        columns = {"user": user, "left": left, "right": right, "choice": choice}
        check_frame(df, columns)
        item_names = name_items(df, left, right, items)
        left_item = lookup_items(df, left, item_names)
        right_item = lookup_items(df, right, item_names)
        same = np.flatnonzero(left_item == right_item)
        if len(same):
            raise ValueError(
                f"an item cannot be compared with itself: {df[left].iloc[same[0]]!r} stands in "
                f"{left!r} and {right!r} at row {df.index[same[0]]} ({len(same)} such rows)"
            )
        outcome = decode_choices(df, columns, choice_labels)
        person, user_names = pd.factorize(df[user])
        covariates = None if users is None else read_covariates(users, pd.Index(user_names))
        repeated = int(df.duplicated(list(columns.values())).sum())
        if repeated:
            warnings.warn(
                f"{repeated} of {len(df)} rows repeat an earlier row (same person, left, right and "
                "choice); each counts as a judgement of its own",
                stacklevel=2,
            )

        tied = outcome == 0.5
        dropped = int(tied.sum()) if ties == "drop" else 0
        keep = ~tied if ties == "drop" else np.ones(len(df), dtype=bool)
        if not keep.any():
            raise ValueError(f"no comparison is left: all {dropped} are ties and ties='drop'")
        order = np.flatnonzero(keep)
        order = order[np.argsort(person[order], kind="stable")]
        counts = np.bincount(person[order], minlength=len(user_names))
        if (counts == 0).any():
            warnings.warn(
                f"{int((counts == 0).sum())} of {len(counts)} people have only ties and were left "
                "out; ties='half' keeps them",
                stacklevel=2,
            )
        present = np.flatnonzero(counts)
        data = cls(
            left_item[order],
            right_item[order],
            outcome[order],
            _offsets(counts[present]),
            items=None if items is None else items.to_numpy(dtype=np.float32),
            num_items=len(item_names),
            item_names=item_names,
            feature_names=None if items is None else items.columns,
            user_names=pd.Index(user_names)[present],
            covariates=None if covariates is None else covariates[present],
            covariate_names=None if users is None else users.columns,
            ties="half" if ties == "drop" else ties,
            dropped_ties=dropped,
        )
        data._warn_about_graph()
        return data

    @classmethod
    def from_rankings(
        cls,
        rankings: pd.DataFrame | Mapping[Any, Sequence[Sequence]] | Sequence[Sequence],
        *,
        user: str | None = None,
        ranking: str | None = None,
        item: str | None = None,
        rank: str | None = None,
        choice_set: Sequence | None = None,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        method: str = "plackett_luce",
    ) -> Preferences:
        r"""Reads full and partial rankings, scored by Plackett–Luce or broken into pairs.

        Plackett–Luce: the best item is chosen among all, the next among those left, and so on, each
        with a probability in proportion to the exponential of its utility, so that a ranking of two
        is a comparison. The likelihood is exact, the ranking one event.

        `method="pairs"` scores every pair as a comparison of its own: a composite likelihood. Its
        estimates are consistent, as each pair by itself has just that probability, and for items of
        equal utility as good as those from 92 % (n = 5 items), 87 % (10) and in the limit 75 % of
        the rankings by Plackett–Luce. But it takes pairs of one ranking for independent: it counts
        (n + 1) / 3 times the information that it uses. So likelihoods, posteriors of a person and
        standard errors from the information claim too much; those of the sandwich, with people as
        clusters (`se_sandwich` of `population()`, `ranking()`), do not.

        A *partial* ranking is of a part of the items, which says nothing about the others; or the
        best k of a choice set, whose other items lie below in no order.

        Args:
            rankings: A table with one row an item of a ranking, whose columns are named below; or
                a mapping from people to lists of rankings, each of which lists items from the best
                on; or a list of such rankings, each of a person of its own. A table with one row a
                ranking and one column an item is `melt`ed first.
            user: Column that names the person.
            ranking: Column that tells a person's rankings apart; None where each gave one.
            item: Column that names the item.
            rank: Column with the rank, a number from 1, the best; only the order matters. Missing
                where an item was on offer and lies below all ranked ones.
            choice_set: Items that every ranking was made from: those that it does not list lie
                below the ones that it does. None for what the rankings list.
            items: Numeric features, one row per item, indexed by item name. None gives every item
                an indicator of its own.
            users: Numeric covariates, one row per person, indexed by user name.
            method: `"plackett_luce"` or `"pairs"`.

        Returns:
            The rankings, people in order of first appearance. A ranking of n items, whether it is
            full or of the best k, takes n (n − 1) / 2 comparisons; broken into pairs, it has no
            pairs that it says nothing about.

        Raises:
            TypeError: If `rankings`, `items` or `users` is of another type.
            ValueError: If a column, item or person is unknown, a cell is missing, an item stands
                twice in a ranking, two items share a rank, a ranking has a single item or none
                that is ranked, or an item lies outside the choice set.

        Warns:
            UserWarning: For rankings broken into pairs, and as :meth:`from_dataframe` for items.

        References:
            Luce (1959), Individual choice behavior; Plackett (1975), The analysis of permutations.
            Hunter (2004), MM algorithms for generalized Bradley-Terry models, Annals of Statistics
            32(1).
            Turner, van Etten, Firth & Kosmidis (2020), Modelling rankings in R: the PlackettLuce
            package, Computational Statistics 35.
            Varin, Reid & Firth (2011), An overview of composite likelihood methods.

        Example:
            >>> ballots = {"ann": [("tea", "cola", "milk")], "bob": [("milk", "tea")]}
            >>> data = Preferences.from_rankings(ballots)
            >>> data.num_judgements, data.num_comparisons
            (2, 4)
        """
        if method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
        columns = {"user": user, "ranking": ranking, "item": item, "rank": rank}
        ranked = read_rankings(rankings, columns, choice_set)
        frame = ranked.item.to_frame("item")
        names = name_items(frame, "item", "item", items)
        if items is None:
            names = neutral_order(names, choice_set)
        position = names.get_indexer(ranked.item)
        unknown = np.flatnonzero(position < 0)
        if len(unknown):
            person = ranked.users[ranked.person[ranked.group[unknown[0]]]]
            raise ValueError(
                f"unknown item {ranked.item.iloc[unknown[0]]!r} in a ranking of user {person!r} "
                f"({len(unknown)} such rows): items has no row of that name; its index begins with "
                f"{list(names[:3])}"
            )
        left, right, choice, number = break_into_pairs(ranked.group, position, ranked.rank)
        covariates = None if users is None else read_covariates(users, ranked.users)
        counts = np.bincount(ranked.person[number], minlength=len(ranked.users))
        data = cls(
            left,
            right,
            choice,
            _offsets(counts),
            items=None if items is None else items.to_numpy(dtype=np.float32),
            num_items=len(names),
            item_names=names,
            feature_names=None if items is None else items.columns,
            user_names=ranked.users,
            covariates=covariates,
            covariate_names=None if users is None else users.columns,
            ranking=number,
        )
        data._warn_about_graph()
        if method == "plackett_luce" or not data.has_rankings:
            return data
        pairs = data.as_pairs()
        warnings.warn(
            f"{pairs.broken[0]:,} rankings of {pairs.broken[1]:,} stages were broken into pairs, "
            f"scored as {pairs.num_comparisons:,} independent comparisons, which they are not: use "
            "standard errors of the sandwich, with people as clusters",
            stacklevel=2,
        )
        return pairs

    def _warn_about_graph(self) -> None:
        labels, unused = self._components()
        if self.items is not None and unused:
            warnings.warn(
                f"{unused} of {self.num_items} items are never compared; their utilities rest on "
                "their features alone",
                stacklevel=3,
            )
        if self.items is None and labels.max() > 0:
            shown = []
            for component in range(min(3, labels.max() + 1)):
                names = [repr(name) for name in self.item_names[labels == component][:3]]
                more = ", …" if (labels == component).sum() > 3 else ""
                shown.append("{" + ", ".join(names) + more + "}")
            warnings.warn(
                f"the comparison graph has {labels.max() + 1} connected components, so utilities "
                f"of different components cannot be compared: {', '.join(shown)}"
                + (", …" if labels.max() > 2 else ""),
                stacklevel=3,
            )

    # ------------------------------------------------------------------ sizes

    def __len__(self) -> int:
        """Returns the number of people U."""
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return (
            f"Preferences({len(self)} people, {self.num_comparisons} comparisons, "
            f"{self.num_items} items)"
        )

    @property
    def num_comparisons(self) -> int:
        """Number of comparisons of all people together."""
        return len(self.left)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of comparisons of each person, with shape (U,)."""
        return np.diff(self.offsets)

    @property
    def num_judgements(self) -> int:
        """Number of rankings, and of comparisons that stand alone, of all people together."""
        return int(self.judgement_counts.sum())

    @cached_property
    def judgement_counts(self) -> np.ndarray:
        """Number of judgements of each person, with shape (U,); `counts` without rankings."""
        if self.ranking is None:
            return self.counts
        return np.bincount(self._person()[self.judgement_heads], minlength=len(self))

    @property
    def has_rankings(self) -> bool:
        """Whether some comparisons make up a ranking."""
        return bool(self._whole.any())

    @property
    def half_wins(self) -> np.ndarray:
        """Whether a comparison stands alone and has the choice ½, with shape (R,)."""
        return (self.choice == 0.5) & ~self._whole

    @property
    def judgement_heads(self) -> np.ndarray:
        """Number of the first comparison of each judgement, with shape (J,)."""
        if self.ranking is None:
            return np.arange(self.num_comparisons)
        return np.flatnonzero(np.diff(self.ranking, prepend=-1))

    @property
    def _whole(self) -> np.ndarray:
        """Whether a comparison is one of several of a ranking, with shape (R,)."""
        if self.ranking is None:
            return np.zeros(self.num_comparisons, dtype=bool)
        return np.bincount(self.ranking, minlength=1)[self.ranking] > 1

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
        person = self._person()
        for side in (self.left, self.right):
            owner[side] = person
        return len(self) == 1 or any(
            (owner[side] != person).any() for side in (self.left, self.right)
        )

    def _person(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), self.counts)

    # ------------------------------------------------------------------ batches

    def batch(self, people: np.ndarray | Sequence[int] | None = None) -> Batch:
        """Pads the comparisons of some people (all by default) into one batch, on the CPU."""
        people = np.arange(len(self)) if people is None else self._positions(people)
        starts, counts = self.offsets[people], self.counts[people]
        column = np.arange(counts.max(initial=0))
        mask = column < counts[:, None]
        batch = self._assemble(np.where(mask, starts[:, None] + column, 0), mask)
        covariates = None if self.covariates is None else self.covariates[people]
        return batch.replace(covariates=covariates, people=people)

    def batches(self, batch_size: int, *, shuffle: bool = False, seed: int = 0) -> Iterator[Batch]:
        """Iterates once over all people, in order or shuffled, `batch_size` at a time."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = np.random.default_rng(seed).permutation(len(self)) if shuffle else range(len(self))
        for start in range(0, len(self), batch_size):
            yield self.batch(np.asarray(order[start : start + batch_size]))

    def pooled(self, width: int = 64) -> Preferences:
        """Deals all comparisons to imaginary people, `width` to each: for models without people.

        A batch of them is not padded to the person with the most comparisons.
        """
        total = self.num_comparisons
        starts = np.arange(0, total, width)
        if self.ranking is not None:  # No ranking is dealt to two.
            heads = self.judgement_heads
            starts = np.unique(heads[np.searchsorted(heads, starts, side="right") - 1])
        offsets = np.append(starts, total)
        return Preferences(
            self.left,
            self.right,
            self.choice,
            offsets,
            items=self.items,
            num_items=self.num_items,
            item_names=self.item_names,
            feature_names=self.feature_names,
            ties=self.ties,
            ranking=self.ranking,
        )

    def as_pairs(self) -> Preferences:
        """Breaks rankings into pairs, each a comparison of its own.

        A composite likelihood, see :meth:`from_rankings`. Pairs that a ranking says nothing about
        are left out; without rankings the data come back unchanged.
        """
        if self.ranking is None:
            return self
        rows = np.flatnonzero(~self._whole | (self.choice != 0.5))
        counts = np.bincount(self._person()[rows], minlength=len(self))
        pairs = self._derive(rows, _offsets(counts), np.arange(len(self)))
        pairs.ranking, pairs.broken = None, (self._num_rankings, self._num_stages)
        return pairs

    @property
    def _num_rankings(self) -> int:
        return int(self._whole[self.judgement_heads].sum())

    @property
    def _num_stages(self) -> int:
        """Number of winners in rankings of three items or more."""
        if self.ranking is None:
            return 0
        known = self._whole & (self.choice != 0.5)
        winner = np.where(self.choice == 1, self.left, self.right)[known].astype(np.int64)
        return len(np.unique(self.ranking[known] * self.num_items + winner))

    def resample_pairs(
        self, counts: np.ndarray, rng: np.random.Generator, people: np.ndarray | None = None
    ) -> Batch:
        """Draws pairs at random from all comparisons, `counts[u]` for each of U imaginary people.

        Rankings are drawn whole, `counts[u]` judgements. The choices are those of the people asked,
        and of no meaning for the imaginary ones: a simulation replaces them. Their covariates are
        those of `people` (U,), given by position.
        """
        mask = np.arange(counts.max(initial=0)) < counts[:, None]
        judgement = rng.integers(self.num_judgements, size=mask.shape)
        if self.ranking is not None:
            judgement, mask = self._lay_out(judgement, mask)
        return self._assemble(judgement, mask).replace(covariates=self._covariates_of(people))

    def _lay_out(self, judgement: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pads the comparisons of judgements (U, N): their numbers, and where there is one."""
        size, rows = self._expand(judgement[mask])
        person = np.repeat(mask.nonzero()[0], size)
        widths = np.bincount(person, minlength=len(mask))
        mask = np.arange(widths.max(initial=0)) < widths[:, None]
        comparison = np.zeros(mask.shape, dtype=np.int64)
        comparison[mask] = rows
        return comparison, mask

    def _expand(self, judgement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists the comparisons (Q,) of judgements given by number, and how many each has."""
        heads = self.judgement_heads
        size = np.diff(heads, append=self.num_comparisons)[judgement]
        start = np.cumsum(size) - size
        return size, np.arange(size.sum()) + np.repeat(heads[judgement] - start, size)

    def _covariates_of(self, people: np.ndarray | None) -> Tensor | None:
        return None if people is None or self.covariates is None else self.covariates[people]

    def imagine(self, comparison: np.ndarray, people: np.ndarray | None = None) -> Preferences:
        """Returns imaginary people who are asked the pairs of comparisons (U, N), given by number.

        With rankings the numbers are those of judgements. As with :meth:`resample_pairs`, the
        choices have no meaning until a simulation replaces them; the people's names are numbers,
        and their covariates those of `people` (U,), if given.
        """
        users, width = comparison.shape
        rows, offsets = comparison.ravel(), np.arange(users + 1) * width
        if self.ranking is not None:
            size, rows = self._expand(rows)
            offsets = _offsets(size.reshape(comparison.shape).sum(-1))
        imagined = self._derive(rows, offsets, np.zeros(0, dtype=np.int64))
        imagined.user_names = pd.RangeIndex(users, name="user")
        imagined.covariates = self._covariates_of(people)
        return imagined

    def _assemble(self, comparison: np.ndarray, mask: np.ndarray) -> Batch:
        """Builds a batch from comparison numbers (U, N), with only the items that it needs."""
        pairs = np.stack([self.left[comparison[mask]], self.right[comparison[mask]]])
        used, position = np.unique(pairs, return_inverse=True)
        left = np.zeros(mask.shape, dtype=np.int64)
        right = np.zeros(mask.shape, dtype=np.int64)
        choice = np.zeros(mask.shape, dtype=np.float32)
        left[mask], right[mask] = position.reshape(pairs.shape)
        choice[mask] = self.choice[comparison[mask]]
        used = torch.from_numpy(used.astype(np.int64))
        ranking = None
        if self.ranking is not None:
            # A person may have the same ranking twice: what counts is where one begins.
            begins = np.diff(self.ranking, prepend=-1) != 0
            ranking = np.cumsum(begins[comparison] & mask, -1) - 1
            ranking = torch.from_numpy(np.where(mask, ranking, -1))
        return Batch(
            items=used if self.items is None else self.items[used],
            left=torch.from_numpy(left),
            right=torch.from_numpy(right),
            choice=torch.from_numpy(choice),
            mask=torch.from_numpy(mask),
            ranking=ranking,
        )

    # ------------------------------------------------------------------ splits

    def subset(self, people: np.ndarray | Sequence[int]) -> Preferences:
        """Returns the data of some people, given as positions or as a Boolean mask."""
        people = self._positions(people)
        if len(people) == 0:
            raise ValueError("people must name at least one person, got none")
        counts = self.counts[people]
        offsets = _offsets(counts)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[people] - offsets[:-1], counts)
        return self._derive(rows, offsets, people)

    def _positions(self, people: np.ndarray | Sequence[int]) -> np.ndarray:
        people = np.asarray(people)
        if people.dtype == bool:
            if people.shape != (len(self),):
                raise ValueError(
                    f"a Boolean people mask must have shape ({len(self)},), got {people.shape}"
                )
            return np.flatnonzero(people)
        if people.ndim != 1 or (people.size and not np.issubdtype(people.dtype, np.integer)):
            raise ValueError(
                "people must be a Boolean mask or positions with one dimension, got "
                f"{people.dtype} with shape {people.shape}"
            )
        if people.size and not (people.min() >= 0 and people.max() < len(self)):
            raise ValueError(
                f"people must lie in 0 … {len(self) - 1}, got {people.min()} … {people.max()}"
            )
        return people.astype(np.int64)

    def split_users(
        self, test_size: float = 0.2, *, seed: int = 0
    ) -> tuple[Preferences, Preferences]:
        """Splits the people at random into training and test people.

        Args:
            test_size: Share of the people who are held out, in (0, 1).
            seed: Seed of the split.

        Returns:
            Training and test data; in both the people keep their order.

        Raises:
            ValueError: If `test_size` is not in (0, 1) or there are fewer than two people.
        """
        if not 0 < test_size < 1:
            raise ValueError(f"test_size must lie between 0 and 1, got {test_size}")
        if len(self) < 2:
            raise ValueError(f"split_users needs at least 2 people, got {len(self)}")
        held_out = min(max(round(test_size * len(self)), 1), len(self) - 1)
        test = np.zeros(len(self), dtype=bool)
        test[np.random.default_rng(seed).permutation(len(self))[:held_out]] = True
        return self.subset(~test), self.subset(test)

    def split_context(self, num_context: int, *, seed: int = 0) -> tuple[Preferences, Preferences]:
        """Splits each person's comparisons at random into a context and a disjoint target.

        A pair that a person judged twice counts as two comparisons, which may part. A ranking stays
        whole, and counts as one.

        Args:
            num_context: Number of context comparisons of every person; 0 is allowed. Where there
                are rankings, the number of judgements: rankings, and comparisons that stand alone.
            seed: Seed of the split.

        Returns:
            Context and target data of the same people in the same order. Comparisons keep their
            order.

        Raises:
            ValueError: If `num_context` is negative or nobody has a target left.

        Warns:
            UserWarning: If people with no target left are dropped, with their number.
        """
        if not isinstance(num_context, int | np.integer) or num_context < 0:
            raise ValueError(f"num_context must be an integer of at least 0, got {num_context!r}")
        counts, what = self.judgement_counts, "judgements"
        if self.ranking is None:
            what = "comparisons"
        enough = counts > num_context
        if not enough.any():
            raise ValueError(
                f"num_context={num_context} leaves nobody a target: the largest number of "
                f"{what} is {counts.max()}"
            )
        if not enough.all():
            warnings.warn(
                f"{int((~enough).sum())} of {len(self)} people have no target left after "
                f"{num_context} context {what} and were dropped",
                stacklevel=2,
            )
            return self.subset(enough).split_context(num_context, seed=seed)
        key = np.random.default_rng(seed).random(self.num_judgements)
        order = np.lexsort((key, self._person()[self.judgement_heads]))
        chosen = np.zeros(self.num_judgements, dtype=bool)
        starts = _offsets(counts)[:-1]
        chosen[order[(starts[:, None] + np.arange(num_context)).ravel()]] = True
        in_context = chosen if self.ranking is None else chosen[self.ranking]
        return self._keep(in_context), self._keep(~in_context)

    def _keep(self, which: np.ndarray) -> Preferences:
        """Keeps some comparisons (R,), no part of a ranking without the rest, of everybody."""
        counts = np.bincount(self._person()[which], minlength=len(self))
        return self._derive(np.flatnonzero(which), _offsets(counts), np.arange(len(self)))

    def swap(self, which: np.ndarray | None = None) -> Preferences:
        """Exchanges left and right, and the choice with them, in all or some comparisons (R,)."""
        which = np.ones(self.num_comparisons, dtype=bool) if which is None else np.asarray(which)
        if which.dtype != bool or which.shape != (self.num_comparisons,):
            raise ValueError(
                f"which must be Boolean with shape ({self.num_comparisons},), got {which.dtype} "
                f"with shape {which.shape}"
            )
        swapped = self._derive(np.arange(self.num_comparisons), self.offsets, np.arange(len(self)))
        swapped.left = np.where(which, self.right, self.left)
        swapped.right = np.where(which, self.left, self.right)
        swapped.choice = np.where(which, 1 - self.choice, self.choice)
        return swapped

    def with_choices(self, choice: np.ndarray, *, ties: str | None = None) -> Preferences:
        """Returns the same people and pairs with other choices, with shape (R,).

        Those of a ranking must again be of a ranking.

        `ties` says what a choice of ½ means in them, `"half"` or `"keep"`; as before if None.
        """
        if ties not in (None, "half", "keep"):
            raise ValueError(f"ties must be None, 'half' or 'keep', got {ties!r}")
        changed = self._derive(np.arange(self.num_comparisons), self.offsets, np.arange(len(self)))
        changed.choice = _choices(choice, self.num_comparisons)
        if self.ranking is not None:
            check_rankings(self.left, self.right, changed.choice, self.ranking, self._person())
        changed.ties = self.ties if ties is None else ties
        return changed

    def _derive(self, rows: np.ndarray, offsets: np.ndarray, people: np.ndarray) -> Preferences:
        """Selects comparisons and people without checking or copying the item table again."""
        derived = object.__new__(Preferences)
        derived.__dict__.update(self.__dict__)
        for cached in ("counts", "judgement_counts"):
            derived.__dict__.pop(cached, None)
        if self.ranking is not None:
            begins = np.diff(self.ranking, prepend=-1) != 0
            derived.ranking = np.cumsum(begins[rows]) - 1
        derived.left, derived.right = self.left[rows], self.right[rows]
        derived.choice = self.choice[rows]
        derived.offsets = offsets
        derived.user_names = self.user_names[people]
        derived.covariates = None if self.covariates is None else self.covariates[people]
        return derived

    # ------------------------------------------------------------------ description

    def summary(self) -> Summary:
        """Counts people, items, comparisons, ties, repetitions, contradictions and components."""
        labels, unused = self._components()
        duplicates, contradictions = self._repetitions()
        counts = self.counts
        return Summary(
            users=len(self),
            items=self.num_items,
            features=None if self.items is None else self.num_features,
            comparisons=self.num_comparisons,
            per_user=(int(counts.min()), float(np.median(counts)), int(counts.max())),
            half_wins=0 if self.ties == "keep" else int(self.half_wins.sum()),
            dropped_ties=self.dropped_ties,
            duplicates=duplicates,
            contradictions=contradictions,
            unused_items=unused,
            component_sizes=tuple(int(size) for size in np.bincount(labels[labels >= 0])),
            ties=int(self.half_wins.sum()) if self.ties == "keep" else 0,
            rankings=self._num_rankings,
            stages=self._num_stages,
            open_pairs=int(((self.choice == 0.5) & self._whole).sum()),
            broken=self.broken,
        )

    def digest(self) -> str:
        """Returns a SHA-256 of people, comparisons, features and covariates, to tell data apart."""
        digest = hashlib.sha256()
        # Without rankings and covariates as before there were any: fits are recognised by it.
        comparisons = self.offsets, self.left, self.right, self.choice
        tables = (*comparisons, self.items, self.covariates, self.ranking)
        for table in tables:
            if table is not None:
                digest.update(np.ascontiguousarray(table).tobytes())
        for names in (self.user_names, self.item_names, self.feature_names):
            digest.update(repr(names.tolist()).encode())
        return digest.hexdigest()

    def components(self) -> np.ndarray:
        """Labels the connected component of each item, from 0 for the largest; −1 if unused."""
        return self._components()[0]

    def _components(self) -> tuple[np.ndarray, int]:
        """Labels the connected component of each item, largest first, −1 where never compared."""
        from scipy import sparse

        edges = sparse.coo_array(
            (np.ones(self.num_comparisons, dtype=np.int8), (self.left, self.right)),
            shape=(self.num_items, self.num_items),
        )
        _, labels = sparse.csgraph.connected_components(edges.astype(bool), directed=False)
        used = np.zeros(self.num_items, dtype=bool)
        used[self.left] = used[self.right] = True
        sizes = np.bincount(labels[used], minlength=labels.max(initial=0) + 1)
        rank = np.empty_like(sizes)
        rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
        return np.where(used, rank[labels], -1), int((~used).sum())

    def _repetitions(self) -> tuple[int, int]:
        """Counts answers repeated by one person and pairs that one person answered differently."""
        answered = ~self._whole | (self.choice != 0.5)
        left, right, choice = (x[answered] for x in (self.left, self.right, self.choice))
        low, high = np.minimum(left, right), np.maximum(left, right)
        low_wins = np.where(left == low, choice, 1 - choice)
        person = self._person()[answered]
        order = np.lexsort((low_wins, high, low, person))
        person = person[order]
        same_pair = (
            (np.diff(person) == 0) & (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
        )
        same_answer = np.diff(low_wins[order]) == 0
        pair = np.concatenate([[0], np.cumsum(~same_pair)])
        contradicted = np.unique(pair[1:][same_pair & ~same_answer])
        return int((same_pair & same_answer).sum()), len(contradicted)


# ---------------------------------------------------------------------- checks


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _names(argument: str, names: Sequence | pd.Index | None, length: int) -> pd.Index:
    names = pd.RangeIndex(length) if names is None else pd.Index(names)
    if len(names) != length:
        raise ValueError(f"{argument} must have {length} entries, got {len(names)}")
    if not names.is_unique:
        raise ValueError(
            f"{argument} must be unique, got {names[names.duplicated()][0]!r} more than once"
        )
    return names


def _finite_table(argument: str, table: np.ndarray | Tensor) -> Tensor:
    # A copy: a DataFrame may hand out memory that is not to be written to.
    table = torch.tensor(np.asarray(table), dtype=torch.float32)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            f"{argument} must be a table with at least one row and one column, "
            f"got shape {tuple(table.shape)}"
        )
    bad = (~torch.isfinite(table)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{argument} must be finite, got {table[row, column].item()} in row {row}, "
            f"column {column} ({len(bad)} such entries)"
        )
    return table


def _item_positions(
    argument: str, positions: np.ndarray, length: int, num_items: int
) -> np.ndarray:
    positions = np.asarray(positions)
    if positions.shape != (length,) or not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(
            f"{argument} must be integers with shape ({length},), got {positions.dtype} with "
            f"shape {positions.shape}"
        )
    if length and not (positions.min() >= 0 and positions.max() < num_items):
        wrong = np.flatnonzero((positions < 0) | (positions >= num_items))[0]
        raise ValueError(
            f"{argument} must lie in 0 … {num_items - 1}, got {positions[wrong]} in comparison "
            f"{wrong}"
        )
    return positions.astype(np.int32)


def _choices(choice: np.ndarray, length: int) -> np.ndarray:
    choice = np.asarray(choice, dtype=np.float32)
    if choice.shape != (length,):
        raise ValueError(f"choice must have shape ({length},), got {choice.shape}")
    wrong = np.flatnonzero(~np.isin(choice, (0, 0.5, 1)))
    if len(wrong):
        raise ValueError(
            f"choice must be 0, 0.5 or 1, got {choice[wrong[0]]} in comparison {wrong[0]}"
        )
    return choice
