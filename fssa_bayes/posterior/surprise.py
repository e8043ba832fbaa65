"""Tests whether a person's known choices look like those of people of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide, push
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling import propose

__all__ = [
    "context_surprise",
    "log_evidence",
    "simulate_evidence",
    "simulate_rounds",
    "tail_probability",
]

_EXCEEDANCES = 10  # Contexts at least as surprising as the person's, after which simulation stops.
_ROUND = 50  # Simulations a person in the first round; each later round has twice as many.
_MOST_A_ROUND = 400  # Most simulations a person in one round.


@torch.no_grad()
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

    See `Posterior.context_surprise`. Simulation stops for a person after ten contexts at least as
    improbable as the observed one (Besag & Clifford 1991). The evidence of observed and simulated
    contexts is estimated by the same number of draws, so that the tail probability is exact however
    poor the guide is.

    References:
        Besag & Clifford (1991), Sequential Monte Carlo p-values, Biometrika 78(2).
        Benjamini & Hochberg (1995), Controlling the false discovery rate, JRSS B 57(1).
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
    streams = Streams(seed, "surprise")
    observed = torch.cat(
        [
            log_evidence(model, guide, batch, num_samples, streams.part("observed"))
            for batch in _countable(context, num_samples, model.device)
        ]
    )
    rounds = simulate_rounds(model, guide, context, observed, num_simulations, num_samples, streams)
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


def simulate_rounds(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    observed: Tensor,
    num_simulations: int,
    num_samples: int,
    streams: Streams,
) -> list[tuple[np.ndarray, float]]:
    """Simulates contexts of each person, round after round, until the tail probability is known.

    Args:
        model: The model.
        guide: Its guide, or None for a model without latent factor.
        context: The people and the choices that are known of them.
        observed: Log evidence of their contexts, with shape (U,).
        num_simulations: Simulated contexts a person at most.
        num_samples: Draws of z by which the evidence of a context is estimated.
        streams: The people's random numbers.

    Returns:
        The log evidence of each person's simulated contexts, and the tail probability of the
        observed one.
    """
    values = [np.empty(0) for _ in range(len(context))]
    tail = np.ones(len(context))
    people, size, done = np.arange(len(context)), _ROUND, 0
    while len(people) and done < num_simulations:
        size = min(size, num_simulations - done)
        batches = _countable(context.subset(people), size * num_samples, model.device)
        numbers = streams.part("round", done)
        new = torch.cat(
            [
                simulate_evidence(model, guide, batch, size, num_samples, numbers)
                for batch in batches
            ]
        )
        for user, evidence in zip(people, new.numpy(), strict=True):
            values[user] = np.append(values[user], evidence)
            tail[user] = tail_probability(values[user] <= observed[user].item())
        done += size
        people = people[tail[people] * done < _EXCEEDANCES]
        size = min(2 * size, _MOST_A_ROUND)
    return list(zip(values, tail, strict=True))


def tail_probability(exceeds: np.ndarray, most: int = _EXCEEDANCES) -> float:
    """Estimates a tail probability by simulations that stop at a number of exceedances.

    Args:
        exceeds: Whether each simulation is at least as extreme as the observation, Boolean with
            shape (B,), in the order of simulation.
        most: Number of exceedances at which simulation stops; later simulations are ignored.

    Returns:
        `most` divided by the simulations up to that exceedance; where there are fewer,
        (exceedances + 1) / (B + 1).

    References:
        Besag & Clifford (1991), Sequential Monte Carlo p-values, Biometrika 78(2).
    """
    count = exceeds.cumsum()
    if count[-1] < most:
        return (count[-1] + 1) / (len(exceeds) + 1)
    return most / (1 + int(np.searchsorted(count, most)))


def _countable(context: Preferences, num_samples: int, device: torch.device) -> Iterator[Batch]:
    """Yields batches without half wins, which a model without ties cannot simulate."""
    for _, batch in user_batches(context, num_samples, device):
        if context.ties == "keep":
            yield batch
        else:
            yield batch.replace(mask=batch.mask & ~batch.half_wins)


def simulate_evidence(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    batch: Batch,
    size: int,
    num_samples: int,
    streams: Streams,
) -> Tensor:
    """Simulates `size` people who are asked about the pairs of each person of a batch.

    Returns:
        The log evidence of their contexts, with shape (U, size).
    """
    names = ("left", "right", "choice", "mask", "covariates", "ranking", "side")
    tables = {name: getattr(batch, name) for name in names}
    wide = batch.replace(
        **{n: t.repeat_interleave(size, 0) for n, t in tables.items() if t is not None}
    )
    # Each simulated person has a key of their own, drawn from the stream of the person they mimic.
    keys = [streams.part("keys").of(k).integers(2**63, size=size) for k in batch.keys]
    wide = wide.replace(keys=np.concatenate(keys))
    noise = streams.part("z").normal(wide.keys, model.latent_dim, like=batch.choice)
    z, _ = push(model.prior_transforms(wide.covariates), noise)
    uniform = streams.part("choices").uniform(wide.keys, wide.mask.shape[1], like=batch.choice)
    wide = wide.replace(choice=model.choice(wide, z).decide(uniform))
    return log_evidence(model, guide, wide, num_samples, streams).reshape(-1, size)


def log_evidence(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    batch: Batch,
    num_samples: int,
    streams: Streams,
) -> Tensor:
    """Estimates log p(C), in nats, with shape (U,), by draws from the mixture."""
    log_weights = propose(model, guide, batch, num_samples, streams=streams).log_weights.double()
    return (log_weights.logsumexp(0) - math.log(len(log_weights))).cpu()
