"""Posteriors of many people: error of choice probabilities against time, beside six rivals.

A model is known, and new people of it have made 1, 10 or 50 choices. Every rival draws from the
posteriors of all of them, one thread each, and the error is that of the probabilities that these
draws give to 50 pairs: root mean square and largest over people and pairs, against a grid (two
latent dimensions) or long importance sampling, whose own standard error has a row. `linear` is a
mixed logit with K features, a full covariance and a normal prior; `bilinear` has networks and a
flow as guide.

- `Posterior`, with its defaults, and the guide's own draws (`guide alone`). The guide is taught
  once for a model and every size of context; the seconds have a row, "taught beforehand".
- NumPyro's NUTS and HMC, all people in one compiled program; "compiled beforehand" has a row.
- Laplace's approximation with Pareto-smoothed weights; Sobol points of the prior that all people
  share, weighted by likelihood; Pólya–Gamma Gibbs, one chain a person. The last two classes need
  `pip install -e .[bench]` and are named where they are skipped.

Times are those of the draws; evaluating probabilities takes the same for a draw of any rival. The
time to reach an error is interpolated between sizes on logarithmic scales, and infinite where a
seed does not reach it at the largest size; where the smallest size is better than the error, it is
that of the smallest size. Seeds are those of the draws. `OMP_NUM_THREADS=1` gives NumPy one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.harness import Row, spread
from benchmarks.rivals.figure import draw_curves
from benchmarks.rivals.laplace import Laplace
from benchmarks.rivals.numpyro_nuts import NumPyroHMC, NumPyroNUTS
from benchmarks.rivals.polya_gamma import PolyaGamma
from benchmarks.rivals.posterior import Corrected, RawGuide
from benchmarks.rivals.problem import Problem, make_problem, teach
from benchmarks.rivals.reference import solve
from benchmarks.rivals.rival import Rival
from benchmarks.rivals.sobol import SharedSobol

LEVELS = (0.01, 0.005)
SHOWN = 10  # The size of context that the figure shows.
RIVALS = (Corrected, RawGuide, Laplace, SharedSobol, PolyaGamma, NumPyroHMC, NumPyroNUTS)
OURS = Corrected.name
METRICS = {
    "wall": ("time", "ms a person"),
    "CPU": ("CPU time", "ms a person"),
    "rms": ("error of choice prob., rms", ""),
    "largest": ("error of choice prob., largest", ""),
}


@dataclass(frozen=True)
class Sizes:
    """Holds how much is computed."""

    problems: Sequence[tuple[str, int]]
    contexts: Sequence[int]
    people: int
    taught: tuple[int, int]
    reference: int
    independent: Sequence[int]
    chains: Sequence[int]


FULL = Sizes(
    problems=(*(("linear", width) for width in (2, 4, 8, 16)), ("bilinear", 2)),
    contexts=(1, 10, 50),
    people=200,
    taught=(2000, 1500),
    reference=200_000,
    independent=(8, 32, 128, 512, 2048, 8192),
    chains=(64, 256, 1024, 4096),
)
QUICK = Sizes(
    problems=(("linear", 2), ("linear", 4), ("bilinear", 2)),
    contexts=(2, 10),
    people=20,
    taught=(100, 10),
    reference=4000,
    independent=(32, 128),
    chains=(64, 128),
)


def run(args: argparse.Namespace) -> Iterator[Row]:
    sizes = QUICK if args.quick else FULL
    if args.people is not None and not args.quick:
        sizes = replace(sizes, people=args.people)
    rivals = []
    for rival in (kind() for kind in RIVALS):
        if rival.is_there:
            rivals.append(rival)
        else:
            print(f"inference: {rival.name} skipped, it needs the package {rival.package}")
    shown = {}
    for utility, width in sizes.problems:
        people, steps = sizes.taught
        taught = teach(utility, width, people=people, steps=steps, seed=0)
        label = f"{utility}, K = {width}"
        yield spread("inference", label, OURS, "taught beforehand", "CPU s", [taught.seconds])
        for size in sizes.contexts:
            problem = make_problem(taught, sizes.people, size, seed=0)
            case = f"{label}, {size} known"
            truth = solve(problem, sizes.reference, seed=0)
            largest = truth.error.max().item()
            yield spread("inference", case, "reference", "its largest s.e.", "", [largest])
            yield spread("inference", case, "all", "people", "", [sizes.people])
            curves = yield from _measure(rivals, problem, truth.prob, case, sizes, args.seeds)
            yield from _compare(curves, case)
            if size == SHOWN:
                shown[f"{label}, {size} known"] = {
                    name: (np.median(curve["CPU"], 0), np.median(curve["rms"], 0))
                    for name, curve in curves.items()
                }
    path = _figure_path(args)
    if path is not None:
        draw_curves(shown, path, levels=LEVELS)


def _measure(
    rivals: Sequence[Rival],
    problem: Problem,
    truth: Tensor,
    case: str,
    sizes: Sizes,
    seeds: Sequence[int],
) -> Iterator[Row]:
    """Yields the rivals' rows; returns the curve of each, of every kind a table by seed and size.

    The rivals take turns, seed by seed, so that what else the machine does meets all of them.
    """
    numbers, curves = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of few draws, and of untaught guides.
        able = [r for r in rivals if problem.model.utility.is_linear or not r.linear_only]
        for rival in able:
            chosen = sizes.independent if rival.is_independent else sizes.chains
            numbers[rival.name] = [number for number in chosen if number >= rival.least]
            curves[rival.name] = defaultdict(list)
            start = time.process_time()
            rival.prepare(problem)
            if rival.package == "numpyro":
                seconds = [time.process_time() - start]
                yield spread("inference", case, rival.name, "compiled beforehand", "CPU s", seconds)
        for seed in seeds:
            for rival in able:
                curve = _curve(rival, problem, truth, numbers[rival.name], seed)
                for kind, values in curve.items():
                    curves[rival.name][kind].append(values)
    for name, curve in curves.items():
        for kind, (metric, unit) in METRICS.items():
            for number, values in zip(numbers[name], np.transpose(curve[kind]), strict=True):
                yield spread("inference", case, f"{name}, {number}", metric, unit, values)
    return {
        name: {kind: np.array(values) for kind, values in curve.items()}
        for name, curve in curves.items()
    }


def _curve(
    rival: Rival, problem: Problem, truth: Tensor, numbers: Sequence[int], seed: int
) -> dict[str, list[float]]:
    """Measures a rival once at every size."""
    points = defaultdict(list)
    for point in rival.curve(problem, numbers, seed):
        off = (problem.choice_prob(point.draws).prob - truth).abs()
        points["wall"].append(1000 * point.wall / len(problem.context))
        points["CPU"].append(1000 * point.cpu / len(problem.context))
        points["rms"].append(off.square().mean().sqrt().item())
        points["largest"].append(off.max().item())
    return points


def _compare(curves: dict[str, dict[str, np.ndarray]], case: str) -> Iterator[Row]:
    """Yields what the rivals need for equal errors, times as ratios to those of `Posterior`."""
    for level in LEVELS:
        for kind, metric in (("CPU", "CPU time to rms"), ("wall", "time to rms")):
            times = {
                name: at_error(curve[kind], curve["rms"], level) for name, curve in curves.items()
            }
            for name, values in times.items():
                ratio = None
                if name != OURS and np.isfinite([*values, *times[OURS]]).all():
                    ratio = np.median(values) / np.median(times[OURS])
                metric_, to = f"{metric} {level:g}", None if ratio is None else OURS
                yield spread("inference", case, name, metric_, "ms a person", values, to, ratio)
        for name, curve in curves.items():
            largest = at_error(curve["largest"], curve["rms"], level)
            yield spread("inference", case, name, f"largest error at rms {level:g}", "", largest)


def at_error(values: np.ndarray, errors: np.ndarray, level: float) -> np.ndarray:
    """Interpolates values where errors (R, P) fall to a level, on logarithmic scales, (R,).

    A first error at or below the level gives the first value: a time is then at least that of the
    level. All are infinite where an error never falls to the level, so that medians are of all
    repetitions or of none.
    """
    reached = []
    for value, error in zip(values, errors, strict=True):
        below = np.flatnonzero(error <= level)
        if len(below) == 0:
            return np.full(len(values), np.inf)
        last = below[0]
        if last == 0:
            reached.append(value[0])
            continue
        (v0, v1), (e0, e1) = np.log(value[last - 1 : last + 1]), np.log(error[last - 1 : last + 1])
        reached.append(np.exp(v0 + (v1 - v0) * (e0 - np.log(level)) / (e0 - e1)))
    return np.array(reached)


def _figure_path(args: argparse.Namespace) -> Path | None:
    """Returns where the figure goes: as told, or beside the rows under a name of its own."""
    if args.figure is not None or args.json is None:
        return args.figure
    return args.json.with_name(f"{args.json.stem}_rivals.png")
