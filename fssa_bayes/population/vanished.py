"""Coefficients of one sign that a fit has estimated at 0, as where the data want the other sign."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, first_names
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["describe_vanished"]

_LEAST = 0.05  # Nats that the largest difference is worth to all but a tenth of the people.
_TENTH = 1.2816  # Standard deviations above the median of a normal distribution.


@torch.no_grad()
def describe_vanished(model: HeterogeneousBTL, data: Preferences) -> str:
    """Names log-normal coefficients, or the price of willingness-to-pay space, estimated at 0.

    A coefficient that must be negative goes to 0 where choices speak for a positive one: its
    location goes to minus infinity. It counts as 0 if the largest difference of its feature among
    the comparisons is worth less than .05 nats to all but a tenth of the people.

    Args:
        model: A fitted model.
        data: The comparisons the model was fitted to.

    Returns:
        A message; `""` for none, and for models without such coefficients.
    """
    if not model.utility.is_linear or model.utility.map.is_identity:
        return ""
    coefficients, price = model.utility.map, model.utility.map.price
    logged = [i for i, kind in enumerate(coefficients.kinds) if "lognormal" in kind]
    worth = _worth(model, data)
    if price is not None and worth[price] < _LEAST:
        return (
            f"the coefficient of the price {data.feature_names[price]!r} is estimated at 0: the "
            f"largest difference of prices is worth {worth[price]:.2g} nats. Willingness to pay is "
            "a ratio to it and has no estimate. Leave out price=, or mend the sign of the price"
        )
    gone = [i for i in logged if worth[i] < _LEAST]
    if not gone:
        return ""
    kinds = sorted({coefficients.kinds[i] for i in gone})
    return (
        f"log-normal coefficients are estimated at 0, of {first_names(data.feature_names[gone])}: "
        f"the largest difference is worth {worth[gone].max():.2g} nats at most to nine people in "
        f"ten. A coefficient that is {' or '.join(map(repr, kinds))} has one sign for everybody, "
        "and choices speak for the other one, or for no effect: make it 'normal', give it the "
        "other sign, or leave the feature out"
    )


def _worth(model: HeterogeneousBTL, data: Preferences) -> np.ndarray:
    """Returns what the largest difference of each feature is worth to nine in ten, in nats, (D,).

    It is a bound from above: every η stands at its own ninth decile of size.
    """
    utility = model.utility
    mean, spread = utility.mean.double(), utility.directions.double().norm(dim=1)
    is_log = utility.map.sign(mean) != 0
    upper = torch.where(is_log, mean, mean.abs()) + _TENTH * spread
    size = utility.map(upper).abs().cpu().numpy()
    return size * _largest_differences(model, data).numpy()


def _largest_differences(model: HeterogeneousBTL, data: Preferences) -> Tensor:
    """Returns the largest standardised difference of each feature between items compared, (D,)."""
    if data.items is None:
        return torch.ones(model.num_features, dtype=torch.float64)
    pairs = np.unique(np.stack([data.left, data.right]), axis=1)
    left, right = (torch.from_numpy(side.astype(np.int64)) for side in pairs)
    largest = [(x[left] - x[right]).abs().max() for x in data.items.double().T]
    return torch.stack(largest) / model.feature_scale.double().cpu()
