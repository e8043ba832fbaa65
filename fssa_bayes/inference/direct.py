r"""Draws of z from a guide with their importance weights, by model and guide without Pyro.

The Pyro programs of model and guide remain the definition. The conditionals that they are made of
are evaluated here directly, because tracing programs takes as long as a step's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fssa_bayes.data import Batch
from fssa_bayes.guide import NoiseDensity, push, standard_normal_log_prob
from fssa_bayes.model import HeterogeneousBTL, PreparedItems

__all__ = ["draw", "draw_numbers", "importance_log_weights", "to_latents"]


def importance_log_weights(
    model: HeterogeneousBTL,
    batch: Batch,
    prepared: PreparedItems,
    proposal: NoiseDensity,
    num_particles: int,
    prior: Callable[[Tensor], Tensor] = standard_normal_log_prob,
) -> Tensor:
    r"""Evaluates :math:`\log p(C, z_s) / q(z_s)` of reparametrised draws, in nats.

    With z = t(ε) the ratio of the densities of z is that of the densities of ε, so that a learned
    prior's Jacobian is never computed.

    Args:
        model: The model.
        batch: The people's comparisons C.
        prepared: The batch's items, by the model's `prepare_items`.
        proposal: The guide's density q(ε | context) of the same people.
        num_particles: Number of draws S.
        prior: Log-density of ε, which maps (U, S, K) to (U, S).

    Returns:
        Log-weights with shape (S, U).
    """
    noise, log_guide = draw(proposal, num_particles, batch)
    z, _ = to_latents(model, noise, batch)
    likelihood = model.choice(batch, z.transpose(0, 1), prepared, validate_args=False)
    return likelihood.log_prob(batch.choice) + (prior(noise) - log_guide).T


def draw(density: NoiseDensity, num_draws: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """Draws ε (U, S, K), by one call of the generator, with log q(ε | context), (U, S)."""
    like = density.like
    shape = num_draws, len(like), density.noise_width
    options = {"dim": 1, "dtype": like.dtype, "device": like.device}
    noise = draw_numbers(torch.randn, shape, batch.part, **options)
    return density.push(noise.transpose(0, 1).contiguous())


def draw_numbers(
    generate: Callable[..., Tensor],
    shape: Sequence[int],
    part: tuple[int, int] | None,
    *,
    dim: int = 0,
    **options: object,
) -> Tensor:
    """Draws random numbers of the people of a batch, by one call of the generator.

    Of a part of a batch the numbers of the whole batch are drawn, and those of the others are
    dropped: what a person gets does not depend on how a batch is divided among processes.

    Args:
        generate: `torch.randn` or `torch.rand`.
        shape: Shape of the result.
        part: The `part` of the batch.
        dim: Dimension of the people.
        **options: Dtype and device.
    """
    if part is None:
        return generate(*shape, **options)
    start, total = part
    whole = generate(*shape[:dim], total, *shape[dim + 1 :], **options)
    return whole.narrow(dim, start, shape[dim])


def to_latents(model: HeterogeneousBTL, noise: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Maps ε (U, S, K) to z (U, S, K), with the log-determinants of the map's Jacobian (U, S)."""
    location = model.location(batch.covariates)
    if model.num_covariates:
        location = location.unsqueeze(1)
    return push(model.transforms_around(location), noise)
