"""Time and memory from a thousand to a million people, ten comparisons each.

Every size runs in a process of its own, after a warm-up. Memory is the peak so far, the arrays that
data are built from included, less that of the warm-up. Slopes follow, of log time or log memory
against log people: 1 is linear, in brackets the smallest and largest between neighbouring sizes.
Scores are those of the raw guide (16 draws); the
corrected ones (25 draws) and the DataFrame stop at 100,000 people.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from benchmarks.harness import Row, slope, spread
from benchmarks.memory import in_fresh_process, peak_gigabytes
from fssa_bayes import ELBO, HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, fit

COMPARISONS, ITEMS, FEATURES, BATCH_SIZE = 10, 1000, 8, 1024
LARGEST = 100_000
Figure = tuple[str, str, str, float]


def run(args: argparse.Namespace) -> Iterator[Row]:
    sizes = (50, 200) if args.quick else (1_000, 10_000, 100_000, 1_000_000)
    curves = defaultdict(dict)
    for people in sizes:
        figures = in_fresh_process(_stages, args.threads, people, args.seeds[0])
        if people <= LARGEST:
            figures += in_fresh_process(_from_dataframe, args.threads, people, args.seeds[0])
        for *names, value in figures:
            curves[tuple(names)][people] = value
            yield spread("scale", f"{people:,} people", *names, [value])
    for (implementation, metric, unit), curve in curves.items():
        if min(curve.values()) > 0:
            yield slope("scale", "slope", implementation, f"{metric}, {unit}", curve)


def _stages(people: int, seed: int) -> list[Figure]:
    """Measures what one does with data, from arrays to scores."""
    _use(Preferences(**_arrays(50, seed)), _discard)
    recorder = _Recorder()
    arrays = _arrays(people, seed)
    data = recorder("Preferences", "build from arrays", lambda: Preferences(**arrays))
    _use(data, recorder)
    return recorder.figures


def _use(data: Preferences, recorder: Callable) -> None:
    people = len(data)
    recorder("Preferences", "one epoch of batches", lambda: _epoch(data))
    model = HeterogeneousBTL(FEATURES, latent_dim=2, utility="linear")
    guide = NeuralProcessGuide(model)
    options = {"batch_size": BATCH_SIZE, "validation": None, "progress_bar": False}
    steps = math.ceil(people / BATCH_SIZE)
    recorder(
        "linear, K = 2, ELBO",
        "fit one epoch",
        lambda: fit(model, guide, data, objective=ELBO(), steps=steps, **options),
    )
    context, target = recorder("Preferences", "split contexts", lambda: data.split_context(5))

    def score(draws: int, correct: str | None) -> None:
        Posterior(model, guide, context, draws, correct=correct).log_score(target)

    recorder("Posterior, S = 16, raw", "score", lambda: score(16, None))
    if people <= LARGEST:
        recorder("Posterior, S = 25", "score", lambda: score(25, "psis"))


def _from_dataframe(people: int, seed: int) -> list[Figure]:
    recorder = _Recorder()
    arrays = _arrays(people, seed)
    columns = {name: arrays[name] for name in ("left", "right", "choice")}
    df = pd.DataFrame({"user": np.repeat(np.arange(people), COMPARISONS)} | columns)
    items = pd.DataFrame(arrays["items"])
    names = {name: name for name in df.columns}
    recorder(
        "Preferences",
        "build from a DataFrame",
        lambda: Preferences.from_dataframe(df, items=items, **names),
    )
    return recorder.figures


def _arrays(people: int, seed: int) -> dict[str, np.ndarray]:
    """Draws comparisons of common items; a person never meets the same pair twice."""
    rng = np.random.default_rng(seed)
    total = people * COMPARISONS
    left = rng.integers(ITEMS, size=total, dtype=np.int32)
    distance = 1 + np.tile(np.arange(COMPARISONS, dtype=np.int32), people)
    return {
        "left": left,
        "right": (left + distance) % ITEMS,
        "choice": rng.integers(2, size=total, dtype=np.int8),
        "offsets": np.arange(0, total + 1, COMPARISONS),
        "items": rng.normal(size=(ITEMS, FEATURES)).astype(np.float32),
    }


def _epoch(data: Preferences) -> None:
    for _ in data.batches(BATCH_SIZE, shuffle=True):
        pass


def _discard(implementation: str, metric: str, function: Callable) -> object:
    """Runs things once before they are measured: first calls import and allocate."""
    return function()


class _Recorder:
    """Runs things and notes their seconds and the peak memory after them."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.before = peak_gigabytes()

    def __call__(self, implementation: str, metric: str, function: Callable) -> object:
        start = time.perf_counter()
        result = function()
        self.figures.append((implementation, metric, "s", time.perf_counter() - start))
        added = peak_gigabytes() - self.before
        self.figures.append((implementation, metric, "GB peak", added))
        return result
