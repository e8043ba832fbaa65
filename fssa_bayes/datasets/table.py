"""Paired comparisons, item features and user covariates in files: csv, tsv, parquet and npz.

A name is text, whatever file it stands in: 007 stays "007", and the 7 of a parquet or npz file,
integer or not, is the "7" of a csv file, also where every cell reads like 7.0. Text files are UTF-8
and may be compressed (.gz, .bz2, .xz, .zip); their delimiter is a tab for .tsv and .tab, else a
comma, and never guessed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data import Preferences, check_column
from fssa_bayes.datasets._features import read_features
from fssa_bayes.datasets._layouts import Source, choose_layout
from fssa_bayes.datasets._tables import as_text, list_names, read_frame

__all__ = ["Table", "read", "read_items", "read_users"]


@dataclass(frozen=True)
class Table:
    """Holds the comparisons of a file and what became of its rows.

    Attributes:
        data: The comparisons.
        rows: Number of rows read, those left out included.
        missing: Number of rows left out because a cell was empty, by column; a row counts once,
            for the first such column in the order of the arguments.
    """

    data: Preferences
    rows: int
    missing: dict[str, int]


def read(
    path: str | os.PathLike[str],
    *,
    user: str | None = None,
    left: str | None = None,
    right: str | None = None,
    choice: str | None = None,
    winner: str | None = None,
    loser: str | None = None,
    side: str | None = None,
    count: str | None = None,
    left_wins: str | None = None,
    right_wins: str | None = None,
    tied: str | None = None,
    pair_columns: str | None = None,
    item: str | None = None,
    rank: str | None = None,
    ranking: str | None = None,
    orderings: Sequence[str] | None = None,
    ranks: Sequence[str] | None = None,
    choice_set: Sequence[str] | None = None,
    situation: str | None = None,
    chosen: str | None = None,
    available: str | None = None,
    worst: str | None = None,
    features: Sequence[str] | None = None,
    constants: bool = False,
    outside: str | None = None,
    choice_labels: Mapping[Any, str] | None = None,
    items: str | os.PathLike[str] | pd.DataFrame | None = None,
    users: str | os.PathLike[str] | pd.DataFrame | None = None,
    ties: str = "drop",
    delimiter: str | None = None,
) -> Table:
    """Reads comparisons from a file with a header, laid out in one of eight ways.

    One row per comparison: `left`, `right` and `choice`, or `winner` and `loser`. One row per pair:
    `left`, `right`, `left_wins` and `right_wins`. One row per person: `pair_columns`. One row per
    item of a ranking: `item` and `rank`. One row per ranking: `orderings` or `ranks`. One row per
    alternative on offer: `item` and `chosen`.

    Rows with an empty cell in a column that is named are left out and counted; empty may be a rank,
    and cells of the columns that `pair_columns`, `orderings` and `ranks` stand for. An empty cell
    of an alternative on offer is refused, as leaving it out would change the choice. In columns of
    choices NA, NaN, null and None are empty too, unless `choice_labels` or an item of the row has
    that name. Messages number the rows of a text file by its lines, those of parquet from 0.

    Args:
        path: A csv or tsv file, which may be compressed, or a parquet file.
        user: Column that names the person. None: every comparison has a judge of its own, or where
            a row is a person or a ranking, every row.
        left: Column that names the left item.
        right: Column that names the right item.
        choice: Column with the answer: 1 / 0 / 0.5, true / false (true: left), "left" / "right" /
            "tie", or the name of the preferred item.
        winner: Column that names the preferred item.
        loser: Column that names the other item.
        side: Column that tells whose place is an advantage, as for
            :meth:`Preferences.from_dataframe`.
        count: Column with the number of equal comparisons that a row stands for.
        left_wins: Column with the number of comparisons in which left was preferred.
        right_wins: The same for the right item.
        tied: The same for ties.
        pair_columns: What stands between two items in the name of a column of answers, as for
            :meth:`Preferences.from_pair_columns`, ":" say.
        item: Column that names an item of a ranking, or an alternative on offer.
        rank: Column with its rank, as for :meth:`Preferences.from_rankings`, like the next four.
        ranking: Column that tells a person's rankings apart.
        orderings: Columns with the names of the first, second, … item.
        ranks: Columns named by items that hold the ranks of these items.
        choice_set: Items that every ranking was made from.
        situation: Column that tells a person's situations apart, as for
            :meth:`Preferences.from_choices`, like the next six.
        chosen: Column that marks the alternative chosen, by 1 / 0, true / false or its name.
        available: Column that tells which alternatives are on offer.
        worst: Column that marks the worst alternative.
        features: Columns with features of the alternatives on offer, in place of `items`.
        constants: Whether alternatives have constants beside `features`.
        outside: Name of the outside option.
        choice_labels: Translation of the file's own words into "left", "right" and "tie". Its keys
            are compared as text.
        items: File for :func:`read_items`, or what it returns; None gives every item an indicator.
        users: The same for :func:`read_users`; None for no covariates. Its names stand in the
            column called `user`, "user", or the first.
        ties: `"drop"`, `"half"` or `"keep"`, as for :meth:`Preferences.from_dataframe`.
        delimiter: Character between the cells of every text file of the call.

    Returns:
        The comparisons, people in order of first appearance, and the counts.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is parquet and pyarrow is not installed.
        TypeError: If a column is given in place of its name.
        ValueError: If a file is no table, the columns named make no layout, a column is unknown or
            given twice, no row is complete, an item or person has no row in `items` or `users`, or
            a choice has no or two meanings.

    Warns:
        UserWarning: For rows left out, for rows of `users` without comparisons, and what
            :class:`Preferences` warns of.
    """
    roles = {"user": user, "left": left, "right": right, "choice": choice, "winner": winner}
    roles |= {"loser": loser, "side": side, "count": count, "left_wins": left_wins}
    roles |= {"right_wins": right_wins, "tied": tied, "item": item, "rank": rank}
    roles |= {"ranking": ranking, "situation": situation, "chosen": chosen}
    roles |= {"available": available, "worst": worst}
    for role, column in roles.items():
        check_column(role, column)
    roles = {role: column for role, column in roles.items() if column}
    options = {"pair_columns": pair_columns, "orderings": orderings, "ranks": ranks}
    options |= {"features": features, "constants": constants, "outside": outside}
    layout = choose_layout(roles, options)
    _check_distinct(roles)
    if user is None and users is not None:
        raise ValueError("users must be None without user=: nobody is named")
    labels = _text_labels(choice_labels)
    table = _features("items", items, ("item",), delimiter)
    covariates = _features("users", users, (user, "user"), delimiter)
    frame = read_frame(path, delimiter)
    part = layout(Source(path, frame, roles, labels, ties, options))
    if table is not None and part.compared is not None:
        _check_rows(_source("items", items), table, "item", part.compared)
    if covariates is not None:
        _check_rows(_source("users", users), covariates, "person", part.people.to_frame())
    more = {} if choice_set is None else {"choice_set": list(choice_set)}
    try:
        data = part.read(items=table, users=covariates, **more)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Table(data=data, rows=len(frame), missing=part.missing)


def _check_distinct(roles: Mapping[str, str]) -> None:
    for role, column in roles.items():
        first = next(other for other in roles if roles[other] == column)
        if first != role:
            *others, last = roles
            raise ValueError(
                f"{', '.join(others)} and {last} must be different columns, got {column!r} for "
                f"{first} and for {role}"
            )


def _text_labels(labels: Mapping[Any, str] | None) -> dict[str, str] | None:
    if labels is None:
        return None
    if not isinstance(labels, Mapping):
        raise TypeError(
            "choice_labels must be a mapping such as {'a1': 'left', 'a2': 'right'}, "
            f"got {type(labels).__name__}"
        )
    return {str(label): word for label, word in labels.items()}


def read_items(
    path: str | os.PathLike[str], *, names: str | None = None, delimiter: str | None = None
) -> pd.DataFrame:
    """Reads item features, one row per item, from a csv, tsv, parquet or npz file.

    Args:
        path: The file. Of a table, every column but the names is a feature. An npz file holds the
            names in a 1-D array and the features in a 2-D array; nothing is unpickled.
        names: Column, or array, with the names; None: "item" if there is one, else the first.
        delimiter: Character between the cells of a text file.

    Returns:
        Features in single precision with shape (M, D), indexed by item name.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is parquet and pyarrow is not installed.
        ValueError: If the file is no such table, a name is empty or stands there twice, or a
            feature is not a finite number.
    """
    return read_features(path, names=names, likely=("item",), delimiter=delimiter)


def read_users(
    path: str | os.PathLike[str], *, names: str | None = None, delimiter: str | None = None
) -> pd.DataFrame:
    """Reads user covariates, one row per person, from a csv, tsv, parquet or npz file.

    Args:
        path: The file, laid out as for :func:`read_items`.
        names: Column, or array, with the names; None: "user" if there is one, else the first.
        delimiter: Character between the cells of a text file.

    Returns:
        Covariates in single precision with shape (U, W), indexed by the person's name.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is parquet and pyarrow is not installed.
        ValueError: As for :func:`read_items`.
    """
    return read_features(path, names=names, likely=("user",), delimiter=delimiter)


def _source(argument: str, table: str | os.PathLike[str] | pd.DataFrame | None) -> str:
    return argument if isinstance(table, pd.DataFrame) else str(table)


def _features(
    argument: str,
    table: str | os.PathLike[str] | pd.DataFrame | None,
    likely: Sequence[str],
    delimiter: str | None,
) -> pd.DataFrame | None:
    if table is None:
        return None
    if isinstance(table, pd.DataFrame):
        return table.set_axis(as_text(argument, table.index.to_series()).to_numpy(), axis=0)
    return read_features(table, names=None, likely=likely, delimiter=delimiter)


def _check_rows(source: str, table: pd.DataFrame, role: str, compared: pd.DataFrame) -> None:
    names = pd.unique(compared.to_numpy().ravel())
    lost = names[~np.isin(names, table.index.to_numpy(dtype=object))]
    if len(lost):
        raise ValueError(
            f"{source} must have a row for every {role} compared, got none for {lost[0]!r} "
            f"({len(lost)} of {len(names)} have none); its names are {list_names(table.index)}"
        )
