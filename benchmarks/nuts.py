"""Corrected posteriors against NUTS: K = 8, bilinear utility, ten known choices, fifty people.

About a minute a person; `--people 20` takes the first twenty, `--cache` keeps their chains.

People are simulated from a fitted model whose guide was refined. Their chains have to converge
(R-hat below 1.01 for utilities, margins and log-densities); those of people who have not are
counted, and their figures are part of the table. How fast rivals are is the question of
`python -m benchmarks inference`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import numpy as np

from benchmarks.calibration import fitted, simulate
from benchmarks.harness import Row, spread
from fssa_bayes import Posterior, exact
from fssa_bayes.checks import simulate_people


def run(args: argparse.Namespace) -> Iterator[Row]:
    people, steps = (2, 8) if args.quick else (args.people or 50, 400)
    seed = args.seeds[0]
    _, data = simulate("bilinear", 8, 200 if args.quick else 2000, seed)
    model, guide = fitted(data, "bilinear", 8, seed, args.quick)
    simulated = simulate_people(model, data, 10, 2 if args.quick else 50, seed=seed)
    first = np.arange(people)
    context, target = simulated.context.subset(first), simulated.target.subset(first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gold = exact.nuts(
            model,
            context,
            num_samples=steps,
            warmup_steps=steps,
            seed=seed,
            processes=1 if args.quick else None,
            cache=args.cache,
        )
        ours = Posterior(model, guide, context, 4000, seed=seed)
        raw = Posterior(model, guide, context, 4000, seed=seed, correct=None)
    theirs = Posterior.from_draws(model, context, gold)
    case = f"{people} people, K = 8"
    converged = 100 * gold.converged.double().mean().item()
    yield spread("nuts", case, "NUTS", "converged, R-hat < 1.01", "%", [converged])
    items = data.items[:8]
    exact_sd = theirs.utility(items).diff(dim=-1).std(0)
    for name, posterior in (("corrected", ours), ("guide", raw)):
        off = posterior.choice_prob(target).mean - theirs.choice_prob(target).mean
        rms = off.square().mean(-1).sqrt().numpy()
        yield spread("nuts", case, name, "probabilities, rms off, people", "", rms)
        whole = np.sqrt(np.mean(rms**2))
        yield spread("nuts", case, name, "probabilities, rms off, all", "", [whole])
        ratio = posterior.utility(items).diff(dim=-1).std(0) / exact_sd
        people_ratio = ratio.median(-1).values.numpy()
        yield spread("nuts", case, name, "ratio of sds of differences", "", people_ratio)
