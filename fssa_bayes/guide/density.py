"""The density q(ε | context), evaluated for many draws of each person."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from pyro.distributions.transforms import Permute
from torch import Tensor
from torch.distributions.transforms import Transform

from fssa_bayes.guide.couplings import HeavyNoise, Whitening

__all__ = ["Encoding", "NoiseDensity", "push", "squared_norm", "standard_normal_log_prob"]

_FEW = 3  # Components.


class Encoding(NamedTuple):
    """Holds what the guide makes of the contexts of U people.

    Attributes:
        loc: Mean of the normal distribution of ε, with shape (U, K).
        scale_tril: Its triangular scale, (U, K, K).
        inverse_tril: The inverse of that, (U, K, K).
        gate: n / (n + 1), (U, 1).
        is_known: Whether there are comparisons, (U,).
        conditions: What each coupling of a flow, or its spline, takes of the context, (U, ·).
    """

    loc: Tensor
    scale_tril: Tensor
    inverse_tril: Tensor
    gate: Tensor
    is_known: Tensor
    conditions: tuple[Tensor, ...]

    def for_draws(self, num_users: int | None) -> Encoding:
        """Returns the encoding of the first people with an axis for draws: shapes (u, 1, *)."""
        tensors = [*self[:5], *self.conditions]
        if num_users is not None:
            tensors = [tensor[:num_users] for tensor in tensors]
        tensors = [tensor.unsqueeze(1) for tensor in tensors]
        return Encoding(*tensors[:5], conditions=tuple(tensors[5:]))

    def whitening(self) -> Whitening:
        """Returns the map from standard normal noise to the normal distribution."""
        return Whitening(self.loc, self.scale_tril, self.inverse_tril)


class NoiseDensity:
    """Evaluates q(ε | context) for draws (U, S, K), person by person.

    Args:
        transforms: Maps from the base noise to ε, with parameters (U, 1, *).
        like: A tensor with shape (U, 1, K).
        is_known: Whether the noise has a wider part, (U, 1); None for standard normal noise.
    """

    def __init__(self, transforms: list[Transform], like: Tensor, is_known: Tensor | None) -> None:
        self.transforms, self.like = transforms, like
        self.heavy = None
        if is_known is not None:
            self.heavy = HeavyNoise(is_known, like.shape[-1], like.dtype)

    @property
    def noise_width(self) -> int:
        """Number of standard normal numbers that make a draw: K, or K + 1."""
        return self.like.shape[-1] + (self.heavy is not None)

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Maps standard normal noise to draws ε (U, S, K), with log q(ε | context), (U, S)."""
        noise = noise if self.heavy is None else self.heavy.from_normal(noise)
        draws, log_det = push(self.transforms, noise)
        return draws, self._base(noise) - log_det

    def log_prob(self, draws: Tensor) -> Tensor:
        """Evaluates log q(ε | context) of draws (U, S, K), in nats, (U, S)."""
        log_det = 0.0
        for transform in reversed(self.transforms):
            noise = transform.inv(draws)
            if not isinstance(transform, Permute):
                log_det = log_det + _log_det(transform, noise, draws)
            draws = noise
        return self._base(draws) - log_det

    def _base(self, noise: Tensor) -> Tensor:
        return (self.heavy.log_prob if self.heavy else standard_normal_log_prob)(noise)


def push(transforms: list[Transform], values: Tensor) -> tuple[Tensor, Tensor]:
    """Maps values (*, K), and returns the log-determinants of the Jacobians too, (*)."""
    log_det = values.new_zeros(values.shape[:-1])
    for transform in transforms:
        mapped = transform(values)
        if not isinstance(transform, Permute):
            log_det = log_det + _log_det(transform, values, mapped)
        values = mapped
    return values, log_det


def standard_normal_log_prob(noise: Tensor) -> Tensor:
    """Evaluates the standard normal log-density of noise (*, K), in nats, (*)."""
    return -0.5 * (squared_norm(noise) + noise.shape[-1] * math.log(2 * math.pi))


def squared_norm(values: Tensor) -> Tensor:
    """Returns the squared lengths of vectors (*, K), with shape (*).

    A few components are added one by one, which is ten times faster than to sum an axis as short.
    """
    if 0 < values.shape[-1] <= _FEW:
        return functools.reduce(torch.add, values.square().unbind(-1))
    return values.square().sum(-1)


def _log_det(transform: Transform, values: Tensor, mapped: Tensor) -> Tensor:
    """Returns the log-determinant of a transform's Jacobian, (*)."""
    log_det = transform.log_abs_det_jacobian(values, mapped)
    return log_det.sum(-1) if transform.domain.event_dim == 0 else log_det
