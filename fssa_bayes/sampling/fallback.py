"""Better draws for people whose importance weights cannot be relied upon."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor

from fssa_bayes.data import Preferences, first_names
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.draws import Draws, thin
from fssa_bayes.sampling.importance import draw_posterior
from fssa_bayes.sampling.mcmc import nuts
from fssa_bayes.sampling.shared import draw_first, may_share, share_prior

__all__ = ["FALLBACKS", "draw_corrected", "draw_more", "fall_back", "sample_by_nuts"]

FALLBACKS = (None, "draws", "nuts")
"""What may be done for people whose weights cannot be relied upon."""

_FACTORS = (4, 16)  # Multiples of the number of draws, tried in this order.
_CHUNK = 2**22  # Draws of all people that are held at once while they are thinned.
_NUTS_CHAINS, _NUTS_SAMPLES = 4, 250


def draw_corrected(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    num_samples: int,
    fallback: str | None,
    seed: int,
) -> tuple[Draws, np.ndarray, Tensor]:
    """Draws from the posterior of every person, and again where the draws do not suffice.

    Args:
        model: The model.
        guide: Its guide, or None where the mixture has none.
        context: The people and the choices that are known of them.
        num_samples: Number of draws S of each person.
        fallback: One of :data:`FALLBACKS`.
        seed: Seed of the draws.

    Returns:
        What :func:`fall_back` returns.
    """
    draws, method = draw_first(model, guide, context, num_samples, seed=seed)
    if fallback is None:
        return draws, method, draws.enough_for(num_samples)
    return fall_back(model, guide, context, draws, method, how=fallback, seed=seed)


def fall_back(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    draws: Draws,
    method: np.ndarray,
    *,
    how: str,
    seed: int,
) -> tuple[Draws, np.ndarray, Tensor]:
    """Replaces draws that cannot be relied upon by better ones, as many as before.

    Where people may share draws of the prior, sixteen times as many are tried first. The mixture is
    drawn from four, then sixteen times as often, until the weights have a k-hat of
    at most .7 and a sufficient effective sample size, see :meth:`Draws.enough_for`; the draws are
    thinned to the number asked for without duplicates. With `how="nuts"` four chains of NUTS
    follow.

    Args:
        model: The model.
        guide: Its guide, or None where the mixture has none.
        context: The people and the choices that are known of them.
        draws: Weighted draws of all of them.
        method: How each person's were made, (U,).
        how: `"draws"` or `"nuts"`.
        seed: Seed of further draws.

    Returns:
        The draws; for each person how they were made, as before, by `"more draws"` or by `"nuts"`,
        with shape (U,); and whether they can be relied upon, Boolean with shape (U,).
    """
    method = method.copy()
    reliable = draws.enough_for(len(draws.z))
    own = partial(draw_posterior, model, guide, correct="psis")
    ways: list[tuple[Callable[..., Draws], int]] = [(own, factor) for factor in _FACTORS]
    if may_share(model):
        ways.insert(0, (partial(share_prior, model), _FACTORS[-1]))
    for draw, factor in ways:
        people = np.flatnonzero(~reliable.numpy())
        if len(people) == 0:
            return draws, method, reliable
        size = max(1, _CHUNK // (factor * len(draws.z)))
        for start in range(0, len(people), size):
            some = people[start : start + size]
            more, good = draw_more(draw, context.subset(some), len(draws.z), factor, seed)
            draws = draws.put(some, more)
            reliable[some] = good
        method[people] = "more draws"
    people = np.flatnonzero(~reliable.numpy())
    if how == "nuts" and len(people):
        names = first_names(context.user_names[people])
        warnings.warn(
            f"{_FACTORS[-1]} times as many draws do not make up for what the proposals miss of the "
            f"posterior of {names}: sampled by NUTS, which takes seconds a "
            "person; see method and reliable",
            stacklevel=3,
        )
        chains, converged = sample_by_nuts(model, context.subset(people), len(draws.z), seed)
        draws = draws.put(people, chains)
        method[people] = "nuts"
        reliable[people] = converged
    return draws, method, reliable


def draw_more(
    draw: Callable[..., Draws],
    people: Preferences,
    count: int,
    factor: int,
    seed: int,
) -> tuple[Draws, Tensor]:
    """Draws `factor` times as often as `count`, thins to `count`, and judges the weights.

    Args:
        draw: Draws from the posteriors of people: takes them, the number of draws, the seed, and a
            purpose with random numbers of its own.
        people: The people.
        count: Number of draws that are kept.
        factor: How many times as many are made.
        seed: Seed of the draws.

    Returns:
        The draws, and whether they can be relied upon, Boolean with shape (U,).
    """
    purpose = f"fallback {factor}"  # Other random numbers than those of the draws replaced.
    many = draw(people, factor * count, seed=seed, purpose=purpose)
    # Judged by what is asked of the draws that are kept: effective draws, not a share of many.
    is_enough = many.enough_for(count)
    return thin(many, count, seed, people.keys), is_enough


def sample_by_nuts(
    model: HeterogeneousBTL,
    people: Preferences,
    count: int,
    seed: int,
) -> tuple[Draws, Tensor]:
    """Samples by NUTS, and takes `count` draws evenly from the chains.

    Returns:
        The draws, and whether the chains have converged, Boolean with shape (U,).
    """
    length = max(_NUTS_SAMPLES, -(-count // _NUTS_CHAINS))
    with warnings.catch_warnings():  # Instead, `reliable` tells who has not converged.
        warnings.filterwarnings("ignore", "the posterior of .* has not converged")
        chains = nuts(model, people, num_samples=length, num_chains=_NUTS_CHAINS, seed=seed)
    chosen = np.linspace(0, len(chains.z) - 1, count).round().astype(np.int64)
    return Draws.of_posterior(chains.z[chosen], chains.log_joint[chosen]), chains.converged
