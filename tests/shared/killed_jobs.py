"""Kills jobs, or their workers, at random moments until each has ended; prints how they ended.

    python tests/shared/killed_jobs.py MODEL SOURCE FOLDER KILLS WORKERS

Run by scale/test_job.py in a process of its own: the library is imported once, and every attempt of
a job without workers is a fork of it. Prints, as JSON, the number of kills that hit a job under way
and the digests of its parts, beside those of a job that is left alone: of jobs that were killed
themselves KILLS times, and of one whose worker was killed WORKERS times, each time at the price of
another interpreter.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
from many_people import ASKED, digests

from fssa_bayes.scale import score_parquet

PARTS = 12


def run(model: Path, source: Path, out: Path, workers: int, tell=None) -> None:
    score_parquet(model, source, out, workers=workers, num_parts=PARTS, tell=tell, **ASKED)


def attempt(model: Path, source: Path, out: Path, delay: float) -> bool:
    """Forks a job and kills it after a delay; tells whether it was still running."""
    child = os.fork()
    if child == 0:
        run(model, source, out, 0)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


class Killer:
    """Kills the only worker of this process a moment after a part is done, a number of times.

    Args:
        kills: The number.
        longest: Seconds that the moment lasts at most.
        rng: Source of the moments.
    """

    def __init__(self, kills: int, longest: float, rng: np.random.Generator) -> None:
        self.left, self.longest, self.rng = kills, longest, rng
        self.timer: threading.Timer | None = None

    def __call__(self, text: str) -> None:
        if self.left and not (self.timer and self.timer.is_alive()):
            (worker,) = multiprocessing.active_children()
            delay = self.rng.uniform(0, self.longest)
            self.timer = threading.Timer(delay, os.kill, (worker.pid, signal.SIGKILL))
            self.timer.start()
            self.left -= 1


def main(model: Path, source: Path, folder: Path, kills: int, workers: int) -> None:
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    run(model, source, folder / "whole", 0)
    seconds = time.perf_counter() - start
    killed, ends = 0, []
    while killed < kills:
        out = folder / f"driver-{len(ends)}"
        while len(digests(out)) < PARTS or (out / "_pieces").exists():
            killed += attempt(model, source, out, rng.uniform(0.02, 0.5) * seconds)
        ends.append(digests(out))
    killer = Killer(workers, seconds / PARTS, rng)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(model, source, folder / "worker", 1, killer)
    deaths = sum("a worker has died" in str(each.message) for each in said)
    ends.append(digests(folder / "worker"))
    found = {"killed": killed, "workers": deaths, "ends": ends}
    print(json.dumps(found | {"expected": digests(folder / "whole")}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:6]))
