"""How a problem is cut into blocks that stay in the cache, and the memory that blocks share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["Block", "Limits", "Scratch", "even_step", "grid", "lane_step", "limits", "slices"]

# Draws of a block are a multiple of it, as products of other lengths round differently.
_LANES = 64


@dataclass(slots=True)
class Limits:
    """Holds the sizes at which a problem is divided; results depend on them in the last digits.

    Attributes:
        margins: Margins of a block. Half to twice as many is within 20 % of the fastest; a factor
            of 16 more or less costs a factor of three.
        hidden: Hidden units of both items that are in memory at once.
        rows: Numbers in the rows of A and of B that are looked up at once.
        least_comparisons: Comparisons that a block holds before it holds more draws, so that a
            user's draws are read once.
        one_hot_items: Number of items up to which a product with one-hot rows is faster than a
            look-up.
        table_items: Items a comparison, up to which an mlp's utilities are computed item by item.
        least_part: Margins, or hidden units, that are worth a thread.
    """

    margins: int = 2**18
    hidden: int = 2**20
    rows: int = 2**22
    least_comparisons: int = 64
    one_hot_items: int = 64
    table_items: float = 1.5
    least_part: int = 2**17


limits = Limits()
"""The sizes in force, of every call in this process. Smaller ones cut small problems as large ones
are cut."""


class Block(NamedTuple):
    """Names a block of users, comparisons and draws."""

    users: slice
    comparisons: slice
    draws: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of users, comparisons and draws."""
        users, comparisons, draws = (part.stop - part.start for part in self)
        return users, comparisons, draws


class Scratch:
    """Hands out the same memory for every block: fresh memory costs page faults."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Returns memory of a shape, which is not initialised."""
        size = math.prod(shape)
        if name not in self.memory or len(self.memory[name]) < size:
            self.memory[name] = self.like.new_empty(size)
        return self.memory[name][:size].view(shape)


def grid(whole: Block, steps: Sequence[int]) -> Iterator[Block]:
    """Divides users, comparisons and draws into blocks."""
    users, comparisons, draws = (
        slices(axis, step) for axis, step in zip(whole, steps, strict=True)
    )
    for user in users:
        for draw in draws:
            for comparison in comparisons:
                yield Block(user, comparison, draw)


def even_step(size: int, most: int) -> int:
    """Returns a step of at most `most`, but at least 1, that leaves no small remainder."""
    return math.ceil(size / max(1, math.ceil(size / max(most, 1))))


def lane_step(size: int, most: int) -> int:
    """Returns an even step for draws that is a multiple of 64, where it does not take all."""
    step = even_step(size, most)
    return step if step >= size else min(-(-step // _LANES) * _LANES, size)


def slices(axis: slice, step: int) -> list[slice]:
    starts = range(axis.start, axis.stop, max(step, 1))
    return [slice(start, min(start + step, axis.stop)) for start in starts]
