"""People simulated from a model: the model drawn, the pairs asked, the choices made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["NUM_FIXED", "NUM_OWN", "SimulatedPeople", "ask", "draw_model", "simulate_people"]

NUM_FIXED = 3
"""Number of target pairs that are the same for all simulated people."""

NUM_OWN = 2
"""Number of target pairs that are each simulated person's own."""


def ask(
    items: np.ndarray | Tensor, num_users: int, num_comparisons: int, rng: np.random.Generator
) -> Preferences:
    """Asks everybody about the same number of random pairs of items (M, D), without answers.

    Args:
        items: Features of the items, with shape (M, D).
        num_users: Number of people.
        num_comparisons: Number of pairs of each person.
        rng: Draws the pairs.

    Returns:
        The pairs, each with the choice 0, for `model.simulate`.
    """
    total = num_users * num_comparisons
    left = rng.integers(len(items), size=total)
    right = (left + rng.integers(1, len(items), size=total)) % len(items)
    offsets = num_comparisons * np.arange(num_users + 1)
    return Preferences(left, right, np.zeros(total), offsets, items=items)


@torch.no_grad()
def draw_model(
    items: Tensor,
    latent_dim: int,
    utility: str = "bilinear",
    *,
    spread: float = 2.0,
    seed: int = 0,
) -> HeterogeneousBTL:
    """Draws a model of people who differ by a stated amount, to simulate people from.

    Args:
        items: Features of the items that people will be asked about, with shape (M, D).
        latent_dim: Number of latent dimensions K.
        utility: `"linear"`, `"bilinear"` or `"mlp"`.
        spread: Standard deviation between people of utilities centred over the items, in nats.
        seed: Seed of the parameters.

    Returns:
        The model.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not spread > 0:
        raise ValueError(f"spread must be positive, got {spread}")
    with seeded(seed):
        model = HeterogeneousBTL(items.shape[-1], latent_dim, utility)
        if model.utility.is_linear:
            model.utility.mean.normal_(0.0, 0.5)
        z = model.prior(1000).sample()
    centred = model.item_utility(items, z)
    centred = centred - centred.mean(-1, keepdim=True)
    scale = spread / centred.var(0).mean().sqrt()
    model.utility.scale_differences(scale)
    return model


@dataclass(frozen=True)
class SimulatedPeople:
    """Holds people drawn from a model.

    Attributes:
        source: The model that the people come from.
        context: The people's known choices.
        target: Pairs whose margins are the quantities of the study; nobody chose between them.
        z: The people's latent factors in `source`, with shape (U, K).
    """

    source: HeterogeneousBTL
    context: Preferences
    target: Preferences
    z: Tensor


def simulate_people(
    model: HeterogeneousBTL,
    data: Preferences,
    num_context: int,
    num_users: int = 2000,
    *,
    seed: int = 0,
) -> SimulatedPeople:
    """Draws people from the model and asks them pairs of the data.

    Args:
        model: The model that the people come from.
        data: Pairs and covariates that are resampled; the choices are not looked at.
        num_context: Number of choices known of everybody; of judgements where there are rankings.
        num_users: Number of people U.
        seed: Seed of pairs, people and choices.

    Returns:
        The people. `target` begins with pairs that are the same for all people and all sizes of
        context, and ends with pairs of each person's own.
    """
    data = data.for_model(model)
    pairs = data.as_pairs()
    fixed = np.random.default_rng(seed).choice(pairs.num_comparisons, NUM_FIXED)
    rng = np.random.default_rng((seed, num_context))
    asked = rng.integers(data.num_judgements, size=(num_users, num_context))
    own = rng.integers(pairs.num_comparisons, size=(num_users, NUM_OWN))
    target = np.concatenate([np.broadcast_to(fixed, (num_users, NUM_FIXED)), own], 1)
    simulation = int(rng.integers(2**31))
    people = rng.integers(len(data), size=num_users)
    context, z = model.simulate(data.imagine(asked, people), seed=simulation)
    return SimulatedPeople(model, context, pairs.imagine(target, people), z)
