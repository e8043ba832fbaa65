"""Answers that come one after another: people of whom nothing is known yet, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data.alignment import find_columns
from fssa_bayes.data.arrays import check_pairs, check_sides
from fssa_bayes.data.comparisons import Comparisons, Data, replace
from fssa_bayes.data.ids import (
    canonical_names,
    explain_unknown,
    factorise_names,
    find_names,
    join_names,
)
from fssa_bayes.data.judgements import Judgements, RankedJudgements
from fssa_bayes.data.names import first_names
from fssa_bayes.data.precision import table_values
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.rankings import break_into_rows
from fssa_bayes.data.readers.categories import expand_levels
from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.outcomes import decode_choices
from fssa_bayes.data.readers.pairs import check_frame, name_items, read_covariates
from fssa_bayes.data.readers.rankings import read_rankings

__all__ = ["GrowingComparisons", "find_items", "join_answers"]


class GrowingComparisons(Comparisons):
    """Holds comparisons to which answers are added, each time in new data.

    A base class of `Preferences`, whose constructor :meth:`empty` calls.
    """

    @classmethod
    def empty(
        cls,
        users: Sequence | pd.Index | pd.DataFrame,
        items: Sequence | pd.Index | pd.DataFrame,
        *,
        ties: str = "half",
    ) -> Self:
        """Makes people of whom no answer is known, for :meth:`append`.

        As a context they have the posterior that is the prior.

        Args:
            users: Names of the people, or their covariates in a DataFrame indexed by name.
            items: Names of the items, such as `model.feature_names` of a model of items without
                features; or their features in a DataFrame indexed by name.
            ties: What a tie will mean: `"half"`, half a win each, or `"keep"`, an answer of its
                own.

        Raises:
            TypeError: If `users` or `items` is a string.
            ValueError: If there is nobody or no item, a name stands twice, or a feature or
                covariate is not finite.

        Example:
            >>> from fssa_bayes import Preferences
            >>> asked = Preferences.empty(["ann"], ["tea", "cola", "milk"])
            >>> asked.append("ann", "tea", "cola", "left").append("ann", "milk", "tea", "tea")
            Preferences(1 people, 2 comparisons, 3 items)
        """
        people = users.index if isinstance(users, pd.DataFrame) else users
        people = canonical_names("users", people)
        if not isinstance(items, pd.DataFrame):
            items = canonical_names("items", items)
        parts: dict[str, Any] = {"item_names": items, "num_items": len(items)}
        if isinstance(items, pd.DataFrame):
            items, levels = expand_levels("items", items)
            parts = {
                "item_names": name_items(Columns(items), "", "", items),
                "feature_names": items.columns,
            }
            parts |= {"items": table_values(items), "feature_levels": levels}
        if isinstance(users, pd.DataFrame):
            users, parts["covariate_levels"] = expand_levels("users", users)
            parts["covariates"] = read_covariates(users, people)
            parts["covariate_names"] = users.columns
        none = np.zeros(0, dtype=np.int32)
        offsets = np.zeros(len(people) + 1, dtype=np.int64)
        return cls(none, none, none, offsets, user_names=people, ties=ties, **parts)

    def append(
        self,
        user: Any,
        left: Any,
        right: Any,
        choice: Any,
        *,
        side: Any = None,
        users: pd.DataFrame | None = None,
    ) -> Self:
        """Returns data with one more answer, or several, of known people or of new ones.

        Args:
            user: Name of the person.
            left: Name of the left item.
            right: Name of the right item.
            choice: The answer, as in `Preferences.from_dataframe`: a number 1 / 0 / 0.5 or a
                Boolean, the word "left" / "right" / "tie", or the name of the preferred item. For
                several answers each of the four may be a list or column of them, of one length.
            side: Whose place is an advantage: 1 for left's, -1 for right's, 0 for neither's, or a
                list of these; None for left's, or in data that do not tell it, not known.
            users: Covariates of new people, where people have covariates, one row a person,
                indexed by name; rows of others are not looked at.

        Returns:
            The data; answers of a known person follow the person's own, new people follow the
            others. Answers that are appended one by one, or read from a table at once, make the
            same data. ½ means what it means in these data, see `ties`.

        Raises:
            ValueError: If an item is unknown, an item meets itself, an answer has no or more than
                one meaning, lists differ in length, or a new person's covariates are missing.
        """
        columns = {"user": user, "left": left, "right": right, "choice": choice}
        table = tabulate(columns)
        same = {name: name for name in columns}
        rows = Columns(table)
        check_frame(rows, same)
        sides = find_items(self, table["left"]), find_items(self, table["right"])
        check_pairs(*sides)
        outcome = decode_choices(rows, same, None)
        return join_answers(self, table["user"], *sides, outcome, None, users, side)

    def append_ranking(
        self,
        user: Any,
        ranking: Sequence,
        *,
        choice_set: Sequence | None = None,
        users: pd.DataFrame | None = None,
    ) -> Self:
        """Returns data with one more ranking of a known person or of a new one.

        Args:
            user: Name of the person.
            ranking: Names of items, the best first.
            choice_set: The items that the ranking was made from: those that it does not list lie
                below the ones that it does. None for the items listed.
            users: As in :meth:`append`.

        Returns:
            The data, as from :meth:`append`. A ranking of two items is a comparison.

        Raises:
            ValueError: If an item is unknown or stands twice, there are fewer than two items, or a
                new person's covariates are missing.
        """
        ranked = read_rankings({user: [list(ranking)]}, {}, choice_set)
        position = find_items(self, ranked.item)
        left, right, choice, number = break_into_rows(ranked.group, position, ranked.rank)
        person = pd.Series([user] * len(left))
        return join_answers(self, person, left, right, choice, number, users)


def tabulate(columns: dict[str, Any]) -> pd.DataFrame:
    """Puts values and lists of values side by side, values repeated; refuses unequal lengths."""
    lists = {
        name: list(value)
        for name, value in columns.items()
        if pd.api.types.is_list_like(value) and not isinstance(value, tuple)
    }
    sizes = {len(values) for values in lists.values()} or {1}
    if len(sizes) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        raise ValueError(f"lists of answers must be of one length, got {lengths}")
    (size,) = sizes
    return pd.DataFrame({name: lists.get(name, [value] * size) for name, value in columns.items()})


def find_items(data: Comparisons, names: pd.Series) -> np.ndarray:
    """Returns the positions of items in the item table, int32, or refuses unknown names."""
    code, distinct = factorise_names("items", names)
    position = find_names(distinct, data.item_names)
    if (position < 0).any():
        unknown = distinct[position < 0]
        raise ValueError(
            f"items must be among those of the data, [{first_names(data.item_names)}], got "
            f"[{first_names(unknown)}]: answers about other items need data that have them, "
            "Preferences.empty(users, items) or a fit with them"
            f"{explain_unknown(unknown[0], data.item_names)}"
        )
    return position[code].astype(np.int32)


def join_answers(
    data: Data,
    user: pd.Series,
    left: np.ndarray,
    right: np.ndarray,
    choice: np.ndarray,
    ranking: np.ndarray | None,
    users: pd.DataFrame | None,
    side: float | Sequence | None = None,
) -> Data:
    """Adds checked answers, each after the other answers of its person.

    Args:
        data: The data.
        user: Name of the person of each of Q answers.
        left: Position of each answer's left item, (Q,).
        right: The same for the right item.
        choice: The outcome of each row, (Q,).
        ranking: Equal numbers for the rows of one ranking, (Q,); None where all stand alone.
        users: Covariates of new people, or None.
        side: Whose place is an advantage, one for all or (Q,); None as in the other answers.
    """
    code, distinct = factorise_names("user", user)
    new = distinct[find_names(distinct, data.user_names) < 0]
    names = join_names(data.user_names, new)
    person = np.concatenate([data.person, find_names(distinct, names)[code]])
    order = np.argsort(person, kind="stable")

    def joined(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return np.concatenate([before, after.astype(before.dtype)])[order]

    joined_side = None
    if side is not None or data.side is not None:
        before = np.ones(data.num_comparisons, np.float32) if data.side is None else data.side
        usual = 1.0 if data.places_are_known else np.nan
        after = np.full(len(left), 1.0) * (usual if side is None else np.asarray(side, float))
        joined_side = joined(before, check_sides(after, len(left)))
    old = np.arange(data.num_comparisons) if data.ranking is None else data.ranking
    number = np.arange(len(left)) if ranking is None else ranking
    number = joined(old, data.num_comparisons + number)
    begins = np.diff(number, prepend=-1) != 0
    judgements = Judgements(len(order))
    if not begins.all():
        judgements = RankedJudgements(len(order), np.cumsum(begins) - 1)
    return replace(
        data,
        left=joined(data.left, left),
        right=joined(data.right, right),
        choice=joined(data.choice, choice),
        offsets=offsets_of(np.bincount(person, minlength=len(names))),
        user_names=names,
        covariates=join_covariates(data, new, users),
        weights=None if data.weights is None else np.append(data.weights, np.ones(len(new))),
        judgements=judgements,
        side=joined_side,
    )


def join_covariates(data: Comparisons, new: pd.Index, users: pd.DataFrame | None) -> Tensor | None:
    """Adds the covariates of new people to those of the others, by name."""
    if data.covariates is None:
        if users is not None:
            raise ValueError("users must be None: the people of these data have no covariates")
        return None
    if users is None:
        if len(new):
            raise ValueError(
                f"users must hold the covariates [{first_names(data.covariate_names)}] of new "
                f"people, got none for [{first_names(new)}]"
            )
        return data.covariates
    users, _ = expand_levels("users", users, data.covariate_levels)
    own = find_names(canonical_names("the index of users", users.index), new) >= 0
    rows = read_covariates(users[own], new)
    rule = "users must have the covariates of the other people"
    order = find_columns(rule, users.columns, data.covariate_names)
    if users.shape[1] != data.num_covariates and order is None:
        raise ValueError(f"{rule}, {data.num_covariates} columns, got {users.shape[1]}")
    rows = torch.tensor(rows if order is None else rows[:, order])
    return torch.cat([data.covariates, rows.to(data.covariates)])
