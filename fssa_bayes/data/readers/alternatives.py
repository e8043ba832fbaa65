"""The alternatives of choice sets as items: what features they have, and which items they are.

Where features vary between situations, such as a price, every alternative on offer is an item of
its own. An *outside option* is an alternative without features: its features are 0, and an
indicator of its own is its constant. As utilities count by their differences alone, and the model
centres and scales the features of all items alike, 0 in the units given is right.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import canonical_names, find_names
from fssa_bayes.data.names import show_cell, show_value
from fssa_bayes.data.precision import LARGEST, table_values, usable_numbers
from fssa_bayes.data.readers.categories import expand_levels, name_levels
from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.pairs import lookup_items, name_items, neutral_order

if TYPE_CHECKING:
    from fssa_bayes.data.readers.choices import Offers

__all__ = ["AlternativeTable", "check_constants", "check_variation", "each_row", "shared"]

_CONSTANT = "constant"
_MOST_CONSTANTS = 100
_FEW_SITUATIONS = 10  # In fewer, a feature of the alternatives may be equal by chance.
_ROWS_AT_ONCE = 100_000


class AlternativeTable(NamedTuple):
    """Holds the table of items that alternatives on offer point into.

    Attributes:
        position: Position of each of L alternatives in the table, int32 with shape (L,).
        values: Features of the items, (M, D), or None for one indicator an item.
        names: Names of the items.
        feature_names: Names of the features, or None.
        levels: Levels of categorical features by column, the reference level first.
        alternatives: Name of the alternative that each item is, (M,), where every alternative on
            offer is an item of its own, or None.
    """

    position: np.ndarray
    values: np.ndarray | None
    names: pd.Index
    feature_names: pd.Index | None
    levels: Mapping[Hashable, tuple]
    alternatives: pd.Categorical | None = None


def check_constants(constants: bool, features: object) -> None:
    """Refuses constants beside what explains as much as they do."""
    if constants and features is None:
        raise ValueError(
            "constants=True goes with features=: without, every item has a constant already, and "
            "with items= constants would explain all that features do"
        )


def shared(offers: Offers, items: pd.DataFrame | None) -> AlternativeTable:
    """Takes alternatives of one name for one item, in whatever situation it is on offer.

    Args:
        offers: What was on offer.
        items: Features of the items but the outside option, or None for one indicator an item.

    Raises:
        ValueError: If an item has no row in `items`, or the outside option has one.
    """
    given = items
    items, levels = expand_levels("items", items)
    if items is None:
        # In the order of a table with one row a comparison: first the left items, then the bases.
        order = np.lexsort((offers.row, offers.is_base))
        used = pd.unique(offers.item[order])
        place = np.empty(len(offers.names), dtype=np.int32)
        place[used] = np.arange(len(used))
        return AlternativeTable(place[offers.item], None, offers.names[used], None, {})
    names = name_items(Columns(offers.table), offers.columns["item"], offers.columns["item"], items)
    inside = np.flatnonzero(~offers.is_outside)
    rows = offers.names[offers.item[inside]].to_frame(index=False, name="item")
    found = lookup_items(Columns(rows), "item", names, lambda row: offers.describe(inside[row]))
    position = np.full(len(offers.item), len(names), dtype=np.int32)
    position[inside] = found
    values, features = table_values(items), items.columns
    if offers.outside is not None:
        _check_levels(given, levels)
        own = offers.names[[offers.outside]].tolist()
        if own[0] in names.tolist():
            raise ValueError(
                f"outside={show_value(own[0])} must have no row in items: its features are 0, "
                "and it has a constant"
            )
        values = np.pad(values, ((0, 1), (0, 1)))
        values[-1, -1] = 1
        _check_new(own, features)
        names, features = _append(names, own), _append(features, own)
    return AlternativeTable(position, values, names, features, levels)


def each_row(offers: Offers, features: pd.DataFrame, constants: bool) -> AlternativeTable:
    """Takes every alternative on offer for an item of its own.

    Args:
        offers: What was on offer.
        features: Features of the rows of the table that was read, numbers or categories, (R, D).
            Those of the outside option and of what was not available are not read.
        constants: Whether every name but the outside option, or the first, gets an indicator.

    Raises:
        ValueError: If a cell is missing or not finite, or a column holds neither numbers nor
            categories.
    """
    inside = np.flatnonzero(~offers.is_outside)
    table = features.iloc[offers.row[inside]].reset_index(drop=True)
    _check_complete(offers, table, inside)
    table, levels = expand_levels("features", table)
    _check_finite(offers, table, inside)
    values, columns = table_values(table), table.columns
    if offers.outside is not None:
        _check_levels(features, levels)
        whole = np.zeros((len(offers.item), len(columns)), values.dtype)
        whole[inside] = values
        values = whole
    if constants:
        own = _list_constants(offers)
        _check_new(name_levels(_CONSTANT, own), columns)
        levels = levels | {_CONSTANT: own}
        code = find_names(offers.names, canonical_names("item", own))[offers.item]
        more = np.eye(len(own), dtype=values.dtype)[code, 1:]
        columns = _append(columns, name_levels(_CONSTANT, own))
        values = np.concatenate([values, more], 1)
    elif offers.outside is not None:
        own = offers.names[[offers.outside]].tolist()
        _check_new(own, columns)
        columns = _append(columns, own)
        values = np.concatenate([values, offers.is_outside[:, None].astype(values.dtype)], 1)
    position = np.arange(len(offers.item), dtype=np.int32)
    alternatives = pd.Categorical.from_codes(offers.item, offers.names)
    names = _name_rows(offers)
    return AlternativeTable(position, values, names, columns, levels, alternatives)


def _append(names: pd.Index, more: Sequence) -> pd.Index:
    return canonical_names("names", [*names.tolist(), *more])


def _check_new(constants: Sequence, features: pd.Index) -> None:
    """Refuses constants that are called like a feature."""
    for name in constants:
        if name in features.tolist():
            raise ValueError(
                f"a constant is named {name!r}, which must not be the name of a feature: rename "
                "the feature or the alternative"
            )


def _list_constants(offers: Offers) -> tuple:
    """Lists the alternatives, first the one without a constant that others are compared with."""
    column = offers.table[offers.columns["item"]]
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = canonical_names("item", column.cat.categories).tolist()
    else:
        names = neutral_order(offers.names[pd.unique(offers.item)], None).tolist()
    if offers.outside is not None:
        first = offers.names[offers.outside]
        names = [first, *(name for name in names if name != first)]
    if len(names) > _MOST_CONSTANTS:
        raise ValueError(
            f"constants=True must have at most {_MOST_CONSTANTS} alternatives, got {len(names)}: "
            f"{offers.columns['item']!r} should name the alternatives, not the rows"
        )
    return tuple(names)


def _name_rows(offers: Offers) -> pd.Index:
    """Names each alternative on offer by person, situation and item, such as `ann / 3: bus`."""
    first = offers.row[np.flatnonzero(np.diff(offers.group, prepend=-1))]
    roles = [role for role in ("user", "situation") if role in offers.columns]
    parts = [pd.factorize(offers.table[offers.columns[role]].array[first]) for role in roles]
    parts = [(code, _as_text(names)) for code, names in parts]
    situation = parts[0][1][parts[0][0]]
    if len(parts) == 2:
        situation = situation + " / " + parts[1][1][parts[1][0]]
    items = _as_text(offers.names)
    texts = (situation + ": ")[offers.group] + items[offers.item]
    if all(_is_clear(names) for names in (items, *(names for _, names in parts))):
        return pd.Index(texts)
    for place in np.flatnonzero(pd.Series(texts).duplicated()):
        texts[place] += f" ({place})"
    return pd.Index(texts)


def _as_text(names: pd.Index | np.ndarray) -> np.ndarray:
    return np.array([str(name) for name in names.tolist()], dtype=object)


def _is_clear(texts: np.ndarray) -> bool:
    """Tells whether texts are distinct, and hold nothing that stands between parts of a name."""
    return len(set(texts)) == len(texts) and not any(" / " in t or ": " in t for t in texts)


def _check_levels(features: pd.DataFrame, levels: Mapping) -> None:
    """Refuses text beside an outside option, whose levels would differ from table to table.

    The features of the outside option are those of the reference level, which must be the same one
    in the data of a fit and in later data.
    """
    for name in levels:
        if not isinstance(features[name].dtype, pd.CategoricalDtype):
            raise ValueError(
                f"column {name!r} must be of pandas' categories where there is an outside option, "
                "which has the first of them (astype(pd.CategoricalDtype([…])) names all levels), "
                "or numbers, such as 1 / 0 for each level but one"
            )


def _check_complete(offers: Offers, table: pd.DataFrame, inside: np.ndarray) -> None:
    for name in table.columns:
        missing = np.flatnonzero(table[name].isna())
        if len(missing):
            raise ValueError(
                f"features must have no missing values, got one in column {name!r} at row "
                f"{_locate(offers, inside[missing[0]])} ({len(missing)} such rows); a row that is "
                "left out would change what was on offer"
            )


def _check_finite(offers: Offers, table: pd.DataFrame, inside: np.ndarray) -> None:
    for name, dtype in table.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            raise ValueError(
                f"features must be numbers, text or categories, got column {name!r} of type {dtype}"
            )
        wrong = np.flatnonzero(~usable_numbers(table_values(table[[name]])[:, 0]))
        if len(wrong):
            raise ValueError(
                f"features must be finite, got {show_cell(table[name], wrong[0])} in column "
                f"{name!r} at row {_locate(offers, inside[wrong[0]])} ({len(wrong)} such rows); "
                f"the largest size is {LARGEST:g}"
            )


def _locate(offers: Offers, place: int) -> str:
    return f"{offers.table.index[offers.row[place]]}, {offers.describe(place)}"


def check_variation(
    offers: Offers, alternatives: AlternativeTable, left: np.ndarray, right: np.ndarray
) -> None:
    """Refuses, or warns of, features that have one value within every choice set.

    Such a feature says nothing of what is preferred. One that differs between situations describes
    the person or the situation, and is refused; in few situations it may be equal by chance.

    Args:
        offers: What was on offer.
        alternatives: The items.
        left: Position of the left item of each comparison within a set, with shape (R,).
        right: The same for the right item.
    """
    if alternatives.values is None:
        return
    values = alternatives.values
    pending = np.arange(values.shape[1])
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        first, second = (values[np.ix_(side[rows], pending)] for side in (left, right))
        pending = pending[(first == second).all(0)]
        if not len(pending):
            return
    used = values[np.ix_(alternatives.position, pending)]
    differs = (used != used[0]).any(0)
    names = alternatives.feature_names
    if differs.any() and len(offers.person) >= _FEW_SITUATIONS:
        name = names[pending[differs]].tolist()[0]
        raise ValueError(
            f"a feature must vary between the alternatives of a situation, got {name!r}, which "
            f"differs between situations alone ({int(differs.sum())} such features): its "
            "coefficient is not identified; what describes a person belongs in users="
        )
    warnings.warn(
        "features have one value within every situation, so that these choices say nothing of "
        f"their coefficients: {', '.join(map(repr, names[pending].tolist()))}",
        stacklevel=5,
    )
