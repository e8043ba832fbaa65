r"""Proposals adapted to each person's posterior under a linear utility, from Sobol points.

A quarter of the draws come from a t distribution around the mode of the person's posterior, 15 %
from the prior, and the others from a t distribution at the mean and the covariance that the first
two parts give by their importance weights. All draws are weighed by the mixture of the three, so
that the prior bounds every weight, and the tails of the t distributions are heavier than a
posterior's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaincinv, ndtri
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes.data import Batch
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.modes import Modes, find_modes

__all__ = ["Points", "WeightedDraws", "draw_adapted", "draw_around_modes", "draw_points"]

_SHARES = (0.25, 0.15)  # Of the draws: around the mode, and from the prior.
_FREEDOM = 5.0  # Degrees of freedom of the t distributions.
_SPREAD = 1.2  # Scale of the draws around the mode, in units of the normal approximation's.


@dataclass(frozen=True)
class Points:
    """Holds randomised points from which proposals are made, for each of U people.

    Attributes:
        around_mode: Draws from a standard t distribution, with shape (S₁, U, K).
        prior: Draws from the standard normal distribution, (S₂, U, K).
        adapted: Draws from a standard t distribution, (S₃, U, K).
    """

    around_mode: Tensor
    prior: Tensor
    adapted: Tensor

    @property
    def number(self) -> int:
        """Number of draws S of each person."""
        return len(self.around_mode) + len(self.prior) + len(self.adapted)


@dataclass(frozen=True)
class WeightedDraws:
    """Holds draws and their importance weights.

    Attributes:
        z: Draws with shape (S, U, K).
        log_weights: Unnormalised log p(z) p(C|z) / m(z), in nats, with shape (S, U). Their mean
            estimates p(C).
    """

    z: Tensor
    log_weights: Tensor


def draw_points(
    num_samples: int,
    num_users: int,
    latent_dim: int,
    streams: Streams,
    keys: np.ndarray | None = None,
) -> Points:
    """Draws Sobol points, with a random shift for every person, and maps them to t and normal.

    Args:
        num_samples: Number of draws S of each person.
        num_users: Number of people U.
        latent_dim: Number of latent dimensions K.
        streams: The people's random numbers.
        keys: Keys of the people with shape (U,); their positions if None.

    References:
        Cranley & Patterson (1976), Randomization of number theoretic methods for multiple
        integration, SIAM Journal on Numerical Analysis 13(6).
    """
    keys = np.arange(num_users) if keys is None else keys
    around, prior = (max(1, round(share * num_samples)) for share in _SHARES)

    def uniform(part: str, number: int, width: int) -> np.ndarray:
        halves = (number + 1) // 2, number // 2
        return np.concatenate([half(f"{part}, {i}", n, width) for i, n in enumerate(halves)])

    def half(part: str, number: int, width: int) -> np.ndarray:
        from scipy.stats import qmc

        bits = max(number - 1, 1).bit_length()
        base = qmc.Sobol(width, scramble=False).random_base2(bits)[:number, None]
        own = streams.part(part)
        shift = np.stack([own.of(key).random(width) for key in keys])
        return ((base + shift) % 1).clip(1e-12, 1 - 1e-12)

    def heavy(part: str, number: int) -> Tensor:
        points = uniform(part, number, latent_dim + 1)
        chi_square = 2 * gammaincinv(_FREEDOM / 2, points[..., -1:])
        return torch.from_numpy(ndtri(points[..., :-1]) * np.sqrt(_FREEDOM / chi_square))

    return Points(
        heavy("around mode", around),
        torch.from_numpy(ndtri(uniform("prior", prior, latent_dim))),
        heavy("adapted", num_samples - around - prior),
    )


@torch.no_grad()
def draw_adapted(
    model: HeterogeneousBTL, batch: Batch, modes: Modes, points: Points
) -> WeightedDraws:
    """Draws from the mixture of mode, prior and adapted proposal, and weighs the draws.

    Args:
        model: A model with linear utility and normal prior.
        batch: The people's contexts, on the model's device.
        modes: The modes of their posteriors.
        points: Points of these people.
    """
    batch = batch.clean()
    prepared = model.prepare_items(batch.items)
    prior = model.prior(batch.num_users, batch.covariates)
    location = model.location(batch.covariates).double()
    near = _Student(modes.z, _SPREAD * torch.linalg.inv(modes.factor).mT)

    def log_joint(z: Tensor) -> Tensor:
        z = z.to(model.utility.mean.dtype)
        log_prob = model.choice(batch, z, prepared).log_prob(batch.choice)
        return (log_prob + prior.log_prob(z)).double()

    def log_prior(z: Tensor) -> Tensor:
        return prior.log_prob(z.to(model.utility.mean.dtype)).double()

    starts = [near.at(points.around_mode), location + points.prior]
    first = torch.cat(starts)
    joint = log_joint(first)
    fixed = torch.stack([near.log_prob(first), log_prior(first)])
    weights = joint - _log_mixture(fixed, [len(part) for part in starts])
    halves = _halve(len(starts[0]), len(starts[1]))
    adapted = [_Student(*_moments(first[half], weights[half], modes)) for half in halves]
    normal = points.adapted.chunk(2)
    second = [part.at(own) for part, own in zip(adapted[::-1], normal, strict=True)]
    joint_second = log_joint(torch.cat(second)).split([len(part) for part in second])
    draws, log_weights = [], []
    for half, part, new, joint_new in zip(halves, adapted[::-1], second, joint_second, strict=True):
        z = torch.cat([first[half], new])
        known = torch.cat([fixed[:, half], torch.stack([near.log_prob(new), log_prior(new)])], 1)
        densities = torch.cat([known, part.log_prob(z)[None]])
        sizes = [*(int(((half >= low) & (half < high)).sum()) for low, high in ((0, len(starts[0])), (len(starts[0]), len(first)))), len(new)]
        log_weights.append(torch.cat([joint[half], joint_new]) - _log_mixture(densities, sizes))
        draws.append(z)
    return WeightedDraws(torch.cat(draws), torch.cat(log_weights))


def _halve(around: int, prior: int) -> list[Tensor]:
    a, b = torch.arange(around).chunk(2), (around + torch.arange(prior)).chunk(2)
    return [torch.cat(pair) for pair in zip(a, b, strict=True)]


def draw_around_modes(
    model: HeterogeneousBTL, batch: Batch, num_samples: int, streams: Streams
) -> WeightedDraws:
    """Does what :func:`draw_adapted` does, with the people's own modes and points.

    Args:
        model: A model with linear utility and normal prior.
        batch: The people's contexts, on the model's device.
        num_samples: Number of draws S of each person.
        streams: The people's random numbers.
    """
    points = draw_points(num_samples, batch.num_users, model.latent_dim, streams, batch.keys)
    return draw_adapted(model, batch, find_modes(model, batch), points)


@dataclass(frozen=True)
class _Student:
    """A t distribution of each person: location (U, K) and a root of its scale (U, K, K)."""

    location: Tensor
    root: Tensor

    def at(self, points: Tensor) -> Tensor:
        """Maps standard draws (S, U, K) to draws."""
        return self.location + torch.einsum("ukl,sul->suk", self.root, points)

    def log_prob(self, z: Tensor) -> Tensor:
        """Evaluates the log-density of draws (S, U, K), with shape (S, U)."""
        width = z.shape[-1]
        standard = torch.einsum("ukl,sul->suk", torch.linalg.inv(self.root), z - self.location)
        constant = math.lgamma((_FREEDOM + width) / 2) - math.lgamma(_FREEDOM / 2)
        constant -= 0.5 * width * math.log(_FREEDOM * math.pi)
        size = torch.log1p(standard.square().sum(-1) / _FREEDOM)
        return constant - torch.linalg.slogdet(self.root)[1] - 0.5 * (_FREEDOM + width) * size


def _log_mixture(densities, sizes) -> Tensor:
    """Mixes log-densities (S, U) in proportion to the numbers of draws."""
    shares = [math.log(size / sum(sizes)) for size in sizes]
    return torch.stack([d + share for d, share in zip(densities, shares, strict=True)]).logsumexp(0)


def _moments(z: Tensor, log_weights: Tensor, modes: Modes) -> tuple[Tensor, Tensor]:
    """Returns weighted means (U, K) and roots of covariances (U, K, K) of draws (S, U, K).

    The covariance is drawn towards that at the mode with the weight of 2 K draws.
    """
    weights = log_weights.softmax(0)
    mean = torch.einsum("su,suk->uk", weights, z)
    centred = z - mean
    covariance = torch.einsum("su,suk,sul->ukl", weights, centred, centred)
    number = 1 / weights.square().sum(0)
    share = (number / (number + 2 * z.shape[-1]))[:, None, None]
    covariance = share * covariance + (1 - share) * torch.cholesky_inverse(modes.factor)
    return mean, torch.linalg.cholesky_ex(covariance).L
