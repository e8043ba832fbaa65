r"""Importance sampling of a person's posterior, with the guide as proposal.

Draws come from the mixture :math:`m(z) = .8\,q(z \mid C) + .2\,p(z)`, so that no weight
:math:`p(z)\,p(C \mid z) / m(z)` exceeds :math:`5\,p(C \mid z)` (a defensive mixture, Hesterberg
1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pyro
import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes._weights import pareto_smooth
from fssa_bayes.data import Batch, Preferences, user_batches, user_slices
from fssa_bayes.guide import (
    NeuralProcessGuide,
    NoiseDensity,
    push,
    standard_normal_log_prob,
)
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.draws import Draws, check_finite
from fssa_bayes.sampling.steady import (
    accompany,
    map_people,
    pad_draws,
    pad_items,
    steady_backend,
)

__all__ = [
    "GUIDE_SHARE",
    "Proposals",
    "draw_posterior",
    "join",
    "log_joint",
    "propose",
    "propose_over_populations",
    "score_draws",
]

GUIDE_SHARE = 0.8
"""Share of the proposals that come from the guide; the rest come from the prior."""


@dataclass(frozen=True)
class Proposals:
    """Holds draws and their importance weights.

    Attributes:
        z: Draws with shape (S, U, K), those of the guide before those of the prior.
        log_weights: Unnormalised log p(z) p(C|z) / m(z), in nats, with shape (S, U). Their mean
            estimates p(C).
        log_ratio: Log p(z) p(C|z) / q(z|C) of the draws from the guide alone, (S_q, U).
        log_guide: Log q(z|C) of every draw, (S, U).
        log_joint: Log p(z) p(C|z) of every draw, (S, U).
    """

    z: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    log_guide: Tensor
    log_joint: Tensor


@torch.no_grad()
def propose(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    batch: Batch,
    num_samples: int,
    guide_share: float = GUIDE_SHARE,
    *,
    streams: Streams,
) -> Proposals:
    """Draws from the mixture of guide and prior, and weighs the draws by the likelihood.

    Every person's numbers come from a stream of their own, and do not depend on who else is in the
    batch.

    Args:
        model: The model.
        guide: The guide; None for a model without latent factor, which gets one draw of width 0.
        batch: The people's contexts, on the model's device.
        num_samples: Number of draws S.
        guide_share: Share of the draws that come from the guide.
        streams: The people's random numbers, by the keys of the batch, or by position if it has
            none.

    Returns:
        The draws and their weights.
    """
    batch = pad_items(batch.clean())
    if model.latent_dim == 0:
        z = batch.choice.new_zeros((1, batch.num_users, 0), dtype=model.dtype)
        log_prob = model.choice(batch, z).log_prob(batch.choice)
        return Proposals(z, log_prob, log_prob, torch.zeros_like(log_prob), log_prob)
    prepared, wide = model.prepare_items(batch.items), accompany(batch)
    density = guide.noise_density(wide, prepared, batch.num_users)
    keys = np.arange(batch.num_users) if batch.keys is None else batch.keys
    noise = streams.normal(keys, num_samples, density.noise_width, like=density.like)
    # Within this function people come first, so that the draws of a person lie side by side.
    from_guide = min(max(round(guide_share * num_samples), 1), num_samples)
    noise, log_guide = map(pad_draws, _draw_noise(density, noise, from_guide))
    location = model.location(wide.covariates)
    if model.num_covariates:
        location = location[: batch.num_users].unsqueeze(1)
    z, log_det = push(model.transforms_around(location), noise)
    log_guide, log_prior = log_guide - log_det, standard_normal_log_prob(noise) - log_det
    backend = steady_backend(model.device)
    likelihood = model.choice(batch, z.transpose(0, 1), prepared, backend).log_prob(batch.choice)
    log_joint = log_prior + likelihood.T.contiguous()
    log_mixture = log_guide
    if from_guide < num_samples:
        share = from_guide / num_samples
        log_mixture = torch.logaddexp(log_guide + math.log(share), log_prior + math.log1p(-share))
    # Given an empty context, guide, prior and mixture are one density and differ by rounding alone.
    empty = (batch.num_comparisons == 0).unsqueeze(-1)
    log_weights = (log_joint - log_mixture).masked_fill(empty, 0.0)
    log_ratio = (log_joint - log_guide).masked_fill(empty, 0.0)
    return Proposals(
        z=z[:, :num_samples].transpose(0, 1),
        log_weights=log_weights[:, :num_samples].T,
        log_ratio=log_ratio[:, :from_guide].T,
        log_guide=log_guide[:, :num_samples].T,
        log_joint=log_joint[:, :num_samples].T,
    )


def _draw_noise(density: NoiseDensity, noise: Tensor, from_guide: int) -> tuple[Tensor, Tensor]:
    """Makes the first draws those of the guide, of standard normal noise (U, S, W).

    Returns:
        ε (U, S, K) and log q(ε|C), (U, S).
    """
    draws, log_prob = density.push(pad_draws(noise[:, :from_guide]))
    draws, log_prob = draws[:, :from_guide], log_prob[:, :from_guide]
    others = noise[:, from_guide:, : draws.shape[-1]]
    if others.shape[1] == 0:
        return draws, log_prob
    log_other = density.log_prob(pad_draws(others))[:, : others.shape[1]]
    return torch.cat([draws, others], 1), torch.cat([log_prob, log_other], 1)


def propose_over_populations(
    populations: Sequence[tuple[HeterogeneousBTL, NeuralProcessGuide | None]],
    batch: Batch,
    num_samples: int,
    guide_share: float = GUIDE_SHARE,
    *,
    streams: Streams,
) -> Proposals:
    r"""Draws from each of several populations, and weighs all draws together.

    The weights :math:`p(z|θ)\,p(C|z,θ) / m_θ(z)` represent the joint posterior of z and of the
    population's parameters θ given C, where the populations are equally likely a priori.

    Args:
        populations: Models, each with its guide.
        batch: The people's contexts, on the models' device.
        num_samples: Number of draws S of all populations together.
        guide_share: Share of the draws that come from the guides.
        streams: The people's random numbers, as in :func:`propose`.

    Returns:
        The proposals, population after population, where z has one column more, its last: the
        position of the population that it belongs to.
    """
    sizes = [len(part) for part in np.array_split(np.arange(num_samples), len(populations))]
    parts = []
    for position, ((model, guide), size) in enumerate(zip(populations, sizes, strict=True)):
        own = streams.part("population", position)
        draws = propose(model, guide, batch, size, guide_share, streams=own)
        label = torch.full_like(draws.log_weights, position).unsqueeze(-1)
        parts.append(replace(draws, z=torch.cat([draws.z, label.to(draws.z.dtype)], -1)))
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Proposals))
    return Proposals(*(join(column, 0) for column in columns))


def draw_posterior(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    num_samples: int,
    *,
    seed: int,
    correct: str | None,
    populations: Sequence[tuple[HeterogeneousBTL, NeuralProcessGuide | None]] = (),
    purpose: str = "posterior",
) -> Draws:
    """Draws from the posterior of every person, a few people at a time, and smooths the weights.

    A person's draws depend on the model, the seed, the person's name and context, and on nobody
    else: on a CPU they are the same to the last bit in any batch, order, subset and thread.

    Args:
        model: The model.
        guide: Its guide, or None for a model without latent factor.
        context: The people and the choices that are known of them.
        num_samples: Number of draws S of each person.
        seed: Seed of the draws.
        correct: `"psis"` for Pareto-smoothed importance weights, None for the guide's own draws.
        populations: Draws of the population's parameters, see :func:`propose_over_populations`;
            empty for those of `model` alone.
        purpose: What the draws are for; other purposes have other random numbers.

    Returns:
        The draws, weighted where they are corrected.

    Raises:
        FloatingPointError: If the model gives a person no finite posterior.
    """
    share = GUIDE_SHARE if correct else 1.0
    streams = Streams(seed, purpose)

    def draw(people: slice) -> list[Tensor]:
        batch = context.batch(range(people.start, people.stop)).to(model.device)
        if populations:
            draws = propose_over_populations(
                populations, batch, num_samples, share, streams=streams
            )
        else:
            draws = propose(model, guide, batch, num_samples, share, streams=streams)
        return [getattr(draws, field.name).cpu() for field in fields(Proposals)]

    parts = map_people(model.device, draw, list(user_slices(context, num_samples)))
    z, log_weights, *others = (join(part, 1) for part in zip(*parts, strict=True))
    log_weights = log_weights.double()
    check_finite(z, log_weights, context)
    weighted = correct is not None and (model.latent_dim > 0 or len(populations) > 0)
    if weighted:
        smoothed, weight_k = pareto_smooth(log_weights.T.numpy())
        log_weights = torch.from_numpy(smoothed).T.float()
    else:
        weight_k = np.full(len(context), math.nan)
        log_weights = torch.zeros_like(log_weights).log_softmax(0).float()
    return Draws(z, log_weights, *others, torch.from_numpy(weight_k).float(), weighted)


def join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Joins tables (S, U, *) along their first or second axis, a person's draws side by side."""
    return torch.cat([part.transpose(0, 1) for part in parts], 1 - dim).transpose(0, 1)


@torch.no_grad()
@pyro.validation_enabled(False)
def score_draws(guide: NeuralProcessGuide | None, context: Preferences, z: Tensor) -> Tensor:
    """Evaluates log q(z|C) of given draws (S, U, K), with shape (S, U); NaN without a guide."""
    if guide is None:
        return torch.full(z.shape[:2], math.nan)
    return _over_people(
        guide.model, context, z, lambda batch, draws: guide.posterior(batch).log_prob(draws)
    )


@torch.no_grad()
def log_joint(model: HeterogeneousBTL, context: Preferences, z: Tensor) -> Tensor:
    """Evaluates log p(z) p(C|z) of given draws (S, U, K), in nats, with shape (S, U)."""

    def evaluate(batch: Batch, draws: Tensor) -> Tensor:
        likelihood = model.choice(batch, draws).log_prob(batch.choice)
        return model.prior(batch.num_users, batch.covariates).log_prob(draws) + likelihood

    return _over_people(model, context, z, evaluate)


def _over_people(
    model: HeterogeneousBTL,
    context: Preferences,
    z: Tensor,
    evaluate: Callable[[Batch, Tensor], Tensor],
) -> Tensor:
    """Evaluates draws (S, U, K) of people, a few at a time, and returns (S, U) on the CPU."""
    values = [
        evaluate(batch.clean(), z[:, people].to(model.device)).cpu()
        for people, batch in user_batches(context, len(z), model.device)
    ]
    return torch.cat(values, 1)
