"""Can these posteriors be believed? The whole study on people whose truth is known.

Simulates people from a known model, fits a model and its guide to their choices, refines the guide,
and diagnoses the posteriors of people held out. Two tables follow the report. In the first, people
are simulated from the *fitted* model: there the corrected posterior must be calibrated, and
intervals must hold the truth as often as they say. In the second they come from the *truth*, so
that the error of the estimated population is part of it: coverage that falls short there is not a
fault of the inference, and shrinks with more people. The figure shows both.

    python examples/calibration_study.py --utility linear

Open `output/report.html` in a browser.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

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
STYLES = {"corrected": "black", "guide": "white"}  # Filled and open marks.


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
    studies = {}
    for title, source in (("the fitted model", None), ("the truth: estimation error too", truth)):
        studies[title] = calibrate(
            model,
            guide,
            test,
            sizes=sizes,
            num_users=args.study_users // 2,
            num_samples=args.draws,
            source=source,
            seed=args.seed + 1,
        )
        print(f"\nPeople simulated from {title}\n{coverage(studies[title]).to_string()}")
    draw_figure(studies, args.out / "calibration_study.png")
    print(f"\nThe page is {args.out / 'report.html'}, the figure calibration_study.png beside it")


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
    for posterior in study.pit:
        for level in LEVELS:
            columns[f"{posterior} {level:.0%}"] = [
                f"{mean:.1%} ± {one:.1%}"
                for mean, one in zip(*shares(study, posterior, level), strict=True)
            ]
    return pd.DataFrame(columns, index=pd.Index(study.sizes, name="known choices"))


def shares(study: CalibrationStudy, posterior: str, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts how often intervals of margins hold the truth, with standard errors, each (G,)."""
    margins = study.pit[posterior][..., : NUM_FIXED + NUM_OWN]
    inside = ((margins - 0.5).abs() < level / 2).double().mean(-1)
    return inside.mean(-1).numpy(), (inside.std(-1) / inside.shape[1] ** 0.5).numpy()


def draw_figure(studies: dict[str, CalibrationStudy], path: Path) -> None:
    """Draws coverage by number of known choices: a row a level, a column a source of people."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(LEVELS), 2, figsize=(8.4, 5.6), sharex=True, sharey="row", layout="constrained"
    )
    for column, (title, study) in zip(axes.T, studies.items(), strict=True):
        place = np.arange(len(study.sizes))
        column[0].set_title(f"people of {title}", fontsize=10)
        for ax, level in zip(column, LEVELS, strict=True):
            ax.axhline(100 * level, color="0.5", linestyle="--", linewidth=1)
            for shift, (posterior, fill) in zip((-0.1, 0.1), STYLES.items(), strict=True):
                mean, error = shares(study, posterior, level)
                style = {"color": "black", "mfc": fill, "markersize": 5, "capsize": 2}
                ax.errorbar(
                    place + shift, 100 * mean, 200 * error, fmt="o", label=posterior, **style
                )
        column[-1].set_xticks(place, study.sizes)
        column[-1].set_xlabel("known choices")
    for ax, level in zip(axes[:, 0], LEVELS, strict=True):
        ax.set_ylabel(f"{level:.0%} intervals that\nhold the truth, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    labels = [f"{label}, ± 2 SE" for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


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
