r"""Conflict: two types of people, and pairs of which a given share divides them.

Only a pair on which the types disagree says anything about a person's type. Here the share of such
pairs is set: people and utilities are those of the two-mode problem, each pair divides the types
with probability f, and otherwise pairs are drawn as there, where f is ½. With n pairs known the
type is unknown with probability :math:`(1 - f)^n`. So, on pairs of which a share g divides the
types, the best possible accuracy is :math:`1 - (1-f)^n g / 2` and the best possible log-loss
:math:`(1-f)^n g \log 2`; the expected entropy of the type is :math:`(1-f)^n \log 2`.

References:
    Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998: few-shot
    prediction learns from conflict in the context alone.
"""

from __future__ import annotations

import numpy as np

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._simulation import check_known, check_share, check_sizes, new_pairs
from fssa_bayes.datasets.two_mode import TwoMode, utility

__all__ = [
    "bayes_accuracy",
    "bayes_log_loss",
    "bayes_type_entropy",
    "conflict_fraction",
    "conflicts",
    "simulate",
]


def simulate(
    num_users: int,
    num_comparisons: int,
    fraction: float,
    *,
    type: np.ndarray | None = None,
    seed: int = 0,
) -> TwoMode:
    """Draws pairs, of which a given share divides the types, and choices.

    Args:
        num_users: Number of people U.
        num_comparisons: Number of comparisons of each person; every pair is new.
        fraction: Probability that the types disagree on a pair, in [0, 1].
        type: Types of the people, with shape (U,), for more comparisons of the same ones; drawn
            if None.
        seed: Seed of the draws.

    Returns:
        The comparisons, with the feature `x`, and the people's types.

    Raises:
        ValueError: If a size is below 1, `fraction` is no probability, or `type` holds something
            else than 0 and 1.
    """
    check_sizes(num_users, num_comparisons)
    check_share("fraction", fraction)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(2, size=num_users)
    type = drawn if type is None else np.asarray(type)
    if type.shape != (num_users,) or not np.isin(type, (0, 1)).all():
        raise ValueError(f"type must hold 0 or 1 for each of {num_users} people, got {type}")
    total = num_users * num_comparisons
    wanted = rng.random(total) < fraction
    items = rng.random((total, 2), dtype=np.float32)
    # x → 1 − x makes a pair that divides the types one that does not, and keeps areas.
    items = np.where((_divides(items) == wanted)[:, None], items, 1 - items)
    utilities = utility(items.astype(np.float64), np.repeat(type, num_comparisons)[:, None])
    tied = utilities[:, 0] == utilities[:, 1]
    choice = np.where(tied, 0.5, utilities[:, 0] > utilities[:, 1])
    return TwoMode(new_pairs(items[..., None], choice, num_comparisons, feature_names=["x"]), type)


def conflicts(data: Preferences) -> np.ndarray:
    """Tells on which comparisons the types disagree, with shape (R,)."""
    items = data.items[:, 0].numpy()
    return _divides(np.stack([items[data.left], items[data.right]], axis=1))


def conflict_fraction(choices: np.ndarray) -> float:
    """Returns the share of pairs that divide people, given every type's choices, (types, R)."""
    choices = np.asarray(choices)
    if choices.ndim != 2 or choices.shape[1] == 0:
        raise ValueError(f"choices must have shape (types, R), got {choices.shape}")
    return float((choices != choices[0]).any(0).mean())


def bayes_accuracy(num_context: int, fraction: float, *, target_fraction: float = 0.5) -> float:
    """Evaluates the expected accuracy of the Bayes predictor after n pairs.

    Args:
        num_context: Number of known pairs n.
        fraction: Share f of pairs that divide the types among the known ones.
        target_fraction: The same share g among those predicted.
    """
    return 1 - _unknown(num_context, fraction) * check_share("target_fraction", target_fraction) / 2


def bayes_log_loss(num_context: int, fraction: float, *, target_fraction: float = 0.5) -> float:
    """Evaluates the expected log-loss of the Bayes predictor after n pairs, in nats."""
    share = check_share("target_fraction", target_fraction)
    return _unknown(num_context, fraction) * share * np.log(2)


def bayes_type_entropy(num_context: int, fraction: float) -> float:
    """Evaluates the expected entropy of the type's exact posterior after n pairs, in nats."""
    return _unknown(num_context, fraction) * np.log(2)


def _unknown(num_context: int, fraction: float) -> float:
    return (1 - check_share("fraction", fraction)) ** check_known(num_context)


def _divides(items: np.ndarray) -> np.ndarray:
    """Tells on which pairs (R, 2) the types disagree."""
    items = items.astype(np.float64)
    preferred = [np.argmax(utility(items, type), axis=1) for type in (0, 1)]
    return preferred[0] != preferred[1]
