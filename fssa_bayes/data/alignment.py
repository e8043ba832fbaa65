"""Data by name: in the items, features and covariates of a model, or about some items alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, Self

import numpy as np
import pandas as pd

from fssa_bayes.data.arrays import check_names
from fssa_bayes.data.comparisons import Comparisons, Data, replace, select_where
from fssa_bayes.data.ids import explain_unknown, find_names
from fssa_bayes.data.judgements import find_judgements
from fssa_bayes.data.names import first_names
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.rankings import lay_out
from fssa_bayes.data.readers.categories import Levels, recode_levels

__all__ = [
    "AlignedComparisons",
    "Fitted",
    "align_covariates",
    "align_features",
    "align_items",
    "find_columns",
]


class Fitted(Protocol):
    """What a model remembers of the data that it was fitted to.

    Attributes:
        feature_names: Names of the features, those of the items where these have no features; None
            before a fit.
        covariate_names: Names of the covariates; None before a fit, or without any.
        feature_levels: Levels of categorical features by column, the reference level first.
        covariate_levels: The same of categorical covariates.
    """

    feature_names: pd.Index | None
    covariate_names: pd.Index | None
    feature_levels: Mapping[Hashable, tuple]
    covariate_levels: Mapping[Hashable, tuple]


class AlignedComparisons(Comparisons):
    """Holds comparisons that can be put in the terms of a model, by name."""

    def for_model(self, model: Fitted) -> Self:
        """Returns the same data in the items, features and covariates of a model, by name.

        Whatever takes a model and data does this by itself.

        Args:
            model: A model. One that was never fitted leaves the data as they are.

        Returns:
            The same people and comparisons in the same order; the data themselves where they have
            the model's names in the model's order already. Items without features are those of the
            model, whether they were compared here or not; names that were never compared are left
            out. Features and covariates are those of the model, in its order; further columns are
            left out, unless the columns have no names but their positions. Categories have the
            model's reference level, and indicators of 0 for levels that these data lack.

        Raises:
            ValueError: If a comparison is about an item that the model does not know
                (:meth:`select_items` leaves such comparisons out), a feature or covariate of the
                model is missing, or a category has a level that the model does not know.
        """
        data = self
        if model.feature_names is not None:
            if self.items is None:
                data = align_items(data, model.feature_names)
            else:
                data = align_features(data, model.feature_names, model.feature_levels)
        if model.covariate_names is not None and self.covariates is not None:
            data = align_covariates(data, model.covariate_names, model.covariate_levels)
        return data

    def select_items(self, items: Sequence | pd.Index) -> Self:
        """Leaves out comparisons with other items than some.

        Rankings lose their other items; what is left has the probability of a ranking of these
        items, as by Plackett and Luce a choice among some items does not depend on others.

        Args:
            items: Names of the items, which become the item table in this order. Items without
                features may be new: nobody has compared them.

        Returns:
            The same people, some of whom may be left without comparisons.

        Raises:
            ValueError: If items with features have no row of a name, a name stands twice, or no
                comparison is left.
        """
        return select_items(self, check_names("items", items, len(items)))


def align_items(data: Data, names: pd.Index) -> Data:
    """Numbers items without features as `names` does.

    Raises:
        ValueError: If a comparison is about an item of another name.
    """
    if data.item_names.equals(names):
        return data
    left, right = number_items(data, names)
    unknown = (left < 0) | (right < 0)
    if unknown.any():
        found = np.unique(np.concatenate([data.left[left < 0], data.right[right < 0]]))
        others = data.item_names[found]
        raise ValueError(
            f"data must be about the items the model was fitted to, [{first_names(names)}], got "
            f"[{first_names(others)}] in {int(unknown.sum())} of {data.num_comparisons} "
            "comparisons: fit again with them, or leave these comparisons out, "
            f"data.select_items(model.feature_names){explain_unknown(others[0], names)}"
        )
    return replace(data, left=left, right=right, **item_table(names))


def align_features(data: Data, names: pd.Index, levels: Levels) -> Data:
    """Puts the columns of the item table in the order of `names`, categories in given levels."""
    table, own, now = recode_levels(data.items, data.feature_names, data.feature_levels, levels)
    if now != data.feature_levels:
        data = replace(data, items=table, feature_names=own, feature_levels=now)
    rule = "data must have the features the model was fitted to"
    order = find_columns(rule, data.feature_names, names)
    if order is None:
        return data
    return replace(data, items=data.items[:, order], feature_names=names)


def align_covariates(data: Data, names: pd.Index, levels: Levels) -> Data:
    """Puts the columns of people's covariates in the order of `names`, as for features."""
    own = data.covariates, data.covariate_names, data.covariate_levels
    table, columns, now = recode_levels(*own, levels)
    if now != data.covariate_levels:
        data = replace(data, covariates=table, covariate_names=columns, covariate_levels=now)
    rule = "data must have the covariates the model was fitted to"
    order = find_columns(rule, data.covariate_names, names)
    if order is None:
        return data
    return replace(data, covariates=data.covariates[:, order], covariate_names=names)


def find_columns(rule: str, own: pd.Index, names: pd.Index) -> np.ndarray | None:
    """Finds the columns of a table that have given names, or returns None where it has no others.

    Args:
        rule: What must have which columns, for the message.
        own: Names of the columns.
        names: Names that are looked for.

    Returns:
        The position of each name. None also for another number of columns without names, none of
        which can be told to be the one too many.

    Raises:
        ValueError: If a name is not among those of the columns.
    """
    if own.equals(names) or (isinstance(own, pd.RangeIndex) and len(own) != len(names)):
        return None
    order = find_names(names, own)
    if (order < 0).any():
        raise ValueError(
            f"{rule}, [{first_names(names)}], got [{first_names(own)}] without "
            f"[{first_names(names[order < 0])}]"
        )
    return order


def select_items(data: Data, names: pd.Index) -> Data:
    """Leaves out comparisons with items of other names; see `Preferences.select_items`."""
    table, features = item_table(names), None
    if data.items is not None:
        rows = find_names(names, data.item_names)
        if (rows < 0).any():
            raise ValueError(
                f"items must be known names, got [{first_names(names[rows < 0])}]: the features of "
                f"these items are unknown, the item table begins with "
                f"[{first_names(data.item_names)}]"
            )
        features = data.items[rows]
        table["feature_names"] = data.feature_names
    left, right = number_items(data, names)
    keep = (left >= 0) & (right >= 0)
    keep &= ~data.judgements.inside
    if not data.has_rankings:
        if data.num_comparisons and not keep.any():
            raise _nothing_left(names)
        return select_where(replace(data, left=left, right=right, items=features, **table), keep)
    rows = _select_ranked(data, names)
    parts = left[keep], right[keep], data.choice[keep], data.judgements.ranking[keep]
    left, right, choice, number = map(np.concatenate, zip(parts, rows, strict=True))
    if not len(left):
        raise _nothing_left(names)
    order = np.argsort(number, kind="stable")
    person = data.person[data.judgements.heads[number[order]]]
    left, right, choice = left[order], right[order], choice[order].astype(np.float32)
    # A model that has places refuses rankings, so that the side of their rows does not matter.
    side = None if data.side is None else data.side[data.judgements.heads[number[order]]]
    return replace(
        data,
        left=left.astype(np.int32),
        right=right.astype(np.int32),
        choice=choice,
        offsets=offsets_of(np.bincount(person, minlength=len(data))),
        items=features,
        judgements=find_judgements(left, right, choice, number[order], person),
        side=side,
        **table,
    )


def _select_ranked(data: Data, names: pd.Index) -> tuple[np.ndarray, ...]:
    """Lays out what rankings tell of some items: left, right, choice and judgement of rows."""
    slots, own = data.judgements.list_slots(data.left, data.right, data.choice)
    position = find_names(data.item_names, names)[slots.item]
    is_ranked = slots.place < slots.last[slots.ranking]
    kept = np.flatnonzero(position >= 0)
    # Two items at least, and one of them ranked: or else nothing is known any more.
    size = np.bincount(slots.ranking[kept], minlength=len(own))
    told = np.bincount(slots.ranking[kept], is_ranked[kept], minlength=len(own))
    kept = kept[((size > 1) & (told > 0))[slots.ranking[kept]]]
    rank = np.where(is_ranked, slots.place, np.inf)[kept]
    left, right, choice, group = lay_out(
        slots.ranking[kept], position[kept], rank, slots.is_worst[kept]
    )
    return left, right, choice, own[group]


def _nothing_left(names: pd.Index) -> ValueError:
    return ValueError(
        f"items must leave a comparison, got [{first_names(names)}], no two of which are "
        "compared with each other"
    )


def number_items(data: Comparisons, names: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Returns the left and right items by their positions in `names`, int32, −1 if unknown."""
    position = find_names(data.item_names, names).astype(np.int32)
    return position[data.left], position[data.right]


def item_table(names: pd.Index) -> dict[str, pd.Index | int]:
    """Returns the parts of data that describe a table of items without features."""
    return {"num_items": len(names), "item_names": names, "feature_names": names}
