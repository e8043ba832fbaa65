"""Coverage of 90 % intervals of utilities where few people judge, everybody alike.

600 votes on six items by 1 to 30 people, as many by each or ever fewer; and crowds in which few
people compared each item. The fit and the errors are the library's own. Beside them stands the
sandwich without a correction, with normal intervals.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import Row
from fssa_bayes import Preferences
from fssa_bayes.baselines import HomogeneousBTL

SETS = 1000  # Of all seeds together.
VOTES = 600
NORMAL_95 = 1.6448536269514722


def run(args: argparse.Namespace) -> Iterator[Row]:
    sets = 4 if args.quick else -(-SETS // len(args.seeds))
    for case, sizes, num_items in cases(args.quick):
        parts = [coverage(sizes, num_items, sets, seed) for seed in args.seeds]
        for position, name in enumerate(("ranking()", "uncorrected")):
            shares = [100 * part[position] for part in parts]
            covered = float(np.mean(shares))
            yield Row(
                "few_judges", case, name, "90 % intervals that cover", "%",
                covered, min(shares), max(shares),
            )  # fmt: skip


def cases(quick: bool) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yields names of the cases, the votes of each person and the number of items."""
    for people in (3,) if quick else (1, 2, 3, 5, 10, 30):
        yield f"{people} people, balanced", np.full(people, VOTES // people), 6
        if people > 1:
            share = 1 / np.arange(1, people + 1)
            sizes = np.maximum(1, np.round(VOTES * share / share.sum())).astype(int)
            sizes[0] += VOTES - sizes.sum()
            yield f"{people} people, unbalanced", sizes, 6
    if not quick:
        yield "150 people x 4, 20 items", np.full(150, 4), 20


def coverage(sizes: np.ndarray, num_items: int, sets: int, seed: int) -> tuple[float, float]:
    """Returns the shares of intervals that hold the truth, with correction and without."""
    truth = np.linspace(-1, 1, num_items)
    rng = np.random.default_rng([seed, len(sizes), sizes[0], num_items])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    hits = []
    for _ in range(sets):
        left = rng.integers(num_items, size=offsets[-1])
        right = (left + rng.integers(1, num_items, size=len(left))) % num_items
        choice = rng.random(len(left)) < 1 / (1 + np.exp(truth[right] - truth[left]))
        data = Preferences(left, right, choice, offsets, num_items=num_items)
        result = HomogeneousBTL().fit(data, progress_bar=False).result
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "all comparisons are of one person")
            table = result.ranking(num_draws=2).sort_index()
        hits.append(((table["lower"] <= truth) & (truth <= table["upper"])).mean())
        estimates = result.estimates("items")
        known = estimates.uncertainty
        covariance = known.inverse @ known.outer @ known.inverse
        variance = (estimates.jacobian @ covariance * estimates.jacobian).sum(-1).clamp(min=0)
        away = np.abs(estimates.values.numpy() - truth)
        hits.append((away <= NORMAL_95 * variance.sqrt().numpy()).mean())
    return float(np.mean(hits[::2])), float(np.mean(hits[1::2]))
