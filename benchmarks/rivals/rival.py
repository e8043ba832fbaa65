"""What a rival is: a name, what it can do, and a curve of draws against time."""

from __future__ import annotations

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.rivals.problem import Draws, Problem

__all__ = ["Independent", "Point", "Rival", "Stopwatch"]


@dataclass(frozen=True)
class Point:
    """Holds what a rival has after some time.

    Attributes:
        size: Draws of each person, or iterations of each chain.
        wall: Seconds since the rival began, for all people together.
        cpu: Seconds of all cores.
        draws: The draws.
    """

    size: int
    wall: float
    cpu: float
    draws: Draws


class Stopwatch:
    """Adds up wall-clock and CPU seconds of the blocks that it is entered for."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]


class Rival(ABC):
    """Draws from many people's posteriors.

    Attributes:
        name: Its name in tables.
        package: The package that it needs beside those of this one, or None.
        linear_only: Whether it needs a linear utility.
        is_independent: Whether its draws are independent, and cheaper than those of chains.
        least: The fewest draws that it makes.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    linear_only: ClassVar[bool] = False
    is_independent: ClassVar[bool] = False
    least: ClassVar[int] = 1

    @property
    def is_there(self) -> bool:
        """Whether its package is installed."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    @abstractmethod
    def curve(self, problem: Problem, sizes: Sequence[int], seed: int) -> Iterator[Point]:
        """Yields what it has at each size, the sizes ascending."""

    def prepare(self, problem: Problem) -> None:
        """Does once for a model and a size of context what later runs need not do again."""
        for _ in self.curve(problem, [32], 0):
            pass


class Independent(Rival):
    """Draws afresh for every size, so that a point's time is that of its own draws."""

    is_independent = True

    @abstractmethod
    def draw(self, problem: Problem, size: int, seed: int) -> Draws:
        """Draws `size` times from the posterior of each person."""

    def curve(self, problem: Problem, sizes: Sequence[int], seed: int) -> Iterator[Point]:
        """Yields what it has at each size."""
        for size in sizes:
            with Stopwatch() as watch:
                draws = self.draw(problem, size, seed)
            yield Point(size, watch.wall, watch.cpu, draws)
