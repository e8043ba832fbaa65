"""Trust for one person: better draws where the guide fails, and whether the choices look usual."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.data.chunks import user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.grid import nuts
from fssa_bayes.sampling.importance import (
    Draws,
    draw_posterior,
    effective_sample_size,
    propose,
    score_draws,
    thin,
)

__all__ = ["FALLBACKS", "MOST_PARETO_K", "context_surprise", "fall_back"]

FALLBACKS = (None, "draws", "nuts")
"""What may be done for people whom the guide fails."""

MOST_PARETO_K = 0.7
"""Pareto k-hat above which importance weights are not relied upon (Vehtari et al. 2024)."""

_FACTORS = (4, 16)  # Times as many draws, one after the other,
_LEAST_ESS = 200.0  # until as many are effective: an error of .02 for a probability known to ±.3.
_CHUNK = 2**22  # Draws of all people that are held at once while they are thinned.
_NUTS_CHAINS, _NUTS_SAMPLES = 4, 250

_EXCEEDANCES = 10  # Simulations as surprising as the context, after which a person is let go.
_ROUND = 50  # Simulations a person of the first round; each later one has twice as many, up to
_MOST_A_ROUND = 400  # that many.


# ---------------------------------------------------------------------- where the guide fails


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


# ---------------------------------------------------------------------- who is unlike the others


@torch.no_grad()
@pyro.validation_enabled(False)
def context_surprise(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    *,
    num_simulations: int,
    num_samples: int,
    level: float,
    seed: int,
) -> pd.DataFrame:
    """Compares the evidence of each context with that of contexts simulated on the same pairs.

    See `Posterior.context_surprise`. Simulation stops for a person when ten simulated contexts were
    as improbable as their own (Besag & Clifford 1991), and the evidence of both is estimated by the
    same number of draws, so that the tail probability is exact however poor the guide is.
    """
    if guide is None and model.latent_dim:
        raise ValueError("guide must be given to estimate the evidence of contexts, got None")
    for argument, value, least in (
        ("num_simulations", num_simulations, _ROUND),
        ("num_samples", num_samples, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{argument} must be an integer of at least {least}, got {value!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    with seeded(seed):
        observed = torch.cat(
            [
                _log_evidence(model, guide, batch, num_samples)
                for batch in _countable(context, num_samples, model.device)
            ]
        )
        rounds = _simulate_rounds(model, guide, context, observed, num_simulations, num_samples)
    from scipy.stats import false_discovery_control

    simulated, tail = zip(*rounds, strict=True)
    adjusted = false_discovery_control(tail)
    return pd.DataFrame(
        {
            "comparisons": context.counts,
            "log_evidence": observed.numpy(),
            "expected": [values.mean() for values in simulated],
            "standard_deviation": [values.std(ddof=1) for values in simulated],
            "simulations": [len(values) for values in simulated],
            "tail_probability": tail,
            "adjusted": adjusted,
            "flag": adjusted <= level,
        },
        index=context.user_names.rename("user"),
    )


def _simulate_rounds(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    observed: Tensor,
    num_simulations: int,
    num_samples: int,
) -> list[tuple[np.ndarray, float]]:
    """Returns each person's simulated log evidence and the tail probability of their own."""
    values = [np.empty(0) for _ in range(len(context))]
    tail = np.ones(len(context))
    people, size, done = np.arange(len(context)), _ROUND, 0
    while len(people) and done < num_simulations:
        size = min(size, num_simulations - done)
        batches = _countable(context.subset(people), size * num_samples, model.device)
        new = torch.cat(
            [_simulated_evidence(model, guide, batch, size, num_samples) for batch in batches]
        )
        for user, evidence in zip(people, new.numpy(), strict=True):
            values[user] = np.append(values[user], evidence)
            tail[user] = _tail(values[user] <= observed[user].item())
        done += size
        people = people[tail[people] * done < _EXCEEDANCES]
        size = min(2 * size, _MOST_A_ROUND)
    return list(zip(values, tail, strict=True))


def _tail(exceeds: np.ndarray) -> float:
    """Estimates a tail probability from exceedances in the order they were simulated."""
    count = exceeds.cumsum()
    if count[-1] < _EXCEEDANCES:
        return (count[-1] + 1) / (len(exceeds) + 1)
    return _EXCEEDANCES / (1 + int(np.searchsorted(count, _EXCEEDANCES)))


def _countable(context: Preferences, num_samples: int, device: torch.device) -> Iterator[Batch]:
    """Yields batches without half wins, which a model without ties cannot simulate."""
    for _, batch in user_batches(context, num_samples, device):
        if context.ties == "keep":
            yield batch
        else:
            yield batch.replace(mask=batch.mask & ~batch.half_wins)


def _simulated_evidence(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    batch: Batch,
    size: int,
    num_samples: int,
) -> Tensor:
    """Simulates `size` people asked what each person was; returns their log evidence (U, size)."""
    names = ("left", "right", "choice", "mask", "covariates", "ranking")
    tables = {name: getattr(batch, name) for name in names}
    wide = batch.replace(
        **{n: t.repeat_interleave(size, 0) for n, t in tables.items() if t is not None}
    )
    z = model.prior(wide.num_users, wide.covariates).sample()
    wide = wide.replace(choice=model.choice(wide, z).sample())
    return _log_evidence(model, guide, wide, num_samples).reshape(-1, size)


def _log_evidence(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, batch: Batch, num_samples: int
) -> Tensor:
    """Estimates log p(C), in nats, with shape (U,), by draws from the mixture."""
    log_weights = propose(model, guide, batch, num_samples).log_weights.double()
    return (log_weights.logsumexp(0) - math.log(len(log_weights))).cpu()
