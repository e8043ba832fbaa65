"""Coverage of intervals with the population held fixed and with the population drawn.

Few people inform the population; fresh people from the truth are asked about new pairs. An interval
covers where it holds the true probability of that person's choice.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.harness import Row, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)

MEAN = torch.tensor([1.0, -0.5, 0.25, 0.75])
LOADING = torch.tensor([[1.0, 0.0], [0.5, 0.8], [-0.6, 0.3], [0.0, 1.0]])
SIZES = (0, 2, 8)


def run(args: argparse.Namespace) -> Iterator[Row]:
    people, others, repeats, steps = (20, 50, 2, 10) if args.quick else (100, 300, 5, 400)
    covered = defaultdict(list)
    for seed in args.seeds:
        hits = defaultdict(list)
        for repeat in range(repeats):
            for key, value in coverage(people, others, steps, 100 * seed + repeat).items():
                hits[key].append(value)
        for key, values in hits.items():
            covered[key].append(100 * float(np.mean(values)))
    for (size, population), figures in covered.items():
        case = f"{people} people x 10, {size} known choices"
        yield spread("population", case, population, "90 % intervals that cover", "%", figures)


def coverage(people: int, others: int, steps: int, seed: int) -> dict[tuple[int, str], float]:
    """Fits a few people, and returns the share of intervals of other people that cover."""
    truth = HeterogeneousBTL(len(MEAN), LOADING.shape[1], utility="linear")
    with torch.no_grad():
        truth.utility.mean.copy_(MEAN)
        truth.utility.loading.copy_(LOADING)
    train, _ = truth.simulate(pairs(people, 10, seed), seed=seed)
    test, z = truth.simulate(pairs(others, 14, seed + 50_000), seed=seed + 50_000)
    torch.manual_seed(seed)
    model = HeterogeneousBTL(len(MEAN), LOADING.shape[1], utility="linear")
    guide = NeuralProcessGuide(model, posterior="multivariate_normal")
    stages = [
        ImportanceWeightedELBO(16, steps=steps),
        Sleep(steps=steps // 2),
        ImportanceWeightedELBO(32, steps=steps),
        Sleep(steps=steps),
    ]
    result = fit(model, guide, train, objective=stages, seed=seed, progress_bar=False)
    populations = {"fixed": "fixed", "sampled": result.population_draws(seed=seed)}
    longest, target = test.split_context(max(SIZES), seed=seed)
    with torch.no_grad():
        exact = truth.choice(target.batch(), z.unsqueeze(0)).mean[0]
    found = {}
    for size in SIZES:
        context = longest if size == max(SIZES) else longest.split_context(size, seed=seed)[0]
        for name, population in populations.items():
            posterior = Posterior(model, guide, context, seed=seed, population=population)
            p = posterior.choice_prob(target)
            found[size, name] = ((p.lower <= exact) & (exact <= p.upper)).float().mean()
    return {key: value.item() for key, value in found.items()}


def pairs(
    people: int, comparisons: int, seed: int, names: tuple[str, ...] | None = None
) -> Preferences:
    """Asks people about random pairs of 200 items, with features of these names, or of none."""
    rng = np.random.default_rng(seed)
    left = rng.integers(200, size=people * comparisons)
    right = (left + rng.integers(1, 200, size=len(left))) % 200
    offsets = np.arange(0, len(left) + 1, comparisons)
    width = len(MEAN if names is None else names)
    items = np.random.default_rng(0).normal(size=(200, width))
    choice = np.zeros(len(left))
    return Preferences(left, right, choice, offsets, items=items, feature_names=names)
