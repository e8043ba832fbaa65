"""In how many dimensions do people differ, as far as the data can tell?

A model with K latent dimensions lets the coefficients of people differ in a K-dimensional space.
Three answers, by data of a known number of dimensions or by the train-choice data:

1. the log score of people left out, by K: it rises until K is large enough and not beyond;
2. the gain of each dimension over the one before, with its standard error over people;
3. the eigenvalues of the coefficients' covariance ΛΛᵀ, in units of standardised features: for the
   largest K, where those of dimensions that are not there are small, and for the K that is shown,
   with intervals from the sandwich covariance on the log scale.

What to see: in the simulated default, of rank 2, the score rises to K = 2 and then stays; two
eigenvalues stand out. A gain that is not shown is not shown to be nothing: more people may show it.
`fssa_bayes.comparison.choose_latent_dim` chooses K on some people and judges the choice by others.

    python examples/rank_of_heterogeneity.py
    python examples/rank_of_heterogeneity.py --data train_choice.csv.gz

Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole
from scipy.stats import norm

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.comparison import Elpd, leave_users_out
from fssa_bayes.datasets import train_choice

NUM_DRAWS = 200  # Of the population's parameters, for the intervals.


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    warnings.filterwarnings("ignore", message="the standard error of the log")
    # Dimensions that are not there: their eigenvalues tell.
    warnings.filterwarnings("ignore", message="the information on the population is not positive")
    data, truth = simulated(args) if args.data is None else (train_choice.read(args.data), None)
    print(data.summary())
    most = data.num_features if args.most is None else args.most
    if most > data.num_features:
        raise ValueError(f"--most must be at most {data.num_features}, as features are, got {most}")
    options = {
        "objective": [ImportanceWeightedELBO(16), Sleep()],
        "steps": args.steps,
        "batch_size": 64,
        "validation": None,
    }

    def build(latent_dim: int) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
        model = HeterogeneousBTL(data.num_features, latent_dim, utility="linear")
        return model, NeuralProcessGuide(model, "multivariate_normal") if latent_dim else None

    scores = {
        width: leave_users_out(
            functools.partial(build, width),
            data,
            args.folds,
            seed=args.seed,
            num_samples=args.draws,
            fit_options=options,
        )
        for width in range(most + 1)
    }
    gains = increments(scores)
    print(f"\n## All choices of people left out, {args.folds} folds (log score, nats)\n")
    show(gains)
    print(f"\n{conclusion(gains)}")

    shown = supported(gains)
    spectra = spectrum_table(build, data, most, shown, args)
    if truth is not None:
        spectra["truth"] = truth[:most]
    print("\n## Eigenvalues of ΛΛᵀ, all people; 90 % intervals for the K that is shown\n")
    show(spectra, 3)
    path = args.out / "rank_of_heterogeneity.png"
    plot(gains, spectra, path)
    print(f"\n{time.perf_counter() - start:.0f} s, seed {args.seed}; figure in {path}")


def spectrum_table(
    build: Callable[[int], tuple], data: Preferences, most: int, shown: int, args
) -> pd.DataFrame:
    """Returns the eigenvalues for the largest K and for the one shown, with intervals for that."""
    stages = [  # Variances are estimated here, and fewer particles make them too small.
        ImportanceWeightedELBO(16, steps=args.steps),
        Sleep(steps=args.steps),
        ImportanceWeightedELBO(64, steps=2 * args.steps, batch_size=128),
    ]
    table = pd.DataFrame(index=pd.RangeIndex(1, most + 1, name="dimension"))
    for width in dict.fromkeys([most, shown]):
        if width == 0:
            continue
        torch.manual_seed(args.seed)
        model, guide = build(width)
        options = {"objective": stages, "validation": None, "progress_bar": False}
        result = fit(model, guide, data, seed=args.seed, **options)
        spectrum = pd.Series(eigenvalues(model), index=table.index[:width])
        table[f"K = {width}"] = spectrum
        if width == shown:
            draws = result.population_draws(NUM_DRAWS, seed=args.seed)
            sampled = np.log([eigenvalues(member) for member, _ in draws.members])
            factor = np.exp(norm.ppf(0.95) * sampled.std(0, ddof=1))
            table["5 %"], table["95 %"] = spectrum / factor, spectrum * factor
    return table


def simulated(args: argparse.Namespace) -> tuple[Preferences, np.ndarray]:
    """Draws people whose coefficients differ in `--rank` dimensions, each half the one before."""
    rng = np.random.default_rng(args.seed)
    num_items, num_features = 60, 5
    left = rng.integers(num_items, size=args.people * args.comparisons)
    right = (left + rng.integers(1, num_items, size=len(left))) % num_items
    items = rng.normal(size=(num_items, num_features))
    items = (items - items.mean(0)) / items.std(0)
    offsets = np.arange(0, len(left) + 1, args.comparisons)
    asked = Preferences(left, right, np.zeros(len(left)), offsets, items=items)
    basis, _ = np.linalg.qr(rng.normal(size=(num_features, args.rank)))
    variance = 2.0 * 0.5 ** np.arange(args.rank)
    people = HeterogeneousBTL(num_features, args.rank, utility="linear")
    with torch.no_grad():
        people.utility.mean.copy_(torch.linspace(-0.5, 0.5, num_features))
        people.utility.loading.copy_(torch.from_numpy(basis * np.sqrt(variance)))
    truth = np.zeros(num_features)
    truth[: args.rank] = variance
    return people.simulate(asked, seed=args.seed)[0], truth


def eigenvalues(model: HeterogeneousBTL) -> np.ndarray:
    """Eigenvalues of ΛΛᵀ in units of standardised features, the largest first."""
    loading = model.utility.loading.detach().double()
    return torch.linalg.svdvals(loading).square().numpy()


def increments(scores: dict[int, Elpd]) -> pd.DataFrame:
    """Compares each number of dimensions with the one before, person by person."""
    rows = {}
    for width, score in scores.items():
        before = scores.get(width - 1, score)
        difference = score.by_person - before.by_person
        rows[width] = {
            "log score": score.total,
            "its standard error": score.standard_error,
            "gain over one fewer": difference.sum() if width else np.nan,
            "standard error": difference.std(ddof=1) * len(difference) ** 0.5 if width else np.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("K")


def supported(gains: pd.DataFrame) -> int:
    """Counts the first dimensions that gain more than two standard errors each."""
    gains = gains.iloc[1:]
    return int((gains["gain over one fewer"] > 2 * gains["standard error"]).cumprod().sum())


def conclusion(gains: pd.DataFrame) -> str:
    """Says how many dimensions the data support."""
    shown = supported(gains)
    beyond = gains.index[gains.index > shown]
    if not len(beyond):
        return f"All {shown} dimensions are shown: each gains more than two standard errors."
    row = gains.loc[beyond[0]]
    return (
        f"{shown} dimensions are shown, each gaining more than two standard errors; dimension "
        f"{beyond[0]} is not: {row['gain over one fewer']:+.1f} ± {row['standard error']:.1f} nats."
    )


def plot(gains: pd.DataFrame, spectra: pd.DataFrame, path: Path) -> None:
    """Draws what each dimension gains, and the eigenvalues."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    rows = gains.iloc[1:]
    error = 2 * rows["standard error"]
    left.errorbar(rows.index, rows["gain over one fewer"], error, fmt="o", color="black", capsize=3)
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set_yscale("symlog", linthresh=10)
    ticks = (-10, 0, 10, 100, 1000)
    left.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    left.set_xticks(rows.index)
    left.set_xlabel("latent dimensions K")
    left.set_ylabel("gain over K − 1 in the log score of\npeople left out, nats, ± 2 SE")
    for name, marker in zip([name for name in spectra if name[0] == "K"], "so", strict=False):
        style = {"color": "black", "mfc": "none", "clip_on": False}
        right.plot(spectra.index, spectra[name], marker, label=name, **style)
    if "5 %" in spectra:
        right.vlines(spectra.index, spectra["5 %"], spectra["95 %"], color="black")
    if "truth" in spectra:
        right.plot(spectra.index, spectra["truth"], "kx", label="truth", clip_on=False)
    right.set_xticks(spectra.index)
    right.set_xlabel("dimension")
    right.set_ylabel("eigenvalue of ΛΛᵀ, 90 % interval")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(frame: pd.DataFrame, digits: int = 1) -> None:
    print(frame.reset_index().round(digits).to_string(index=False, na_rep="–"), flush=True)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, help="train-choice csv file; simulated if absent")
    parser.add_argument(
        "--rank", type=whole(1, 5), default=2, help="dimensions of simulated people"
    )
    parser.add_argument("--people", type=whole(10), default=400, help="simulated people")
    parser.add_argument("--comparisons", type=whole(), default=15, help="of each simulated person")
    parser.add_argument("--most", type=whole(), help="largest K; the number of features if absent")
    parser.add_argument(
        "--folds", type=whole(2), default=3, help="folds that people are dealt into"
    )
    parser.add_argument("--steps", type=whole(), default=250, help="steps of each stage of a fit")
    parser.add_argument("--draws", type=whole(25), default=500, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
