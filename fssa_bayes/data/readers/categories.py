"""Categories among features and covariates: one indicator for each level but the reference level.

A column of text or categories, such as `region`, becomes columns `region[T.north]`,
`region[T.south]`, 1 where a row has the level and 0 elsewhere ("treatment" coding). The reference
level, which has no column, is the first: of the categories as they are declared, of text in the
order of the alphabet.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data.names import show_value

__all__ = ["Levels", "expand_levels", "name_levels", "recode_levels"]

Levels = Mapping[Hashable, tuple]
"""Levels of each categorical column, the reference level first."""

_MOST_LEVELS = 100


def expand_levels(
    argument: str, table: pd.DataFrame, levels: Levels | None = None
) -> tuple[pd.DataFrame, dict[Hashable, tuple]]:
    """Expands the categorical columns of a table.

    Args:
        argument: What the table is, for messages.
        table: Features or covariates. What is no table is returned unchanged.
        levels: Levels of columns that are known already, as of the data of a fit.

    Returns:
        The table with indicators in place of categorical columns, and the levels of these columns.

    Raises:
        ValueError: If there is no column, a category is missing or not among the known levels, or
            a column has more than 100 levels.

    Warns:
        UserWarning: If all levels of a column of text read like numbers.
    """
    if not isinstance(table, pd.DataFrame):
        return table, {}
    if table.shape[1] == 0:
        raise ValueError(f"{argument} must have at least one column, got none")
    known, found, parts = levels or {}, {}, []
    for position, name in enumerate(table.columns):
        column = table.iloc[:, position]
        if column.dtype == object:
            column = column.infer_objects()
        if name in known or _is_categorical(column):
            found[name] = known[name] if name in known else _find_levels(argument, column)
            parts.append(_indicators(argument, column, found[name]))
        else:
            parts.append(column.to_frame())
    whole = pd.concat(parts, axis=1)
    return (whole, found) if found else (whole.set_axis(table.columns, axis=1), {})


def _is_categorical(column: pd.Series) -> bool:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return True
    return pd.api.types.infer_dtype(column, skipna=True) == "string"


def _find_levels(argument: str, column: pd.Series) -> tuple:
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = column.cat.categories.tolist()
    else:
        levels = sorted(column.dropna().unique())
        _warn_of_numbers(argument, column.name, levels)
    if len(levels) > _MOST_LEVELS:
        raise ValueError(
            f"{argument} must have at most {_MOST_LEVELS} levels in a column of categories, got "
            f"{len(levels)} in {column.name!r}: leave the column out, or give numbers that "
            "describe them (of a text, its embedding)"
        )
    return tuple(levels)


def _warn_of_numbers(argument: str, name: Hashable, levels: list[str]) -> None:
    """Warns of text whose levels are all numbers, with a point or a comma."""
    text = pd.Series(levels, dtype=object)
    for comma, of_numbers, remedy in (
        (False, "numbers", "astype(float)"),
        (True, "numbers with a decimal comma", "str.replace(',', '.').astype(float)"),
    ):
        cells = text.str.replace(",", ".", regex=False) if comma else text
        if len(text) and pd.to_numeric(cells, errors="coerce").notna().all():
            shown = ", ".join(map(repr, levels[:3]))
            warnings.warn(
                f"{argument}: column {name!r} holds text that reads like {of_numbers} ({shown}), "
                f"taken for {len(levels)} categories: {remedy} makes numbers of it "
                "(in a file: write a decimal point), astype('category') says that categories are "
                "meant",
                stacklevel=7,
            )
            return


def _indicators(argument: str, column: pd.Series, levels: tuple) -> pd.DataFrame:
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise ValueError(
            f"{argument} must have no missing categories, got one for "
            f"{show_value(column.index[missing[0]])}, column {column.name!r} "
            f"({len(missing)} such entries)"
        )
    code = pd.Index(levels, dtype=object).get_indexer(column.astype(object))
    unknown = np.flatnonzero(code < 0)
    if len(unknown):
        raise ValueError(_describe_unknown(column.name, column.iloc[unknown[0]], levels))
    return pd.DataFrame(
        np.eye(len(levels))[code, 1:], index=column.index, columns=name_levels(column.name, levels)
    )


def _describe_unknown(name: Hashable, level: object, levels: tuple) -> str:
    return (
        f"unknown level {show_value(level)} of {name!r}: known are the reference level "
        f"{levels[0]!r} and {list(levels[1:])}; fit again with it, or leave its rows out"
    )


def name_levels(name: Hashable, levels: tuple) -> list[str]:
    """Names the indicators of a column, those of all levels but the first."""
    return [f"{name}[T.{level}]" for level in levels[1:]]


def recode_levels(
    table: Tensor, names: pd.Index, own: Levels, levels: Levels
) -> tuple[Tensor, pd.Index, dict[Hashable, tuple]]:
    """Expresses indicators by other levels, such as those of the data that a model was fitted to.

    A level that these data lack has an indicator of 0, whichever level was the reference here.

    Args:
        table: Features or covariates (R, D), indicators among them.
        names: Names of the columns, (D,).
        own: Levels of the categorical columns of the table.
        levels: The levels to express them by. Columns that are not categorical in both stay.

    Returns:
        The table, its names, and the levels that it has now. Recoded columns come last.

    Raises:
        ValueError: If a row has a level that is not among those to express it by.
    """
    now = dict(own)
    for name, old in own.items():
        new = levels.get(name, old)
        if new == old:
            continue
        place = names.get_indexer(name_levels(name, old))
        indicators = table[:, torch.tensor(place)]
        full = torch.cat([1 - indicators.sum(1, keepdim=True), indicators], 1)
        target = pd.Index(new, dtype=object).get_indexer(pd.Index(old, dtype=object))
        for level, used, position in zip(old, (full > 0.5).any(0).tolist(), target, strict=True):
            if used and position < 0:
                raise ValueError(_describe_unknown(name, level, new))
        recoded = table.new_zeros(len(table), len(new))
        there = torch.tensor(np.flatnonzero(target >= 0))
        recoded[:, torch.tensor(target[target >= 0])] = full[:, there]
        rest = np.setdiff1d(np.arange(len(names)), place)
        table = torch.cat([table[:, torch.tensor(rest)], recoded[:, 1:]], 1)
        names = pd.Index([*names[rest], *name_levels(name, new)])
        now[name] = new
    return table, names, now
