r"""The two-mode problem: two types of people who agree on half of all pairs.

Items are numbers x ~ U(0, 1); a person's type t is 0 or 1, equally likely. Utility is x below ½;
above, it is 2x for type 0 and 1 − x for type 1. The larger utility is chosen, without noise. The
types disagree on half of all pairs, so the posterior of t is exactly ½ until the first such pair
and 0 or 1 after it. With n random pairs known, the best possible accuracy on a new pair is
:math:`1 - 2^{-n} / 4` and the best possible log-loss :math:`2^{-n} \tfrac{1}{2} \log 2`.

References:
    Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998, section 5.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._simulation import (
    check_known,
    check_sizes,
    new_pairs,
    posterior_of_two_types,
    predict_of_two_types,
)

__all__ = [
    "TwoMode",
    "bayes_accuracy",
    "bayes_choice_prob",
    "bayes_log_loss",
    "bayes_type_prob",
    "compare_with_bayes",
    "simulate",
    "utility",
]


class TwoMode(NamedTuple):
    """Holds simulated people and their types (U,)."""

    data: Preferences
    type: np.ndarray


def utility(items: np.ndarray, type: np.ndarray | int) -> np.ndarray:
    """Evaluates the utility of items x in (0, 1) to a person of type 0 or 1, broadcast."""
    above = np.where(np.asarray(type) == 0, 2 * items, 1 - items)
    return np.where(items < 0.5, items, above)


def simulate(num_users: int, num_comparisons: int, *, seed: int = 0) -> TwoMode:
    """Draws people, pairs and choices.

    Args:
        num_users: Number of people U.
        num_comparisons: Number of comparisons of each person; every pair is new.
        seed: Seed of the draws.

    Returns:
        The comparisons, with the feature `x`, and the people's types.
    """
    check_sizes(num_users, num_comparisons)
    rng = np.random.default_rng(seed)
    person_type = rng.integers(2, size=num_users)
    total = num_users * num_comparisons
    # Items are stored in single precision, so choices are made on what is stored.
    items = rng.random((total, 2), dtype=np.float32)
    repeated = np.repeat(person_type, num_comparisons)[:, None]
    utilities = utility(items.astype(np.float64), repeated)
    tied = utilities[:, 0] == utilities[:, 1]
    choice = np.where(tied, 0.5, utilities[:, 0] > utilities[:, 1])
    data = new_pairs(items[..., None], choice, num_comparisons, feature_names=["x"])
    return TwoMode(data, person_type)


def bayes_type_prob(context: Preferences) -> np.ndarray:
    """Computes the exact posterior probability of type 1, with shape (U,).

    Raises:
        ValueError: If a person's choices agree with neither type.
    """
    return posterior_of_two_types(context, _predict)


def bayes_choice_prob(context: Preferences, target: Preferences) -> np.ndarray:
    """Predicts, as Bayes would, that left is preferred in each target comparison, (R,)."""
    return predict_of_two_types(context, target, _predict)


def compare_with_bayes(
    prob: np.ndarray, context: Preferences, target: Preferences
) -> dict[str, np.ndarray]:
    """Scores predictions beside the Bayes predictor's on the same pairs.

    Args:
        prob: Predicted probability that left is preferred, with shape (R,), in target's order.
        context: What is known of each person.
        target: The comparisons predicted, as many for each person.

    Returns:
        One mean a person, with shape (U,), of: `accuracy` and `bayes_accuracy`, where the
        undecided get half a point; `accuracy_lost`, the expected loss of accuracy given the exact
        posterior of the type, which leaves out the luck of guesses; `log_loss` and
        `bayes_log_loss`, in nats; and `confidence`, the larger of both probabilities.
    """
    bayes = bayes_choice_prob(context, target)
    choice = target.choice.astype(np.float64)
    prob = np.asarray(prob, dtype=np.float64)

    def accuracy(prediction: np.ndarray) -> np.ndarray:
        return np.where(prediction == 0.5, 0.5, (prediction > 0.5) == (choice > 0.5))

    expected = np.where(prob > 0.5, bayes, 1 - bayes)
    with np.errstate(divide="ignore"):
        log_loss = -np.where(choice > 0.5, np.log(prob), np.log1p(-prob))
    scores = {
        "accuracy": accuracy(prob),
        "bayes_accuracy": accuracy(bayes),
        "accuracy_lost": np.maximum(bayes, 1 - bayes) - np.where(prob == 0.5, 0.5, expected),
        "log_loss": log_loss,
        "bayes_log_loss": np.where(bayes == 0.5, np.log(2), 0.0),
        "confidence": np.maximum(prob, 1 - prob),
    }
    return {name: score.reshape(len(target), -1).mean(-1) for name, score in scores.items()}


def bayes_accuracy(num_context: int) -> float:
    """Evaluates the expected accuracy of the Bayes predictor after n random pairs."""
    return 1 - 2.0 ** -check_known(num_context) / 4


def bayes_log_loss(num_context: int) -> float:
    """Evaluates the expected log-loss of the Bayes predictor after n random pairs, in nats."""
    return 2.0 ** -check_known(num_context) * np.log(2) / 2


def _predict(data: Preferences, person_type: int) -> np.ndarray:
    value = utility(data.items[:, 0].double().numpy(), person_type)
    return 0.5 * (1 + np.sign(value[data.left] - value[data.right]))
