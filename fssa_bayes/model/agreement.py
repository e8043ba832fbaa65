"""Checks that data fit a model, and that two sets of data fit each other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import (
    Preferences,
    canonical_names,
    expand_levels,
    explain_unknown,
    find_columns,
    find_names,
    first_names,
)
from fssa_bayes.model.btl import HeterogeneousBTL

__all__ = [
    "align",
    "check_covariates",
    "check_places",
    "check_same_people",
    "check_ties",
    "positions",
    "require_linear",
    "select_features",
]


def align(
    model: HeterogeneousBTL, data: Preferences, *, needs_covariates: bool = True
) -> Preferences:
    """Returns the data in the model's items, features and covariates, by name.

    Every function that takes a model and data does this before any work, and goes on with the data
    returned; see :meth:`Preferences.for_model`.

    Args:
        model: The model.
        data: The data.
        needs_covariates: False for comparisons that are predicted from a known z.

    Returns:
        The data, which are the same object where they agree with the model already.

    Raises:
        TypeError: If `data` are no Preferences.
        ValueError: If the model cannot score them.

    Warns:
        UserWarning: If a feature or covariate seems to have another unit than in the fit.
    """
    if not isinstance(data, Preferences):
        raise TypeError(f"data must be Preferences, got {type(data).__name__}")
    if model.is_standardised and data.items is None:
        names = "" if model.feature_names is None else f", [{first_names(model.feature_names)}]"
        raise ValueError(
            f"data must have the features the model was fitted to{names}, got items without "
            "features: read the data with items="
        )
    data = data.for_model(model)
    if data.num_features != model.num_features:
        raise ValueError(
            f"data must have the model's num_features={model.num_features} features, "
            f"got {data.num_features}"
        )
    if model.is_standardised and data.items is not None:
        mean = data.items.mean(0, dtype=torch.float64)
        shift = (mean - model.feature_mean.cpu()) / model.feature_scale.cpu()
        if shift.abs().max() > 20:
            name = first_names(data.feature_names[[int(shift.abs().argmax())]])
            warnings.warn(
                f"feature {name} lies {shift.abs().max():.0f} standard deviations from the data "
                "the model was first fitted to: are the units the same?",
                stacklevel=3,
            )
    model.check_rankings(data.has_rankings)
    check_ties(model, data)
    check_places(model, data)
    if needs_covariates:
        check_covariates(model, data)
    return data


def check_covariates(model: HeterogeneousBTL, data: Preferences) -> None:
    """Raises an error unless the people have the covariates that the model's prior depends on."""
    if not model.num_covariates:
        return
    model.check_covariates(data.covariates)
    if model.covariates_are_standardised:
        shift = model.standardise_covariates(data.covariates).abs().amax(0).cpu()
        if shift.max() > 20:
            name = first_names(data.covariate_names[[int(shift.argmax())]])
            warnings.warn(
                f"covariate {name} lies {shift.max():.0f} "
                "standard deviations from the people the model was first fitted to: are the units "
                "the same?",
                stacklevel=4,
            )


def select_features(model: HeterogeneousBTL, items: pd.DataFrame) -> pd.DataFrame:
    """Puts features of items in the model's order, by the names of the columns if they have any."""
    items, _ = expand_levels("items", items, model.feature_levels)
    if model.feature_names is None or isinstance(items.columns, pd.RangeIndex):
        return items
    rule = "items must have the features the model was fitted to"
    order = find_columns(rule, items.columns, model.feature_names)
    return items if order is None else items.iloc[:, order]


def check_ties(model: HeterogeneousBTL, data: Preferences) -> None:
    """Raises an error where a choice of ½ means one thing in the data and another to the model."""
    number = int(data.half_wins.sum())
    if number and data.ties == "keep" and not model.has_ties:
        raise ValueError(
            f"data keeps ties ({number} of {data.num_comparisons} comparisons), and the model has "
            "none: build it with ties='davidson', or read the data with ties='half' or 'drop'"
        )
    if number and data.ties != "keep" and model.has_ties:
        raise ValueError(
            f"data counts ties as half a win each ({number} of {data.num_comparisons} "
            "comparisons), and the model has ties proper: read the data with ties='keep', or build "
            "the model with ties=None"
        )


def check_places(model: HeterogeneousBTL, data: Preferences) -> None:
    """Raises a ValueError where the model has a position bias, and data do not tell the places."""
    if model.bias is not None and not data.places_are_known:
        raise ValueError(
            "data tell the winner and the loser of a comparison, not which of them stood on the "
            "left (or was at home), and the model has a position bias: build it with "
            "position_bias=False, or read the data with left=, right= and choice=, or with side="
        )


def require_linear(model: HeterogeneousBTL, what: str) -> None:
    """Raises a ValueError unless the model has coefficients, which `what` needs."""
    if not model.utility.is_linear:
        raise ValueError(
            f"{what} needs utility='linear', whose coefficients are identified, got "
            f"{model.config['utility']!r}"
        )


def positions(argument: str, names: Sequence, index: pd.Index) -> Tensor:
    """Looks names up in an index, and raises a ValueError that names the first unknown one."""
    names = canonical_names(argument, names)
    position = find_names(names, index)
    if len(position) == 0:
        raise ValueError(f"{argument} must have at least one name, got none")
    if (position < 0).any():
        unknown = names[position < 0].tolist()[0]
        hint = explain_unknown(unknown, index)
        raise ValueError(f"{argument} must be known names, got {unknown!r}{hint}")
    return torch.from_numpy(position)


def check_same_people(context: Preferences, target: Preferences) -> None:
    """Raises a ValueError unless target and context hold the same people in the same order."""
    if len(target) != len(context) or not target.user_names.equals(context.user_names):
        raise ValueError(
            f"target must hold the same people as the context in the same order: "
            f"{len(context)} people beginning with {context.user_names[:3].tolist()}, "
            f"got {len(target)} beginning with {target.user_names[:3].tolist()}"
        )
