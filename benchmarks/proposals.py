"""What a posterior costs and how far it is off: time, error of choice probabilities, worst person.

People are simulated from a model, so that its posteriors are exact but for the draws. With two
latent dimensions exact posteriors are those of a grid; with eight, those of 200,000 draws a person.
The second part asks whom the judgement of the weights misses: the largest error of a choice
probability among people whose first draws were called reliable, at six sizes of context.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    exact,
    fit,
)
from fssa_bayes.checks import ask, draw_model
from fssa_bayes.datasets import two_mode
from fssa_bayes.sampling import effective_sample_size

COMPARISONS = 10
SIZES = (0, 1, 2, 5, 10, 20)
# Points of a side of the grid. With networks 101 err by .36 where a person's posterior is narrow.
_GRID, _FINE_GRID = 101, 401
_PEOPLE = 10  # At once, of so many points.
_MANY, _TIMES = 25_000, 8  # Draws of the reference where a grid is too large, and repetitions.


@dataclass(frozen=True)
class Problem:
    """Holds a model, its guide, and items that new people are asked about."""

    name: str
    model: HeterogeneousBTL
    guide: NeuralProcessGuide
    items: Tensor

    def people(self, count: int, size: int, seed: int) -> Preferences:
        """Simulates people with as many choices each."""
        pairs = ask(self.items, count, size, np.random.default_rng([seed, size]))
        return self.model.simulate(pairs, seed=seed)[0]

    def target(self, count: int, seed: int) -> Preferences:
        """Asks people about 10 further pairs."""
        return ask(self.items, count, 10, np.random.default_rng([seed, 1_000]))


def run(args: argparse.Namespace) -> Iterator[Row]:
    problems = [linear(2, args.quick), linear(8, args.quick), bilinear(args.quick)]
    for problem in problems:
        yield from cost(problem, args)
    for problem in problems:
        if problem.model.latent_dim == 2:
            yield from judgement(problem, args)


def cost(problem: Problem, args: argparse.Namespace) -> Iterator[Row]:
    """Times posteriors of 1,000 people, and compares those of some with exact ones."""
    people, compared, draws = (30, 10, 200) if args.quick else (1000, 200, 1000)
    context, target = problem.people(people, COMPARISONS, 1), problem.target(people, 1)
    some = range(compared)
    gold = reference(problem, context.subset(some), target.subset(some), args.quick)
    Posterior(problem.model, problem.guide, context, draws)  # A warm-up.
    values = {name: [] for name in ("ms", "rms", "largest", "least", "low", "redrawn", "shared")}
    for seed in args.seeds:
        start = time.process_time()
        posterior = Posterior(problem.model, problem.guide, context, draws, seed=seed)
        values["ms"].append(1000 * (time.process_time() - start) / people)
        error = errors(posterior, target, gold)
        ess = effective_sample_size(posterior.proposals[1].double()) / draws
        values["rms"].append(np.sqrt(np.square(error).mean()))
        values["largest"].append(error.max())
        values["least"].append(ess.min().item())
        values["low"].append(ess.quantile(0.01).item())
        values["redrawn"].append(100 * (posterior.method == "more draws").mean())
        values["shared"].append(100 * (posterior.method == "prior").mean())
    case, method = f"{problem.name}, {COMPARISONS} known", f"Posterior, S = {draws}"
    for name, metric, unit in (
        ("ms", "CPU time a person", "ms"),
        ("rms", "rms error of choice prob.", ""),
        ("largest", "largest error of choice prob.", ""),
        ("least", "least ESS of a person", "of the draws"),
        ("low", "1 % quantile of ESS", "of the draws"),
        ("redrawn", "people with more draws", "%"),
        ("shared", "people who share draws", "%"),
    ):
        yield spread("proposals", case, method, metric, unit, values[name])


def judgement(problem: Problem, args: argparse.Namespace) -> Iterator[Row]:
    """Compares people called reliable, and the others, with a grid."""
    people, draws = (30, 200) if args.quick else (2000, 1000)
    for size in SIZES:
        context, target = problem.people(people, size, 2), problem.target(people, 2)
        gold = reference(problem, context, target, args.quick)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the largest context has")
            first, last = (
                Posterior(problem.model, problem.guide, context, draws, fallback=fallback)
                for fallback in (None, "draws")
            )
        before, after = (errors(p, target, gold) for p in (first, last))
        reliable = first.reliable.numpy()
        case, method = f"{problem.name}, {size} known", f"{people:,} people, S = {draws}"
        rows = [
            ("called unreliable", "people", (~reliable).sum()),
            ("of them, after more draws", "people", (~last.reliable).sum().item()),
            ("largest error, all at last", "", after.max()),
        ]
        for name, group in (("reliable", reliable), ("unreliable", ~reliable)):
            if group.any():
                rows.append((f"largest error, called {name}", "", before[group].max()))
                rms = np.sqrt(np.square(before[group]).mean())
                rows.append((f"rms error, called {name}", "", rms))
        for metric, unit, value in rows:
            yield spread("proposals", case, method, metric, unit, [value])


def errors(posterior: Posterior, target: Preferences, gold: np.ndarray) -> np.ndarray:
    """Returns absolute errors (u, N) of choice probabilities of the first people."""
    mean = posterior.choice_prob(target).mean.numpy()
    return np.abs(mean[: len(gold)] - gold)


def reference(
    problem: Problem, context: Preferences, target: Preferences, quick: bool
) -> np.ndarray:
    """Computes exact choice probabilities (U, N): on a grid, or from very many draws."""
    model = problem.model
    if model.latent_dim == 2:
        num = 51 if quick else _GRID if model.is_mixed_logit else _FINE_GRID
        parts = []
        for start in range(0, len(context), _PEOPLE):
            some = range(start, min(start + _PEOPLE, len(context)))
            gold = exact.grid(model, context.subset(some), num=num)
            with torch.no_grad():
                prob = model.choice(target.subset(some).batch(), gold.z).mean
            parts.append((gold.log_weights.exp().unsqueeze(-1) * prob).sum(0))
        return torch.cat(parts).numpy()
    total, times = 0.0, 1 if quick else _TIMES
    for seed in range(times):
        draws = 500 if quick else _MANY
        many = Posterior(model, problem.guide, context, draws, seed=seed + 100, fallback=None)
        total = total + many.choice_prob(target).mean.double()
    return (total / times).numpy()


def linear(latent_dim: int, quick: bool) -> Problem:
    """Draws a linear utility, and teaches its guide."""
    width = 5 if latent_dim == 2 else 10
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.normal(size=(200, width))).float()
    model = draw_model(items, latent_dim, "linear")
    torch.manual_seed(0)
    guide = NeuralProcessGuide(model, "multivariate_normal")
    data = model.simulate(ask(items, 100 if quick else 3000, 12, rng), seed=0)[0]
    teach(model, guide, data, [Sleep(steps=10 if quick else 400)])
    return Problem(f"linear, K = {latent_dim}", model, guide, items)


def bilinear(quick: bool) -> Problem:
    """Fits a bilinear utility to people of two modes."""
    data = two_mode.simulate(100 if quick else 3000, 20, seed=0).data
    torch.manual_seed(0)
    model = HeterogeneousBTL(data.num_features, 2)
    guide = NeuralProcessGuide(model, "flow")
    steps = 10 if quick else 400
    teach(model, guide, data, [ImportanceWeightedELBO(steps=steps), Sleep(steps=steps)])
    model.feature_names = None  # New people are asked about items by their features alone.
    return Problem("bilinear, K = 2", model, guide, data.items[:500])


def teach(
    model: HeterogeneousBTL, guide: NeuralProcessGuide, data: Preferences, stages: list
) -> None:
    """Fits everybody, without a progress bar."""
    options = {"learning_rate": 5e-3, "validation": None, "progress_bar": False}
    fit(model, guide, data, objective=stages, **options)
