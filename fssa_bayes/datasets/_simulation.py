"""What simulated data sets share: checks of sizes, pairs of new items, posteriors of types."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fssa_bayes.data import Preferences, first_names

__all__ = [
    "check_known",
    "check_share",
    "check_sizes",
    "new_pairs",
    "posterior_of_two_types",
    "posterior_of_types",
    "predict_of_two_types",
]

PredictType = Callable[[Preferences, int], np.ndarray]
"""Gives the probability that a person of a type, 0 or 1, prefers left, with shape (R,)."""


def check_sizes(num_users: int, num_comparisons: int) -> None:
    """Refuses empty simulations."""
    for argument, value in (("num_users", num_users), ("num_comparisons", num_comparisons)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")


def check_share(argument: str, share: float) -> float:
    """Returns a share, or refuses it outside [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"{argument} must lie between 0 and 1, got {share}")
    return share


def check_known(num_context: int) -> int:
    """Returns a number of known pairs, or refuses another value."""
    if not isinstance(num_context, int | np.integer) or num_context < 0:
        raise ValueError(f"num_context must be an integer of at least 0, got {num_context!r}")
    return int(num_context)


def new_pairs(
    items: np.ndarray,
    choice: np.ndarray,
    num_comparisons: int,
    *,
    feature_names: Sequence[str] | None = None,
) -> Preferences:
    """Makes comparisons of items that each stand in one pair.

    Args:
        items: Features of left and right items, person after person, with shape (R, 2, D).
        choice: 1 where left was preferred, 0 where right was, ½ for ties, with shape (R,).
        num_comparisons: Number of comparisons of each person.
        feature_names: Names of the features; positions if None.
    """
    total = len(items)
    return Preferences(
        np.arange(0, 2 * total, 2),
        np.arange(1, 2 * total, 2),
        choice,
        np.arange(0, total + 1, num_comparisons),
        items=items.reshape(2 * total, -1),
        feature_names=feature_names,
    )


def posterior_of_types(context: Preferences, left_prob: np.ndarray) -> np.ndarray:
    """Computes the posterior of types that are equally likely.

    Args:
        context: What is known of each person.
        left_prob: Probability that a person of each type prefers left, with shape (types, R).

    Returns:
        Probabilities with shape (types, U).

    Raises:
        ValueError: If a person's choices are possible for no type.
    """
    likelihood = np.ones((len(left_prob), len(context)))
    for type, left in enumerate(left_prob):
        of_choice = np.where(context.choice == 0.5, left == 0.5, 1 - abs(context.choice - left))
        np.multiply.at(likelihood[type], context.person, of_choice)
    total = likelihood.sum(0)
    if (total == 0).any():
        raise ValueError(
            f"context must hold choices of type 0 or 1, user "
            f"{first_names(context.user_names[np.flatnonzero(total == 0)[:1]])} is of neither"
        )
    return likelihood / total


def posterior_of_two_types(context: Preferences, predict: PredictType) -> np.ndarray:
    """Computes the posterior probability of type 1 of two, see :func:`posterior_of_types`; (U,)."""
    return posterior_of_types(context, np.stack([predict(context, type) for type in (0, 1)]))[1]


def predict_of_two_types(
    context: Preferences, target: Preferences, predict: PredictType
) -> np.ndarray:
    """Predicts, as Bayes would, that left is preferred in each target comparison, (R,)."""
    prob = np.repeat(posterior_of_two_types(context, predict), target.counts)
    return (1 - prob) * predict(target, 0) + prob * predict(target, 1)
