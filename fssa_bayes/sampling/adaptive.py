r"""Proposals adapted to each person's posterior under a linear utility.

Three tenths of the draws come from around the mode of the person's posterior, a tenth from the
prior, and the others from around the mean, with the covariance, that the first two parts give by
their importance weights. Around mode and mean a draw is normal, and every fifth wider than the
others. All draws are weighed by the mixture of all parts, so that the prior bounds every weight.

Measured on 1,000 people with 2, 10 and 32 choices, K = 2 and 8: at equal numbers of draws the
guide, as a part of the mixture, lowers neither the error of choice probabilities nor raises the
least effective sample size beyond the sizes that it was taught, and it costs more than all else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes.data import Batch
from fssa_bayes.guide import standard_normal_log_prob
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.draws import Proposals
from fssa_bayes.sampling.modes import Modes, find_modes
from fssa_bayes.sampling.points import normal_points
from fssa_bayes.sampling.steady import accompany, pad_draws, pad_items, steady_backend

__all__ = ["Points", "draw_adapted", "draw_around_modes", "draw_points"]

_SHARES = (0.288, 0.096)  # Of the draws: around the mode, and from the prior.
_LEAST_ADAPTED = 40  # Draws; fewer tell too little of mean and covariance.
# Standard deviations of the draws, in units of the normal approximation's, and shares of the draws.
_AROUND_MODE = ((1.1, 0.75), (1.8, 0.25))
_AROUND_MEAN = ((1.05, 0.8), (1.8, 0.2))


@dataclass(frozen=True)
class Points:
    """Holds standard normal points from which proposals are made, for each of U people.

    Attributes:
        normal: The points with shape (U, S, K), part after part.
        sizes: How many of them are for draws around the mode, of the prior and around the mean.
    """

    normal: Tensor
    sizes: tuple[int, int, int]

    @property
    def number(self) -> int:
        """Number of draws S of each person."""
        return self.normal.shape[1]


def draw_points(
    num_samples: int,
    num_users: int,
    latent_dim: int,
    streams: Streams,
    keys: np.ndarray | None = None,
) -> Points:
    """Draws points; see :func:`fssa_bayes.sampling.normal_points`.

    Args:
        num_samples: Number of draws S of each person.
        num_users: Number of people U.
        latent_dim: Number of latent dimensions K.
        streams: The people's random numbers.
        keys: Keys of the people with shape (U,); their positions if None.
    """
    keys = np.arange(num_users) if keys is None else keys
    if num_samples < _LEAST_ADAPTED:
        prior = min(max(1, round(_SHARES[1] * num_samples)), num_samples - 1)
        sizes = (num_samples - prior, prior, 0)
    else:
        around, prior = (round(share * num_samples) for share in _SHARES)
        sizes = (around, prior, num_samples - around - prior)
    return Points(normal_points(num_samples, latent_dim, streams, keys), sizes)


@torch.no_grad()
def draw_adapted(model: HeterogeneousBTL, batch: Batch, modes: Modes, points: Points) -> Proposals:
    """Draws from the mixture of mode, prior and adapted proposal, and weighs the draws.

    Without comparisons all draws are the prior's.

    Args:
        model: A model with linear utility and normal prior.
        batch: The people's contexts, on the model's device.
        modes: The modes of their posteriors.
        points: Points of these people.
    """
    batch = pad_items(batch.clean())
    prepared, backend = model.prepare_items(batch.items), steady_backend(model.device)
    known = (batch.num_comparisons > 0)[:, None]
    location = model.location(accompany(batch).covariates)
    location = location[: batch.num_users].unsqueeze(1) if model.num_covariates else location
    around, prior, adapted = points.sizes
    normal = points.normal.to(model.device, model.dtype)

    def log_joint(z: Tensor) -> Tensor:
        likelihood = model.choice(batch, z.transpose(0, 1), prepared, backend)
        log_prob = likelihood.log_prob(batch.choice).T.contiguous()
        return standard_normal_log_prob(z - location) + log_prob

    def log_mixture(z: Tensor, parts: list[_Cloud], num: int) -> Tensor:
        densities = (
            [standard_normal_log_prob(z - location) + math.log(prior / num)] if prior else []
        )
        for part in parts:
            densities += part.log_densities(z, num)
        return torch.stack(densities).logsumexp(0)

    near = _Cloud.at_modes(modes.z.to(normal), modes.factor.to(normal), around, known)
    first = around + prior
    z = torch.cat([near.draw(normal[:, :around]), location + normal[:, around:first]], 1)
    z = pad_draws(z)
    joint = log_joint(z)
    parts = [near]
    if adapted:
        weights = joint - log_mixture(z, parts, first)
        weights[:, first:] = -math.inf
        parts.append(near.adapt(z, weights, adapted, known))
        second = pad_draws(parts[1].draw(normal[:, first:]))
        joint = torch.cat([joint[:, :first], log_joint(second)[:, :adapted]], 1)
        z = torch.cat([z[:, :first], second[:, :adapted]], 1)
        z, joint = pad_draws(z), pad_draws(joint, 1)
    log_weights = (joint - log_mixture(z, parts, points.number)).masked_fill(~known, 0.0)
    return Proposals(
        z=z[:, : points.number].transpose(0, 1),
        log_weights=log_weights[:, : points.number].T.double(),
        log_joint=joint[:, : points.number].T,
    )


def draw_around_modes(
    model: HeterogeneousBTL,
    batch: Batch,
    num_samples: int,
    streams: Streams,
    modes: Modes | None = None,
) -> Proposals:
    """Does what :func:`draw_adapted` does, with the people's own modes and points.

    Args:
        model: A model with linear utility and normal prior.
        batch: The people's contexts, on the model's device.
        num_samples: Number of draws S of each person.
        streams: The people's random numbers, by the keys of the batch, or by position if it has
            none.
        modes: Rounded modes of the people; None to find them.
    """
    points = draw_points(num_samples, batch.num_users, model.latent_dim, streams, batch.keys)
    modes = modes or find_modes(model, batch).rounded()
    return draw_adapted(model, batch, modes, points)


@dataclass(frozen=True)
class _Cloud:
    """Normal distributions about one point of each person, which differ in their scale alone.

    Attributes:
        location: The points, with shape (U, 1, K).
        root: Root R of the covariance R Rᵀ of scale 1, (U, K, K).
        inverse: Its inverse.
        log_det: Its log-determinant, (U, 1).
        scales: Scale of each normal distribution, (C, U, 1).
        counts: Number of draws of each, C numbers.
    """

    location: Tensor
    root: Tensor
    inverse: Tensor
    log_det: Tensor
    scales: Tensor
    counts: tuple[int, ...]

    @classmethod
    def at_modes(cls, z: Tensor, factor: Tensor, number: int, known: Tensor) -> _Cloud:
        """Places draws around modes (U, K), by Cholesky factors (U, K, K) of the information."""
        root = _inverse_triangle(factor).mT
        log_det = -factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        split = _split(_AROUND_MODE, number, known, z)
        return cls(z.unsqueeze(1), root.contiguous(), factor.mT.contiguous(), log_det, *split)

    def adapt(self, z: Tensor, log_weights: Tensor, number: int, known: Tensor) -> _Cloud:
        """Places draws around the weighted mean of draws (U, S, K), with their covariance.

        The covariance is drawn towards that of this cloud with the weight of 2 K draws.
        """
        weights = log_weights.softmax(-1).unsqueeze(-1)
        mean = torch.where(known.unsqueeze(-1), (weights * z).sum(1, keepdim=True), self.location)
        centred = z - mean
        # A matrix product would add up the draws of one person alone in another order.
        outer = (weights * centred).unsqueeze(-1) * centred.unsqueeze(-2)
        covariance = outer.sum(1)
        effective = 1 / weights.square().sum(1, keepdim=True)
        share = effective / (effective + 2 * z.shape[-1])
        share = torch.where(known.unsqueeze(-1), share, 0.0)
        covariance = share * covariance + (1 - share) * (self.root @ self.root.mT)
        root, failed = torch.linalg.cholesky_ex(covariance)
        root = torch.where((failed > 0)[:, None, None], self.root, root)
        log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1, keepdim=True)
        inverse = torch.where((failed > 0)[:, None, None], self.inverse, _inverse_triangle(root))
        return _Cloud(mean, root, inverse, log_det, *_split(_AROUND_MEAN, number, known, z))

    def draw(self, normal: Tensor) -> Tensor:
        """Maps standard normal points (U, S, K) to draws."""
        parts = zip(self.scales, normal.split(self.counts, 1), strict=True)
        scaled = torch.cat([scale.unsqueeze(-1) * part for scale, part in parts], 1)
        product = pad_draws(scaled) @ self.root.mT
        return self.location + product[:, : normal.shape[1]]

    def log_densities(self, z: Tensor, total: int) -> list[Tensor]:
        """Evaluates the log-densities of draws (U, S, K), plus log shares of `total` draws."""
        white = (z - self.location) @ self.inverse.mT
        distance, width = white.square().sum(-1), z.shape[-1]
        constant = self.log_det + 0.5 * width * math.log(2 * math.pi)
        return [
            math.log(count / total)
            - 0.5 * distance / scale.square()
            - (constant + width * scale.log())
            for scale, count in zip(self.scales, self.counts, strict=True)
            if count
        ]


def _split(
    kinds: tuple[tuple[float, float], ...], number: int, known: Tensor, like: Tensor
) -> tuple[Tensor, tuple[int, ...]]:
    """Divides draws among scales, which are 1 for people without comparisons."""
    (narrow, _), (wide, share) = kinds
    scales = [torch.where(known, scale, 1.0).to(like) for scale in (narrow, wide)]
    rest = round(share * number)
    return torch.stack(scales), (number - rest, rest)


def _inverse_triangle(lower: Tensor) -> Tensor:
    """Inverts lower triangles (U, K, K)."""
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
