"""Time and likelihood of mixed logits beside xlogit and Biogeme, which simulate the likelihood.

Every fit runs in a process of its own, in one thread (JAX, which Biogeme compiles with, has threads
of its own for compiling: CPU seconds count them). Times are those of estimates without standard
errors. All estimates are scored alike: as this package's model, by fresh heavy-tailed importance
draws, whatever log-likelihood the fit itself has ended with. Standard errors of the likelihood are
about .2 nats.

xlogit has independent coefficients alone, and neither has covariances of reduced rank: where this
package fits one of rank 2, xlogit fits independent coefficients and Biogeme, where it takes
part, a full covariance. The rivals' numbers of draws are those that their users take, and more.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.harness import Row, spread
from benchmarks.memory import in_fresh_process, peak_gigabytes
from benchmarks.simulated_likelihood.problems import (
    PROBLEMS,
    Population,
    Problem,
    rescore,
    to_sets,
)
from benchmarks.simulated_likelihood.with_biogeme import fit_biogeme
from benchmarks.simulated_likelihood.with_xlogit import fit_xlogit
from fssa_bayes import Preferences, fit

OURS = "fssa_bayes"
MOST_SCORED = 20_000  # People whose likelihood is estimated afresh.


class Rival(NamedTuple):
    """Names a fit of a problem by another package."""

    problem: str
    package: str
    num_draws: int


RIVALS = (
    *(Rival("train, normal", "xlogit", draws) for draws in (600, 4_000)),
    Rival("train, correlated", "biogeme", 500),
    Rival("train, correlated", "biogeme", 2_000),
    *(Rival("electricity, normal", "xlogit", draws) for draws in (600, 1_500)),
    Rival("electricity, correlated", "biogeme", 500),
    *(Rival("yogurt, normal", "xlogit", draws) for draws in (500, 4_000)),
    Rival("yogurt, correlated", "biogeme", 500),
    Rival("1,000 x 20 x 10, rank 2", "xlogit", 600),
    Rival("20,000 x 24 x 5, rank 2", "xlogit", 100),
)
"""What the others fit."""


class Figures(NamedTuple):
    """Holds what is measured of a fit; NaN where it is not known."""

    cpu: float
    wall: float
    own: float
    rescored: float
    covariance_error: float
    gigabytes: float


def run(args: argparse.Namespace) -> Iterator[Row]:
    missing = {rival.package for rival in RIVALS if find_spec(rival.package) is None}
    for package in sorted(missing):
        print(f"mixed_logit: {package} skipped, it is not installed: pip install '.[bench]'")
    problems = list(PROBLEMS)[:2] if args.quick else list(PROBLEMS)
    for name in problems:
        if PROBLEMS[name].needs_file and args.data is None:
            print(f"mixed_logit: {name} skipped, it needs --data PATH")
            continue
        rivals = [r for r in RIVALS if r.problem == name and r.package not in missing]
        yield from compare(name, rivals, args)


def compare(name: str, rivals: list[Rival], args: argparse.Namespace) -> Iterator[Row]:
    """Fits a problem with every seed, by others once."""
    seeds = args.seeds[:1] if PROBLEMS[name].population is not None else args.seeds
    ours = [measure_fresh(args, name, OURS, 0, seed) for seed in seeds]
    yield from rows(name, OURS, ours, ours)
    for rival in rivals:
        draws = 20 if args.quick else rival.num_draws
        try:
            figures = [measure_fresh(args, name, rival.package, draws, args.seeds[0])]
        except BrokenProcessPool:  # As by a machine without enough memory.
            print(f"mixed_logit: {name}: {rival.package}, {draws:,} draws, was killed")
            continue
        yield from rows(name, f"{rival.package}, {draws:,} draws", figures, ours)


def measure_fresh(
    args: argparse.Namespace, name: str, package: str, num_draws: int, seed: int
) -> Figures:
    """Measures a fit in a process of its own."""
    options = (name, package, num_draws, seed, args.data, args.quick)
    return in_fresh_process(measure, args.threads, *options)


def rows(
    name: str, implementation: str, figures: list[Figures], ours: list[Figures]
) -> Iterator[Row]:
    """Lists what is known of some fits of a problem."""
    columns = defaultdict(list)
    for one in figures:
        columns["fit: CPU time", "s", "cpu"].append(one.cpu)
        columns["fit: wall-clock time", "s", "wall"].append(one.wall)
        columns["log-likelihood, fresh draws", "nats", None].append(one.rescored)
        columns["log-likelihood, its own", "nats", None].append(one.own)
        columns["largest error of cov", "% of its scale", None].append(one.covariance_error)
        columns["peak memory", "GB", None].append(one.gigabytes)
    for (metric, unit, timed), values in columns.items():
        if np.isnan(values).all():
            continue
        ratio = None
        if timed and implementation != OURS:
            ratio = np.median(values) / np.median([getattr(one, timed) for one in ours])
        yield spread(
            *("mixed_logit", name, implementation, metric, unit, values),
            *((OURS, float(ratio)) if ratio else ()),
        )


def measure(
    name: str, package: str, num_draws: int, seed: int, path: Path | None, quick: bool
) -> Figures:
    """Fits a problem by one of the packages, and scores the estimates."""
    problem = PROBLEMS[name]
    data = problem.read(path, seed, quick)
    if package == OURS:
        _fit_ours(problem, data.subset(range(8)), seed)  # Imports what a first fit imports.
        started, used = time.perf_counter(), time.process_time()
        population = _fit_ours(problem, data, seed)
    else:
        sets, is_random = to_sets(data), problem.is_random(data)
        started, used = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if package == "xlogit":
                population = fit_xlogit(sets, is_random, num_draws)
            else:
                correlated = problem.correlated
                population = fit_biogeme(sets, is_random, num_draws, seed, correlated=correlated)
    cpu, wall = time.process_time() - used, time.perf_counter() - started
    gigabytes = peak_gigabytes()
    rescored = float("nan")
    if len(data) <= MOST_SCORED:
        rescored = rescore(data, population, seed=1_000 + seed).value
    error = float("nan")
    if problem.population is not None:
        truth, loading = problem.population.covariance, population.loading
        error = 100 * np.abs(loading @ loading.T - truth).max() / np.abs(truth).max()
    return Figures(cpu, wall, population.log_likelihood, rescored, error, gigabytes)


def _fit_ours(problem: Problem, data: Preferences, seed: int) -> Population:
    model = problem.build(data, seed)
    with warnings.catch_warnings():
        # Posteriors of persons, which it concerns, are not what is compared.
        warnings.filterwarnings("ignore", message="[0-9,]+ people are few for the")
        fit(model, None, data, seed=seed, progress_bar=False)
    scale = model.feature_scale
    with torch.no_grad():
        mean = model.utility.mean.double() / scale
        loading = model.utility.directions.double() / scale[:, None]
    return Population(mean.numpy(), loading.numpy(), float("nan"))
