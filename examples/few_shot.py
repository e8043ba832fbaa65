"""What are a person's first answers worth? People are left out, and a few of their answers known.

For a file of comparisons, or one of the data sets that come with the package (`electricity`,
`yogurt`), models are fitted to some people and predict the unseen answers of the others after 0, 1,
2, 3, 5, 10, 20 and 50 of their answers: everybody alike, a mixture of three classes, the posterior
with the population held at its estimate and drawn, the personal maximum a posteriori, and, with
`--personal`, a posterior in which people differ in how they answer too.

What to see: by how much the log score gains on the model of everybody alike, with its standard
error over people, and from how many answers on. The figure shows it.

    python examples/few_shot.py --data yogurt --rounds 1
    python examples/few_shot.py --data votes.csv --user worker --left a --right b --choice winner \\
        --ties keep --personal ties

A minute or two for a few hundred people. Items without features, or with many, want `--latent-dim`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import Preferences
from fssa_bayes.baselines import few_shot_fitters
from fssa_bayes.checks import compare_by_context, score_folds
from fssa_bayes.datasets import electricity, table, yogurt

SHIPPED = {"electricity": electricity.read, "yogurt": yogurt.read}
PERSONAL = ("ties", "position_bias", "lapses", "scale")


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    data = read(args)
    print(f"{data.summary()}\n", flush=True)
    fitters = few_shot_fitters(
        {"position_bias": True} if args.position_bias else None,
        latent_dim=args.latent_dim,
        num_classes=args.classes,
        num_samples=args.draws,
        num_populations=args.populations,
        personal=tuple(args.personal),
        seed=args.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of few people, all of them.
        scores = score_folds(
            fitters,
            data,
            args.sizes,
            num_folds=args.folds,
            folds=range(min(args.rounds or args.folds, args.folds)),
            seed=args.seed,
        )
    gains = compare_by_context(scores, "homogeneous")
    print(
        "Unseen answers of people left out: log score in nats an answer, gain over everybody alike"
    )
    print("± its standard error over people\n")
    columns = ["people", "log_score", "accuracy", "gain", "standard_error"]
    print(gains[columns].round(4).to_string())
    args.out.mkdir(parents=True, exist_ok=True)
    gains.to_csv(args.out / "few_shot.csv")
    plot(gains, args.out / "few_shot.png")


def read(args: argparse.Namespace) -> Preferences:
    """Reads a data set that comes with the package, or a file."""
    if args.data in SHIPPED:
        return SHIPPED[args.data]()
    if not Path(args.data).exists():
        raise FileNotFoundError(
            f"--data must be a file or one of {', '.join(SHIPPED)}, got '{args.data}'"
        )
    columns = {name: getattr(args, name) for name in ("user", "left", "right", "choice")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*repeat an earlier row")
        return table.read(args.data, items=args.items, ties=args.ties, **columns).data


def plot(gains: pd.DataFrame, path: Path) -> None:
    """Draws gains by number of known answers, ± 2 standard errors."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    names = [name for name in gains.index.get_level_values(1).unique() if name != "homogeneous"]
    for number, name in enumerate(names):
        rows = gains.xs(name, level="predictor")
        place = np.arange(len(rows)) + 0.08 * (number - len(names) / 2)
        marker = "osD^vx"[number % 6]
        error = 2 * rows["standard_error"]
        ax.errorbar(
            place, rows["gain"], error, marker=marker, markersize=4, capsize=2, lw=1, label=name
        )
    of_posterior = gains.xs("posterior", level="predictor")
    labels = [f"{size}\n({int(count):,})" for size, count in of_posterior["people"].items()]
    ax.set_xticks(np.arange(len(labels)), labels)
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.set_xlabel("known answers (people)")
    ax.set_ylabel("gain over everybody alike,\nnats an answer, ± 2 SE")
    ax.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--data", required=True, help=f"file of comparisons, or one of {', '.join(SHIPPED)}"
    )
    for name in ("user", "left", "right", "choice"):
        parser.add_argument(f"--{name}", metavar="COLUMN", help="of a file")
    parser.add_argument("--items", type=Path, help="file of the items' features")
    parser.add_argument("--ties", choices=("drop", "keep", "half"), default="half")
    parser.add_argument(
        "--personal", nargs="+", choices=PERSONAL, default=(), help="what else differs"
    )
    parser.add_argument("--position-bias", action="store_true")
    parser.add_argument("--latent-dim", type=whole(), help="of tastes; all coefficients if absent")
    parser.add_argument("--classes", type=whole(0), default=3, help="of the mixture; 0 for none")
    parser.add_argument("--populations", type=whole(0), default=20, help="drawn; 0 for none")
    parser.add_argument("--draws", type=whole(25), default=400, help="posterior draws a person")
    parser.add_argument(
        "--folds", type=whole(2), default=4, help="folds that people are dealt into"
    )
    parser.add_argument("--rounds", type=whole(), help="folds that are left out; all if absent")
    parser.add_argument("--sizes", type=whole(0), nargs="+", default=(0, 1, 2, 3, 5, 10, 20, 50))
    return parser


if __name__ == "__main__":
    run(main, make_parser())
