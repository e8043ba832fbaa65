r"""Clusters of people: two types who agree on five kinds of pairs and disagree on five others.

A Gaussian stand-in for the study with pictures of pets in variational preference learning. A pair
is of one of ten kinds, equally likely; its items are drawn around two means that belong to the
kind, a first and a second. In the first five kinds everybody prefers the first; in the five
*controversial* kinds people of type 0 prefer the first and people of type 1 the second, without
noise. With n random pairs known, the best possible accuracy is 1 on agreed pairs,
:math:`1 - 2^{-n} / 2` on controversial ones and :math:`1 - 2^{-n} / 4` overall: 75 % for a model
that does not know the person and 100 % for one that does.

References:
    Poddar, Wan, Ivison, Gupta & Jaques (2024), Personalizing reinforcement learning from human
    feedback with variational preference learning, arXiv 2408.10075.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._simulation import (
    check_known,
    check_share,
    check_sizes,
    new_pairs,
    posterior_of_two_types,
    predict_of_two_types,
)

__all__ = [
    "NUM_AGREED",
    "NUM_KINDS",
    "Clusters",
    "bayes_accuracy",
    "bayes_choice_prob",
    "bayes_log_loss",
    "bayes_type_prob",
    "controversial",
    "means",
    "simulate",
]

NUM_KINDS = 10
"""Number of kinds of pairs."""

NUM_AGREED = 5
"""Kinds 0 to 4 are agreed, the others controversial."""


class Clusters(NamedTuple):
    """Holds simulated people, their types (U,), and for every item (M,) its kind and place.

    `place` is 0 for items drawn around the first mean of their kind, 1 around the second.
    """

    data: Preferences
    type: np.ndarray
    kind: np.ndarray
    place: np.ndarray


def means(num_features: int = 16, *, seed: int = 0) -> np.ndarray:
    """Draws the means of the ten kinds, standard normal, with shape (10, 2, D)."""
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    return np.random.default_rng(seed).normal(size=(NUM_KINDS, 2, num_features))


def simulate(
    num_users: int,
    num_comparisons: int,
    *,
    centres: np.ndarray | None = None,
    noise: float = 0.3,
    seed: int = 0,
) -> Clusters:
    """Draws people, pairs and choices.

    Args:
        num_users: Number of people U.
        num_comparisons: Number of comparisons of each person; every item is new.
        centres: Means of the kinds with shape (10, 2, D); those of :func:`means` if None.
        noise: Standard deviation of every feature around its mean. With the default means, .3
            every item is nearest to its own mean; the limits hold only then.
        seed: Seed of the draws.

    Returns:
        The comparisons, types, and the items' kinds and places.

    Raises:
        ValueError: If a size is below 1, `centres` has another shape, or `noise` is negative.
    """
    check_sizes(num_users, num_comparisons)
    centres = means() if centres is None else np.asarray(centres)
    if centres.ndim != 3 or centres.shape[:2] != (NUM_KINDS, 2):
        raise ValueError(f"centres must have shape (10, 2, D), got {centres.shape}")
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise must be at least 0 and finite, got {noise}")
    rng = np.random.default_rng(seed)
    person_type = rng.integers(2, size=num_users)
    total = num_users * num_comparisons
    kind = np.repeat(rng.integers(NUM_KINDS, size=total), 2)
    left_place = rng.integers(2, size=total)
    place = np.stack([left_place, 1 - left_place], axis=1).ravel()
    items = centres[kind, place] + noise * rng.normal(size=(2 * total, centres.shape[2]))
    items = items.reshape(total, 2, -1)
    preferred = np.repeat(person_type, num_comparisons) * (kind[::2] >= NUM_AGREED)
    data = new_pairs(items, left_place == preferred, num_comparisons)
    return Clusters(data, person_type, kind, place)


def controversial(data: Preferences, kind: np.ndarray) -> np.ndarray:
    """Tells on which comparisons the types disagree, given the items' kinds (M,); shape (R,)."""
    return kind[data.left] >= NUM_AGREED


def bayes_type_prob(context: Preferences, kind: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Computes the exact posterior probability of type 1, with shape (U,).

    Args:
        context: What is known of each person.
        kind: Kind of each item, with shape (M,).
        place: Place of each item, with shape (M,).

    Raises:
        ValueError: If a person's choices agree with neither type.
    """
    return posterior_of_two_types(context, partial(_choices, kind, place))


def bayes_choice_prob(
    context: Preferences, target: Preferences, kind: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Predicts, as Bayes would, that left is preferred in each target comparison, (R,)."""
    return predict_of_two_types(context, target, partial(_choices, kind, place))


def bayes_accuracy(num_context: int, *, share: float = 0.5) -> float:
    """Evaluates the expected accuracy of the Bayes predictor after n random pairs.

    Args:
        num_context: Number of known pairs.
        share: Share of controversial pairs among those predicted: 1 for these alone.
    """
    return 1 - check_share("share", share) * 2.0 ** -check_known(num_context) / 2


def bayes_log_loss(num_context: int, *, share: float = 0.5) -> float:
    """Evaluates the expected log-loss of the Bayes predictor after n random pairs, in nats."""
    return check_share("share", share) * 2.0 ** -check_known(num_context) * np.log(2)


def _choices(kind: np.ndarray, place: np.ndarray, data: Preferences, type: int) -> np.ndarray:
    preferred = type * controversial(data, kind)
    return (place[data.left] == preferred).astype(np.float64)
