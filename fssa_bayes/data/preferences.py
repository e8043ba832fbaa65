r"""Paired comparisons of many people: how they are read, split and put into batches.

The convention, stated once: a *comparison* shows a person two items, `left` and `right`; its
`choice` is 1 if left was preferred, 0 if right was, and ½ for half a win each (or for a tie proper:
data remember which, by `ties="half"` or `"keep"`, and the latter need a model with ties). The
*margin* is utility(left) − utility(right), in nats, and the log-likelihood of a choice y at margin
m is :math:`y\,m - \log(1 + e^m)`; `model/distributions.py` adds ties, a position bias and
lapses.

A *ranking* of n items is stored as its n (n − 1) / 2 comparisons, which carry its number: choice is
1 where left stands above right, and ½ where the ranking says nothing, as both stand below the
ranked ones. A *judgement* is a ranking, or a comparison that stands alone; what is split, drawn
or left out is a judgement, never a part of one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from fssa_bayes.data.alignment import AlignedComparisons
from fssa_bayes.data.answers import GrowingComparisons
from fssa_bayes.data.arrays import (
    check_choices,
    check_covariates,
    check_names,
    check_offsets,
    check_pairs,
    check_people,
    check_positions,
    check_table,
)
from fssa_bayes.data.batch import Batch
from fssa_bayes.data.comparisons import (
    covariates_of,
    pad,
    replace,
    rows_of,
    select,
    select_where,
)
from fssa_bayes.data.frame import (
    lookup_items,
    name_items,
    neutral_order,
    read_covariates,
    read_frame,
)
from fssa_bayes.data.graph import find_components, warn_about_graph
from fssa_bayes.data.imagined import imagine, pool, resample
from fssa_bayes.data.judgements import Judgements, find_judgements
from fssa_bayes.data.precision import digest_parts, table_values
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.rankings import break_into_pairs, read_rankings
from fssa_bayes.data.summary import Summary, summarise

__all__ = ["Preferences"]

_TIES = ("drop", "keep", "half")
_METHODS = ("plackett_luce", "pairs")


class Preferences(AlignedComparisons, GrowingComparisons):
    """Stores the paired comparisons of many people, ragged, in memory proportional to their number.

    Most users start from :meth:`from_dataframe`. Objects are immutable: splits and subsets return
    new ones that share the item table.

    Args:
        left: Position of the left item of each comparison in the item table, with shape (R,),
            the comparisons of a person lying together.
        right: The same for the right item.
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, (R,).
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
        ranking: Equal numbers for the comparisons of a person that are the pairs of one ranking,
            with shape (R,); None where every comparison stands alone. See :meth:`from_rankings`.

    Attributes:
        judgements: Which comparisons belong together.
        broken: Numbers of rankings that were broken into pairs and of their stages.

    Raises:
        ValueError: If shapes disagree, an index is out of range, an item is compared with itself,
            a choice lies outside {0, ½, 1}, a feature or covariate is not finite, or the
            comparisons of a ranking are not its pairs.
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
    ) -> None:
        if ties not in _TIES:
            raise ValueError(f"ties must be one of {_TIES}, got {ties!r}")
        offsets = check_offsets(offsets)
        if items is None and num_items is None:
            raise ValueError("one of items and num_items must be given, got neither")
        items = None if items is None else check_table("items", items)
        if items is not None and num_items not in (None, len(items)):
            raise ValueError(f"num_items must equal the {len(items)} rows of items")
        num_items = int(num_items if items is None else len(items))
        num_users, total = len(offsets) - 1, offsets[-1]
        left = check_positions("left", left, total, num_items)
        right = check_positions("right", right, total, num_items)
        choice = check_choices(choice, total)
        check_pairs(left, right)
        item_names = check_names("item_names", item_names, num_items)
        user_names = check_names("user_names", user_names, num_users)
        if items is None:
            feature_names = item_names
        else:
            feature_names = check_names("feature_names", feature_names, items.shape[1])
        covariates = check_covariates(covariates, num_users)
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
        )

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

        Names of people and items may be text, numbers, Booleans, dates, times, UUIDs or bytes, in
        columns of any type. They are compared as Python compares values: 1 and 1.0 are one name,
        "1" is another.

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
            TypeError: If `df`, `items` or `users` is not a DataFrame, or a name is of another kind,
                such as a tuple.
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
        data = cls(**read_frame(df, columns, items, users, choice_labels, ties))
        warn_about_graph(data, stacklevel=2)
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
        position = lookup_items(frame, "item", names, ranked.describe)
        left, right, choice, number = break_into_pairs(ranked.group, position, ranked.rank)
        covariates = None if users is None else read_covariates(users, ranked.users)
        counts = np.bincount(ranked.person[number], minlength=len(ranked.users))
        data = cls(
            left,
            right,
            choice,
            offsets_of(counts),
            items=None if items is None else table_values(items),
            num_items=len(names),
            item_names=names,
            feature_names=None if items is None else items.columns,
            user_names=ranked.users,
            covariates=covariates,
            covariate_names=None if users is None else users.columns,
            ranking=number,
        )
        warn_about_graph(data, stacklevel=2)
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

    def __repr__(self) -> str:
        return (
            f"Preferences({len(self)} people, {self.num_comparisons} comparisons, "
            f"{self.num_items} items)"
        )

    def batch(self, people: np.ndarray | Sequence[int] | None = None) -> Batch:
        """Pads the comparisons of some people (all by default) into one batch, on the CPU."""
        people = np.arange(len(self)) if people is None else check_people(people, len(self))
        rows, counts = rows_of(self, people)
        return pad(self, rows, counts, people).replace(people=people)

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

    def as_pairs(self) -> Preferences:
        """Breaks rankings into pairs, each a comparison of its own.

        A composite likelihood, see :meth:`from_rankings`. Pairs that a ranking says nothing about
        are left out; without rankings the data come back unchanged.
        """
        if self.ranking is None:
            return self
        pairs = select_where(self, ~self.judgements.inside | (self.choice != 0.5))
        stages = self.judgements.count_stages(self.left, self.right, self.choice)
        return replace(
            pairs,
            judgements=Judgements(pairs.num_comparisons),
            broken=(self.judgements.num_rankings, stages),
        )

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
        covariates = covariates_of(self, people)
        return select(self, rows, counts, user_names=self.user_names[people], covariates=covariates)

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
        key = np.random.default_rng(seed).random(self.num_judgements)
        order = np.lexsort((key, np.repeat(np.arange(len(self)), counts)))
        chosen = np.zeros(self.num_judgements, dtype=bool)
        starts = offsets_of(counts)[:-1]
        chosen[order[(starts[:, None] + np.arange(num_context)).ravel()]] = True
        in_context = self.judgements.spread(chosen)
        return select_where(self, in_context), select_where(self, ~in_context)

    def swap(self, which: np.ndarray | None = None) -> Preferences:
        """Exchanges left and right, and the choice with them, in all or some comparisons (R,)."""
        which = np.ones(self.num_comparisons, dtype=bool) if which is None else np.asarray(which)
        if which.dtype != bool or which.shape != (self.num_comparisons,):
            raise ValueError(
                f"which must be Boolean with shape ({self.num_comparisons},), got {which.dtype} "
                f"with shape {which.shape}"
            )
        return replace(
            self,
            left=np.where(which, self.right, self.left),
            right=np.where(which, self.left, self.right),
            choice=np.where(which, 1 - self.choice, self.choice),
        )

    def with_choices(self, choice: np.ndarray, *, ties: str | None = None) -> Preferences:
        """Returns the same people and pairs with other choices, with shape (R,).

        The comparisons of a ranking must be those of a ranking again.

        `ties` says what a choice of ½ means, `"half"` or `"keep"`; None leaves it as it is.
        """
        if ties not in (None, "half", "keep"):
            raise ValueError(f"ties must be None, 'half' or 'keep', got {ties!r}")
        choice = check_choices(choice, self.num_comparisons)
        self.judgements.check(self.left, self.right, choice, self.person)
        return replace(self, choice=choice, ties=self.ties if ties is None else ties)

    def summary(self) -> Summary:
        """Counts people, items, comparisons, ties, repetitions, contradictions and components."""
        return summarise(self)

    def digest(self) -> str:
        """Returns a SHA-256 of people, comparisons, features and covariates, to tell data apart."""
        digest = hashlib.sha256()
        # The digest of data without rankings or covariates, whose features single precision holds,
        # is that of format 1, so that old checkpoints are recognised.
        comparisons = self.offsets, self.left, self.right, self.choice
        tables = (
            *comparisons,
            *digest_parts(self.items),
            *digest_parts(self.covariates),
            self.ranking,
        )
        for table in tables:
            if table is not None:
                digest.update(np.ascontiguousarray(table).tobytes())
        for names in (self.user_names, self.item_names, self.feature_names):
            digest.update(repr(names.tolist()).encode())
        return digest.hexdigest()

    def components(self) -> np.ndarray:
        """Labels the connected component of each item, from 0 for the largest; −1 if unused."""
        return find_components(self)
