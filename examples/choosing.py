"""Which objective, which guide, how many latent dimensions?

Simulates people whose tastes are known (five features, two latent dimensions), and fits the same
linear model in every way the library offers, with equal numbers of steps.

What to see, in this order:

1. Objectives. One particle (`ELBO`), and more so `NeuralProcessELBO`, makes people more alike than
   they are: the variance between people falls short of the truth. `Sleep` leaves the model as it is
   and brings the guide to the posterior. The importance correction makes up for a poor guide, not
   for a poor model.
2. Guides. A normal with independent dimensions misses the correlations of a posterior, which shows
   in the effective sample size.
3. Latent dimensions. Too few cost held-out score; too many cost little here, and it cannot be told
   within the standard error.

The figure has a row of panels for each question.

    python examples/choosing.py

About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessELBO,
    NeuralProcessGuide,
    Posterior,
    PredictiveLikelihood,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.diagnostics import PARETO_K_THRESHOLD

MEAN = (1.0, -0.5, 0.3, 0.0, 0.6)
LOADING = ((1.2, 0.0), (0.5, 0.9), (-0.6, 0.5), (0.0, -0.8), (0.4, 0.4))
NUM_CONTEXT = 5
PANELS = {"less than the best": 0.0, "variance / truth": 1.0, "relative ESS": 1.0}  # What is best.


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    people, test = simulate(args.users, args.seed), simulate(args.test_users, args.seed + 1)

    objectives = {
        "ImportanceWeightedELBO, then Sleep": [ImportanceWeightedELBO(16), Sleep()],
        "ImportanceWeightedELBO": [ImportanceWeightedELBO(16), ImportanceWeightedELBO(16)],
        "ELBO": [ELBO(), ELBO()],
        "ELBO, then Sleep": [ELBO(), Sleep()],
        "NeuralProcessELBO": [NeuralProcessELBO(), NeuralProcessELBO()],
        "PredictiveLikelihood": [PredictiveLikelihood(), PredictiveLikelihood()],
    }
    rows = {name: measure(people, test, args, objective=o) for name, o in objectives.items()}
    question = "Which objective? (multivariate normal guide, two latent dimensions)"
    tables = {"objective": show(question, rows, args)}

    guides = ("normal", "multivariate_normal", "flow")
    rows = {name: measure(people, test, args, posterior=name) for name in guides}
    tables["guide"] = show("Which guide?", rows, args)

    rows = {str(k): measure(people, test, args, latent_dim=k) for k in (0, 1, 2, 3, 5)}
    question = "How many latent dimensions? (the truth has 2)"
    tables["latent dimensions"] = show(question, rows, args)
    draw_figure(tables, args.out / "choosing.png")
    print(f"\ntables and figure in {args.out}    total {time.perf_counter() - start:.0f} s")


def simulate(users: int, seed: int) -> Preferences:
    """Draws people with coefficients N(mean, ΛΛᵀ), 12 choices each between 60 common items."""
    rng = np.random.default_rng(seed)
    items = np.random.default_rng(0).normal(size=(60, len(MEAN)))
    left = rng.integers(60, size=12 * users)
    right = (left + rng.integers(1, 60, size=12 * users)) % 60
    choice = np.zeros(12 * users)
    shown = Preferences(left, right, choice, np.arange(0, 12 * users + 1, 12), items=items)
    return truth().simulate(shown, seed=seed)[0]


def truth() -> HeterogeneousBTL:
    model = HeterogeneousBTL(len(MEAN), 2, utility="linear")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor(MEAN))
        model.utility.loading.copy_(torch.tensor(LOADING))
    return model


def measure(
    people: Preferences,
    test: Preferences,
    args: argparse.Namespace,
    *,
    objective: list | None = None,
    posterior: str = "multivariate_normal",
    latent_dim: int = 2,
) -> dict[str, np.ndarray | float]:
    """Fits in one way and scores unseen choices of other people after five known ones."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(len(MEAN), latent_dim, utility="linear")
    guide = NeuralProcessGuide(model, posterior) if latent_dim else None
    if latent_dim:
        objective = objective or [ImportanceWeightedELBO(16), Sleep()]
    options = {"objective": objective, "steps": args.steps} if latent_dim else {}
    fit(model, guide, people, seed=args.seed, progress_bar=False, **options)
    context, target = test.split_context(NUM_CONTEXT, seed=args.seed)
    scores = {}
    for name, correct in (("raw guide", None), ("corrected", "psis")):
        with warnings.catch_warnings():  # NeuralProcessELBO is corrected here to show the effect.
            warnings.filterwarnings("ignore", "the guide was fitted by NeuralProcessELBO")
            draws = Posterior(model, guide, context, args.draws, seed=args.seed, correct=correct)
        scores[name] = draws.log_score(target).numpy()
    loading = (model.utility.loading / model.feature_scale[:, None]).detach()
    variance = loading.square().sum() / torch.tensor(LOADING).square().sum()
    return scores | {
        "variance between people / truth": variance.item(),
        "relative ESS": draws.guide_relative_ess.mean().item(),
        "k > .7": (draws.guide_pareto_k > PARETO_K_THRESHOLD).float().mean().item(),
    }


def show(question: str, rows: dict[str, dict], args: argparse.Namespace) -> pd.DataFrame:
    """Prints log scores as differences from the best row, with standard errors."""
    best = max(rows, key=lambda name: rows[name]["corrected"].mean())
    table = {}
    for name, row in rows.items():
        difference = row["corrected"] - rows[best]["corrected"]
        error = difference.std(ddof=1) / math.sqrt(len(difference))
        table[name] = {
            "log score": row["corrected"].mean(),
            "less than the best": difference.mean(),
            "± by person": error,
            "raw guide": row["raw guide"].mean(),
            "variance / truth": row["variance between people / truth"],
            "relative ESS": row["relative ESS"],
            "k > .7": row["k > .7"],
        }
    frame = pd.DataFrame(table).T
    frame.to_csv(args.out / f"{question.split('?')[0].lower().replace(' ', '_')}.csv")
    print(f"\n{question}\n{frame.round(4).to_string()}", flush=True)
    return frame


def draw_figure(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Draws the tables, a row of panels a question."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(tables),
        len(PANELS),
        figsize=(8.4, 5.6),
        sharex="col",
        height_ratios=[len(table) for table in tables.values()],
        layout="constrained",
    )
    for line, (what, table) in zip(axes, tables.items(), strict=True):
        place = np.arange(len(table))
        for ax, (column, reference) in zip(line, PANELS.items(), strict=True):
            error = 2 * table["± by person"] if column == "less than the best" else None
            ax.axvline(reference, color="0.5", linestyle="--", linewidth=1)
            ax.errorbar(table[column], place, xerr=error, fmt="o", color="black", capsize=2)
            ax.set_ylim(len(table) - 0.5, -0.5)
            ax.set_yticks(place, [])
        names = [name.replace(", then", ",\nthen") for name in table.index]
        line[0].set_yticks(place, names, fontsize=8)
        line[0].set_ylabel(what)
    axes[-1, 0].set_xlabel("log score less the best,\nnats a choice, ± 2 SE")
    axes[-1, 1].set_xlabel("variance between people,\nas a share of the truth")
    axes[-1, 2].set_xlabel("effective sample size of the\nguide, as a share of draws")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--users", type=whole(20), default=2_000)
    parser.add_argument("--test-users", type=whole(2), default=1_000)
    parser.add_argument("--steps", type=whole(), default=250, help="steps of each of two stages")
    parser.add_argument("--draws", type=whole(25), default=500, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
