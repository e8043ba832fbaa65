"""How sure can we be of what a person prefers, after 0, 1, 3, 5 and 10 of their choices?

Fits the two-mode problem (`fssa_bayes.datasets.two_mode`): two types of people who agree on half of
all pairs. For people the model has never seen it prints accuracy and log-loss beside the Bayes
predictor, which knows the problem, and beside a homogeneous model, which gives everybody the same
utility. The figure shows a person of each type: before a telling choice the posterior holds both
types' utilities, after it one.

What to see: the heterogeneous models follow the Bayes predictor, the homogeneous one stays at
75 %; the bands close on the dashed truth with the first choice that tells the types apart (up to a
monotone transform: choices without noise tell the order of items and no more, so the jump at ½ is
not seen). About a minute and a half on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time

import numpy as np
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
from fssa_bayes.datasets import two_mode
from fssa_bayes.model import MLPUtility
from fssa_bayes.plots import utility_bands

CONTEXTS = (0, 1, 3, 5, 10)
UTILITIES = ("bilinear", "mlp", "homogeneous")


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    train = two_mode.simulate(args.users, 20, seed=args.seed).data
    # Two processes of one thread: networks this small do not gain from a second thread.
    with multiprocessing.get_context("spawn").Pool(
        min(2, os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        fits = pool.starmap(fit_model, [(utility, train, args) for utility in UTILITIES], 1)
        jobs = [(model, guide, n, args) for model, guide, _ in fits for n in CONTEXTS]
        rows = iter(pool.starmap(score, jobs, 1))
        pool.close()
        pool.join()
    for utility, (_, _, seconds) in zip(UTILITIES, fits, strict=True):
        print_table(utility, seconds, {count: next(rows) for count in CONTEXTS})
    print(
        f"\n{args.test_users:,} people the models have not seen (a quarter as many, and half the "
        "steps, for mlp),\n5 unseen choices each; ± is the standard error by person. 'lost' is "
        "accuracy lost\nagainst Bayes on the same pairs, with the type's exact posterior in place "
        "of the luck of\nguesses; log-loss in nats per choice."
    )
    draw_figure(*fits[0][:2], args)
    print(f"figure: {args.out / 'quickstart.png'}    total {time.perf_counter() - start:.0f} s")


def fit_model(
    utility: str, train: Preferences, args: argparse.Namespace
) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None, float]:
    """Fits one model; returns it with its guide and the seconds it took."""
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    if utility == "homogeneous":
        model = HeterogeneousBTL(train.num_features, latent_dim=0, hidden_dim=32)
        sample = train.subset(range(min(len(train), 1000)))
        fit(model, None, sample, seed=args.seed, progress_bar=False)
        return model, None, time.perf_counter() - start
    model = HeterogeneousBTL(train.num_features, latent_dim=2, utility=utility)
    guide = NeuralProcessGuide(model)
    steps = args.steps if utility == "bilinear" else args.steps // 2  # A step of mlp costs twice.
    fit(
        model,
        guide,
        train,
        objective=[ImportanceWeightedELBO(steps=steps), Sleep(steps=max(1, steps // 2))],
        learning_rate=5e-3,
        validation=None,  # The people are many and simulated: there is nothing to overfit.
        seed=args.seed,
        progress_bar=utility == "bilinear",
    )
    return model, guide, time.perf_counter() - start


def score(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    num_context: int,
    args: argparse.Namespace,
) -> dict[str, np.ndarray]:
    """Scores predictions of unseen choices; every entry has shape (U,), one value a person."""
    people, draws = args.test_users, args.draws
    if isinstance(model.utility, MLPUtility):  # Its likelihood costs a network for every draw.
        people, draws = people // 4, draws // 2
    test = two_mode.simulate(people, num_context + 5, seed=args.seed + 1_000_000).data
    context, target = test.split_context(num_context, seed=args.seed)
    # Undecided people need more draws: the noise of p near ½ would pass for confidence.
    draws = draws if num_context == 0 else draws // 2
    posterior = Posterior(model, guide, context, num_samples=draws, seed=args.seed)
    prob = posterior.choice_prob(target).mean.flatten().numpy()
    rows = two_mode.compare_with_bayes(prob, context, target)
    return rows | {"log_loss": -posterior.log_score(target).numpy()}


def print_table(utility: str, seconds: float, rows: dict[int, dict[str, np.ndarray]]) -> None:
    print(f"\n{utility}  (fitted in {seconds:.0f} s)")
    print(
        f"{'contexts':>8}{'accuracy %':>16}{'Bayes %':>9}{'lost':>7}{'confidence %':>14}"
        f"{'log-loss':>18}{'Bayes':>8}{'above Bayes':>19}"
    )
    for count, row in rows.items():
        print(
            f"{count:>8}{_pm(100 * row['accuracy'], 2):>16}"
            f"{100 * row['bayes_accuracy'].mean():>9.2f}"
            f"{100 * row['accuracy_lost'].mean():>7.2f}{100 * row['confidence'].mean():>14.2f}"
            f"{_pm(row['log_loss'], 4):>18}{row['bayes_log_loss'].mean():>8.4f}"
            f"{_pm(row['log_loss'] - row['bayes_log_loss'], 4):>19}"
        )


def _pm(values: np.ndarray, digits: int) -> str:
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def draw_figure(
    model: HeterogeneousBTL, guide: NeuralProcessGuide, args: argparse.Namespace
) -> None:
    """Draws one person of each type at 0, 1, 3 and 10 contexts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    people, types = two_mode.simulate(200, 11, seed=args.seed + 2_000_000)
    grid = torch.linspace(0.005, 0.995, 100).unsqueeze(-1)
    counts = (0, 1, 3, 10)
    figure, axes = plt.subplots(2, len(counts), figsize=(8.4, 4.6), sharex=True, sharey="row")
    for row, person_type in enumerate((0, 1)):
        person = people.subset([int(np.flatnonzero(types == person_type)[0])])
        curve = _standardise(two_mode.utility(grid[:, 0].numpy(), person_type))
        for ax, count in zip(axes[row], counts, strict=True):
            context, _ = person.split_context(count, seed=args.seed)
            posterior = Posterior(model, guide, context, num_samples=2000, seed=args.seed)
            draws = _standardise(posterior.utility(grid)[:, 0].numpy())
            utility_bands(grid[:, 0], draws, curve, feature_name="item x", ax=ax)
            tells = "one tells" if two_mode.bayes_type_prob(context)[0] != 0.5 else "none tells"
            ax.set_title(f"{count} known, {tells}", fontsize=9)
            ax.set_ylabel(f"type {person_type}: utility,\nstandardised")
            ax.label_outer()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(args.out / "quickstart.png", dpi=100)
    plt.close(figure)


def _standardise(curves: np.ndarray) -> np.ndarray:
    """Scales curves to mean 0 and variance 1: choices without noise do not tell their scale."""
    centred = curves - curves.mean(-1, keepdims=True)
    return centred / centred.std(-1, keepdims=True)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--users", type=whole(10), default=10_000, help="training people")
    parser.add_argument(
        "--test-users", type=whole(8), default=5_000, help="fresh people to predict"
    )
    parser.add_argument("--steps", type=whole(2), default=600, help="steps of the first stage")
    parser.add_argument("--draws", type=whole(100), default=800, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
