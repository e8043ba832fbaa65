"""Rankings: tables with one row an item or a ranking, and lists that begin with the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import (
    canonical_names,
    factorise_names,
    find_names,
    warn_of_lookalikes,
)
from fssa_bayes.data.names import check_column, show_cell, show_value
from fssa_bayes.data.precision import table_values
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.rankings import break_into_rows
from fssa_bayes.data.readers.categories import expand_levels
from fssa_bayes.data.readers.columns import Columns, find_column
from fssa_bayes.data.readers.pairs import (
    leave_out_idle,
    lookup_items,
    name_items,
    neutral_order,
    read_covariates,
)
from fssa_bayes.data.readers.wide import read_orderings, read_ranks

__all__ = [
    "RankedItems",
    "add_unranked",
    "check_items",
    "check_sizes",
    "read_lists",
    "read_ranked_pairs",
    "read_rankings",
    "read_table",
]


@dataclass(frozen=True)
class RankedItems:
    """Holds rankings item by item, those of a person together.

    Attributes:
        users: Names of the people, in order of first appearance.
        person: Position of the person of each of G rankings, non-decreasing, with shape (G,).
        group: Number of the ranking that each of L rows belongs to, non-decreasing, (L,).
        item: Name of each row's item, (L,).
        rank: Rank of each row's item, NaN where it stands below all ranked ones, (L,).
    """

    users: pd.Index
    person: np.ndarray
    group: np.ndarray
    item: pd.Series
    rank: np.ndarray

    def describe(self, row: int) -> str:
        """Says in a message where one of the L rows stands."""
        return f"in a ranking of user {show_value(self.users[self.person[self.group[row]]])}"


def read_rankings(
    rankings: pd.DataFrame | Mapping | Sequence,
    columns: Mapping[str, str | None],
    choice_set: Sequence | None,
) -> RankedItems:
    """Reads rankings from a table with one row an item, or from lists that begin with the best.

    Args:
        rankings: A table; lists of rankings by person; or one list of rankings, each of a person
            of its own.
        columns: Names of the table's columns `user`, `ranking`, `item` and `rank`.
        choice_set: Items that every ranking was made from, or None.

    Returns:
        The rankings.

    Raises:
        TypeError: If `rankings` is neither a table nor lists.
        ValueError: If a column or cell is missing, an item repeats, two items share a rank, a
            ranking has a single item or none that is ranked, or an item is not in its choice set.
    """
    if isinstance(rankings, pd.DataFrame):
        table = read_table(rankings, columns)
    else:
        given = [f"{name}={value!r}" for name, value in columns.items() if value is not None]
        if given:
            raise ValueError(
                f"{given[0]} names a column of a table, and rankings is a "
                f"{type(rankings).__name__}: leave it out"
            )
        table = read_lists(rankings)
    if not len(table):
        raise ValueError("rankings must hold at least one ranking, got none")
    person, users = factorise_names("user", table["user"])
    code, names = factorise_names("item", table["item"])
    table = table.assign(user=users[person], item=names[code])
    group = table.groupby([person, table["ranking"]], sort=False).ngroup().to_numpy()
    # Rankings in order of appearance, those of a person together; items as they were listed.
    order = np.lexsort((group, person))
    table, person, group = table.iloc[order], person[order], group[order]
    group = np.cumsum(np.diff(group, prepend=group[0]) != 0)
    table = table.assign(group=group)
    check_items(table)
    owner = person[np.flatnonzero(np.diff(group, prepend=-1))]
    if choice_set is not None:
        table = add_unranked(table, choice_set)
    check_sizes(table)
    rank = table["rank"].to_numpy(dtype=np.float64)
    return RankedItems(users, owner, table["group"].to_numpy(), table["item"], rank)


def read_ranked_pairs(
    rankings: pd.DataFrame | Mapping | Sequence,
    columns: Mapping[str, str | None],
    wide: Mapping[str, Sequence | None],
    choice_set: Sequence | None,
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
) -> dict[str, Any]:
    """Reads rankings as the arguments of `Preferences`: see `Preferences.from_rankings`.

    Args:
        rankings: The rankings.
        columns: Names of the columns `user`, `ranking`, `item` and `rank`, or None.
        wide: Lists of the columns `orderings` or `ranks`, or None.
        choice_set: Items that every ranking was made from, or None.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
    """
    lists = {name: own for name, own in wide.items() if own is not None}
    if lists:
        others = [name for name in ("ranking", "item", "rank") if columns[name] is not None]
        if len(lists) > 1 or others:
            raise ValueError(
                f"{next(iter(lists))} must be the only list of columns, without ranking, item and "
                f"rank, got {[*lists, *others][1]} too"
            )
        read = read_orderings if "orderings" in lists else read_ranks
        rankings = read(rankings, *lists.values(), columns["user"])
        columns = {name: name for name in columns}
    items, feature_levels = expand_levels("items", items)
    ranked = read_rankings(rankings, columns, choice_set)
    warn_of_lookalikes("names of people", ranked.users, stacklevel=4)
    users = leave_out_idle(users, ranked.users, stacklevel=4)
    users, covariate_levels = expand_levels("users", users)
    frame = Columns(ranked.item.to_frame("item"))
    names = name_items(frame, "item", "item", items)
    if items is None:
        names = neutral_order(names, choice_set)
    position = lookup_items(frame, "item", names, ranked.describe)
    left, right, choice, number = break_into_rows(ranked.group, position, ranked.rank)
    counts = np.bincount(ranked.person[number], minlength=len(ranked.users))
    return {
        "left": left,
        "right": right,
        "choice": choice,
        "offsets": offsets_of(counts),
        "items": None if items is None else table_values(items),
        "num_items": len(names),
        "item_names": names,
        "feature_names": None if items is None else items.columns,
        "user_names": ranked.users,
        "covariates": None if users is None else read_covariates(users, ranked.users),
        "covariate_names": None if users is None else users.columns,
        "ranking": number,
        "feature_levels": feature_levels,
        "covariate_levels": covariate_levels,
    }


def read_table(df: pd.DataFrame, columns: Mapping[str, str | None]) -> pd.DataFrame:
    """Reads a table with one row an item as columns `user`, `ranking`, `item` and `rank`."""
    named = {name: column for name, column in columns.items() if column is not None}
    for name in ("user", "item", "rank"):
        if name not in named:
            raise ValueError(f"{name} must name a column of the table, got None")
    for name, column in named.items():
        check_column(name, column)
        missing = np.flatnonzero(find_column(df, name, column, "rankings").isna())
        if len(missing) and name != "rank":
            raise ValueError(
                f"{name}={column!r} must have no missing values, got {len(missing)}, the first at "
                f"row {df.index[missing[0]]}; only a rank may be missing, of an item below all "
                "ranked ones"
            )
    if len(set(named.values())) < len(named):
        raise ValueError(f"user, ranking, item and rank must be different columns, got {named}")
    rank = df[named["rank"]]
    if not pd.api.types.is_numeric_dtype(rank.dtype) or pd.api.types.is_bool_dtype(rank.dtype):
        raise ValueError(f"rank={named['rank']!r} must be numeric, 1 the best, got {rank.dtype}")
    values = rank.to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero((values < 1) | np.isinf(values))
    if len(wrong):
        raise ValueError(
            f"rank must be a number from 1, the best, got {values[wrong[0]]:g} at row "
            f"{df.index[wrong[0]]} (user {show_cell(df[named['user']], wrong[0])}); where 0 means "
            "that an item was not on offer, leave such rows out"
        )
    table = {name: df[named[name]].to_numpy() for name in ("user", "item")}
    table["ranking"] = df[named["ranking"]].to_numpy() if "ranking" in named else 0
    return pd.DataFrame(table | {"rank": values})


def read_lists(rankings: Mapping | Sequence) -> pd.DataFrame:
    """Lays rankings given as lists out as such a table."""
    if isinstance(rankings, str | bytes) or not isinstance(rankings, Mapping | Sequence):
        raise TypeError(
            "rankings must be a pandas DataFrame, a mapping from people to lists of rankings or a "
            f"list of rankings, got {type(rankings).__name__}"
        )
    if not isinstance(rankings, Mapping):
        rankings = {number: [ranking] for number, ranking in enumerate(rankings)}
    rows: dict[str, list] = {"user": [], "ranking": [], "item": [], "rank": []}
    for user, own in rankings.items():
        if not _is_list(own) or not all(map(_is_list, own)):
            raise TypeError(
                f"rankings of user {user!r} must be a list of rankings, each a list of items that "
                f"begins with the best, got {own!r}"
            )
        if not len(own):
            raise ValueError(f"user {user!r} must have at least one ranking, got none")
        for number, items in enumerate(own):
            if not len(items):
                raise ValueError(f"ranking {number} of user {user!r} must have items, got none")
            _check_names(items, f"ranking {number} of user {user!r}")
            rows["user"] += [user] * len(items)
            rows["ranking"] += [number] * len(items)
            rows["item"] += list(items)
            rows["rank"] += range(1, len(items) + 1)
    # As objects: pandas would make floats of integers and floats together.
    return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in rows.items()})


def _check_names(items: Sequence, where: str) -> None:
    """Refuses lists and missing values as names of items."""
    for item in items:
        if isinstance(item, list | tuple | set | dict | np.ndarray):
            raise TypeError(
                f"an item must be a name, got {item!r} in {where}: no two items may share a rank"
            )
        if item is None or item is pd.NaT or item is pd.NA or item != item:
            raise ValueError(f"an item must be a name, got {item!r} in {where}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _where(row: pd.Series) -> str:
    return f"ranking {show_value(row['ranking'])} of user {show_value(row['user'])}"


def check_items(table: pd.DataFrame) -> None:
    """Refuses items that stand twice in a ranking, and ranks that two items share."""
    repeated = np.flatnonzero(table.duplicated(["group", "item"]))
    if len(repeated):
        row = table.iloc[repeated[0]]
        raise ValueError(
            f"an item must stand once in a ranking, got {show_value(row['item'])} again in "
            f"{_where(row)} ({len(repeated)} such rows)"
        )
    tied = np.flatnonzero(table["rank"].notna() & table.duplicated(["group", "rank"]))
    if len(tied):
        row = table.iloc[tied[0]]
        same = table[(table["group"] == row["group"]) & (table["rank"] == row["rank"])]
        raise ValueError(
            f"no two items may share a rank, got rank {row['rank']:g} for "
            f"{' and '.join(map(show_value, same['item']))} in {_where(row)} ({len(tied)} such "
            "rows): leave one of them out, or compare them in pairs with ties"
        )


def add_unranked(table: pd.DataFrame, choice_set: Sequence) -> pd.DataFrame:
    """Adds the items of the choice set that a ranking does not list, below those that it does."""
    if isinstance(choice_set, str) or not isinstance(
        choice_set, Sequence | np.ndarray | pd.Index | pd.Series
    ):
        raise TypeError(f"choice_set must be a list of items, got {choice_set!r}")
    _check_names(choice_set, "choice_set")
    items = canonical_names("choice_set", choice_set)
    if not items.is_unique:
        raise ValueError(
            "choice_set must name an item once, "
            f"got {items[items.duplicated()].tolist()[0]!r} again"
        )
    code, names = factorise_names("item", table["item"])
    outside = np.flatnonzero(find_names(names, items)[code] < 0)
    if len(outside):
        row = table.iloc[outside[0]]
        raise ValueError(
            f"choice_set must hold every item that is ranked, got {show_value(row['item'])} in "
            f"{_where(row)} ({len(outside)} such rows)"
        )
    first = table.drop_duplicates("group")
    every = first.loc[first.index.repeat(len(items)), ["user", "ranking", "group"]]
    every = every.assign(item=np.tile(items.astype(object), len(first)), rank=np.nan)
    table = table.astype({"item": object})
    whole = pd.concat([table, every], ignore_index=True).drop_duplicates(["group", "item"])
    return whole.sort_values("group", kind="stable")


def check_sizes(table: pd.DataFrame) -> None:
    """Refuses rankings of one item, and rankings without a rank."""
    size = table.groupby("group")["rank"].agg(["size", "count"])
    for wrong, problem in (
        (size["size"] < 2, "must have at least two items, got one"),
        (size["count"] < 1, "must rank an item, got missing ranks alone"),
    ):
        if wrong.any():
            row = table[table["group"] == wrong.idxmax()].iloc[0]
            hint = f" ({show_value(row['item'])})" if "two" in problem else ""
            raise ValueError(f"{_where(row)} {problem}{hint} ({int(wrong.sum())} such rankings)")
