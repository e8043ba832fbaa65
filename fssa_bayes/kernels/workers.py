"""Threads that each take a part of a problem, where PyTorch would divide every single call.

A backend in plain ATen makes thousands of calls, and each of them, divided among PyTorch's own
threads, ends in a wait for the slowest. On a machine that is busy otherwise such a wait is a time
slice of the scheduler: with six processes on two cores the likelihoods of `benchmarks/kernels.py`
took ten times longer than the naive form. Here the problem is divided once, and there is one wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

__all__ = ["num_workers", "pool", "run_in_parts"]

_MOST = 8  # More workers would wait for each other in Python.
_SECONDS = 60.0  # A thread that has not begun by then has failed.

Part = TypeVar("Part")
Result = TypeVar("Result")


def run_in_parts(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Calls `work` for every part, without gradients, and returns the results in that order."""
    if len(parts) == 1:
        return [work(parts[0])]
    inference = torch.is_inference_mode_enabled()

    def task(part: Part) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return work(part)

    threads = pool(os.getpid(), torch.get_num_threads())
    return [future.result() for future in [threads.submit(task, part) for part in parts]]


def num_workers() -> int:
    """Returns the number of parts that are worked on at once."""
    return min(torch.get_num_threads(), _MOST)


@lru_cache(maxsize=1)  # By process, because a forked process has none of its parent's threads.
def pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Starts the workers of a process, which share its number of PyTorch's threads."""
    workers = num_workers()
    ready = threading.Barrier(workers + 1)

    def prepare() -> None:
        torch.get_num_threads()  # The first call of a thread sets it to the default.
        torch.set_num_threads(threads // workers)
        ready.wait(_SECONDS)

    executor = ThreadPoolExecutor(workers, "fssa_bayes.kernels", prepare)
    for _ in range(workers):
        executor.submit(int)
    ready.wait(_SECONDS)
    # A thread's number is its own, and the number set last is the default of new threads.
    torch.set_num_threads(threads)
    return executor
