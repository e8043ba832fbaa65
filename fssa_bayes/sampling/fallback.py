"""Better draws for people whom the guide fails."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.draws import Draws, effective_sample_size, thin
from fssa_bayes.sampling.importance import draw_posterior, score_draws
from fssa_bayes.sampling.nuts import nuts

__all__ = ["FALLBACKS", "MOST_PARETO_K", "fall_back"]


FALLBACKS = (None, "draws", "nuts")
"""What may be done for people whom the guide fails."""


MOST_PARETO_K = 0.7
"""Pareto k-hat above which importance weights are not relied upon (Vehtari et al. 2024)."""


_FACTORS = (4, 16)  # Times as many draws, one after the other,


_LEAST_ESS = 200.0  # until as many are effective: an error of .02 for a probability known to ±.3.


_CHUNK = 2**22  # Draws of all people that are held at once while they are thinned.


_NUTS_CHAINS, _NUTS_SAMPLES = 4, 250


def fall_back(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    context: Preferences,
    draws: Draws,
    *,
    how: str,
    seed: int,
) -> tuple[Draws, np.ndarray, Tensor]:
    """Replaces the draws of people whose k-hat is above .7 by better ones, as many as before.

    Four, then sixteen times as many draws of the mixture, until their weights have a k-hat below .7
    and an effective sample size of 200; thinned to the number asked for without duplicates. Then,
    with `how="nuts"`, four chains of NUTS.

    Args:
        model: The model.
        guide: Its guide.
        context: The people and the choices that are known of them.
        draws: Weighted draws of all of them.
        how: `"draws"` or `"nuts"`.
        seed: Seed of further draws.

    Returns:
        The draws; for each person how they were made, `"guide"`, `"more draws"` or `"nuts"`, with
        shape (U,); and whether they can be relied upon, Boolean with shape (U,).
    """
    method = np.full(len(context), "guide", dtype=object)
    reliable = draws.pareto_k <= MOST_PARETO_K
    for factor in _FACTORS:
        people = np.flatnonzero(~reliable.numpy())
        if len(people) == 0:
            return draws, method, reliable
        size = max(1, _CHUNK // (factor * len(draws.z)))
        for start in range(0, len(people), size):
            some = people[start : start + size]
            seeds = np.random.SeedSequence([seed, factor, start])
            more, good = _draw_more(model, guide, context.subset(some), draws, factor, seeds)
            draws = _put(draws, some, more)
            reliable[some] = good
        method[people] = "more draws"
    people = np.flatnonzero(~reliable.numpy())
    if how == "nuts" and len(people):
        warnings.warn(
            f"{_FACTORS[-1]} times as many draws do not make up for what the guide misses of the "
            f"posterior of {_named(context, people)}: sampled by NUTS, which takes seconds a "
            "person; see method and reliable",
            stacklevel=3,
        )
        chains, converged = _sample(model, guide, context.subset(people), len(draws.z), seed)
        draws = _put(draws, people, chains)
        method[people] = "nuts"
        reliable[people] = converged
    return draws, method, reliable


def _draw_more(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    people: Preferences,
    draws: Draws,
    factor: int,
    seeds: np.random.SeedSequence,
) -> tuple[Draws, Tensor]:
    """Draws `factor` times as often, thins to as many as before, and judges the weights."""
    first, second = map(int, seeds.generate_state(2))
    count = len(draws.z)
    many = draw_posterior(model, guide, people, factor * count, seed=first, correct="psis")
    enough = effective_sample_size(many.log_weights.double()) >= _LEAST_ESS
    good = (many.weight_k <= MOST_PARETO_K) & enough
    return thin(many, count, np.random.default_rng(second)), good


def _sample(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    people: Preferences,
    count: int,
    seed: int,
) -> tuple[Draws, Tensor]:
    """Samples by NUTS, and takes `count` draws evenly from the chains."""
    length = max(_NUTS_SAMPLES, -(-count // _NUTS_CHAINS))
    with warnings.catch_warnings():  # Who has not converged shows as unreliable.
        warnings.filterwarnings("ignore", "the posterior of .* has not converged")
        chains = nuts(model, people, num_samples=length, num_chains=_NUTS_CHAINS, seed=seed)
    chosen = np.linspace(0, len(chains.z) - 1, count).round().astype(np.int64)
    z, unknown = chains.z[chosen], torch.full((len(people),), math.nan)
    equal = Draws(
        z=z,
        log_weights=torch.zeros(z.shape[:2]).log_softmax(0),
        log_ratio=chains.log_joint[:0],
        log_guide=score_draws(guide, people, z),
        log_joint=chains.log_joint[chosen],
        weight_k=unknown,
        weighted=False,
    )
    return equal, chains.converged


def _put(draws: Draws, people: np.ndarray, others: Draws) -> Draws:
    """Puts the draws of some people in the place of those they had."""
    index, changed = torch.from_numpy(people), {}
    for name in ("z", "log_weights", "log_guide", "log_joint"):
        changed[name] = getattr(draws, name).index_copy(1, index, getattr(others, name))
    return replace(draws, **changed)


def _named(context: Preferences, people: np.ndarray) -> str:
    names = ", ".join(repr(name) for name in context.user_names[people[:5]])
    return names + (f" and {len(people) - 5} more" if len(people) > 5 else "")
