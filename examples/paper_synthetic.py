"""How do the field's reward models compare on people of two types, after 0 to 10 known choices?

The synthetic experiment of the paper (`fssa_bayes.datasets.two_mode`): two types of people who
agree on half of all pairs. Four models predict unseen choices of people whom none of them has seen:

    BTL         one utility for everybody
    DPL         one distribution of utilities for everybody (distributional preference learning)
    published   a neural process trained by the published signal, at one point z a context
    ours        `HeterogeneousBTL` with `NeuralProcessGuide`: maximum marginal likelihood, `Sleep`,
                importance-corrected draws

Context and target never overlap, and every model is scored on the same people and pairs. Beside
them stands the Bayes limit, which knows the problem.

What to see: BTL and DPL cannot use a context and stay at 75 %. The published signal finds the
type, so its accuracy follows the limit, but its probabilities do not: a point z is as sure of an
undecided person as of a decided one, which costs log-loss and calibration (ECE). Ours follows the
limit in all three. The bands are one standard error by person, for the ECE its 95 % interval.
About a minute on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable

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
from fssa_bayes.baselines import DeterministicNeuralProcess, DistributionalBTL, HomogeneousBTL
from fssa_bayes.datasets import two_mode
from fssa_bayes.diagnostics import expected_calibration_error

CONTEXTS = (0, 1, 3, 5, 10)
TARGETS = 5  # Unseen choices of a person.


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    # Two processes of one thread: networks this small do not gain from a second thread.
    with multiprocessing.get_context("spawn").Pool(
        min(2, os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = [(name, args) for name in METHODS]
        tables = pool.starmap(fit_and_score, jobs, 1)
        pool.close()
        pool.join()
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(args.out / "paper_synthetic.csv", index=False)
    print_table(table)
    print(
        f"\n{args.test_users:,} people that no model has seen, {TARGETS} unseen choices each; ± is "
        "the standard error\nby person; log-loss in nats per choice; 'above' is the log-loss above "
        "that of the Bayes\npredictor on the same pairs; ECE with its 95 % interval."
    )
    draw_figure(table, args)
    print(f"figure: {args.out / 'paper_synthetic.png'}  total {time.perf_counter() - start:.0f} s")


def fit_and_score(name: str, args: argparse.Namespace) -> pd.DataFrame:
    """Fits a model and scores it at every number of known choices."""
    start = time.process_time()
    train = two_mode.simulate(args.users, 20, seed=args.seed).data
    predict = METHODS[name](train, args)
    seconds = time.process_time() - start
    rows = [score(name, predict, count, args) for count in CONTEXTS]
    return pd.DataFrame(rows).assign(fit_seconds=seconds)


# The models.


def fit_btl(train: Preferences, args: argparse.Namespace) -> Callable:
    model = HomogeneousBTL("mlp", hidden_dim=32)
    return model.fit(_some(train), seed=args.seed, progress_bar=False).predict


def fit_dpl(train: Preferences, args: argparse.Namespace) -> Callable:
    model = DistributionalBTL(hidden_dim=32)
    return model.fit(_some(train), seed=args.seed, progress_bar=False).predict


def fit_published(train: Preferences, args: argparse.Namespace) -> Callable:
    model = DeterministicNeuralProcess(steps=args.steps)
    return model.fit(train, seed=args.seed, progress_bar=False).predict


def fit_ours(train: Preferences, args: argparse.Namespace) -> Callable:
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(train.num_features, latent_dim=2)
    guide = NeuralProcessGuide(model)
    stages = [ImportanceWeightedELBO(steps=args.steps), Sleep(steps=max(1, args.steps // 2))]
    fit(
        model,
        guide,
        train,
        objective=stages,
        learning_rate=5e-3,
        validation=None,  # The people are many and simulated: there is nothing to overfit.
        seed=args.seed,
        progress_bar=False,
    )
    return lambda context: Posterior(model, guide, context, args.draws, seed=args.seed)


def _some(train: Preferences) -> Preferences:
    """Returns the first 1,000 people, enough where everybody is the same person."""
    return train.subset(range(min(len(train), 1000)))


METHODS: dict[str, Callable] = {  # The slowest first, so that two processes end together.
    "ours": fit_ours,
    "published": fit_published,
    "BTL": fit_btl,
    "DPL": fit_dpl,
}


# Scores.


def score(name: str, predict: Callable, count: int, args: argparse.Namespace) -> dict:
    """Scores predictions of people with `count` known choices."""
    test = two_mode.simulate(args.test_users, count + TARGETS, seed=args.seed + 1_000_000).data
    context, target = test.split_context(count, seed=args.seed)
    posterior = predict(context)
    prob, batch = posterior.choice_prob(target).mean, target.batch()
    rows = two_mode.compare_with_bayes(prob.flatten().numpy(), context, target)
    log_loss = -posterior.log_score(target).numpy()
    error = expected_calibration_error(prob, batch.choice, mask=batch.mask, seed=args.seed)
    values = {
        "accuracy": 100 * rows["accuracy"],
        "log_loss": log_loss,
        "above": log_loss - rows["bayes_log_loss"],
    }
    row = {"model": name, "contexts": count}
    for key, by_person in values.items():
        row |= {key: by_person.mean(), f"{key}_se": by_person.std(ddof=1) / len(by_person) ** 0.5}
    return row | {"ece": error.value, "ece_lower": error.lower, "ece_upper": error.upper}


def print_table(table: pd.DataFrame) -> None:
    print(f"{'model':<11}{'contexts':>8}{'accuracy %':>16}{'log-loss':>19}{'above':>19}{'ECE':>24}")
    for name, rows in table.groupby("model", sort=False):
        print(f"\n{name}  (fitted in {rows['fit_seconds'].iloc[0]:.0f} s of CPU)")
        for row in rows.itertuples():
            ece = f"{row.ece:.3f} [{row.ece_lower:.3f}, {row.ece_upper:.3f}]"
            print(
                f"{row.contexts:>19}{f'{row.accuracy:.2f} ± {row.accuracy_se:.2f}':>16}"
                f"{f'{row.log_loss:.4f} ± {row.log_loss_se:.4f}':>19}"
                f"{f'{row.above:.4f} ± {row.above_se:.4f}':>19}{ece:>24}"
            )
    print("\nBayes limit, expected")
    for count in CONTEXTS:
        accuracy, loss = two_mode.bayes_accuracy(count), two_mode.bayes_log_loss(count)
        print(f"{count:>19}{100 * accuracy:>16.2f}{loss:>19.4f}")


def draw_figure(table: pd.DataFrame, args: argparse.Namespace) -> None:
    """Draws accuracy, log-loss and ECE against the number of known choices."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.3))
    styles = zip(METHODS, "osv^", ("-", "--", "-.", ":"), strict=True)
    for number, (name, marker, line) in enumerate(styles):
        rows = table[table["model"] == name]
        bands = {
            key: (rows[key] - rows[f"{key}_se"], rows[key] + rows[f"{key}_se"])
            for key in ("accuracy", "log_loss")
        }
        bands["ece"] = rows["ece_lower"], rows["ece_upper"]
        for ax, (column, (lower, upper)) in zip(axes, bands.items(), strict=True):
            color = f"C{number}"
            ax.plot(
                rows["contexts"], rows[column], line, marker=marker, ms=4, color=color, label=name
            )
            ax.fill_between(rows["contexts"], lower, upper, color=color, alpha=0.25, lw=0)
    fine = np.arange(max(CONTEXTS) + 1)
    limits = (
        [100 * two_mode.bayes_accuracy(count) for count in fine],
        [two_mode.bayes_log_loss(count) for count in fine],
        np.zeros(len(fine)),
    )
    for ax, limit in zip(axes, limits, strict=True):
        ax.plot(fine, limit, "k", lw=1, label="Bayes limit")
    labels = ("accuracy, %", "log-loss, nats a choice", "expected calibration error")
    for ax, label in zip(axes, labels, strict=True):
        ax.set_xlabel("known choices")
        ax.set_ylabel(label)
        ax.set_xticks(CONTEXTS)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(args.out / "paper_synthetic.png", dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--users", type=whole(10), default=10_000, help="training people")
    parser.add_argument(
        "--test-users", type=whole(10), default=3_000, help="fresh people to predict"
    )
    parser.add_argument("--steps", type=whole(), default=600, help="steps of a neural process")
    parser.add_argument("--draws", type=whole(25), default=500, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
