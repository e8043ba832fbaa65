"""Policies away from their initial weights, and sequences and latent factors for them."""

from __future__ import annotations

import torch
from torch import Tensor

from fssa_bayes.policy import (
    ResponseBatch,
    SteerablePolicy,
)

PROMPTS = ["w3 w4 w5 w6 w7", "w8", "w9 w10 w11"]


def move(policy: SteerablePolicy, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def factors(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*(shape or (4,)), 2, generator=torch.Generator().manual_seed(seed))


def responses(rows: int = 4, length: int = 9) -> ResponseBatch:
    """Draws sequences of different lengths, padded on the right; scores their ends."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.arange(length, length - rows, -1)[:, None]
    place = torch.arange(length)
    tokens = torch.randint(3, 40, (rows, length), generator=generator)
    mask = (place < ends).long()
    return ResponseBatch(tokens * mask, mask, (place < ends) & (place >= ends - 4))
