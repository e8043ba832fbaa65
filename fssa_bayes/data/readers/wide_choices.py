"""Choices from sets: tables with one row a situation, and columns for each alternative."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import canonical_names, factorise_names, find_names
from fssa_bayes.data.names import show_cell, show_value
from fssa_bayes.data.readers.alternatives import check_constants, each_row, shared
from fssa_bayes.data.readers.choices import arrange_choices, collect_offers
from fssa_bayes.data.readers.columns import Columns, find_column
from fssa_bayes.data.readers.outcomes import decode_flags
from fssa_bayes.data.readers.pairs import check_frame, read_weights

__all__ = ["read_wide_choices"]

ColumnsOf = Mapping[Hashable, Mapping[Hashable, Hashable]]


def read_wide_choices(
    df: pd.DataFrame,
    columns: Mapping[str, str | None],
    alternatives: Sequence | Mapping[Hashable, Hashable],
    features: ColumnsOf | None,
    available: Mapping[Hashable, Hashable] | None,
    constants: bool,
    outside: Hashable | None,
    users: pd.DataFrame | None,
) -> dict[str, Any]:
    """Reads choices as the arguments of `Preferences`: see `Preferences.from_wide_choices`.

    Args:
        df: One row a situation.
        columns: Names of the columns `user`, `situation`, `chosen` and `weight`; all but `chosen`
            may be None.
        alternatives: Names of the alternatives, or what `chosen` holds for each.
        features: Column, or number, of each feature and alternative; None for none.
        available: Columns that tell whether alternatives are available, or None.
        constants: Whether every alternative but one gets an indicator, beside `features`.
        outside: Name of the outside option, or None.
        users: Covariates of the people, or None.
    """
    named = {role: column for role, column in columns.items() if column is not None}
    check_constants(constants, features)
    check_frame(Columns(df), named)
    names, codes = _read_alternatives(alternatives, outside)
    chosen = _decode_chosen(df, named["chosen"], names, codes)
    if "weight" in named:  # Here, where rows are those of the table that was given.
        person, users_seen = np.arange(len(df)), pd.RangeIndex(len(df))
        if "user" in named:
            person, users_seen = factorise_names(f"user={named['user']!r}", df[named["user"]])
        read_weights(df, named["weight"], person, users_seen)
    long = pd.DataFrame(
        {
            "situation": np.repeat(np.arange(len(df)), len(names)),
            "item": np.tile(names.astype(object), len(df)),
            "chosen": (chosen[:, None] == np.arange(len(names))).ravel(),
        },
        index=np.repeat(df.index, len(names)),
    )
    for role in ("user", "situation", "weight"):
        if role in named:
            long[role] = df[named[role]].repeat(len(names)).array
    if available is not None:
        long["available"] = _read_available(df, names, available).ravel()
    cells = None if features is None else _read_features(df, names, features, outside)
    offers = collect_offers(long, {role: role for role in long.columns}, outside)
    table = shared(offers, None) if cells is None else each_row(offers, cells, constants)
    return arrange_choices(offers, table, users)


def _read_alternatives(
    alternatives: Sequence | Mapping[Hashable, Hashable], outside: Hashable | None
) -> tuple[pd.Index, pd.Index]:
    """Returns names of the alternatives, the outside option among them, and their codes."""
    if not isinstance(alternatives, Mapping):
        if isinstance(alternatives, str | bytes) or not isinstance(
            alternatives, Sequence | np.ndarray | pd.Index | pd.Series
        ):
            raise TypeError(
                "alternatives must be a list of names or a mapping from names to what chosen holds "
                f"for them, got {alternatives!r}"
            )
        alternatives = list(alternatives)
        names = codes = canonical_names("alternatives", alternatives)
    else:
        names = canonical_names("alternatives", list(alternatives))
        codes = canonical_names("codes of alternatives", list(alternatives.values()))
    if outside is not None and outside not in names.tolist():
        names, codes = (
            canonical_names("alternatives", [*own.tolist(), outside]) for own in (names, codes)
        )
    for what, own in (("names", names), ("codes", codes)):
        if not own.is_unique:
            raise ValueError(
                f"alternatives must have {what} of their own, got "
                f"{own[own.duplicated()].tolist()[0]!r} more than once"
            )
    if len(names) < 2:
        raise ValueError(f"alternatives must be at least two, got {names.tolist()}")
    return names, codes


def _decode_chosen(df: pd.DataFrame, column: str, names: pd.Index, codes: pd.Index) -> np.ndarray:
    """Finds the alternative chosen in each row, with shape (R,)."""
    code, values = factorise_names(f"chosen={column!r}", df[column])
    chosen = find_names(values, codes)[code]
    wrong = np.flatnonzero(chosen < 0)
    if len(wrong):
        known = ", ".join(map(repr, codes[:10].tolist()))
        raise ValueError(
            f"chosen={column!r} must hold one of {known}{', …' if len(codes) > 10 else ''} for the "
            f"alternatives {names[:10].tolist()}, got {show_cell(df[column], wrong[0])} at row "
            f"{df.index[wrong[0]]} ({len(wrong)} such rows)"
        )
    return chosen


def _check_keys(argument: str, keys: Mapping, names: pd.Index) -> None:
    if not isinstance(keys, Mapping):
        raise TypeError(f"{argument} must be a mapping from alternatives to columns, got {keys!r}")
    unknown = [key for key in keys if key not in names.tolist()]
    if unknown:
        raise ValueError(
            f"{argument} must be given for alternatives, {names[:10].tolist()}, got {unknown[0]!r}"
        )


def _read_available(
    df: pd.DataFrame, names: pd.Index, available: Mapping[Hashable, Hashable]
) -> np.ndarray:
    """Reads which alternatives are available, as flags with shape (R, J)."""
    _check_keys("available", available, names)
    flags = np.ones((len(df), len(names)))
    for place, name in enumerate(names.tolist()):
        if name not in available:
            continue
        argument = f"available[{name!r}]"
        cells = find_column(df, argument, available[name])
        own = decode_flags(cells)
        wrong = np.flatnonzero(np.isnan(own))
        if len(wrong):
            raise ValueError(
                f"{argument} must name a column of 1 / 0 or Booleans, got "
                f"{show_cell(cells, wrong[0])} in column {available[name]!r} at row "
                f"{df.index[wrong[0]]} ({len(wrong)} such rows)"
            )
        flags[:, place] = own
    return flags


def _read_features(
    df: pd.DataFrame, names: pd.Index, features: ColumnsOf, outside: Hashable | None
) -> pd.DataFrame:
    """Lays the features out with one row a situation and alternative, with shape (R J, D)."""
    if not isinstance(features, Mapping) or not features:
        raise TypeError(
            "features must be a mapping from features to mappings from alternatives to columns, "
            f"such as {{'time': {{'bus': 'time_bus', 'car': 'time_car'}}}}, got {features!r}"
        )
    # Row by row, the alternatives of a row in their order.
    order = np.arange(len(df) * len(names)).reshape(len(names), len(df)).T.ravel()
    cells = {}
    for feature, columns in features.items():
        argument = f"features[{feature!r}]"
        _check_keys(argument, columns, names)
        if outside is not None and outside in columns:
            raise ValueError(
                f"{argument} must have no column for the outside option {show_value(outside)}, "
                "whose features are 0"
            )
        parts = [_read_cells(df, argument, columns.get(name, 0)) for name in names.tolist()]
        cells[feature] = pd.concat(parts, ignore_index=True).iloc[order].array
    return pd.DataFrame(cells, index=np.repeat(df.index, len(names)))


def _read_cells(df: pd.DataFrame, argument: str, column: Hashable) -> pd.Series:
    """Reads a feature of one alternative: a column of the table, or one number for all rows."""
    if isinstance(column, Real) and not (df.columns == column).any():
        return pd.Series(np.full(len(df), float(column)))
    cells = find_column(df, argument, column)
    return cells.astype(float) if pd.api.types.is_bool_dtype(cells.dtype) else cells
