"""Trust for one person: better draws where the guide fails, and whether the choices look usual."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling import propose

__all__ = ["context_surprise"]


_EXCEEDANCES = 10  # Simulations as surprising as the context, after which a person is let go.
_ROUND = 50  # Simulations a person of the first round; each later one has twice as many, up to
_MOST_A_ROUND = 400  # that many.


# ---------------------------------------------------------------------- where the guide fails


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
