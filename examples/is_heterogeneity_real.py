"""Do these people really differ, or is it noise? And is the model of their differences right?

Four questions about one file of paired comparisons, from "at all?" to "in the way we think?":

1. a likelihood-ratio test of the model in which everybody is alike, whose null distribution is not
   a chi-square, because no variance is the boundary of what variances can be;
2. whether differences help to predict people who were left out, and with how many latent
   dimensions, chosen on some people and judged on others;
3. whether a person's other choices help to predict each of their choices;
4. whether people simulated from either model behave as the real ones: how often two people agree,
   how often one contradicts himself, how much people spread.

What to see: in the simulated default people differ in two dimensions, and all four say so. The
figure shows the checks, those of the homogeneous model far out, those of the heterogeneous one near
zero.

    python examples/is_heterogeneity_real.py
    python examples/is_heterogeneity_real.py --data train_choice.csv.gz
    python examples/is_heterogeneity_real.py --data llmfao.csv --user worker --left left \\
        --right right --choice winner --ties half --steps 100 --latent-dim 1

A file without `--user`, `--left`, `--right` and `--choice` is read as the train-choice data. Two to
five minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
import warnings
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
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.checks import predictive_checks
from fssa_bayes.comparison import (
    choose_latent_dim,
    compare,
    heterogeneity_test,
    leave_comparisons_out,
)
from fssa_bayes.datasets import table, train_choice

REPORT_SIZE = 0.3  # Share of the people that models are judged by.
COLUMNS = ("user", "left", "right", "choice")


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    warnings.filterwarnings("ignore", message=".*(repeat an earlier row|standard error of the log)")
    data = simulated(args) if args.data is None else read(args)
    print(data.summary())
    kind = "linear" if args.utility is None else args.utility

    def build(latent_dim: int) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
        model = HeterogeneousBTL(data.num_features, latent_dim, utility=kind)
        family = "multivariate_normal" if kind == "linear" else "flow"
        return model, NeuralProcessGuide(model, family) if latent_dim else None

    options = {
        "objective": [ImportanceWeightedELBO(16), Sleep()],
        "steps": args.steps,
        "batch_size": int(np.clip(1500 / data.counts.mean(), 8, 64)),
        "validation": None,
    }
    title("1. Do people differ at all?")
    test = heterogeneity_test(
        lambda: build(args.latent_dim),
        data,
        num_null=args.bootstrap if data.num_features > 10 or kind != "linear" else None,
        seed=args.seed,
        num_samples=args.draws,
        fit_options=options,
    )
    print(test)

    title("2. Do the differences help to predict people who were left out?")
    dims = range(args.latent_dim + 2)
    choice = choose_latent_dim(
        data,
        dims,
        build=build,
        num_folds=3,
        report_size=REPORT_SIZE,
        seed=args.seed,
        num_samples=args.draws,
        fit_options=options,
    )
    print("Chosen by leaving out people, three folds (nats):")
    show(choice.choosing)
    print("\nJudged by other people:")
    show(choice.reported)
    print(f"\n{choice}")

    title("3. Do a person's other choices help to predict each of their choices?")
    train, report = data.split_users(REPORT_SIZE, seed=args.seed)
    models = {}
    for name, width in (("homogeneous", 0), ("heterogeneous", args.latent_dim)):
        torch.manual_seed(args.seed)
        model, guide = build(width)
        stages = options if width else {"validation": None}
        fit(model, guide, train, seed=args.seed, progress_bar=False, **stages)
        models[name] = model, guide
    scores = {
        name: leave_comparisons_out(*pair, report, args.draws) for name, pair in models.items()
    }
    print(f"The {len(report)} people left out, one choice left out at a time (nats):")
    show(compare(scores))

    title("4. Do simulated people behave like these?")
    checks = {}
    for name, (model, _) in models.items():
        checks[name] = predictive_checks(model, report, args.replicates, seed=args.seed)
        print(f"\nThe {name} model, on the same {len(report)} people:")
        show(checks[name].drop(columns="tail_error"), 4)
    path = args.out / "is_heterogeneity_real.png"
    plot(checks, choice.reported, choice.num_reported, path)
    print(f"\n{conclusion(test.verdict, choice, checks)}")
    print(f"\n{time.perf_counter() - start:.0f} s, seed {args.seed}; figure in {path}")


def read(args: argparse.Namespace) -> Preferences:
    """Reads the file, as train-choice data or as a table with named columns."""
    named = {name: getattr(args, name) for name in COLUMNS}
    if not any(named.values()):
        return train_choice.read(args.data)
    missing = [f"--{name}" for name, value in named.items() if value is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given as the other columns are")
    labels = args.choice_labels
    return table.read(
        args.data, **named, choice_labels=labels, items=args.items, ties=args.ties
    ).data


def simulated(args: argparse.Namespace) -> Preferences:
    """Draws people who differ in two dimensions, on pairs from a common list."""
    rng = np.random.default_rng(args.seed)
    comparisons, num_pairs, num_items = 12, 150, 40
    listed = np.array([rng.choice(num_items, 2, replace=False) for _ in range(num_pairs)])
    asked = listed[rng.integers(num_pairs, size=args.people * comparisons)]
    data = Preferences(
        asked[:, 0],
        asked[:, 1],
        np.zeros(len(asked)),
        np.arange(0, len(asked) + 1, comparisons),
        items=rng.normal(size=(num_items, 4)),
        feature_names=["price", "size", "colour", "weight"],
    )
    truth = HeterogeneousBTL(4, 2, utility="linear")
    with torch.no_grad():
        truth.utility.mean.copy_(torch.tensor([-1.0, 0.5, 0.0, 0.3]))
        truth.utility.loading.copy_(torch.tensor([[0.7, 0.0], [0.3, 0.6], [0.0, 0.9], [-0.2, 0.1]]))
    return truth.simulate(data, seed=args.seed)[0]


def conclusion(verdict: str, choice, checks: dict[str, pd.DataFrame]) -> str:
    """Says in words what the four answers amount to."""
    rejected = {
        name: list(shown.index[shown["verdict"].str.contains("than the model says")])
        for name, shown in checks.items()
    }
    lines = [
        f"By the first test {verdict}.",
        f"{choice.latent_dim} latent dimensions were chosen.",
    ]
    for name, found in rejected.items():
        what = f"misses: {', '.join(found)}" if found else "passes every check"
        lines.append(f"The {name} model {what}.")
    lines.append(
        "Models fitted to few people are estimates: a check may also see the error of these, and "
        "one that is passed shows only what it looks at."
    )
    return " ".join(lines)


def plot(checks: dict[str, pd.DataFrame], reported: pd.DataFrame, people: int, path: Path) -> None:
    """Draws the checks' deviations, and the scores of the numbers of dimensions."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, 4.4), width_ratios=[2.2, 1], layout="constrained"
    )
    shown = [name for name, row in checks["heterogeneous"].iterrows() if row["units"]]
    place = np.arange(len(shown))[::-1]
    for (name, frame), marker, fill in zip(checks.items(), "os", ("white", "black"), strict=True):
        frame = frame.loc[shown]
        deviation = (frame["observed"] - frame["replicated"]) / frame["sd"]
        height = place + (0.15 if fill == "white" else -0.15)
        left.plot(deviation, height, marker, color="black", mfc=fill, label=f"{name} model")
    left.axvspan(-2, 2, color="0.9", zorder=0)
    left.axvline(0, color="0.5", linewidth=0.8)
    left.set_xscale("symlog", linthresh=3)
    left.set_xticks([-30, -10, -2, 0, 2, 10, 30], ["-30", "-10", "-2", "0", "2", "10", "30"])
    left.minorticks_off()
    left.set_yticks(place, shown)
    left.set_xlabel("real people less simulated ones, standard deviations of the latter")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    order = reported.sort_index()
    error = 2 * order["dse"] / people
    right.errorbar(
        np.arange(len(order)), -order["per_unit"], error, fmt="o", color="black", capsize=3
    )
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set_xticks(np.arange(len(order)), [str(width) for width in order.index])
    right.set_xlim(-0.5, len(order) - 0.5)
    right.set_xlabel("latent dimensions")
    right.set_ylabel("log score of people left out, less the best,\nnats a person, ± 2 SE")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def title(text: str) -> None:
    print(f"\n## {text}\n", flush=True)


def show(frame: pd.DataFrame, digits: int = 2) -> None:
    print(frame.reset_index().round(digits).to_string(index=False, na_rep="–"), flush=True)


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.split("=") for pair in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"must read like a1=left,a2=right,equal=tie, got {text!r}")
    return dict(pairs)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, help="file of comparisons; simulated if absent")
    for name in COLUMNS:
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"column with the {name}")
    parser.add_argument("--choice-labels", type=_labels, help="a1=left,a2=right,equal=tie")
    parser.add_argument("--items", type=Path, help="item features: csv, parquet or npz")
    parser.add_argument("--ties", choices=("drop", "half"), default="drop")
    parser.add_argument("--people", type=whole(10), default=250, help="simulated people")
    parser.add_argument("--utility", choices=("linear", "bilinear", "mlp"), help="linear if absent")
    parser.add_argument("--latent-dim", type=whole(), default=2)
    parser.add_argument("--draws", type=whole(25), default=1000, help="posterior draws a person")
    parser.add_argument("--steps", type=whole(), default=250, help="steps of each stage of a fit")
    parser.add_argument(
        "--bootstrap", type=whole(19), default=19, help="data sets simulated for the test"
    )
    parser.add_argument(
        "--replicates", type=whole(20), default=400, help="data sets simulated to check"
    )
    return parser


if __name__ == "__main__":
    run(main, make_parser())
