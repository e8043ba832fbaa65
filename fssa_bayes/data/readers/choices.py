"""Choices from sets: tables with one row an alternative on offer.

A choice from n alternatives is stored as n − 1 comparisons with the last alternative, its base: see
`data/rankings.py`. So is the choice of the worst.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import (
    canonical_names,
    factorise_names,
    find_names,
    join_names,
    warn_of_lookalikes,
)
from fssa_bayes.data.names import show_cell, show_value
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.rankings import lay_out
from fssa_bayes.data.readers.alternatives import (
    AlternativeTable,
    check_constants,
    check_variation,
    each_row,
    shared,
)
from fssa_bayes.data.readers.categories import expand_levels
from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.outcomes import decode_flags
from fssa_bayes.data.readers.pairs import (
    check_frame,
    leave_out_idle,
    read_covariates,
    read_weights,
)
from fssa_bayes.data.readers.wide import check_columns

__all__ = ["Offers", "arrange_choices", "collect_offers", "read_choices"]


@dataclass(frozen=True)
class Offers:
    """Holds choice sets alternative by alternative, those of a situation and a person together.

    Attributes:
        table: The table that was read.
        columns: Names of its columns `item`, and `user` and `situation` where there are any.
        users: Names of the people, in order of first appearance.
        person: Position of the person of each of G situations, non-decreasing, with shape (G,).
        group: Number of the situation that each of L alternatives belongs to, non-decreasing, (L,).
        row: Row of the table that each alternative comes from, counted from 0, (L,); of an outside
            option without a row, the first of its situation.
        item: Position of each alternative's name in `names`, (L,).
        names: Names of the alternatives.
        best: Whether the alternative was chosen, (L,).
        worst: Whether the alternative was named the worst, (L,); None where nobody was asked.
        outside: Position of the outside option in `names`, or None.
        weights: Weights of the people, with shape (U,), or None.
    """

    table: pd.DataFrame
    columns: Mapping[str, str]
    users: pd.Index
    person: np.ndarray
    group: np.ndarray
    row: np.ndarray
    item: np.ndarray
    names: pd.Index
    best: np.ndarray
    worst: np.ndarray | None
    outside: int | None
    weights: np.ndarray | None = None

    @cached_property
    def is_base(self) -> np.ndarray:
        """Whether an alternative is the last of its situation, with shape (L,)."""
        return np.diff(self.group, append=-1) != 0

    @cached_property
    def is_outside(self) -> np.ndarray:
        """Whether an alternative is the outside option, with shape (L,)."""
        return self.item == (-1 if self.outside is None else self.outside)

    def describe(self, place: int) -> str:
        """Says in a message where one of the L alternatives is on offer."""
        return describe_situation(self.table, self.columns, self.row[place])


def read_choices(
    df: pd.DataFrame,
    columns: Mapping[str, str | None],
    features: Sequence | None,
    constants: bool,
    outside: Hashable | None,
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
) -> dict[str, Any]:
    """Reads choices as the arguments of `Preferences`: see `Preferences.from_choices`.

    Args:
        df: One row an alternative on offer.
        columns: Names of the columns `user`, `situation`, `item`, `chosen`, `available`, `worst`
            and `weight`, or None.
        features: Columns with features that vary between situations, or None.
        constants: Whether every alternative but one gets an indicator, beside `features`.
        outside: Name of the outside option, or None.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
    """
    named = {role: column for role, column in columns.items() if column is not None}
    if "user" not in named and "situation" not in named:
        raise ValueError(
            "situation must name a column, or user where each person chose once: got neither"
        )
    if features is not None and items is not None:
        raise ValueError(
            "items and features cannot be given both: join the table of items to df, and list its "
            "columns in features too"
        )
    check_constants(constants, features)
    check_frame(Columns(df), named)
    own = None if features is None else df[check_columns(df, "features", features)]
    offers = collect_offers(df, named, outside)
    alternatives = shared(offers, items) if own is None else each_row(offers, own, constants)
    return arrange_choices(offers, alternatives, users)


def collect_offers(
    df: pd.DataFrame, columns: Mapping[str, str], outside: Hashable | None
) -> Offers:
    """Collects what was on offer in each situation, with the outside option, and what was chosen.

    Args:
        df: One row an alternative on offer.
        columns: Names of the columns `item` and `chosen`, and of `user`, `situation`, `available`,
            `worst` and `weight` where there are any.
        outside: Name of the outside option, which needs no rows, or None.

    Raises:
        ValueError: If an alternative is on offer twice in a situation, fewer than two are on offer,
            not exactly one is chosen (or the worst), that one is not available, or one alternative
            is the best and the worst.
    """
    person, group, users = _find_situations(df, columns)
    weights = None
    if "weight" in columns:
        weights = read_weights(df, columns["weight"], person, users)
    item, names = factorise_names(f"item={columns['item']!r}", df[columns["item"]])
    warn_of_lookalikes("names of alternatives", names, stacklevel=5)
    first = np.empty(group.max() + 1, dtype=np.int64)
    first[group[::-1]] = np.arange(len(df))[::-1]
    row, place = np.arange(len(df)), None
    if outside is not None:
        names = join_names(names, canonical_names("outside", [outside]))
        place = int(find_names(canonical_names("outside", [outside]), names)[0])
        lacks = np.flatnonzero(np.bincount(group, item == place) == 0)
        row = np.concatenate([row, first[lacks]])
        item = np.concatenate([item, np.full(len(lacks), place)])
        group = np.concatenate([group, lacks])
    # People and situations in order of appearance, alternatives in that of the rows.
    owner = person[first]
    order = np.argsort(owner[group] * len(first) + group, kind="stable")
    row, item, group = row[order], item[order], group[order]
    added = order >= len(df)
    group = np.cumsum(np.diff(group, prepend=group[0]) != 0)
    offers = _Rows(df, columns, row, group, item, names, added)
    offers.check_once()
    best = offers.decode("chosen")
    worst = offers.decode("worst") if "worst" in columns else None
    offers.check_marks(best, worst)
    here = np.ones(len(row), dtype=bool)
    if "available" in columns:
        here = _read_flags(df, columns)[row] | added
    offers.check_available(here, best, worst)
    return Offers(
        df,
        columns,
        users,
        np.sort(owner),
        group[here],
        row[here],
        item[here],
        names,
        best[here],
        None if worst is None else worst[here],
        place,
        weights,
    )


def _find_situations(
    df: pd.DataFrame, columns: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray, pd.Index]:
    """Returns person and situation of each row, numbered by first appearance, and the people."""
    situation = np.zeros(len(df), dtype=np.int64)
    if "situation" in columns:
        column = df[columns["situation"]]
        situation, names = factorise_names(f"situation={columns['situation']!r}", column)
        warn_of_lookalikes("names of situations", names, stacklevel=6)
    if "user" not in columns:
        return situation, situation, pd.RangeIndex(situation.max() + 1)
    person, users = factorise_names(f"user={columns['user']!r}", df[columns["user"]])
    warn_of_lookalikes("names of people", users, stacklevel=6)
    group, _ = pd.factorize(person * (situation.max() + 1) + situation)
    return person, group, users


def _read_flags(df: pd.DataFrame, columns: Mapping[str, str]) -> np.ndarray:
    """Reads which rows are available, Boolean with shape (R,)."""
    column = df[columns["available"]]
    flags = decode_flags(column)
    wrong = np.flatnonzero(np.isnan(flags))
    if len(wrong):
        raise ValueError(
            f"available={columns['available']!r} must hold 1 / 0 or Booleans, got "
            f"{show_cell(column, wrong[0])} at row {df.index[wrong[0]]} ({len(wrong)} such rows)"
        )
    return flags == 1


def describe_situation(df: pd.DataFrame, columns: Mapping[str, str], row: int) -> str:
    """Says in a message which situation a row, counted from 0, belongs to."""
    of_user = f" of user {show_cell(df[columns['user']], row)}" if "user" in columns else ""
    if "situation" not in columns:
        return f"in the situation{of_user}"
    return f"in situation {show_cell(df[columns['situation']], row)}{of_user}"


@dataclass(frozen=True)
class _Rows:
    """Holds the alternatives of situations, available or not, while they are checked.

    Attributes are those of :class:`Offers`; `added` tells which alternatives have no row, (L,).
    """

    table: pd.DataFrame
    columns: Mapping[str, str]
    row: np.ndarray
    group: np.ndarray
    item: np.ndarray
    names: pd.Index
    added: np.ndarray

    def _where(self, place: int) -> str:
        return describe_situation(self.table, self.columns, self.row[place])

    def _name(self, place: int) -> str:
        return show_value(self.names[self.item[place]])

    def _at(self, place: int) -> str:
        return f"at row {self.table.index[self.row[place]]}, {self._where(place)}"

    def check_once(self) -> None:
        """Refuses an alternative that stands twice in a situation."""
        key = pd.Series(self.group * len(self.names) + self.item)
        again = np.flatnonzero(key.duplicated())
        if len(again):
            raise ValueError(
                f"an alternative must stand once in a situation, got {self._name(again[0])} again "
                f"{self._at(again[0])} ({len(again)} such rows)"
            )

    def decode(self, argument: str) -> np.ndarray:
        """Reads which alternative of each situation is marked, Boolean with shape (L,).

        The column holds 1 / 0, or repeats the name of the marked alternative. Where an outside
        option has no row, it is what a situation without a 1 marks.
        """
        column = self.table[self.columns[argument]]
        flags = decode_flags(column)[self.row]
        by_flag = (flags == 1) & ~self.added
        none = np.bincount(self.group, by_flag) == 0
        by_flag |= self.added & none[self.group]
        called = self._find_called(argument, column)
        by_name = called == self.item
        codings = {}
        if not np.isnan(flags).any():
            codings["1 / 0"] = by_flag
        if not (called < 0).any() and (self._first(called) == called).all():
            codings["the name of an alternative"] = by_name
        fitting = {
            coding: marks
            for coding, marks in codings.items()
            if (np.bincount(self.group, marks) == 1).all()
        }
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        if not fitting:
            raise ValueError(self._explain(argument, column, flags, called, codings))
        differ = np.flatnonzero(by_flag != by_name)
        if len(differ):
            raise ValueError(
                f"{argument} is ambiguous: {show_cell(column, self.row[differ[0]])} "
                f"{self._at(differ[0])} can be read as {' and as '.join(fitting)}"
            )
        return by_flag

    def _first(self, values: np.ndarray) -> np.ndarray:
        """Returns the value of the first alternative of each one's situation, with shape (L,)."""
        start = np.flatnonzero(np.diff(self.group, prepend=-1))
        return values[start][self.group]

    def _find_called(self, argument: str, column: pd.Series) -> np.ndarray:
        """Finds the alternatives that a column names, −1 for what is no name, with shape (L,)."""
        if pd.api.types.is_bool_dtype(column.dtype):  # True equals 1, and would be its name.
            return np.full(len(self.row), -1)
        code, values = factorise_names(f"{argument}={self.columns[argument]!r}", column)
        return find_names(values, self.names)[code][self.row]

    def _explain(
        self,
        argument: str,
        column: pd.Series,
        flags: np.ndarray,
        called: np.ndarray,
        codings: Mapping[str, np.ndarray],
    ) -> str:
        """Says why a column marks no alternative, or several, of some situation."""
        rule = (
            f"{argument}={self.columns[argument]!r} must mark one alternative of each situation, "
            "by 1 / 0, Booleans or its name in every row"
        )
        if not codings:
            by_flag = np.isnan(flags).sum() <= (called < 0).sum()
            wrong = np.flatnonzero(np.isnan(flags) if by_flag else called < 0)
            if not len(wrong):  # Names, but not the same one in every row.
                wrong = np.flatnonzero(self._first(called) != called)
            cell = show_cell(column, self.row[wrong[0]])
            return f"{rule}, got {cell} {self._at(wrong[0])} ({len(wrong)} such rows)"
        marks = next(iter(codings.values()))
        count = np.bincount(self.group, marks)
        wrong = np.flatnonzero(count != 1)
        own = np.flatnonzero(self.group == wrong[0])
        marked = [self._name(place) for place in own[marks[own]]]
        got = " and ".join(marked[:3]) or "none"
        if not marked and called[own[0]] >= 0 and "1 / 0" not in codings:
            got = f"{show_cell(column, self.row[own[0]])}, which was not on offer,"
        return f"{rule}, got {got} {self._where(own[0])} ({len(wrong)} such situations)"

    def check_marks(self, best: np.ndarray, worst: np.ndarray | None) -> None:
        """Refuses an alternative that is the best and the worst of its situation."""
        both = np.flatnonzero(best & worst) if worst is not None else []
        if len(both):
            raise ValueError(
                f"the best and the worst must be different alternatives, got {self._name(both[0])} "
                f"for both {self._where(both[0])} ({len(both)} such situations)"
            )

    def check_available(self, here: np.ndarray, best: np.ndarray, worst: np.ndarray | None) -> None:
        """Refuses marked alternatives that are not available, and situations without a choice."""
        for argument, marks in (("chosen", best), ("worst", worst)):
            wrong = np.flatnonzero(marks & ~here) if marks is not None else []
            if len(wrong):
                raise ValueError(
                    f"{argument} must mark an alternative that is available, got "
                    f"{self._name(wrong[0])} {self._at(wrong[0])} ({len(wrong)} such situations)"
                )
        size = np.bincount(self.group, here)
        wrong = np.flatnonzero(size < 2)
        if len(wrong):
            place = np.flatnonzero((self.group == wrong[0]) & here)
            got = f"{self._name(place[0])} alone" if len(place) else "none"
            place = np.flatnonzero(self.group == wrong[0])
            raise ValueError(
                f"a situation must have at least two alternatives on offer, got {got} "
                f"{self._where(place[0])} ({len(wrong)} such situations)"
            )


def arrange_choices(
    offers: Offers, alternatives: AlternativeTable, users: pd.DataFrame | None
) -> dict[str, Any]:
    """Arranges choices by person, as the arguments of `Preferences`.

    Args:
        offers: What was on offer, and what was chosen.
        alternatives: The table of items, and the position of each alternative there.
        users: Covariates of the people, or None.
    """
    named = "user" in offers.columns
    if not named and users is not None:
        raise ValueError("users must be None where user=None: nobody is named")
    users = leave_out_idle(users, offers.users, stacklevel=4)
    users, covariate_levels = expand_levels("users", users)
    left, right, choice, number = _list_comparisons(offers, alternatives.position)
    check_variation(offers, alternatives, left, right)
    owner = offers.person[number // 2]
    return {
        "left": left,
        "right": right,
        "choice": choice,
        "offsets": offsets_of(np.bincount(owner, minlength=len(offers.users))),
        "items": alternatives.values,
        "num_items": len(alternatives.names),
        "item_names": alternatives.names,
        "feature_names": alternatives.feature_names,
        "user_names": offers.users,
        "covariates": None if users is None else read_covariates(users, offers.users),
        "covariate_names": None if users is None else users.columns,
        "ranking": number,
        "weights": offers.weights,
        "people_are_named": named,
        "feature_levels": alternatives.levels,
        "covariate_levels": covariate_levels,
        "alternatives": alternatives.alternatives,
    }


def _list_comparisons(offers: Offers, position: np.ndarray) -> tuple[np.ndarray, ...]:
    """Lists left, right, choice and number of the judgement: 2 g for the best of g, 2 g + 1 else.

    The worst is chosen among the alternatives that remain without the best (sequential best–worst
    choice; Marley & Louviere 2005, Some probabilistic models of best, worst, and best–worst
    choices, Journal of Mathematical Psychology 49).
    """
    number, marks = 2 * offers.group, offers.best
    if offers.worst is not None:
        rest = ~offers.best
        number = np.concatenate([number, 2 * offers.group[rest] + 1])
        order = np.argsort(number, kind="stable")
        number = number[order]
        position = np.concatenate([position, position[rest]])[order]
        marks = np.concatenate([marks, offers.worst[rest]])[order]
    return lay_out(number, position, np.where(marks, 1.0, np.inf), number % 2 == 1)
