"""People of classes with linear utilities, and a few people with choices at random."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from fssa_bayes import Preferences

CLASSES = np.array([[2.0, -1.0], [-1.5, 0.5]])  # Coefficients, in nats per unit.
SHARES = np.array([0.65, 0.35])
OF_TINY_DATA = pytest.mark.filterwarnings(
    "ignore:EM has not settled:UserWarning",
    "ignore:a coefficient of:UserWarning",
    "ignore:maximum likelihood did not converge:UserWarning",  # Networks of 24 people.
)


def simulate(
    coefficients: np.ndarray,
    shares: np.ndarray,
    num_users: int,
    num_comparisons: int,
    *,
    seed: int = 0,
) -> tuple[Preferences, np.ndarray]:
    """Draws people of classes with linear utilities; returns the class of each too."""
    rng = np.random.default_rng(seed)
    member = rng.choice(len(shares), size=num_users, p=shares)
    total = num_users * num_comparisons
    items = rng.normal([1.0, -2.0], [1.0, 1.5], size=(2 * total, 2)).astype(np.float32)
    left, right = np.arange(0, 2 * total, 2), np.arange(1, 2 * total, 2)
    beta = coefficients[np.repeat(member, num_comparisons)]
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(total) < special.expit(margin)
    offsets = np.arange(0, total + 1, num_comparisons)
    return Preferences(left, right, choice, offsets, items=items), member


def people(half_wins: bool = False, num_features: int | None = 2) -> Preferences:
    """Draws 24 people with 4 to 7 choices at random among 9 items."""
    rng = np.random.default_rng(3)
    counts = rng.integers(4, 8, size=24)
    total = counts.sum()
    left = rng.integers(9, size=total)
    right = (left + rng.integers(1, 9, size=total)) % 9
    choice = rng.integers(3, size=total) / 2 if half_wins else rng.integers(2, size=total)
    items = None if num_features is None else rng.normal(size=(9, num_features))
    offsets = np.concatenate([[0], counts.cumsum()])
    return Preferences(left, right, choice, offsets, items=items, num_items=9)
