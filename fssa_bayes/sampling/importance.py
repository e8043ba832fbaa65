r"""Importance sampling of a person's posterior.

Under a linear utility with a normal prior draws come from around the mode of the person's posterior
and from the prior. For other models they come from the mixture :math:`m(z) = .8\,q(z \mid C) +
.2\,p(z)` of guide and prior. As the prior is a part of either mixture, no weight :math:`p(z)\,p(C
\mid z) / m(z)` exceeds p(C|z) over the prior's share (a defensive mixture, Hesterberg 1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import pyro
import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes._weights import effective_sample_size, pareto_smooth
from fssa_bayes.data import Batch, Preferences, user_batches, user_slices
from fssa_bayes.guide import (
    NeuralProcessGuide,
    NoiseDensity,
    push,
    standard_normal_log_prob,
)
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.adaptive import draw_around_modes
from fssa_bayes.sampling.draws import Draws, Proposals, check_finite
from fssa_bayes.sampling.modes import Modes, find_all_modes
from fssa_bayes.sampling.points import normal_points
from fssa_bayes.sampling.steady import (
    accompany,
    map_people,
    pad_draws,
    pad_items,
    steady_backend,
)

__all__ = [
    "GUIDE_SHARE",
    "draw_guide",
    "draw_over_populations",
    "draw_parts",
    "draw_posterior",
    "join",
    "judge_guide",
    "log_joint",
    "name_mixture",
    "propose",
    "score_draws",
    "weigh",
]

GUIDE_SHARE = 0.8
"""Share of the proposals that come from the guide; the rest come from the prior."""


@torch.no_grad()
def propose(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    batch: Batch,
    num_samples: int,
    *,
    streams: Streams,
    modes: Modes | None = None,
) -> Proposals:
    """Draws from the mixture that :func:`name_mixture` names, and weighs the draws.

    Every person's numbers come from a stream of their own, and do not depend on who else is in the
    batch.

    Args:
        model: The model.
        guide: The guide; it may be None for a model whose mixture has none.
        batch: The people's contexts, on the model's device.
        num_samples: Number of draws S; a model without latent factor gets one draw of width 0.
        streams: The people's random numbers, by the keys of the batch, or by position if it has
            none.
        modes: The people's part of :func:`find_all_modes`, which is faster than one batch after
            another; None to find them here, where the mixture needs them.

    Returns:
        The draws and their weights.
    """
    if model.latent_dim == 0:
        batch = pad_items(batch.clean())
        z = batch.choice.new_zeros((1, batch.num_users, 0), dtype=model.dtype)
        log_prob = model.choice(batch, z).log_prob(batch.choice)
        return Proposals(z, log_prob, log_prob)
    if model.is_mixed_logit:
        return draw_around_modes(model, batch, num_samples, streams, modes)
    num_guide = min(max(round(GUIDE_SHARE * num_samples), 1), num_samples)
    return _draw_from_guide(model, guide, batch, num_samples, num_guide, streams)


def name_mixture(model: HeterogeneousBTL) -> str:
    """Names the parts of a model's proposals.

    `"mode + prior"` for a linear utility with a normal prior, see
    :mod:`fssa_bayes.sampling.adaptive`; `"guide + prior"` for other models; `"exact"` for a model
    without latent factor.
    """
    if model.latent_dim == 0:
        return "exact"
    return "mode + prior" if model.is_mixed_logit else "guide + prior"


@torch.no_grad()
def draw_guide(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    batch: Batch,
    num_samples: int,
    *,
    streams: Streams,
) -> Proposals:
    """Draws independently from the guide alone, with weights p(z) p(C|z) / q(z|C).

    Arguments are those of :func:`propose`.
    """
    return _draw_from_guide(model, guide, batch, num_samples, num_samples, streams)


def _draw_from_guide(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    batch: Batch,
    num_samples: int,
    num_guide: int,
    streams: Streams,
) -> Proposals:
    """Draws `num_guide` times from the guide and otherwise from the prior."""
    batch = pad_items(batch.clean())
    prepared, wide = model.prepare_items(batch.items), accompany(batch)
    density = guide.noise_density(wide, prepared, batch.num_users)
    keys = np.arange(batch.num_users) if batch.keys is None else batch.keys
    if num_guide == num_samples:
        noise = streams.normal(keys, num_samples, density.noise_width, like=density.like)
    else:
        noise = normal_points(num_samples, density.noise_width, streams, keys).to(density.like)
    # Within this function people come first, so that the draws of a person lie side by side.
    noise, log_guide = map(pad_draws, _draw_noise(density, noise, num_guide))
    location = model.location(wide.covariates)
    if model.num_covariates:
        location = location[: batch.num_users].unsqueeze(1)
    z, log_det = push(model.transforms_around(location), noise)
    log_guide, log_prior = log_guide - log_det, standard_normal_log_prob(noise) - log_det
    backend = steady_backend(model.device)
    likelihood = model.choice(batch, z.transpose(0, 1), prepared, backend).log_prob(batch.choice)
    log_joint = log_prior + likelihood.T.contiguous()
    log_mixture = log_guide
    if num_guide < num_samples:
        share = num_guide / num_samples
        log_mixture = torch.logaddexp(log_guide + math.log(share), log_prior + math.log1p(-share))
    # Given an empty context, guide, prior and mixture are one density and differ by rounding alone.
    empty = (batch.num_comparisons == 0).unsqueeze(-1)
    log_weights = (log_joint - log_mixture).masked_fill(empty, 0.0)
    return Proposals(
        z=z[:, :num_samples].transpose(0, 1),
        log_weights=log_weights[:, :num_samples].T,
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


def draw_over_populations(
    draw: Callable[..., Proposals],
    populations: Sequence[tuple[HeterogeneousBTL, NeuralProcessGuide | None]],
    batch: Batch,
    num_samples: int,
    *,
    streams: Streams,
) -> Proposals:
    r"""Draws from each of several populations, and weighs all draws together.

    The weights :math:`p(z|θ)\,p(C|z,θ) / m_θ(z)` represent the joint posterior of z and of the
    population's parameters θ given C, where the populations are equally likely a priori.

    Args:
        draw: How to draw from one population: :func:`propose` or :func:`draw_guide`.
        populations: Models, each with its guide.
        batch: The people's contexts, on the models' device.
        num_samples: Number of draws S of all populations together.
        streams: The people's random numbers, as in :func:`propose`.

    Returns:
        The proposals, population after population, where z has one column more, its last: the
        position of the population that it belongs to.
    """
    sizes = [len(part) for part in np.array_split(np.arange(num_samples), len(populations))]
    parts = []
    for position, ((model, guide), size) in enumerate(zip(populations, sizes, strict=True)):
        own = streams.part("population", position)
        draws = draw(model, guide, batch, size, streams=own)
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
        guide: Its guide; it may be None as in :func:`propose`.
        context: The people and the choices that are known of them.
        num_samples: Number of draws S of each person.
        seed: Seed of the draws.
        correct: `"psis"` for Pareto-smoothed importance weights, None for the guide's own draws.
        populations: Draws of the population's parameters, see :func:`draw_over_populations`;
            empty for those of `model` alone.
        purpose: What the draws are for; other purposes have other random numbers.

    Returns:
        The draws, weighted where they are corrected.

    Raises:
        FloatingPointError: If the model gives a person no finite posterior.
    """
    draw = draw_guide if correct is None and model.latent_dim else propose
    drawn = _draw_people(
        model, guide, context, num_samples, Streams(seed, purpose), draw, populations
    )
    z, log_weights, log_joint = drawn.z, drawn.log_weights.double(), drawn.log_joint
    check_finite(z, log_weights, context)
    if model.latent_dim == 0 and not populations:  # One draw, and nothing to weigh.
        one = torch.ones(len(context))
        return Draws(z, torch.zeros_like(log_joint), log_joint, 0 * one, one, weighted=False)
    if correct is None:
        unknown = torch.full((len(context),), math.nan)
        equal = torch.zeros_like(log_weights).log_softmax(0).float()
        return Draws(z, equal, log_joint, unknown, unknown, weighted=False)
    return weigh(drawn)


def weigh(drawn: Proposals) -> Draws:
    """Smooths the weights of draws, and judges them."""
    smoothed, pareto_k = pareto_smooth(drawn.log_weights.double().T.numpy())
    relative_ess = 1 / np.square(np.exp(smoothed)).sum(-1) / len(drawn.z)
    return Draws(
        drawn.z,
        torch.from_numpy(smoothed).T.float(),
        drawn.log_joint,
        torch.from_numpy(pareto_k).float(),
        torch.from_numpy(relative_ess).float(),
        weighted=True,
    )


def judge_guide(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    num_samples: int,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Weighs independent draws of the guide alone, to tell how good the guide is.

    Args:
        model: The model.
        guide: Its guide, or None.
        context: The people and the choices that are known of them.
        num_samples: Number of draws of each person.
        seed: Seed of the draws.

    Returns:
        Pareto k-hat of p(z|C) / q(z|C), and the effective sample size as a share of the draws, each
        with shape (U,) and NaN without a guide.
    """
    if guide is None:
        unknown = torch.full((len(context),), math.nan)
        return unknown, unknown
    drawn = _draw_people(model, guide, context, num_samples, Streams(seed, "guide"), draw_guide)
    ratio = drawn.log_weights.double()
    _, pareto_k = pareto_smooth(ratio.T.numpy())
    relative_ess = effective_sample_size(ratio.T.contiguous().T) / num_samples
    return torch.from_numpy(pareto_k).float(), relative_ess.float()


def _draw_people(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    num_samples: int,
    streams: Streams,
    draw: Callable[..., Proposals],
    populations: Sequence[tuple[HeterogeneousBTL, NeuralProcessGuide | None]] = (),
) -> Proposals:
    """Draws for all people, and returns the draws on the CPU."""
    modes = None
    if draw is propose and model.is_mixed_logit and not populations:
        modes = find_all_modes(model, context)

    def part(people: slice) -> Proposals:
        batch = context.batch(range(people.start, people.stop)).to(model.device)
        if populations:
            return draw_over_populations(draw, populations, batch, num_samples, streams=streams)
        if modes:
            own = modes.of(people)
            return propose(model, guide, batch, num_samples, streams=streams, modes=own)
        return draw(model, guide, batch, num_samples, streams=streams)

    return draw_parts(model.device, part, context, num_samples)


def draw_parts(
    device: torch.device,
    draw: Callable[[slice], Proposals],
    context: Preferences,
    num_samples: int,
) -> Proposals:
    """Draws for all people, a few people at a time, and returns the draws on the CPU."""

    def part(people: slice) -> list[Tensor]:
        draws = draw(people)
        return [getattr(draws, field.name).cpu() for field in fields(Proposals)]

    parts = map_people(device, part, list(user_slices(context, num_samples)))
    return Proposals(*(join(column, 1) for column in zip(*parts, strict=True)))


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
