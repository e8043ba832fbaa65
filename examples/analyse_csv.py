"""What do these people prefer, how much do they differ, and how sure can we be?

The heart of `fssa-bayes analyse` in the library's own words: reads a file of paired comparisons,
fits a model of individual people and one of the average person, compares both on the unseen choices
of people left out, and ranks the items. The command does more: a page, tables, figures, a saved
model, and a run that goes on where it stopped.

What to see: whether a few choices of a person tell what the person chooses next, with the standard
error of the gain (either sign is a finding), and how far the ranking can be trusted; the
figure shows both.

    python examples/analyse_csv.py votes.csv --user worker --left a --right b --choice winner
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import (
    FitResult,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
    load,
    plots,
    save,
)
from fssa_bayes.datasets import table


def fit_average(data: Preferences, args: argparse.Namespace) -> FitResult:
    """Fits the homogeneous model: everybody is the average person."""
    model = HeterogeneousBTL(data.num_features, latent_dim=0, utility="linear")
    return fit(model, None, data, seed=args.seed)


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    columns = {name: getattr(args, name) for name in ("user", "left", "right", "choice")}
    data = table.read(args.path, **columns, ties="half").data
    print(data.summary())
    train, test = data.split_users(0.2, seed=args.seed)

    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(data.num_features, latent_dim=2, utility="linear")
    guide = NeuralProcessGuide(model)
    stages = [ImportanceWeightedELBO(16), Sleep()]
    fit(model, guide, train, objective=stages, steps=args.steps, seed=args.seed)
    save(args.out / "model", model, guide, overwrite=True)

    context, target = test.split_context(5, seed=args.seed)  # Five known choices of a person.
    known = Posterior(*load(args.out / "model"), context, seed=args.seed)
    average = Posterior(fit_average(train, args).model, None, context)
    gain = known.log_score(target) - average.log_score(target)
    error = gain.std() / len(gain) ** 0.5
    print(f"\nGain from 5 known choices: {gain.mean():+.4f} ± {error:.4f} nats a choice")
    print(f"People whose posterior is in doubt: {int((~known.reliable).sum())} of {len(context)}")

    print("\nThe average person's ranking, standard errors clustered by person")
    ranking = fit_average(data, args).ranking(seed=args.seed)
    print(ranking.head(10).round(3))
    draw_figure(gain.double().numpy(), ranking.head(20), args.out / "analyse_csv.png")


def draw_figure(gain: np.ndarray, leading: pd.DataFrame, path: Path) -> None:
    """Draws what known choices gain for each person, and the leading items with 90 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.4), layout="constrained")
    mean, error = gain.mean(), gain.std(ddof=1) / len(gain) ** 0.5
    left.axvspan(mean - 2 * error, mean + 2 * error, color="0.85", label="mean ± 2 SE")
    left.axvline(mean, color="black", linewidth=1)
    left.axvline(0, color="tab:red", linestyle="--", linewidth=1)
    place = np.arange(len(gain)) + 1
    left.plot(np.sort(gain), place, "o", color="0.4", markersize=4, label="a person left out")
    left.set_xlabel("gain from 5 known choices, nats a choice")
    left.set_ylabel("people, sorted")
    left.legend(loc="lower right", fontsize=8)
    ends = leading["lower"], leading["upper"]
    label = "utility to the average person (nats)"
    plots.ranking(leading["utility"], *ends, leading.index, label=label, ax=right)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("path", type=Path, help="csv, tsv or parquet file of comparisons")
    for name in ("user", "left", "right", "choice"):
        parser.add_argument(f"--{name}", required=True, metavar="COLUMN")
    parser.add_argument("--steps", type=whole(), default=600, help="steps of each stage of the fit")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
