"""Can these posteriors be believed? The whole study on people whose truth is known.

Simulates people from a known model, fits a model and its guide to their choices, refines the guide,
and diagnoses the posteriors of people held out. Two tables follow the report. In the first, people
are simulated from the *fitted* model: there the corrected posterior must be calibrated, and
intervals must hold the truth as often as they say. In the second they come from the *truth*, so
that the error of the estimated population is part of it: coverage that falls short there is not a
fault of the inference, and shrinks with more people.

    python examples/calibration_study.py --utility linear

Open `output/report.html` in a browser.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import torch
from arguments import Parser, real, run, whole

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.checks import LEVELS, CalibrationStudy, ask, calibrate, draw_model
from fssa_bayes.checks.simulation import NUM_FIXED, NUM_OWN
from fssa_bayes.report import diagnose

NUM_ITEMS, NUM_FEATURES = 60, 5


def main(args: argparse.Namespace) -> None:
    truth, people = simulate(args)
    train, test = people.split_users(0.2, seed=args.seed)
    model, guide = fitted(train, args)
    sizes = tuple(sorted(set(args.contexts)))
    report = diagnose(
        model,
        guide,
        test,
        args.out,
        train=train,
        budget=args.budget,
        sizes=sizes,
        num_users=args.study_users,
        num_samples=args.draws,
        seed=args.seed,
    )
    print("\n".join(report.summary), "\n")
    with pd.option_context("display.width", 200, "display.max_colwidth", 60):
        print(report.table.drop(columns="what to do").to_string(index=False))
    print("\nShare of 50 / 80 / 95 % intervals that hold the truth, ± the error of an exact one")
    for title, source in (("the fitted model", None), ("the truth: estimation error too", truth)):
        study = calibrate(
            model,
            guide,
            test,
            sizes=sizes,
            num_users=args.study_users // 2,
            num_samples=args.draws,
            source=source,
            seed=args.seed + 1,
        )
        print(f"\nPeople simulated from {title}\n{coverage(study).to_string()}")
    print(f"\nThe page is {args.out / 'report.html'}")


def simulate(args: argparse.Namespace) -> tuple[HeterogeneousBTL, Preferences]:
    """Draws people who differ by two nats, and their choices on random pairs."""
    rng = np.random.default_rng(args.seed)
    items = rng.normal(size=(NUM_ITEMS, NUM_FEATURES))
    pairs = ask(items, args.users, args.comparisons, rng)
    truth = draw_model(pairs.items, args.latent_dim, args.utility, seed=args.seed)
    return truth, truth.simulate(pairs, seed=args.seed)[0]


def fitted(
    train: Preferences, args: argparse.Namespace
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Fits model and guide, and refines the guide on people simulated from the fitted model."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(NUM_FEATURES, args.latent_dim, args.utility)
    guide = NeuralProcessGuide(model)
    stages = [ImportanceWeightedELBO(steps=args.steps), Sleep(16, steps=args.refine)]
    start = time.perf_counter()
    fit(model, guide, train, objective=stages, validation=None, seed=args.seed)
    print(f"fitted and refined in {time.perf_counter() - start:.0f} s")
    return model, guide


def coverage(study: CalibrationStudy) -> pd.DataFrame:
    """Tabulates coverage by number of known choices: all margins together, both posteriors."""
    columns = {}
    for posterior, pit in study.pit.items():
        margins = pit[..., : NUM_FIXED + NUM_OWN]
        for level in LEVELS:
            inside = ((margins - 0.5).abs() < level / 2).double().mean(-1)
            error = inside.std(-1) / inside.shape[1] ** 0.5
            columns[f"{posterior} {level:.0%}"] = [
                f"{mean:.1%} ± {one:.1%}"
                for mean, one in zip(inside.mean(-1).tolist(), error.tolist(), strict=True)
            ]
    return pd.DataFrame(columns, index=pd.Index(study.sizes, name="known choices"))


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--utility", choices=("linear", "bilinear", "mlp"), default="bilinear")
    parser.add_argument("--latent-dim", type=whole(), default=2)
    parser.add_argument(
        "--users", type=whole(50), default=2000, help="people, a fifth of them held out"
    )
    parser.add_argument("--comparisons", type=whole(), default=12, help="choices of each of them")
    parser.add_argument(
        "--contexts", type=whole(0), nargs="+", default=[0, 1, 2, 4, 8, 16], help="known choices"
    )
    parser.add_argument("--steps", type=whole(), default=600, help="steps of the fit")
    parser.add_argument(
        "--refine", type=whole(), default=1000, help="steps of the guide's refinement"
    )
    parser.add_argument(
        "--study-users", type=whole(200), default=2000, help="people simulated a size"
    )
    parser.add_argument("--draws", type=whole(100), default=1000, help="posterior draws a person")
    parser.add_argument("--budget", type=real(), default=200.0, help="seconds for the diagnosis")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
