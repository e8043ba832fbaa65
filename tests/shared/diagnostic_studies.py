"""Simulated people whose exact posterior is known, and posteriors that are wrong in a known way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIZES = (0, 1, 4)
NAMES = ["difference", "other difference", "probability", "log-likelihood"]


@dataclass(frozen=True)
class Study:
    """Holds simulated people: z ~ N(0, I) in two dimensions, seen through n noisy looks at z."""

    values: Tensor  # (S, U, 4)
    truth: Tensor  # (U, 4)
    size: np.ndarray  # (U,)
    loc: Tensor  # Of the exact posterior, (U, 2).
    sd: Tensor  # (U, 1)
    z: Tensor  # (S, U, 2)
    true_z: Tensor  # (U, 2)


def study(
    users: int = 400,
    draws: int = 100,
    *,
    scale: float = 1.0,
    shift: float = 0.0,
    kind: str = "posterior",
    sizes: tuple[int, ...] = SIZES,
    seed: int = 0,
) -> Study:
    """Simulates `users` people at each size and draws from a posterior that is wrong as told."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = torch.tensor(sizes).repeat_interleave(users)
    total, largest = len(size), max(sizes)
    true_z = noise(total, 2)
    looks = true_z.unsqueeze(1) + noise(total, largest, 2)
    seen = (torch.arange(largest) < size.unsqueeze(-1)).unsqueeze(-1).double()
    known = {"posterior": size, "prior": 0 * size, "half": size // 2}[kind]
    used = (torch.arange(largest) < known.unsqueeze(-1)).unsqueeze(-1).double()
    precision = (1 + known).double().unsqueeze(-1)
    loc, sd = (used * looks).sum(1) / precision, precision.rsqrt()
    z = loc + sd * (shift + scale * noise(draws, total, 2))

    def quantities(z: Tensor) -> Tensor:
        difference, other = (
            z @ torch.tensor([1.0, 0.5]).double(),
            z @ torch.tensor([0.2, 1]).double(),
        )
        log_prob = -0.5 * (seen * (looks - z.unsqueeze(-2)) ** 2).sum((-1, -2))
        return torch.stack([difference, other, torch.sigmoid(2 * z.sum(-1)), log_prob], -1)

    return Study(quantities(z), quantities(true_z), size.numpy(), loc, sd, z, true_z)
