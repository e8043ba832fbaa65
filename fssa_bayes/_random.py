"""Random numbers: a stream of its own for every person, and seeded blocks for everything else.

What is drawn for a person comes from that person's stream, which follows from the seed, from what
the numbers are for and from the person's key, a digest of their name. So the numbers depend neither
on other people nor on threads, and no global state is read or changed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Streams", "keys_of", "seeded"]

_GLOBAL_GENERATOR = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch, and so Pyro, inside the block and restores its state afterwards.

    The block has PyTorch's global generator to itself among all such blocks: another thread that
    comes to one waits until this one ends.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class Streams:
    """Gives every person a counter-based generator (Philox) of their own.

    Args:
        seed: The seed that the user gave.
        purpose: What the numbers are for, such as `("proposals", 4)`; streams of different purposes
            are independent.

    References:
        Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
    """

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self.seed, self.purpose = int(seed), purpose
        self._common = _digest(repr((self.seed, *purpose)))

    def part(self, *purpose: str | int) -> Streams:
        """Returns the streams of a part of the purpose."""
        return Streams(self.seed, *self.purpose, *purpose)

    def of(self, key: int) -> np.random.Generator:
        """Returns the generator of one person, from its beginning."""
        return np.random.Generator(np.random.Philox(key=self._common << 64 | int(key)))

    def normal(self, keys: Iterable[int], *shape: int, like: Tensor) -> Tensor:
        """Draws standard normal numbers, in single precision, for U people: (U, *shape)."""
        drawn = [self.of(key).standard_normal(shape, dtype=np.float32) for key in keys]
        return torch.from_numpy(np.stack(drawn)).to(like)

    def uniform(self, keys: Iterable[int], *shape: int, like: Tensor) -> Tensor:
        """Draws uniform numbers from [0, 1), in single precision, for U people: (U, *shape)."""
        drawn = [self.of(key).random(shape, dtype=np.float32) for key in keys]
        return torch.from_numpy(np.stack(drawn)).to(like)


def keys_of(names: Iterable[Any]) -> np.ndarray:
    """Digests people's names to keys, uint64 with shape (U,).

    Equal names have equal keys, whatever type holds them: 1 is int64 1, Int64 1 and 1.0. A name
    that occurs again, as in a bootstrap sample, has a key of its own for each occurrence.
    """
    seen: dict[str, int] = {}
    keys = np.empty(len(names), dtype=np.uint64)
    for position, name in enumerate(names):
        text = _literal(name)
        again = seen[text] = seen.get(text, -1) + 1
        keys[position] = _digest(f"{text} {again}" if again else text)
    return keys


def _literal(name: Any) -> str:
    """Writes a name with its type, as a canonical scalar of Python."""
    name = name.item() if isinstance(name, np.generic) else name
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    return f"{type(name).__name__} {name!r}"


def _digest(text: str) -> int:
    """Digests a text to 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
