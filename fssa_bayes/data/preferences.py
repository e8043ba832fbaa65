r"""Paired comparisons of many people: how they are read, split and put into batches.

The convention, stated once: a *comparison* shows a person two items, `left` and `right`; its
`choice` is 1 if left was preferred, 0 if right was, and ½ for half a win each (or for a tie proper:
data remember which, by `ties="half"` or `"keep"`, and the latter need a model with ties). The
*margin* is utility(left) − utility(right), in nats, and the log-likelihood of a choice y at margin
m is :math:`y\,m - \log(1 + e^m)`; `model/distributions.py` adds ties, a position bias and
lapses.

A *ranking* is an order of n items or of the best few of them, and a choice from a set is the
ranking of which only the best item is known. A ranking is stored as n − 1 rows, which carry its
number, see `data/rankings.py`: each compares an item with the base item of the ranking. Its choice
is above ½ where left stands above right, and ½ where the ranking says nothing. A *judgement* is a
ranking, or a comparison that stands alone; what is split, drawn or left out is a judgement, never
a part of one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data.alignment import AlignedComparisons
from fssa_bayes.data.answers import GrowingComparisons
from fssa_bayes.data.arrays import (
    check_alternatives,
    check_choices,
    check_covariates,
    check_names,
    check_offsets,
    check_pairs,
    check_people,
    check_positions,
    check_sides,
    check_table,
)
from fssa_bayes.data.batch import Batch
from fssa_bayes.data.comparisons import (
    TIES,
    covariates_of,
    pad,
    replace,
    rows_of,
    select,
    select_where,
    weights_of,
)
from fssa_bayes.data.graph import as_pairs, find_components
from fssa_bayes.data.imagined import imagine, merge, pool, resample
from fssa_bayes.data.judgements import find_judgements
from fssa_bayes.data.keys import order_by
from fssa_bayes.data.precision import digest_parts
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.reading import ReadComparisons
from fssa_bayes.data.summary import Summary, summarise
from fssa_bayes.data.weights import check_weights

__all__ = ["Preferences"]


class Preferences(ReadComparisons, AlignedComparisons, GrowingComparisons):
    """Stores the paired comparisons of many people, ragged, in memory proportional to their number.

    Most users start from :meth:`from_dataframe`. Objects are immutable: splits and subsets return
    new ones that share the item table.

    Args:
        left: Position of the left item of each comparison in the item table, with shape (R,),
            the comparisons of a person lying together.
        right: The same for the right item.
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, (R,); in the
            rows of a ranking the outcome as `data/rankings.py` defines it.
        offsets: Person u owns comparisons `offsets[u]` to `offsets[u + 1] - 1`; shape (U + 1,).
        items: Item features with shape (M, D), or None for one indicator per item. Floats of
            single precision are stored as such, other numbers in double precision; the model
            centres and scales them in double precision.
        num_items: Number of items M where `items` is None.
        item_names: Names of the items; positions if None.
        feature_names: Names of the features; positions if None.
        user_names: Names of the people; positions if None.
        covariates: User covariates with shape (U, W), or None.
        covariate_names: Names of the covariates; positions if None.
        ties: What a choice of ½ means: `"half"`, half a win each, or `"keep"`, a tie proper.
        dropped_ties: Number of ties that were left out, for :meth:`summary`.
        ranking: Equal numbers for the comparisons of a person that are the rows of one ranking,
            with shape (R,); None where every comparison stands alone. See :meth:`from_rankings`
            and :meth:`from_choices`.
        side: Whose place is an advantage, which a position bias measures: 1 for left's, −1 for
            right's, 0 for neither's, NaN where it is not known, with shape (R,); None where it is
            left's everywhere.
        weights: How many times each person's log-likelihood counts in estimates, such as weights of
            a survey, positive and finite with shape (U,); None, as weights of 1, for once each.
            What is inferred of a person does not depend on them.
        people_are_named: Whether it is known who answered; else every comparison or ranking is a
            person of its own.
        feature_levels: Levels of categorical features by the name of their column, the reference
            level first; the others have an indicator among the features.
        covariate_levels: The same of categorical covariates.
        alternatives: Name of the alternative that each item is, with shape (M,), where every
            alternative on offer is an item of its own, as :meth:`from_choices` with `features` has
            it; None elsewhere.

    Attributes:
        judgements: Which comparisons belong together.
        broken: Numbers of rankings that were broken into pairs and of their stages.

    Raises:
        ValueError: If shapes disagree, an index is out of range, an item is compared with itself,
            a choice or side is none, a weight is not positive and finite, a feature or covariate is
            not finite, or the comparisons of a ranking are not its rows.
    """

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
        side: np.ndarray | None = None,
        weights: np.ndarray | Sequence | None = None,
        people_are_named: bool = True,
        feature_levels: Mapping[Hashable, tuple] | None = None,
        covariate_levels: Mapping[Hashable, tuple] | None = None,
        alternatives: pd.Categorical | Sequence | None = None,
    ) -> None:
        if ties not in TIES:
            raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
        offsets = check_offsets(offsets)
        if items is None and num_items is None:
            raise ValueError("one of items and num_items must be given, got neither")
        # A category of a single level, the reference level, has no indicator.
        least = [0 if levels else 1 for levels in (feature_levels, covariate_levels)]
        items = None if items is None else check_table("items", items, least[0])
        if items is not None and num_items not in (None, len(items)):
            raise ValueError(f"num_items must equal the {len(items)} rows of items")
        num_items = int(num_items if items is None else len(items))
        num_users, total = len(offsets) - 1, offsets[-1]
        left = check_positions("left", left, total, num_items)
        right = check_positions("right", right, total, num_items)
        choice = check_choices(choice, total, None if ranking is None else np.ones(total, bool))
        check_pairs(left, right)
        item_names = check_names("item_names", item_names, num_items)
        user_names = check_names("user_names", user_names, num_users)
        if items is None:
            feature_names = item_names
        else:
            feature_names = check_names("feature_names", feature_names, items.shape[1])
        covariates = check_covariates(covariates, num_users, least[1])
        width = 0 if covariates is None else covariates.shape[1]
        person = np.repeat(np.arange(num_users), np.diff(offsets))
        super().__init__(
            left=left,
            right=right,
            choice=choice,
            offsets=offsets,
            items=items,
            num_items=num_items,
            item_names=item_names,
            feature_names=feature_names,
            user_names=user_names,
            covariates=covariates,
            covariate_names=check_names("covariate_names", covariate_names, width),
            ties=ties,
            dropped_ties=int(dropped_ties),
            judgements=find_judgements(left, right, choice, ranking, person),
            side=check_sides(side, total),
            weights=check_weights(weights, user_names),
            people_are_named=bool(people_are_named),
            feature_levels=dict(feature_levels or {}),
            covariate_levels=dict(covariate_levels or {}),
            alternatives=check_alternatives(alternatives, num_items),
        )

    def __repr__(self) -> str:
        return (
            f"Preferences({len(self)} people, {self.num_comparisons} comparisons, "
            f"{self.num_items} items)"
        )

    def batch(self, people: np.ndarray | Sequence[int] | None = None) -> Batch:
        """Pads the comparisons of some people (all by default) into one batch, on the CPU."""
        people = np.arange(len(self)) if people is None else check_people(people, len(self))
        rows, counts = rows_of(self, people)
        weights = None if self.weights is None else torch.from_numpy(self.weights[people])
        batch = pad(self, rows, counts, people)
        return batch.replace(people=people, keys=self.keys[people], weights=weights)

    def batches(self, batch_size: int, *, shuffle: bool = False, seed: int = 0) -> Iterator[Batch]:
        """Iterates once over all people, in order or shuffled, `batch_size` at a time."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = np.random.default_rng(seed).permutation(len(self)) if shuffle else range(len(self))
        for start in range(0, len(self), batch_size):
            yield self.batch(np.asarray(order[start : start + batch_size]))

    def pooled(self, width: int = 64) -> Preferences:
        """Deals all comparisons to imaginary people, `width` to each, for models without people.

        So a batch is not padded to the person with the most comparisons.
        """
        return pool(self, width)

    def merged(self, width: int = 64) -> tuple[Preferences, np.ndarray | None]:
        """Deals distinct comparisons to imaginary people, and counts the equal ones of each.

        For maximum likelihood of models without people. The data are those of :meth:`pooled` where
        less than half of the comparisons repeat another one, or there are rankings; then the counts
        are the weights of the comparisons' people, or None without any.
        """
        return merge(self, width)

    def as_pairs(self) -> Preferences:
        """Breaks rankings into pairs, each a comparison of its own.

        A composite likelihood, see :meth:`from_rankings`. The pairs are those of each stage's
        winner and the items left; without rankings the data come back unchanged.
        """
        return self if self.ranking is None else as_pairs(self)

    def resample_pairs(
        self, counts: np.ndarray, rng: np.random.Generator, people: np.ndarray | None = None
    ) -> Batch:
        """Draws pairs at random from all comparisons, `counts[u]` for each of U imaginary people.

        Rankings are drawn whole, `counts[u]` judgements. The choices are those of the people asked,
        and of no meaning for the imaginary ones: a simulation replaces them. Their covariates are
        those of `people` (U,), given by position.
        """
        return resample(self, counts, rng, people)

    def imagine(self, comparison: np.ndarray, people: np.ndarray | None = None) -> Preferences:
        """Returns imaginary people who are asked the pairs of comparisons (U, N), given by number.

        With rankings the numbers are those of judgements. As with :meth:`resample_pairs`, the
        choices have no meaning until a simulation replaces them; the people's names are numbers,
        and their covariates those of `people` (U,), if given.
        """
        return imagine(self, comparison, people)

    def subset(self, people: np.ndarray | Sequence[int]) -> Preferences:
        """Returns the data of some people, given as positions or as a Boolean mask."""
        people = check_people(people, len(self))
        if len(people) == 0:
            raise ValueError("people must name at least one person, got none")
        rows, counts = rows_of(self, people)
        return select(
            self,
            rows,
            counts,
            user_names=self.user_names[people],
            covariates=covariates_of(self, people),
            weights=weights_of(self, people),
        )

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

        A pair that a person judged twice counts as two comparisons: one may be context and the
        other target. A ranking stays whole, and counts as one.

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
        counts, noun = self.judgement_counts, self.judgements.noun
        enough = counts > num_context
        if not enough.any():
            raise ValueError(
                f"num_context={num_context} leaves nobody a target: the largest number of "
                f"{noun} is {counts.max()}"
            )
        if not enough.all():
            warnings.warn(
                f"{int((~enough).sum())} of {len(self)} people have no target left after "
                f"{num_context} context {noun} and were dropped",
                stacklevel=2,
            )
            return self.subset(enough).split_context(num_context, seed=seed)
        order = np.argsort(np.random.default_rng(seed).random(self.num_judgements))
        order = order[order_by(np.repeat(np.arange(len(self)), counts)[order], len(self))]
        chosen = np.zeros(self.num_judgements, dtype=bool)
        starts = offsets_of(counts)[:-1]
        chosen[order[(starts[:, None] + np.arange(num_context)).ravel()]] = True
        in_context = self.judgements.spread(chosen)
        return select_where(self, in_context), select_where(self, ~in_context)

    def swap(self, which: np.ndarray | None = None) -> Preferences:
        """Exchanges left and right, and the choice with them, in all or some comparisons (R,).

        Where data have sides, the advantage of a place goes with its item: a side of 1 becomes −1.
        Without sides it is left's, whichever item that is. Rankings stay as they are.
        """
        which = np.ones(self.num_comparisons, dtype=bool) if which is None else np.asarray(which)
        if which.dtype != bool or which.shape != (self.num_comparisons,):
            raise ValueError(
                f"which must be Boolean with shape ({self.num_comparisons},), got {which.dtype} "
                f"with shape {which.shape}"
            )
        which = which & ~self.judgements.inside
        return replace(
            self,
            left=np.where(which, self.right, self.left),
            right=np.where(which, self.left, self.right),
            choice=np.where(which, 1 - self.choice, self.choice),
            side=None if self.side is None else np.where(which, 0 - self.side, self.side),
        )

    def with_choices(self, choice: np.ndarray, *, ties: str | None = None) -> Preferences:
        """Returns the same people and pairs with other choices, with shape (R,).

        The rows of a ranking must be those of a ranking again.

        `ties` says what a choice of ½ means, `"half"` or `"keep"`; None leaves it as it is.
        """
        if ties not in (None, "half", "keep"):
            raise ValueError(f"ties must be None, 'half' or 'keep', got {ties!r}")
        choice = check_choices(choice, self.num_comparisons, self.judgements.inside)
        self.judgements.check(self.left, self.right, choice, self.person)
        return replace(self, choice=choice, ties=self.ties if ties is None else ties)

    def with_weights(self, weights: np.ndarray | Sequence | Mapping | None) -> Preferences:
        """Returns the same data with other weights of people.

        Args:
            weights: One positive number a person, with shape (U,); a mapping from people's names,
                or a Series indexed by them, in any order; None for none.
        """
        return replace(self, weights=check_weights(weights, self.user_names))

    def summary(self) -> Summary:
        """Counts people, items, comparisons, ties, repetitions, contradictions and components."""
        return summarise(self)

    def digest(self) -> str:
        """Returns a SHA-256 of people, comparisons, features and covariates, to tell data apart."""
        digest = hashlib.sha256()
        # The digest of data without rankings, covariates, sides or weights, whose features single
        # precision holds, is that of format 1, so that old checkpoints are recognised.
        comparisons = self.offsets, self.left, self.right, self.choice
        tables = (
            *comparisons,
            *digest_parts(self.items),
            *digest_parts(self.covariates),
            self.ranking,
            self.side,
            self.weights,
        )
        for table in tables:
            if table is not None:
                digest.update(np.ascontiguousarray(table))
        for names in (self.user_names, self.item_names, self.feature_names):
            digest.update(repr(names.tolist()).encode())
        return digest.hexdigest()

    def components(self) -> np.ndarray:
        """Labels the connected component of each item, from 0 for the largest; −1 if unused."""
        return find_components(self)
