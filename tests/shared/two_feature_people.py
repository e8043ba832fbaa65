"""People with random coefficients, for tests of fits and of what is said of the population."""

from __future__ import annotations

import numpy as np
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences


def simulate(people: int = 300, comparisons: int = 12, seed: int = 0) -> Preferences:
    """People with coefficients N((1, -.5), diag(1, .25)) on 40 common items."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(40, 2)) * [1.0, 3.0] + [0.0, 5.0]
    total = people * comparisons
    left = rng.integers(40, size=total)
    right = (left + rng.integers(1, 40, size=total)) % 40
    beta = rng.normal([1.0, -0.5], [1.0, 0.5], size=(people, 2)).repeat(comparisons, 0)
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(total) < 1 / (1 + np.exp(-margin))
    return Preferences(
        left, right, choice, np.arange(0, total + 1, comparisons), items=items,
        feature_names=["size", "price"],
    )  # fmt: skip


def with_features(data: Preferences, items: object, names: list[str]) -> Preferences:
    """The same comparisons of items with other features."""
    arrays = data.left, data.right, data.choice, data.offsets
    return Preferences(*arrays, items=items, feature_names=names)


def known(data: Preferences) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """A linear model near the truth of people who differ in both features, and a guide of it."""
    model, guide = fresh(data, utility="linear")
    model.take_units(data)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([1.0, -1.5]))
        model.utility.loading.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.5]]))
    return model, guide


def fresh(data: Preferences, **options) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """A model of the data with K = 2 and its guide, not fitted yet."""
    torch.manual_seed(0)
    model = HeterogeneousBTL(data.num_features, 2, **options)
    return model, NeuralProcessGuide(model)
