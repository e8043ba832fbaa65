"""People with linear utilities, and models of these people."""

from __future__ import annotations

import numpy as np

from fssa_bayes import HeterogeneousBTL, ImportanceWeightedELBO, NeuralProcessGuide, Preferences

SHORT_FIT = {"objective": ImportanceWeightedELBO(8), "steps": 60, "validation": None}


def people(
    num: int, comparisons: int, seed: int, *, spread: float, features: int = 1
) -> Preferences:
    """Draws people whose coefficients are N(.5, spread²), independent."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(50, features))
    left = rng.integers(50, size=num * comparisons)
    right = (left + rng.integers(1, 50, size=len(left))) % 50
    beta = rng.normal(0.5, spread, size=(num, features)).repeat(comparisons, 0)
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(len(left)) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(0, len(left) + 1, comparisons)
    return Preferences(left, right, choice, offsets, items=items)


def linear(
    latent_dim: int, features: int = 1
) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
    """Returns a fresh model with a linear utility, and its guide."""
    model = HeterogeneousBTL(features, latent_dim, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal", 16) if latent_dim else None
    return model, guide
