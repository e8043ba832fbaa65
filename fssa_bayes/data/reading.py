"""The readers of `Preferences`, and what each takes; the modules of `readers` do the work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from fssa_bayes.data.comparisons import TIES, Comparisons, replace
from fssa_bayes.data.graph import warn_about_graph
from fssa_bayes.data.judgements import Judgements
from fssa_bayes.data.precision import table_values
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.readers.categories import expand_levels
from fssa_bayes.data.readers.choices import read_choices
from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.counts import read_wins
from fssa_bayes.data.readers.pairs import name_items, read_frame
from fssa_bayes.data.readers.rankings import read_ranked_pairs
from fssa_bayes.data.readers.stored import open_store
from fssa_bayes.data.readers.wide import read_pair_columns
from fssa_bayes.data.readers.wide_choices import read_wide_choices

__all__ = ["ReadComparisons"]

_METHODS = ("plackett_luce", "pairs")


class ReadComparisons(Comparisons):
    """Reads comparisons from tables: a base class of `Preferences`."""

    @classmethod
    def from_dataframe(
        cls,
        df: pd.DataFrame,
        *,
        user: str | None = None,
        left: str | None = None,
        right: str | None = None,
        choice: str | None = None,
        winner: str | None = None,
        loser: str | None = None,
        side: str | None = None,
        count: str | None = None,
        weight: str | None = None,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        choice_labels: Mapping[Any, str] | None = None,
        ties: str = "drop",
    ) -> Self:
        """Reads comparisons from a table with one row per comparison.

        The items stand in `left`, `right` and `choice`, or in `winner` and `loser`, which do not
        tell who stood on the left: a model with a position bias refuses the latter without `side`.

        Names of people and items may be text, numbers, Booleans, dates, times, UUIDs or bytes, in
        columns of any type. They are compared as Python compares values: 1 and 1.0 are one name,
        "1" is another.

        Args:
            df: The comparisons.
            user: Column that names the person. None where nobody is named: every comparison has a
                judge of its own, which suits homogeneous models (`latent_dim=0`).
            left: Column that names the left item.
            right: Column that names the right item.
            choice: Column with the answer, in one of three codings: numbers 1 / 0 / 0.5 or
                booleans (True: left), numbers also as text; the words "left" / "right" / "tie",
                in any case; or the name of the preferred item (and "tie").
            winner: Column that names the preferred item.
            loser: Column that names the other item.
            side: Column that tells whose place is an advantage, which a position bias measures: 1
                for the place of left (of the winner), -1 for that of right (of the loser), 0 for
                neither, as on neutral ground. None: left has it everywhere.
            count: Column with the number of equal comparisons that a row stands for, exactly as if
                it was repeated; rows of 0 are left out.
            weight: Column with the weight of the person, one value for all rows of a person; see
                `weights` of `Preferences`. None for weights of 1.
            items: Features, one row per item, indexed by item name. None gives every item an
                indicator of its own. A column of text or of pandas' categories gets an indicator
                for each level but the reference level, the first of the categories or of the
                alphabet, named like `region[T.north]`.
            users: Covariates, one row per person, indexed by user name, numbers or categories as in
                `items`. Rows of people without comparisons are left out.
            choice_labels: Translation of the data's own words into "left", "right" and "tie", for
                example `{"a1": "left", "a2": "right", "equal": "tie"}`.
            ties: `"drop"` leaves ties out, `"half"` counts them as half a win each, `"keep"` keeps
                them for a model with ties. A numeric 0.5 is a tie.

        Returns:
            The comparisons, people in order of first appearance.

        Raises:
            TypeError: If `df`, `items` or `users` is not a DataFrame, a column is given in place
                of its name, or a name is of another kind, such as a tuple.
            ValueError: If a column, item or person is unknown, a cell is missing, a feature is not
                finite, a choice has no or more than one meaning, or an item meets itself.

        Warns:
            UserWarning: For duplicate rows, for rows of `users` without comparisons, for names of
                two types that read alike (3 and "3"), for columns of `items` and `users` with
                numbers as text, for people left without comparisons by `ties="drop"`,
                where left (or right) was preferred in every row, for items that are never compared,
                and, where items have no features, for a comparison graph that is not connected.
        """
        if ties not in TIES:
            raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
        columns = {"user": user, "left": left, "right": right, "choice": choice}
        columns |= {"winner": winner, "loser": loser, "side": side, "count": count}
        columns["weight"] = weight
        data = cls(**read_frame(df, columns, items, users, choice_labels, ties))
        warn_about_graph(data, stacklevel=2)
        return data

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike,
        *,
        user: str,
        left: str,
        right: str,
        choice: str,
        items: pd.DataFrame | None = None,
        choice_labels: Mapping[Any, str] | None = None,
        ties: str = "drop",
        store: str | os.PathLike | None = None,
    ) -> Self:
        """Maps the comparisons of a Parquet source into memory, of which few are read at a time.

        The columns are converted once, a million rows at a time, to files of 12 bytes a comparison
        and some 30 bytes a person. Batches read from them what they draw, so that comparisons take
        no memory; names and numbers of comparisons of people do. Fits by stochastic gradients
        without `validation` stay in bounded memory; :class:`fssa_bayes.MaximumLikelihood`,
        :meth:`split_users` and :meth:`subset` hold what they use.

        Args:
            path: A Parquet file, or a folder with some, with one row per comparison. The rows of a
                person lie together.
            user: Column that names the person, by text or whole numbers.
            left: Column that names the left item.
            right: Column that names the right item.
            choice: Column with the answer, as in :meth:`from_dataframe`.
            items: Features of items, as in :meth:`from_dataframe`.
            choice_labels: Translation of the data's own words, as in :meth:`from_dataframe`.
            ties: `"drop"`, `"half"` or `"keep"`, as in :meth:`from_dataframe`.
            store: Folder for the converted columns, which is made, and opened at once when the same
                file is read again in the same way. None for files in the folder of temporary files,
                which are gone when the process ends.

        Returns:
            The comparisons that :meth:`from_dataframe` would return, without the warnings that need
            a look at all of them.

        Raises:
            ImportError: If pyarrow is missing.
            FileNotFoundError: If there is no Parquet file.
            FileExistsError: If `store` holds something else.
            ValueError: If a file is damaged or lacks a column, the rows of a person lie in several
                places, or as :meth:`from_dataframe`.
        """
        if ties not in TIES:
            raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
        columns = {"user": user, "left": left, "right": right, "choice": choice}
        items, levels = expand_levels("items", items)
        names = None
        if items is not None:
            names = name_items(Columns(items), left, right, items)
        stored = open_store(path, columns, names, choice_labels, ties, store)
        template = cls(
            np.array([0]),
            np.array([1]),
            np.array([1]),
            np.array([0, 1]),
            items=None if items is None else table_values(items),
            num_items=len(stored.item_names),
            item_names=stored.item_names,
            feature_names=None if items is None else items.columns,
            feature_levels=levels,
            ties="half" if ties == "drop" else ties,
        )
        data = replace(
            template,
            left=stored.left,
            right=stored.right,
            choice=stored.choice,
            offsets=offsets_of(stored.counts),
            user_names=stored.user_names,
            judgements=Judgements(len(stored.left)),
            dropped_ties=stored.dropped_ties,
        )
        vars(data)["keys"] = stored.keys  # To digest ten million names again takes a minute.
        return data

    @classmethod
    def from_counts(
        cls,
        df: pd.DataFrame,
        *,
        left: str,
        right: str,
        left_wins: str,
        right_wins: str,
        ties: str | None = None,
        user: str | None = None,
        side: str | None = None,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
    ) -> Self:
        """Reads numbers of wins from a table with one row per pair of items.

        Args:
            df: The table. A pair may have several rows, such as one for either order.
            left: Column that names the left item.
            right: Column that names the right item.
            left_wins: Column with the number of comparisons in which left was preferred.
            right_wins: The same for the right item.
            ties: Column with the number of ties, which are kept as an answer of their own; None for
                no ties. `with_choices(data.choice, ties="half")` makes half a win each of them.
            user: Column that names the person; None where nobody is named, and every comparison has
                a judge of its own.
            side: Column that tells whose place is an advantage, as in :meth:`from_dataframe`.
            items: Features of items, as in :meth:`from_dataframe`.
            users: Covariates of people, as in :meth:`from_dataframe`.

        Returns:
            The comparisons, those of a row beside each other. They are held one by one; fits with
            `latent_dim=0` count equal ones once.

        Raises:
            TypeError: If `df`, `items` or `users` is not a DataFrame.
            ValueError: If a column, item or person is unknown, a cell is missing, a number of wins
                is negative or not whole, all are 0, or an item meets itself.

        Example:
            >>> from fssa_bayes import Preferences
            >>> wins = pd.DataFrame({"i": ["a", "a"], "j": ["b", "c"], "ij": [3, 1], "ji": [1, 2]})
            >>> Preferences.from_counts(
            ...     wins, left="i", right="j", left_wins="ij", right_wins="ji"
            ... ).num_comparisons
            7
        """
        columns = {"left": left, "right": right, "left_wins": left_wins, "right_wins": right_wins}
        columns |= {"ties": ties, "user": user, "side": side}
        data = cls(**read_wins(df, columns, items, users))
        warn_about_graph(data, stacklevel=2)
        return data

    @classmethod
    def from_pair_columns(
        cls,
        df: pd.DataFrame,
        *,
        sep: str = ":",
        columns: Sequence | None = None,
        user: str | None = None,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        choice_labels: Mapping[Any, str] | None = None,
        ties: str = "drop",
    ) -> Self:
        """Reads comparisons from a table with one row per person and one column per pair.

        Args:
            df: The table. A column named "a:b" holds the answers to the pair of items a, on the
                left, and b; a blank cell is a pair that the person was not asked.
            sep: What stands between the two items in the name of a column.
            columns: The columns of pairs; None for all whose names hold `sep`.
            user: Column that names the person; None where the table's index does.
            items: Features of items, as in :meth:`from_dataframe`. Names of items are text, without
                blanks at their ends.
            users: Covariates of people, as in :meth:`from_dataframe`.
            choice_labels: Translation of the answers into "left", "right" and "tie", such as
                `{1: "left", 0: "tie", -1: "right"}` for the coding of R's psychotools. None for
                the codings of `choice` in :meth:`from_dataframe`.
            ties: `"drop"`, `"half"` or `"keep"`, as in :meth:`from_dataframe`.

        Returns:
            The comparisons, people in order of first appearance, pairs in that of the columns.

        Raises:
            TypeError: If `df`, `items` or `users` is not a DataFrame.
            ValueError: If a column is unknown or no pair, a person or item is unknown, an answer
                has no or more than one meaning, or nothing was answered.

        Warns:
            UserWarning: For rows without an answer, and as :meth:`from_dataframe`.

        References:
            Zeileis, Strobl, Wickelmaier & Kopf, psychotools: its `paircomp` objects are such rows.

        Example:
            >>> from fssa_bayes import Preferences
            >>> asked = pd.DataFrame({"a:b": [1, 0], "a:c": [1, None]}, index=["ann", "bob"])
            >>> data = Preferences.from_pair_columns(asked)
            >>> data.counts.tolist()
            [2, 1]
        """
        if ties not in TIES:
            raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
        options = sep, columns, user, items, users, choice_labels, ties
        data = cls(**read_pair_columns(df, *options))
        warn_about_graph(data, stacklevel=2)
        return data

    @classmethod
    def from_choices(
        cls,
        df: pd.DataFrame,
        *,
        user: str | None = None,
        situation: str | None = None,
        item: str,
        chosen: str,
        items: pd.DataFrame | None = None,
        features: Sequence | None = None,
        constants: bool = False,
        available: str | None = None,
        outside: Hashable | None = None,
        worst: str | None = None,
        weight: str | None = None,
        users: pd.DataFrame | None = None,
    ) -> Self:
        """Reads choices from sets, of any and varying size, with one row an alternative on offer.

        This is the long format of mlogit, xlogit, logitr and Apollo. Features stand in `items`, a
        row an alternative, or in columns of `df` (`features`), where they vary between situations,
        as prices do; without either, every alternative has an indicator of its own. With
        `features`, every row on offer is an item of its own, named like `ann / 3: bus` by person,
        situation and alternative.

        Args:
            df: The alternatives on offer. Rows of a situation need not lie together; their order is
                that of the alternatives, the last of which the others are compared with.
            user: Column that names the person. None where nobody is named: every situation has a
                judge of its own, which suits homogeneous models (`latent_dim=0`).
            situation: Column that tells a person's situations apart; its numbers may begin anew
                with every person. None where each person was in one.
            item: Column that names the alternative.
            chosen: Column that marks the choice: 1 for the chosen alternative and 0 for the others,
                Booleans, or the name of the chosen alternative in every row of the situation.
            items: Features of the alternatives, as in :meth:`from_dataframe`.
            features: Columns of `df` with features of the alternatives, numbers or categories as in
                `items`, in place of `items`.
            constants: True gives each alternative an indicator beside `features`, its
                alternative-specific constant, named like `constant[T.bus]`; but not the outside
                option or, where there is none, the first alternative (of the categories of `item`,
                or of the alphabet), with which the others are compared.
            available: Column that tells which alternatives are on offer, by 1 / 0 or Booleans. None
                where all rows are.
            outside: Name of the outside option, such as "none". It is on offer in every situation,
                with a row there or, as the last, without, unless `available` denies it. Its
                features are 0, and those that its rows hold are not read; an indicator by its name
                is its constant. In a situation without a row of it, no 1 in `chosen` says that it
                was chosen.
            worst: Column that marks the worst alternative, as `chosen` marks the best, in answers
                of best–worst scaling. They count as two choices: of the best from all, then of the
                worst from the others.
            weight: Column with the weight of the person, one value for all rows of a person, as
                the weights of mlogit, logitr and Apollo; see `weights` of `Preferences`. None for
                weights of 1.
            users: Covariates of people, as in :meth:`from_dataframe`.

        Returns:
            The choices, people and their situations in order of first appearance. A choice from n
            alternatives takes n - 1 comparisons; from two, it is that of :meth:`from_dataframe`.

        Raises:
            TypeError: If `df`, `items` or `users` is not a DataFrame, or a column is given in place
                of its name.
            ValueError: If a column, item or person is unknown, a cell is missing, a feature is not
                finite or (from ten situations on) differs between situations but never within one,
                an alternative stands twice in a situation, a situation has fewer than two
                alternatives, not exactly one is chosen, or the worst, or that one is not available,
                or one alternative is both.

        Warns:
            UserWarning: For features that have one value within every situation, and as
                :meth:`from_dataframe` for people and items.

        References:
            Train (2009), Discrete choice methods with simulation.
            Marley & Louviere (2005), Some probabilistic models of best, worst, and best–worst
            choices, Journal of Mathematical Psychology 49.

        Example:
            >>> from fssa_bayes import Preferences
            >>> trips = pd.DataFrame(
            ...     {
            ...         "who": ["ann", "ann", "ann", "bob", "bob"],
            ...         "mode": ["bus", "car", "train", "bus", "train"],
            ...         "price": [2.0, 9.0, 6.0, 3.0, 4.0],
            ...         "taken": [0, 0, 1, 1, 0],
            ...     }
            ... )
            >>> data = Preferences.from_choices(
            ...     trips, user="who", item="mode", chosen="taken", features=["price"]
            ... )
            >>> data.num_judgements, data.num_comparisons
            (2, 3)
        """
        columns = {"user": user, "situation": situation, "item": item, "chosen": chosen}
        columns |= {"available": available, "worst": worst, "weight": weight}
        options = features, constants, outside, items, users
        data = cls(**read_choices(df, columns, *options))
        warn_about_graph(data, stacklevel=2)
        return data

    @classmethod
    def from_wide_choices(
        cls,
        df: pd.DataFrame,
        *,
        user: str | None = None,
        situation: str | None = None,
        chosen: str,
        alternatives: Sequence | Mapping[Hashable, Hashable],
        features: Mapping[Hashable, Mapping[Hashable, Hashable]] | None = None,
        constants: bool = False,
        available: Mapping[Hashable, Hashable] | None = None,
        outside: Hashable | None = None,
        weight: str | None = None,
        users: pd.DataFrame | None = None,
    ) -> Self:
        """Reads choices from sets with one row a situation, and columns for each alternative.

        This is the wide format of Apollo and biogeme. The result is that of :meth:`from_choices`
        for the same choices in the long format.

        Args:
            df: The situations.
            user: Column that names the person; None where nobody is named, and every situation has
                a judge of its own.
            situation: Column that tells a person's situations apart, for the names of items. None
                numbers the rows from 0.
            chosen: Column with the name, or the code, of the chosen alternative.
            alternatives: Names of the alternatives, in the order in which they are on offer; or a
                mapping from names to the codes that `chosen` holds for them, such as
                `{"train": 1, "car": 3}`.
            features: For each feature a mapping from alternatives to columns, or to one number for
                all rows, such as `{"time": {"train": "TRAIN_TT", "car": "CAR_TT"}}`. An alternative
                that a feature leaves out has 0. None gives every alternative an indicator.
            constants: Whether alternatives have constants beside `features`, as in
                :meth:`from_choices`; without an outside option all but the first of the alphabet.
            available: Columns of 1 / 0 or Booleans that tell whether alternatives are on offer;
                those that are left out always are.
            outside: Name of the outside option, as in :meth:`from_choices`. Among `alternatives` it
                has their order and may have a code; else it is the last, its code its name.
            weight: Column with the weight of the person, as in :meth:`from_choices`.
            users: Covariates of people, as in :meth:`from_dataframe`.

        Returns:
            The choices, people in order of first appearance.

        Raises:
            TypeError: If `df` or `users` is not a DataFrame, or an argument is no mapping.
            ValueError: If a column or alternative is unknown, `chosen` holds no code, and as
                :meth:`from_choices`.

        Warns:
            UserWarning: As :meth:`from_choices`.

        Example:
            >>> from fssa_bayes import Preferences
            >>> trips = pd.DataFrame(
            ...     {"who": ["ann", "bob"], "bus": [2.0, 3.0], "car": [9.0, 1.0], "taken": [1, 2]}
            ... )
            >>> data = Preferences.from_wide_choices(
            ...     trips,
            ...     user="who",
            ...     chosen="taken",
            ...     alternatives={"bus": 1, "car": 2},
            ...     features={"price": {"bus": "bus", "car": "car"}},
            ... )
            >>> data.item_names.tolist()
            ['ann / 0: bus', 'ann / 0: car', 'bob / 1: bus', 'bob / 1: car']
        """
        columns = {"user": user, "situation": situation, "chosen": chosen, "weight": weight}
        options = alternatives, features, available, constants, outside, users
        data = cls(**read_wide_choices(df, columns, *options))
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
        orderings: Sequence | None = None,
        ranks: Sequence | None = None,
        choice_set: Sequence | None = None,
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        method: str = "plackett_luce",
    ) -> Self:
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
            rankings: A table with one row an item of a ranking (`item`, `rank`), or one row a
                ranking (`orderings` or `ranks`); or a mapping from people to lists of rankings,
                each of which lists items from the best on; or a list of such rankings, each of a
                person of its own.
            user: Column that names the person. Where a table has one row a ranking, None takes the
                table's index.
            ranking: Column that tells a person's rankings apart; None where each gave one.
            item: Column that names the item.
            rank: Column with the rank, a number from 1, the best; only the order matters. Missing
                where an item was on offer and lies below all ranked ones.
            orderings: Columns with the names of the first, second, … item of a ranking; blank from
                the first place that it does not give. In place of `ranking`, `item` and `rank`.
            ranks: Columns named by items that hold the ranks of the items, 1 the best; blank for an
                item that a ranking does not list. In place of the same.
            choice_set: Items that every ranking was made from: those that it does not list lie
                below the ones that it does. None for what the rankings list.
            items: Features of items, as in :meth:`from_dataframe`.
            users: Covariates of people, as in :meth:`from_dataframe`.
            method: `"plackett_luce"` or `"pairs"`.

        Returns:
            The rankings, people in order of first appearance. A ranking of n items, whether it is
            full or of the best k, takes n − 1 comparisons, of each other item with the last one;
            broken into pairs, it has one for each pair whose order it tells.

        Raises:
            TypeError: If `rankings`, `items` or `users` is of another type.
            ValueError: If a column, item or person is unknown, a cell is missing, an item stands
                twice in a ranking, two items share a rank, a ranking has a single item or none
                that is ranked, or an item lies outside the choice set.

        Warns:
            UserWarning: For rankings broken into pairs, for rows that rank no item, and as
                :meth:`from_dataframe` for items.

        References:
            Luce (1959), Individual choice behavior; Plackett (1975), The analysis of permutations.
            Hunter (2004), MM algorithms for generalized Bradley-Terry models, Annals of Statistics
            32(1).
            Turner, van Etten, Firth & Kosmidis (2020), Modelling rankings in R: the PlackettLuce
            package, Computational Statistics 35.
            Varin, Reid & Firth (2011), An overview of composite likelihood methods.

        Example:
            >>> from fssa_bayes import Preferences
            >>> ballots = {"ann": [("tea", "cola", "milk")], "bob": [("milk", "tea")]}
            >>> data = Preferences.from_rankings(ballots)
            >>> data.num_judgements, data.num_comparisons
            (2, 3)
        """
        if method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
        columns = {"user": user, "ranking": ranking, "item": item, "rank": rank}
        wide = {"orderings": orderings, "ranks": ranks}
        data = cls(**read_ranked_pairs(rankings, columns, wide, choice_set, items, users))
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
