"""Memory and time of holding, splitting and batching comparisons."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import Row, spread
from fssa_bayes import Preferences


def run(args: argparse.Namespace) -> Iterator[Row]:
    people = 10_000 if args.quick else 1_000_000
    comparisons, items, features = 20, 10_000, 16
    case = f"{people:,} people x {comparisons}"
    rng = np.random.default_rng(args.seeds[0])
    total = people * comparisons
    left = rng.integers(items, size=total, dtype=np.int32)
    right = (left + rng.integers(1, items, size=total, dtype=np.int32)) % items
    before = _peak_gigabytes()
    start = time.perf_counter()
    data = Preferences(
        left,
        right,
        rng.integers(2, size=total, dtype=np.int8),
        np.arange(0, total + 1, comparisons),
        items=rng.normal(size=(items, features)).astype(np.float32),
    )
    yield spread("data", case, "Preferences", "build", "s", [time.perf_counter() - start])
    start = time.perf_counter()
    seen = sum(batch.num_users for batch in data.batches(1024, shuffle=True))
    assert seen == people
    yield spread("data", case, "Preferences", "one epoch", "s", [time.perf_counter() - start])
    yield spread("data", case, "process", "peak memory", "GB", [_peak_gigabytes()])
    yield spread("data", case, "Preferences", "added to it", "GB", [_peak_gigabytes() - before])

    times = []
    for _ in range(300):
        chosen = rng.choice(people, 64, replace=False)
        start = time.perf_counter()
        data.batch(chosen)
        times.append(1e3 * (time.perf_counter() - start))
    low, median, high = np.percentile(times[50:], [5, 50, 95])
    yield Row("data", "64 people x 20", "Preferences", "one batch", "ms", median, low, high)


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
