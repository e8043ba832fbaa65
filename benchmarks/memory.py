"""Memory of a process of its own, so that a peak belongs to what is measured."""

from __future__ import annotations

import multiprocessing
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["held_gigabytes", "in_fresh_process", "peak_gigabytes"]


def in_fresh_process(function: Callable, threads: int, *args: Any) -> Any:
    """Runs an importable function in a new Python process and returns what it returns."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        return pool.submit(function, *args).result()


def peak_gigabytes() -> float:
    """Reads the largest memory that this process has held so far, in GB of 2**30 bytes."""
    # Not ru_maxrss, which a new process inherits from the one that started it.
    return _status("VmHWM")


def held_gigabytes() -> float:
    """Reads the memory that this process holds now, in GB of 2**30 bytes; its peak off Linux."""
    return _status("VmRSS")


def _status(field: str) -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
