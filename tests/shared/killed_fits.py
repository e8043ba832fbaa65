"""Kills fits at random moments until each has ended, and prints how often and how they ended.

    python tests/shared/killed_fits.py FOLDER KILLS

Run by test_checkpoint.py in a process of its own: the library is imported once and every attempt
is a fork of it. Prints as JSON the number of fits, the number of kills that hit a fit under way,
and the SHA-256 of their final parameters, beside that of a fit which is not interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, fit
from fssa_bayes.io import flatten

INTERVALS = (1, 3, 10)


def simulate() -> Preferences:
    rng = np.random.default_rng(0)
    left = rng.integers(12, size=240)
    right = (left + rng.integers(1, 12, size=240)) % 12
    offsets = np.arange(0, 241, 6)
    return Preferences(
        left, right, rng.integers(2, size=240), offsets, items=rng.normal(size=(12, 2))
    )


def final_parameters(checkpoint: Path | None, interval: int, steps: int) -> str:
    """Fits from the start or from a checkpoint and returns the SHA-256 of all parameters."""
    data = simulate()
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, hidden_dim=8, num_factors=4)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(
        model, guide, data, steps=steps, batch_size=8, validation=0.25, progress_bar=False,
        checkpoint=checkpoint, checkpoint_interval=interval,
    )  # fmt: skip
    digest = hashlib.sha256()
    for name, value in flatten(model, guide).items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def attempt(folder: Path, interval: int, steps: int, delay: float) -> bool:
    """Forks a fit and kills it after a delay; tells whether it was still running."""
    child = os.fork()
    if child == 0:
        digest = final_parameters(folder / "checkpoint", interval, steps)
        (folder / "digest").write_text(digest)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    expected = final_parameters(None, 1, 25)
    seconds = time.perf_counter() - start
    killed, ends, number = 0, [], 0
    while killed < kills:
        number += 1
        place = folder / f"fit-{number}"
        place.mkdir()
        interval = INTERVALS[number % len(INTERVALS)]
        while not (place / "digest").exists():
            # An attempt comes a part of the way; later ones get longer, so that each fit ends.
            killed += attempt(place, interval, 25, rng.uniform(0.02, 0.6) * seconds)
        ends.append((place / "digest").read_text())
    print(json.dumps({"killed": killed, "fits": number, "expected": expected, "ends": ends}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
