"""Standard normal points from which proposals are made, a set of their own for every person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes._random import Streams

__all__ = ["normal_points"]

_LANES = 64
_MOST_DIMENSIONS = 16  # Beyond, points fill space no more evenly than independent draws do.


def normal_points(
    num_samples: int, width: int, streams: Streams, keys: Sequence[int] | np.ndarray
) -> Tensor:
    """Draws standard normal points: Sobol points with a random shift for every person.

    A mean over the points of one person has a smaller error than one over independent draws, and
    the errors of two people are independent. In more than 16 dimensions the points are independent
    draws.

    Args:
        num_samples: Number of points S of each person.
        width: Number of dimensions W.
        streams: The people's random numbers.
        keys: Keys of the people, with shape (U,).

    Returns:
        The points in double precision, with shape (U, S, W).

    References:
        Cranley & Patterson (1976), Randomization of number theoretic methods for multiple
        integration, SIAM Journal on Numerical Analysis 13(6).
    """
    if width > _MOST_DIMENSIONS:
        like = torch.empty(0, dtype=torch.float64)
        return streams.normal(keys, num_samples, width, like=like)
    shift = np.stack([streams.of(key).random((1, width)) for key in keys])
    points = _sobol(num_samples, width) + shift
    points -= np.floor(points)
    return _normal(torch.from_numpy(points.clip(1e-12, 1 - 1e-12)))


def _normal(uniform: Tensor) -> Tensor:
    """Maps uniform numbers to standard normal ones, each in a whole vector of the processor."""
    flat = F.pad(uniform.flatten(), (0, -uniform.numel() % _LANES), value=0.5)
    return (math.sqrt(2) * torch.erfinv(2 * flat - 1))[: uniform.numel()].view(uniform.shape)


@lru_cache(maxsize=16)
def _sobol(number: int, width: int) -> np.ndarray:
    """Returns the first points of the Sobol sequence, with shape (S, W)."""
    from scipy.stats import qmc  # A second to import.

    bits = max(number - 1, 1).bit_length()
    points = qmc.Sobol(width, scramble=False).random_base2(bits)[:number]
    points.setflags(write=False)
    return points
