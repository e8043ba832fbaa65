r"""Hidden context: pooled preferences where choices depend on a variable that nobody recorded.

Items are numbers a ~ U(0, 1) and a hidden context h is 0 or 1, equally likely. Utility is a below
.8; above, it is 2a where h = 1 and 0 where h = 0. The larger utility is chosen and equal ones by a
fair coin. A model without h learns the *Borda score* of an item, its chance to be preferred to an
item drawn at random, which ranks items above .8 below most others although half of all choices put
them first. Where the context is drawn anew for each item shown, as published, the score is

.. math:: B(a) = a + \tfrac{1}{10} \quad (a < .8), \qquad
          B(a) = \tfrac{11}{40} + \tfrac{a}{4} \quad (a \ge .8).

Where it belongs to a person or to a comparison, so that both items share it, the second line is
:math:`\tfrac{1}{20} + \tfrac{a}{2}`. What belongs to a person can be learned from that person: the
limits below are of that case.

References:
    Siththaranjan, Laidlaw & Hadfield-Menell (2024), Distributional preference learning:
    understanding and accounting for hidden context in RLHF, ICLR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._simulation import (
    check_known,
    check_sizes,
    new_pairs,
    posterior_of_two_types,
    predict_of_two_types,
)

__all__ = [
    "THRESHOLD",
    "HiddenContext",
    "bayes_accuracy",
    "bayes_choice_prob",
    "bayes_log_loss",
    "bayes_type_prob",
    "borda",
    "simulate",
    "utility",
]

THRESHOLD = 0.8
"""The item from which on the hidden context decides."""

_UNITS = ("person", "comparison", "item")
_MIXED = 2 * THRESHOLD * (1 - THRESHOLD)  # One item below the threshold, one above.
_ABOVE = (1 - THRESHOLD) ** 2


class HiddenContext(NamedTuple):
    """Holds simulated choices and the hidden contexts.

    `type` has the shape (U,) where a person has one, (R,) where a comparison, and (R, 2), left
    and right, where an item has.
    """

    data: Preferences
    type: np.ndarray


def utility(items: np.ndarray, type: np.ndarray | int) -> np.ndarray:
    """Evaluates the utility of items a in (0, 1) in the hidden context 0 or 1, broadcast."""
    items, type = np.asarray(items), np.asarray(type)
    if not np.isin(type, (0, 1)).all():
        raise ValueError(f"type must be 0 or 1, got {type[~np.isin(type, (0, 1))].flat[0]}")
    return np.where(items < THRESHOLD, items, 2 * items * type)


def simulate(
    num_users: int, num_comparisons: int, *, drawn: str = "person", seed: int = 0
) -> HiddenContext:
    """Draws people, pairs, hidden contexts and choices.

    Args:
        num_users: Number of people U.
        num_comparisons: Number of comparisons of each person; every pair is new.
        drawn: What has a hidden context of its own: a `"person"`, a `"comparison"`, or, as
            published, every `"item"` shown.
        seed: Seed of the draws.

    Returns:
        The comparisons, with the feature `a`, and the hidden contexts.

    Raises:
        ValueError: If a size is below 1 or `drawn` is unknown.
    """
    check_sizes(num_users, num_comparisons)
    _check_unit(drawn)
    rng = np.random.default_rng(seed)
    total = num_users * num_comparisons
    shape = {"person": num_users, "comparison": total, "item": (total, 2)}[drawn]
    hidden = rng.integers(2, size=shape)
    # Items are stored in single precision, so choices are made on what is stored.
    items = rng.random((total, 2), dtype=np.float32)
    shown = np.repeat(hidden, num_comparisons) if drawn == "person" else hidden
    margin = -np.diff(utility(items, shown.reshape(total, -1)), axis=1)[:, 0]
    choice = np.where(margin == 0, rng.integers(2, size=total), margin > 0)
    data = new_pairs(items[..., None], choice, num_comparisons, feature_names=["a"])
    return HiddenContext(data, hidden)


def borda(items: np.ndarray, *, drawn: str = "item") -> np.ndarray:
    """Evaluates the chance that an item is preferred to one drawn from U(0, 1).

    Args:
        items: Items a in (0, 1), of any shape.
        drawn: What has a hidden context of its own, as in :func:`simulate`.
    """
    _check_unit(drawn)
    items = np.asarray(items, dtype=np.float64)
    above = 0.275 + 0.25 * items if drawn == "item" else 0.05 + 0.5 * items
    return np.where(items < THRESHOLD, items + 0.1, above)


def bayes_type_prob(context: Preferences) -> np.ndarray:
    """Computes the exact posterior probability of type 1 where a person has one, (U,).

    Raises:
        ValueError: If a person's choices agree with neither type.
    """
    return posterior_of_two_types(context, _predict)


def bayes_choice_prob(context: Preferences, target: Preferences) -> np.ndarray:
    """Predicts, as Bayes would, that left is preferred in each target comparison, (R,)."""
    return predict_of_two_types(context, target, _predict)


def bayes_accuracy(num_context: int) -> float:
    """Evaluates the expected accuracy of the Bayes predictor after n random pairs of a person."""
    return _limit(num_context, lambda prob: np.maximum(prob, 1 - prob))


def bayes_log_loss(num_context: int) -> float:
    """Evaluates the expected log-loss of the Bayes predictor after n random pairs, in nats."""
    return _limit(num_context, lambda prob: stats.bernoulli.entropy(prob))


def _limit(num_context: int, score: Callable[[np.ndarray], np.ndarray]) -> float:
    r"""Averages a score of the Bayes predictor over the posteriors that n pairs can lead to.

    A pair with one item on either side of .8 settles the type. Where k pairs lie above and none
    settles it, type 1 always takes the larger and type 0 does so k times with probability
    :math:`2^{-k}`, which leaves type 1 at :math:`1 / (1 + 2^{-k})`; anything else settles type 0.
    """
    above = np.arange(check_known(num_context) + 1)
    weight = stats.binom.pmf(above, num_context, _ABOVE / (1 - _MIXED))
    weight *= (1 - _MIXED) ** num_context * (1 + 0.5**above) / 2
    prob = np.append(1 / (1 + 0.5**above), [1.0, 0.0])
    settled = (1 - (1 - _MIXED) ** num_context) / 2  # of either type, by a mixed pair
    weight = np.append(weight, [settled, 1 - settled - weight.sum()])
    below = score(np.ones(1))
    expected = THRESHOLD**2 * below + _MIXED * score(prob) + _ABOVE * score(prob + (1 - prob) / 2)
    return float(weight @ expected)


def _predict(data: Preferences, type: int) -> np.ndarray:
    value = utility(data.items[:, 0].double().numpy(), type)
    # In single precision .8 is a little more than .8, on the same side of the threshold.
    return 0.5 * (1 + np.sign(value[data.left] - value[data.right]))


def _check_unit(drawn: str) -> None:
    if drawn not in _UNITS:
        raise ValueError(f"drawn must be one of {_UNITS}, got {drawn!r}")
