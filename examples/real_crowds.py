"""Is anyone's preference really personal? Two crowds are asked, and people left out are the judges.

- `llmfao.csv` (https://github.com/dustalov/llmfao): 124 people voted on answers of 59 language
  models, with ties;
- `ukp_comparisons.csv.gz` and `ukp_argument_embeddings.npz` (Habernal & Gurevych 2016): 3,815
  crowd workers said which of two arguments is the more convincing, or that both are; arguments are
  known by a sentence embedding of their text.

In folds over people, a homogeneous and a heterogeneous model, both with ties and a position bias,
are fitted to the other people and predict the unseen choices of those left out after 0, 1, 3, 5 and
10 of their choices. Then the homogeneous model is asked what about people it misses: how readily
they call a tie, their liking for a side, how often they go with the majority, or taste proper.

What to see: the gain of the heterogeneous model with its standard error over people. A gain that
grows with the number of known choices would be personal preference. The figure shows it. People may
differ without one: the second table says in what. For llmfao, whose utility is linear, tests by
likelihood ratio then ask whether people differ in how readily they call a tie and, beside that, in
their liking for a side or in how consistent they are, with utilities that are the same for
everybody. The models are ranked in Elo points, in sets that are not told apart from their best. The
position of an answer is a control there. Length and format are none: the file holds no texts.

    python examples/real_crowds.py --data DIR

Four minutes on two cores; with `--rounds 5` everybody is left out once. For one file of your own
see `analyse_csv.py`.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.checks import compare_by_context, predictive_checks, score_folds
from fssa_bayes.comparison import heterogeneity_test
from fssa_bayes.datasets import llmfao, ukp_convarg

SIZES = (0, 1, 3, 5, 10)
ANSWERS = ("ties", "position_bias", "scale")
HABITS = {
    "spread: ties": "how readily they call a tie",
    "spread: left": "liking for the left side",
    "spread: favourites": "how often they go with the majority",
    "spread: similar pairs": "taste: alike choices on alike pairs",
}


@dataclass(frozen=True)
class Crowd:
    """Tells how a crowd is read and modelled.

    Attributes:
        files: Names of its files.
        read: Reads it from the folder with the files.
        utility: The models' utility.
        rounds: Number of folds that are left out by default.
    """

    files: tuple[str, ...]
    read: Callable[[Path], Preferences]
    utility: str
    rounds: int


CROWDS = {
    "llmfao": Crowd((llmfao.FILE,), lambda folder: llmfao.read(folder / llmfao.FILE), "linear", 5),
    "ukp": Crowd(
        (ukp_convarg.FILE, ukp_convarg.EMBEDDINGS),
        lambda folder: ukp_convarg.read(folder / ukp_convarg.FILE, folder / ukp_convarg.EMBEDDINGS),
        "bilinear",
        2,
    ),
}


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    check(args)
    matplotlib.use("Agg")
    quiet()
    tasks = [
        (name, number)
        for name in reversed(args.crowds)  # The larger crowd first.
        for number in range(CROWDS[name].rounds if args.rounds is None else args.rounds)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=spawn, initializer=quiet) as pool:
        scores = list(pool.map(functools.partial(leave_out, args), *zip(*tasks, strict=True)))
    tables = {}
    for name in args.crowds:
        data = CROWDS[name].read(args.data)
        print(f"\n# {name}\n\n{data.summary()}\n", flush=True)
        of_crowd = [part for task, part in zip(tasks, scores, strict=True) if task[0] == name]
        whole = pd.concat(of_crowd)
        whole.to_csv(args.out / f"real_crowds_{name}.csv", index=False)
        tables[name] = compare_by_context(whole, "homogeneous")
        print_gains(tables[name], len(of_crowd), args.folds)
        print_habits(CROWDS[name], data, args)
        if CROWDS[name].utility == "linear":
            print_answers(data, args)
            print_ranking(data, args)
    path = args.out / "real_crowds.png"
    plot(tables, path)
    print(f"\n{time.perf_counter() - start:.0f} s, seed {args.seed}; figure in {path}")


def check(args: argparse.Namespace) -> None:
    """Refuses, before any fit, what would stop the last step."""
    for name in args.crowds:
        for file in CROWDS[name].files:
            if not (args.data / file).is_file():
                raise FileNotFoundError(f"--data must hold {file}, {str(args.data)!r} does not")


def quiet() -> None:
    """Sets up a process: one thread, and no warnings of what the text says anyway."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the largest context has")  # Heavy workers.
    warnings.filterwarnings("ignore", message="feature .* is the same for all items")


def leave_out(args: argparse.Namespace, name: str, number: int) -> pd.DataFrame:
    """Fits both models to all folds but one, and scores the people of that one."""
    crowd = CROWDS[name]

    def fitter(latent_dim: int, train: Preferences) -> Callable[[Preferences], Posterior]:
        model, guide = fit_model(crowd, train, latent_dim, args)
        return lambda context: Posterior(model, guide, context, args.draws, seed=args.seed)

    return score_folds(
        {
            "homogeneous": functools.partial(fitter, 0),
            "heterogeneous": functools.partial(fitter, 2),
        },
        crowd.read(args.data),
        SIZES,
        num_folds=args.folds,
        folds=[number],
        seed=args.seed,
    )


def fit_model(
    crowd: Crowd, train: Preferences, latent_dim: int, args: argparse.Namespace
) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
    """Fits a model with ties and a position bias; networks are stopped early by people held out."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(
        train.num_features, latent_dim, utility=crowd.utility, ties="davidson", position_bias=True
    )
    guide = NeuralProcessGuide(model) if latent_dim else None
    options = {}
    if latent_dim:
        options = {
            "objective": [ImportanceWeightedELBO(16), Sleep()],
            "steps": args.steps,
            "batch_size": int(np.clip(1500 / train.counts.mean(), 8, 64)),
            "refit": False,
        }
    validation = None if crowd.utility == "linear" else 0.1
    fit(model, guide, train, validation=validation, seed=args.seed, progress_bar=False, **options)
    return model, guide


def print_gains(gains: pd.DataFrame, rounds: int, folds: int) -> None:
    """Prints log scores by number of known choices, and says what the largest contexts show."""
    people = int(gains["people"].max())
    print(
        f"Unseen choices of {people} people left out ({rounds} of {folds} folds): log score in "
        "nats a choice,\ngain over the homogeneous model ± its standard error over people, ELPD "
        "difference over all choices:\n"
    )
    digits = {
        "log_score": 4,
        "accuracy": 3,
        "gain": 4,
        "standard_error": 4,
        "elpd_diff": 1,
        "dse": 1,
    }
    shown = gains.copy()
    shown.loc[gains.index.get_level_values("predictor") == "homogeneous", "gain":"dse"] = np.nan
    print(shown.reset_index().round(digits).to_string(index=False, na_rep="–"), flush=True)
    last = gains.xs("heterogeneous", level="predictor").iloc[-1]
    known, gain, error = last.name, last["gain"], last["standard_error"]
    if abs(gain) <= 2 * error:
        found = "is not told apart from"
    else:
        found = "predicts better than" if gain > 0 else "predicts worse than"
    print(
        f"\nAfter {known} known choices the heterogeneous model {found} the homogeneous one: "
        f"{gain:+.4f} ± {error:.4f} nats a choice ({int(last['people'])} people)."
    )


def print_habits(crowd: Crowd, data: Preferences, args: argparse.Namespace) -> None:
    """Prints in what respect people differ beyond a homogeneous model of all of them."""
    average, _ = fit_model(crowd, data, 0, args)
    checks = predictive_checks(average, data, args.replicates, seed=args.seed).loc[list(HABITS)]
    deviation = (checks["observed"] - checks["replicated"]) / checks["sd"]
    shown = pd.DataFrame(
        {
            "people differ in": [HABITS[name] for name in checks.index],
            "covariance": checks["observed"].map("{:+.4f}".format),
            "if all alike": checks["replicated"].map("{:+.4f}".format),
            "sd": checks["sd"].map("{:.4f}".format),
            "deviation": deviation.map("{:+.1f} sd".format),
            "verdict": checks["verdict"],
        }
    )
    parameters = {name: value.item() for name, value in average.answer_parameters().items()}
    print(
        "\nAverage covariance of two answers of one person, beyond a homogeneous model of all "
        f"{len(data):,} people\n(ν = {np.exp(parameters['log nu']):.2f}, position bias "
        f"{parameters['position bias']:+.3f} nats):\n"
    )
    print(shown.to_string(index=False), flush=True)


def build(data: Preferences, personal: tuple[str, ...]) -> HeterogeneousBTL:
    """Builds a model of people who differ in some of their answers, and in no taste."""
    return HeterogeneousBTL.for_data(
        data, 0, utility="linear", position_bias=True, personal=personal
    )


def print_answers(data: Preferences, args: argparse.Namespace) -> None:
    """Tests in which answers people differ; of others than ties, beside personal ties."""
    rows = {}
    for name in args.answers:
        options = {"progress_bar": False}
        test = heterogeneity_test(
            lambda name=name: (build(data, tuple(dict.fromkeys(("ties", name)))), None),
            data,
            of=name,
            seed=args.seed,
            num_samples=args.draws,
            fit_options=options,
        )
        rows[name] = {
            "log-likelihood": test.log_likelihood[1],
            "statistic": test.statistic,
            "±": test.statistic_error,
            "p": f"{test.p_value:.2g}",
            "verdict": test.verdict,
        }
    print("\nDo people differ in their answers? Likelihood-ratio tests against people alike:\n")
    print(pd.DataFrame(rows).T.rename_axis("answer").reset_index().to_string(index=False))


def print_ranking(data: Preferences, args: argparse.Namespace) -> None:
    """Prints the best items in Elo points, with position as a control."""
    result = fit(build(data, ()), None, data, seed=args.seed, progress_bar=False)
    table = result.ranking(scale="elo", sets=True, seed=args.seed)
    print("\nUtilities of the average person in Elo points, standard errors clustered by person:\n")
    print(table.head(10).round(1).to_string(), flush=True)


def plot(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Draws the gain of the heterogeneous model by number of known choices, ± 2 standard errors."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(4.2 * len(tables), 3.6),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for ax, (name, gains) in zip(axes[0], tables.items(), strict=True):
        rows = gains.xs("heterogeneous", level="predictor")
        place = np.arange(len(rows))
        error = 2 * rows["standard_error"]
        ax.errorbar(place, rows["gain"], error, fmt="o", color="black", capsize=3)
        ax.axhline(0, color="0.5", linewidth=0.8)
        labels = [f"{size}\n({int(count):,})" for size, count in rows["people"].items()]
        ax.set_xticks(place, labels)
        ax.set_xlim(-0.5, len(rows) - 0.5)
        ax.set_xlabel("known choices (people)")
        ax.set_title(name)
    axes[0, 0].set_ylabel("gain over the homogeneous model,\nnats a choice, ± 2 SE")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the files")
    parser.add_argument("--crowds", nargs="+", choices=tuple(CROWDS), default=tuple(CROWDS))
    parser.add_argument(
        "--folds", type=whole(2), default=5, help="folds that people are dealt into"
    )
    parser.add_argument("--rounds", type=whole(), help="folds that are left out; 5 and 2 if absent")
    parser.add_argument("--steps", type=whole(), default=150, help="steps of each stage of a fit")
    parser.add_argument("--draws", type=whole(25), default=300, help="posterior draws a person")
    parser.add_argument(
        "--replicates", type=whole(20), default=200, help="data sets simulated to check"
    )
    parser.add_argument(
        "--answers", nargs="+", choices=ANSWERS, default=ANSWERS, help="that are tested"
    )
    parser.add_argument("--processes", type=whole(), default=2, help="folds fitted at a time")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
