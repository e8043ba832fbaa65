"""Tables of `experiments` without known truth: real crowds; and how a fit grows with people."""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch

from benchmarks.harness import Row, slope, spread
from benchmarks.memory import in_fresh_process, peak_gigabytes
from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.checks import compare_by_context, score_folds
from fssa_bayes.datasets import linear_factors, llmfao, ukp_convarg

ROUNDS = {"llmfao": 5, "ukp": 2}  # Folds of five that are left out.
STEPS = {"llmfao": 150, "ukp": 150}
UTILITY = {"llmfao": "linear", "ukp": "bilinear"}


def crowds(args: argparse.Namespace) -> Iterator[Row]:
    """Heterogeneous against homogeneous models with ties and position bias, people left out.

    A seed deals the people anew; standard errors are over the people of one seed.
    """
    if args.crowds is None:
        print("experiments: crowds skipped, it needs --crowds DIR")
        return
    readers = {
        "llmfao": lambda: llmfao.read(args.crowds / llmfao.FILE),
        "ukp": lambda: ukp_convarg.read(
            args.crowds / ukp_convarg.FILE, args.crowds / ukp_convarg.EMBEDDINGS
        ),
    }
    for name, read in readers.items():
        data = read()
        values = defaultdict(list)
        for seed in args.seeds:
            table = _compare(name, data, seed, args)
            for (known, model), row in table.iterrows():
                for metric, unit in FIGURES.items():
                    values[f"{name}, {known} known", model, metric, unit].append(row[metric])
        for key, figures in values.items():
            yield spread("experiments", *key, figures)


FIGURES = {
    "people": "",
    "log_score": "nats",
    "accuracy": "",
    "gain": "nats",
    "standard_error": "nats",
    "elpd_diff": "nats",
    "dse": "nats",
}


def _compare(name: str, data: Preferences, seed: int, args: argparse.Namespace) -> pd.DataFrame:
    fitters = {
        "homogeneous": functools.partial(_fit_crowd, name, 0, seed, args.quick),
        "heterogeneous": functools.partial(_fit_crowd, name, 2, seed, args.quick),
    }
    rounds = range(1 if args.quick else ROUNDS[name])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the largest context has")
        warnings.filterwarnings("ignore", message="feature .* is the same for all items")
        scores = score_folds(fitters, data, num_folds=5, folds=rounds, seed=seed)
    return compare_by_context(scores, "homogeneous")


def _fit_crowd(
    name: str, latent_dim: int, seed: int, quick: bool, train: Preferences
) -> Callable[[Preferences], Posterior]:
    torch.manual_seed(seed)
    model = HeterogeneousBTL(
        train.num_features, latent_dim, UTILITY[name], ties="davidson", position_bias=True
    )
    guide, options = None, {}
    if latent_dim:
        guide = NeuralProcessGuide(model)
        options = {
            "objective": [ImportanceWeightedELBO(16), Sleep()],
            "steps": 5 if quick else STEPS[name],
            "batch_size": int(np.clip(1500 / train.counts.mean(), 8, 64)),
            "refit": False,
        }
    validation = None if UTILITY[name] == "linear" else 0.1
    fit(model, guide, train, validation=validation, seed=seed, progress_bar=False, **options)
    return lambda context: Posterior(model, guide, context, 300, seed=seed)


# Size.

COMPARISONS, FEATURES, BATCH_SIZE = 20, 10, 1024


def size(args: argparse.Namespace) -> Iterator[Row]:
    """Seconds and memory of linear fits: whole for 1,000 people, an epoch each for up to 100,000.

    Every size runs in a process of its own; memory is its peak, Python and packages included.
    """
    whole = 50 if args.quick else 1_000
    case, name = f"size, {whole:,} x {COMPARISONS} x {FEATURES}", "linear, K = 2"
    seconds = [
        in_fresh_process(_whole_fit, args.threads, whole, 5 if args.quick else None, seed)
        for seed in args.seeds
    ]
    yield spread("experiments", case, name, "fit, default schedule", "s", seconds)
    curve = {}
    for people in (50, 200) if args.quick else (1_000, 10_000, 100_000):
        taken, peak = in_fresh_process(_epoch, args.threads, people, args.seeds[0])
        curve[people] = taken
        case = f"size, {people:,} x {COMPARISONS} x {FEATURES}"
        yield spread("experiments", case, name, "one epoch", "s", [taken])
        yield spread("experiments", case, name, "peak memory", "GB", [peak])
    yield slope("experiments", "size, slope of log time", name, "one epoch", curve)


def _simulate(people: int, seed: int) -> Preferences:
    population = linear_factors.draw_population(FEATURES, 2, seed=seed)
    return linear_factors.simulate(people, COMPARISONS, population, seed=seed).data


def _build(seed: int) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(seed)
    model = HeterogeneousBTL(FEATURES, 2, "linear")
    return model, NeuralProcessGuide(model)


def _whole_fit(people: int, steps: int | None, seed: int) -> float:
    data = _simulate(people, seed)
    start = time.perf_counter()
    fit(*_build(seed), data, steps=steps, validation=None, seed=seed, progress_bar=False)
    return time.perf_counter() - start


def _epoch(people: int, seed: int) -> tuple[float, float]:
    options = {"batch_size": BATCH_SIZE, "validation": None, "progress_bar": False}
    small = _simulate(50, seed)
    fit(*_build(seed), small, objective=ELBO(), steps=2, **options)  # First calls allocate.
    data = _simulate(people, seed)
    start = time.perf_counter()
    steps = math.ceil(people / BATCH_SIZE)
    fit(*_build(seed), data, objective=ELBO(), steps=steps, **options)
    return time.perf_counter() - start, peak_gigabytes()
