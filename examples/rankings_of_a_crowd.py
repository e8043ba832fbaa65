"""A crowd ranks ten items: what do a few pairs say of a person who did not?

Rankings of most people are fitted by Plackett–Luce, one event each. Of the others 0, 1, 2, 3, 5, 10
and 20 pairs of items are known, taken at random from their ranking, and all other pairs predicted.
The number of dimensions in which people differ is chosen on people left out: `--latent-dim auto`.
Pairs of one ranking depend on each other beyond tastes, so that intervals of such a person are a
little too narrow; a page that asks pairs one by one has no such fault.

What to see: by how much the log score of a pair gains on utilities that are the same for everybody,
± its standard error over people; the figure shows it. Without `--data` a crowd is simulated whose
tastes differ in three dimensions.

    python examples/rankings_of_a_crowd.py
    python examples/rankings_of_a_crowd.py --data rankings.csv --ranks tea,cola,milk,juice
    python examples/rankings_of_a_crowd.py --data rankings.csv --orderings first,second,third

A file has one row a person. `--ranks` names columns, one for each item, that hold the item's rank;
`--orderings` names columns that hold the first item, the second and so on. A minute for the
simulated crowd; about as much for each thousand people with rankings of ten items.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from arguments import Parser, real, run, whole

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences, fit
from fssa_bayes.checks import compare_by_context, score_by_context
from fssa_bayes.comparison import choose_latent_dim

NAMES = ("shrimp", "eel", "tuna", "squid", "urchin", "roe", "egg", "belly", "maki", "cucumber")
SIZES = (0, 1, 2, 3, 5, 10, 20)
WIDTHS = (0, 1, 2, 3, 4, 6, 8, 12)


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    table, columns = read(args) if args.data else simulate(args.people, args.seed)
    train, test = split(table, args)
    data = Preferences.from_rankings(train, **columns)
    print(f"{data.summary()}\n", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pairs of a ranking, and few people.
        pairs = Preferences.from_rankings(test, **columns, method="pairs")
        width = choose(data, args) if args.latent_dim == "auto" else int(args.latent_dim)
        predictors = {
            name: predictor(data, own, args)
            for name, own in (("everybody alike", 0), (f"{width} dimensions", width))
            if own or name == "everybody alike"
        }
        scores = score_by_context(predictors, pairs, args.sizes, seed=args.seed)
    gains = compare_by_context(scores, "everybody alike")
    print("Unseen pairs of people whose rankings took no part: log score in nats a pair,")
    print("gain over everybody alike ± its standard error over people\n")
    shown = ["people", "log_score", "accuracy", "gain", "standard_error"]
    print(gains[shown].round(4).to_string())
    args.out.mkdir(parents=True, exist_ok=True)
    gains.to_csv(args.out / "rankings_of_a_crowd.csv")
    if width:
        plot(gains.xs(f"{width} dimensions", level="predictor"), width, args.out)


def simulate(people: int, seed: int) -> tuple[pd.DataFrame, dict[str, object]]:
    """Draws full rankings of ten items by people whose utilities differ in three directions."""
    rng = np.random.default_rng(seed)
    mean, loading = rng.normal(size=10), rng.normal(size=(10, 3))
    utility = mean + rng.normal(size=(people, 3)) @ loading.T + rng.gumbel(size=(people, 10))
    order = np.argsort(-utility, axis=1)
    places = [f"place {number}" for number in range(1, 11)]
    return pd.DataFrame(np.array(NAMES)[order], columns=places), {"orderings": places}


def read(args: argparse.Namespace) -> tuple[pd.DataFrame, dict[str, object]]:
    """Reads a file with one row a person."""
    if (args.ranks is None) == (args.orderings is None):
        raise ValueError("--data needs either --ranks or --orderings, the columns of the rankings")
    kind = "ranks" if args.ranks else "orderings"
    columns = (args.ranks or args.orderings).split(",")
    table = pd.read_csv(args.data, sep=None, engine="python")
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"--{kind} names {missing[0]!r}, which is no column of {str(args.data)!r}")
    return table[columns], {kind: columns}


def split(table: pd.DataFrame, args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Deals people into those whose rankings are fitted and the others."""
    order = np.random.default_rng(args.seed).permutation(len(table))
    number = round(len(table) * args.left_out)
    if not 2 <= number <= len(table) - 10:
        raise ValueError(
            f"--left-out={args.left_out:g} of {len(table)} people must leave 10 to be fitted and 2 "
            "to be predicted"
        )
    return table.iloc[order[number:]], table.iloc[order[:number]]


def build(data: Preferences, width: int, seed: int) -> HeterogeneousBTL:
    return HeterogeneousBTL.for_data(data, width, utility="linear", seed=seed)


def choose(data: Preferences, args: argparse.Namespace) -> int:
    """Chooses the number of dimensions on people left out."""
    most = data.num_items - 1  # Utilities count up to a constant.
    widths = sorted({width for width in WIDTHS if width < most} | {most})
    choice = choose_latent_dim(
        data,
        widths,
        build=lambda width: (build(data, width, args.seed), None),
        seed=args.seed,
        num_samples=args.draws,
        fit_options={"progress_bar": False},
    )
    columns = ["elpd", "dse", "elpd_diff", "per_unit"]
    print(choice.choosing[[c for c in columns if c in choice.choosing]].round(2).to_string())
    print(f"\n{choice}\n", flush=True)
    return choice.latent_dim


def predictor(
    data: Preferences, width: int, args: argparse.Namespace
) -> Callable[[Preferences], Posterior]:
    """Fits the population; returns what predicts from known pairs."""
    model = fit(build(data, width, args.seed), None, data, seed=args.seed, progress_bar=False).model
    return lambda context: Posterior(model, None, context, args.draws, seed=args.seed)


def plot(gains: pd.DataFrame, width: int, folder: Path) -> None:
    """Draws gains by the number of known pairs, ± 2 standard errors."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    place = np.arange(len(gains))
    error = 2 * gains["standard_error"]
    ax.errorbar(place, gains["gain"], error, marker="o", color="black", capsize=3, lw=1)
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.set_xticks(place, gains.index)
    ax.set_xlabel("known pairs")
    ax.set_ylabel("gain over everybody alike,\nnats a pair, ± 2 SE")
    people = int(gains["people"].max())
    ax.set_title(f"{people:,} people who were not fitted, {width} dimensions", fontsize=10)
    figure.savefig(folder / "rankings_of_a_crowd.png", dpi=110)
    plt.close(figure)


def number_of_dimensions(text: str) -> str:
    """Reads `auto` or a number from 0 up."""
    return text if text == "auto" else str(whole(0)(text))


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, help="file of rankings; simulated if absent")
    parser.add_argument("--ranks", metavar="COLUMNS", help="of a file: an item each, with its rank")
    parser.add_argument("--orderings", metavar="COLUMNS", help="of a file: first item, second, …")
    parser.add_argument("--latent-dim", type=number_of_dimensions, default="auto")
    parser.add_argument("--people", type=whole(15), default=600, help="that are simulated")
    parser.add_argument("--left-out", type=real(0.0, 1.0), default=0.25, help="share of the people")
    parser.add_argument("--draws", type=whole(25), default=400, help="posterior draws a person")
    parser.add_argument("--sizes", type=whole(0), nargs="+", default=SIZES, help="known pairs")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
