"""What is conflict in a person's context worth?

Two types of people agree on some pairs and disagree on others (`fssa_bayes.datasets.conflict`). A
model is fitted to people asked random pairs, of which half divide the types; then new people are
asked 1, 3 or 10 questions, of which a fraction from 0 to 1 divides the types, and their answers to
dividing pairs that were not asked are predicted. Beside it stands what Bayes' rule allows.

What to see: questions on which everybody agrees teach nothing about a person, however many there
are; one that divides settles the type. Ten questions of which a quarter divide are worth more than
three of which half do. Accuracy, log-loss and the entropy of what is predicted follow the limits,
so the posterior also knows what it does not know. About a minute and a half on two cores.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole
from scipy import stats

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Sleep,
    fit,
)
from fssa_bayes.datasets import conflict, two_mode

CONTEXTS = (1, 3, 10)
FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
TARGETS = 5
METRICS = {
    "accuracy": "accuracy on dividing pairs",
    "log_loss": "log-loss, nats",
    "entropy": "entropy of the prediction, nats",
}


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    model, guide = fit_model(args)
    print(f"fitted to {args.users:,} people in {time.perf_counter() - start:.0f} s")
    rows = [
        row
        for count in CONTEXTS
        for fraction in FRACTIONS
        for row in summarise(score(model, guide, count, fraction, args), count, fraction)
    ]
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "conflict_study.csv", index=False)
    print_table(table)
    print(
        f"\n{args.test_users:,} people, {TARGETS} unseen dividing pairs each; ± is the standard "
        "error by person. The limits\nare expectations over people and questions. On a dividing "
        "pair the answer is the type, so\nthe limit of the entropy is that of the type."
    )
    draw_figure(table, args)
    print(f"figure: {args.out / 'conflict_study.png'}    {time.perf_counter() - start:.0f} s")


def fit_model(args: argparse.Namespace) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(args.seed)
    train = two_mode.simulate(args.users, 20, seed=args.seed).data
    model = HeterogeneousBTL(train.num_features, latent_dim=2)
    guide = NeuralProcessGuide(model)
    fit(
        model,
        guide,
        train,
        objective=[ImportanceWeightedELBO(steps=args.steps), Sleep(steps=max(1, args.steps // 2))],
        learning_rate=5e-3,
        validation=None,  # The people are many and simulated: there is nothing to overfit.
        seed=args.seed,
    )
    return model, guide


def score(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    num_context: int,
    fraction: float,
    args: argparse.Namespace,
) -> dict[str, np.ndarray]:
    """Scores predictions on dividing pairs; every entry has shape (U,), one value a person."""
    context, person_type = conflict.simulate(
        args.test_users, num_context, fraction, seed=args.seed + 1_000_000
    )
    target = conflict.simulate(
        args.test_users, TARGETS, 1.0, type=person_type, seed=args.seed + 2_000_000
    ).data
    posterior = Posterior(model, guide, context, num_samples=args.draws, seed=args.seed)
    prob = posterior.choice_prob(target).mean.double().numpy()
    right = (prob > 0.5) == (target.choice.reshape(prob.shape) > 0.5)
    return {
        "accuracy": right.mean(1),
        "log_loss": -posterior.log_score(target).double().numpy(),
        "entropy": stats.bernoulli.entropy(np.clip(prob, 0, 1)).mean(1),
    }


def summarise(
    scores: dict[str, np.ndarray], num_context: int, fraction: float
) -> list[dict[str, object]]:
    """Averages over people, with standard errors, beside the limits."""
    limits = {
        "accuracy": conflict.bayes_accuracy(num_context, fraction, target_fraction=1.0),
        "log_loss": conflict.bayes_log_loss(num_context, fraction, target_fraction=1.0),
        "entropy": conflict.bayes_type_entropy(num_context, fraction),
    }
    return [
        {
            "contexts": num_context,
            "fraction": fraction,
            "metric": metric,
            "value": values.mean(),
            "standard_error": values.std(ddof=1) / np.sqrt(len(values)),
            "limit": limits[metric],
        }
        for metric, values in scores.items()
    ]


def print_table(table: pd.DataFrame) -> None:
    for count, part in table.groupby("contexts"):
        print(f"\n{count} known choice{'s' if count > 1 else ''}")
        print(f"{'dividing':>9}" + "".join(f"{name:>26}" for name in METRICS))
        for fraction, row in part.groupby("fraction"):
            cells = (
                f"{r.value:.3f} ± {r.standard_error:.3f} ({r.limit:.3f})" for r in row.itertuples()
            )
            print(f"{100 * fraction:>7.0f} %" + "".join(f"{cell:>26}" for cell in cells))
    print("in brackets: Bayes")


def draw_figure(table: pd.DataFrame, args: argparse.Namespace) -> None:
    """Draws the three scores against the fraction, the limits as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    limits = {
        "accuracy": lambda n, f: conflict.bayes_accuracy(n, f, target_fraction=1.0),
        "log_loss": lambda n, f: conflict.bayes_log_loss(n, f, target_fraction=1.0),
        "entropy": conflict.bayes_type_entropy,
    }
    grid = np.linspace(0, 1, 101)
    styles = zip(CONTEXTS, ("C0", "C1", "C2"), ("o", "s", "^"), ("-", "--", ":"), strict=True)
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.4))
    for count, colour, marker, line in styles:
        for ax, metric in zip(axes, METRICS, strict=True):
            part = table[(table["contexts"] == count) & (table["metric"] == metric)]
            curve = [limits[metric](count, fraction) for fraction in grid]
            ax.plot(grid, curve, line, color=colour, linewidth=1.3, zorder=1)
            ax.errorbar(
                part["fraction"],
                part["value"],
                1.96 * part["standard_error"],
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=2,
                clip_on=False,
                label=f"{count} known choice{'s' if count > 1 else ''}",
            )
    for ax, label in zip(axes, METRICS.values(), strict=True):
        ax.set_xlabel("share that divides")
        ax.set_ylabel(label)
        ax.set_xlim(0, 1)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0.45, 1.0)
    for ax in axes[1:]:
        ax.set_ylim(0, None)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.suptitle("Model (points, 95 % intervals by person) and Bayes' rule (lines)", fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(args.out / "conflict_study.png", dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--users", type=whole(10), default=10_000, help="training people")
    parser.add_argument("--test-users", type=whole(2), default=500, help="fresh people to predict")
    parser.add_argument("--steps", type=whole(), default=600, help="steps of the first stage")
    parser.add_argument("--draws", type=whole(25), default=400, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
