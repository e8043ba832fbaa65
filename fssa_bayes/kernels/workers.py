"""Threads that each take a part of a problem, where PyTorch would divide every single call.

A backend in plain ATen makes thousands of calls, and each of them, divided among PyTorch's own
threads, ends in a wait for the slowest. On a machine that is busy otherwise such a wait is a time
slice of the scheduler: with six processes on two cores the likelihoods of `benchmarks/kernels.py`
took ten times longer than the naive form. Here the problem is divided once, and there is one wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from fssa_bayes._threads import MOST_WORKERS, pool

__all__ = ["num_workers", "run_in_parts"]

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

    workers, threads = num_workers(), torch.get_num_threads()
    executor = pool(os.getpid(), workers, threads // workers, threads)
    return [future.result() for future in [executor.submit(task, part) for part in parts]]


def num_workers() -> int:
    """Returns the number of parts that are worked on at once."""
    return min(torch.get_num_threads(), MOST_WORKERS)
