"""Work divided among threads, each of which computes alone.

PyTorch divides a product or a sum among its own threads, and the division changes last digits.
Here each piece of work runs in one thread of a pool, in which PyTorch uses that thread alone, so
that the result is the same to the last bit for any number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

__all__ = ["run_alone"]

_MOST = 8  # More threads would wait for each other in Python.
_SECONDS = 60.0  # A thread that has not begun by then has failed.

Part = TypeVar("Part")
Result = TypeVar("Result")


def run_alone(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Calls `work` for every part, each in one thread, and returns the results in that order.

    Several parts run at once, as many as PyTorch has threads and at most 8.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(part) for part in parts]
    workers = _pool(os.getpid(), min(threads, _MOST))
    return [future.result() for future in [workers.submit(work, part) for part in parts]]


@lru_cache(maxsize=1)  # By process, because a forked process has none of its parent's threads.
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Starts threads in which PyTorch uses one thread each."""
    threads = torch.get_num_threads()
    ready = threading.Barrier(workers + 1)

    def prepare() -> None:
        torch.get_num_threads()  # The first call of a thread sets it to the default.
        torch.set_num_threads(1)
        ready.wait(_SECONDS)

    executor = ThreadPoolExecutor(workers, "fssa_bayes", prepare)
    for _ in range(workers):
        executor.submit(int)
    ready.wait(_SECONDS)
    # A thread's number is its own, and the number set last is the default of new threads.
    torch.set_num_threads(threads)
    return executor
