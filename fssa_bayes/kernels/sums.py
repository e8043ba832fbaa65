"""Sums over comparisons, in an order that padding does not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["halves", "log_add", "powers_below", "steady_sum"]


def steady_sum(values: Tensor, dim: int = -1) -> Tensor:
    """Sums over a dimension; zeros at its end change no bit of the sum.

    Entries that are a power of two apart are added first, the largest power first. A sum in the
    order of PyTorch depends, in its last digits, on the length of the dimension and on the memory.
    """
    width = values.shape[dim]
    if width == 0:
        return values.sum(dim)
    values = values.movedim(dim, -1)
    values = F.pad(values, (0, (1 << (width - 1).bit_length()) - width))
    while values.shape[-1] > 1:
        first, second = values.chunk(2, -1)
        values = first + second
    return values.squeeze(-1)


def halves(values: Tensor, strides: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields views of the entries along the second axis that are some strides apart.

    What is done to the first entry of each pair combines the two, as in :func:`steady_sum`, which
    has all powers of two as its strides, in descending order.
    """
    for stride in strides:
        width = values.shape[1]
        if width > stride:
            yield values[:, : width - stride], values[:, stride:]
            values = values[:, :stride]


def powers_below(size: int) -> list[int]:
    """Lists the powers of two below a size, the largest first."""
    return [1 << power for power in reversed(range((size - 1).bit_length()))]


def log_add(first: Tensor, second: Tensor) -> Tensor:
    """Evaluates log(eᵃ + eᵇ) of finite numbers.

    The result of an entry does not depend on its place, as that of `torch.logaddexp` does.
    """
    return torch.maximum(first, second) + torch.log1p(torch.exp(-(first - second).abs()))
