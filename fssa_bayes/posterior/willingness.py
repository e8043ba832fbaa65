"""What people are willing to pay: ratios of coefficients, which have quantiles and no means."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL, positions, require_linear
from fssa_bayes.posterior.choices import check_level, weighted_quantiles

__all__ = ["MOST_POSITIVE", "find_price", "payment_table", "payments"]

MOST_POSITIVE = 0.05
"""Probability of a price coefficient above 0 from which a person has no interval."""


def find_price(
    model: HeterogeneousBTL, data: Preferences, price: Hashable, level: float, what: str
) -> int:
    """Finds the position of the price among the features: of None, that of the model itself.

    Raises:
        ValueError: If the model is not linear, items have no features, the price is none of them,
            or not named and the model in preference space, or `level` is not between 0 and 1.
    """
    require_linear(model, what)
    if data.items is None:
        raise ValueError(f"{what} needs items with features, of which one is a price")
    check_level(level)
    if price is None:
        if model.utility.map.price is None:
            raise ValueError(
                f"price must be one of the features {list(data.feature_names)} for a model that is "
                "not in willingness-to-pay space, got None"
            )
        return model.utility.map.price
    return int(positions("price", [price], data.feature_names)[0])


def payments(coefficients: Tensor, price: int) -> Tensor:
    """Returns −β_k / β_price of the features other than the price, from β (*, D), (*, D − 1)."""
    others = [place for place in range(coefficients.shape[-1]) if place != price]
    return -coefficients[..., others] / coefficients[..., price, None]


def payment_table(
    coefficients: Tensor,
    log_weights: Tensor,
    price: int,
    level: float,
    users: Sequence | pd.Index,
    features: pd.Index,
) -> pd.DataFrame:
    """Tabulates willingness to pay of people, see :meth:`Posterior.willingness_to_pay`.

    Args:
        coefficients: Draws of β with shape (S, U, D), in original units.
        log_weights: Normalised log-weights with shape (S, U).
        price: Position of the price.
        level: Probability of the intervals.
        users: Names of the people.
        features: Names of the D features.
    """
    weights = log_weights.double().exp()
    tail = (1 - level) / 2
    ratio = payments(coefficients.double(), price)
    lower, median, upper = weighted_quantiles(ratio, weights, (tail, 0.5, 1 - tail))
    positive = (weights * (coefficients[..., price] > 0)).sum(0)
    unsure = (positive > MOST_POSITIVE).unsqueeze(-1)
    names = features.delete(price)
    index = pd.MultiIndex.from_product([users, names], names=["user", "feature"])
    columns = {
        "median": median,
        "lower": lower.masked_fill(unsure, torch.nan),
        "upper": upper.masked_fill(unsure, torch.nan),
        "price_positive": positive.unsqueeze(-1).expand_as(median),
    }
    flat = {name: np.asarray(value.cpu()).reshape(-1) for name, value in columns.items()}
    return pd.DataFrame(flat, index=index)
