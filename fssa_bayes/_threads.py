"""Threads in which PyTorch has threads of its own, and work divided among threads that have one.

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

__all__ = ["MOST_WORKERS", "pool", "run_alone"]

MOST_WORKERS = 8
"""Threads that work at once: more would wait for each other in Python."""

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
    workers = pool(os.getpid(), min(threads, MOST_WORKERS), 1, threads)
    return [future.result() for future in [workers.submit(work, part) for part in parts]]


@lru_cache(maxsize=2)  # By process, because a forked process has none of its parent's threads.
def pool(process: int, workers: int, each: int, threads: int) -> ThreadPoolExecutor:
    """Starts threads in which PyTorch has a number of threads of its own.

    Args:
        process: Number of the process.
        workers: Number of threads that are started.
        each: Number of threads that PyTorch uses in each of them.
        threads: Number of threads that PyTorch uses elsewhere, now and afterwards.
    """
    ready = threading.Barrier(workers + 1)

    def prepare() -> None:
        torch.get_num_threads()  # The first call of a thread sets it to the default.
        torch.set_num_threads(each)
        ready.wait(_SECONDS)

    executor = ThreadPoolExecutor(workers, "fssa_bayes", prepare)
    for _ in range(workers):
        executor.submit(int)
    ready.wait(_SECONDS)
    # A thread's number is its own, and the number set last is the default of new threads.
    torch.set_num_threads(threads)
    return executor
