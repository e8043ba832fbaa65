"""What do these people prefer, how much do they differ, and how sure can we be?

Reads a file of paired comparisons and writes a folder that a colleague can read: `summary.md` with
figures and tables, `posterior.nc` for ArviZ, and the fitted model for next month.

What to see: whether a model of individual people predicts their unseen choices better than one of
the average person, with the standard error of the difference (either sign is a finding); which
items lead, and how far the ranking can be trusted; who differs most, in direction or in
consistency.

    python examples/analyse_csv.py llmfao.csv --user worker --left left --right right \\
        --choice winner --ties half --out results

    python examples/analyse_csv.py ukp_comparisons.csv.gz --user worker --left arg1 --right arg2 \\
        --choice label --choice-labels a1=left,a2=right,equal=tie \\
        --items ukp_argument_embeddings.npz --out results

Two to five minutes on two cores. A run that was interrupted goes on where it stopped. `--model`
takes a model that was saved before, for the same people's next file or for other people.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch

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
    save,
)
from fssa_bayes.datasets import table
from fssa_bayes.plots import choice_intervals, forest, rank_distribution, ranking

CONTEXT_SIZES = (0, 1, 2, 3, 5, 10)  # As far as half the people have more choices.
MAX_ITEMS = 100  # Items that people are compared by, those compared most often.
MAX_PAIRS = 1000  # Pairs that disagreement is averaged over.
STEP_SIZE = 1500  # Comparisons in a step of the fit, on average.


@dataclass
class Report:
    """Collects what is found: printed at once, and written to `summary.md` at the end."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def title(self, text: str) -> None:
        self.say(f"\n## {text}\n")

    def tabulate(self, frame: pd.DataFrame, digits: int = 3) -> None:
        shown = frame.reset_index() if frame.index.name else frame
        print(shown.round(digits).to_string(index=False, na_rep="–"), flush=True)
        rule = ["---"] * len(shown.columns)
        for row in (shown.columns, rule, *shown.itertuples(index=False)):
            self.lines.append(f"| {' | '.join(_cell(value, digits) for value in row)} |")

    def picture(self, name: str, axes, caption: str) -> None:
        import matplotlib.pyplot as plt

        axes.figure.savefig(self.folder / name, dpi=110)
        plt.close(axes.figure)
        self.lines.append(f"\n![{caption}]({name})\n\n*{caption}*")

    def write(self) -> None:
        (self.folder / "summary.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    folder = working_folder(args)
    report = Report(folder)
    report.say(f"# Paired comparisons in {args.path.name}")
    data = read(args, report)

    train, test = data.split_users(args.test_size, seed=args.seed)
    utility = args.utility or ("linear" if data.items is None else "bilinear")
    average = fit_average(train, utility, args)
    if args.model is None:
        model, guide = fit_people(train, utility, args, folder / "checkpoint")
        origin = f"{args.latent_dim} latent dimensions, {args.steps} steps of each objective"
    else:
        model, guide = load(args.model)
        origin = f"the individual model loaded from {args.model}, fitted before"
    compare(model, guide, average, test, report, args)
    rank(data, report, args)
    describe_differences(model, guide, data, report, args)
    export(model, guide, test, report, args)

    report.title("What was done")
    report.say(
        f"Models fitted to {len(train):,} people, scored on {len(test):,} others; utility "
        f"{utility!r}; {origin}; seed {args.seed}, {time.perf_counter() - start:.0f} s. "
        "Intervals for a person are empirical-Bayes: the population is fixed at its estimate."
    )
    save(folder / "model", model, guide, overwrite=True)
    report.write()
    finish(folder, args)


# ---------------------------------------------------------------------- data


def read(args: argparse.Namespace, report: Report) -> Preferences:
    """Reads the file, and puts its warnings into words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        read = table.read(
            args.path,
            user=args.user,
            left=args.left,
            right=args.right,
            choice=args.choice,
            choice_labels=args.choice_labels,
            items=args.items,
            users=args.users,
            ties=args.ties,
            delimiter=args.delimiter,
        )
    report.title("The data")
    report.say("```")
    report.say(f"{'rows read':<22}{read.rows:,}")
    report.say(str(read.data.summary()))
    report.say("```")
    notes = [str(warning.message) for warning in caught]
    if read.data.items is not None and (constant := int((read.data.items.std(0) == 0).sum())):
        notes.append(f"{constant} features are the same for all items and say nothing")
    for note in notes:
        report.say(f"\n- Note: {note}.")
    return read.data


# ---------------------------------------------------------------------- models


def fit_average(train: Preferences, utility: str, args: argparse.Namespace) -> FitResult:
    """Fits the homogeneous model: everybody is the average person."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(train.num_features, 0, utility=utility)
    validation = None if utility == "linear" else 0.1
    with quiet("feature .* is the same for all items"):
        return fit(model, None, train, validation=validation, seed=args.seed, progress_bar=False)


def fit_people(
    train: Preferences, utility: str, args: argparse.Namespace, checkpoint: Path
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Fits the heterogeneous model, in which everybody has a latent factor of their own."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(train.num_features, args.latent_dim, utility=utility)
    guide = NeuralProcessGuide(model)
    batch_size = int(np.clip(STEP_SIZE / train.counts.mean(), 8, 64))
    with quiet("feature .* is the same for all items"):
        fit(
            model,
            guide,
            train,
            objective=[ImportanceWeightedELBO(16), Sleep()],
            steps=args.steps,
            batch_size=batch_size,
            refit=False,
            seed=args.seed,
            checkpoint=checkpoint,
        )
    return model, guide


def posterior(model, guide, context: Preferences, args: argparse.Namespace) -> Posterior:
    with quiet("the largest context has"):  # pareto_k, which is reported, is the judge of that.
        return Posterior(model, guide, context, args.draws, seed=args.seed)


@contextmanager
def quiet(message: str) -> Iterator[None]:
    """Silences a warning that the report puts into words of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, UserWarning)
        yield


# ---------------------------------------------------------------------- findings


def compare(model, guide, average: FitResult, test: Preferences, report, args) -> None:
    """Scores unseen choices of the people left out, after more and more known choices."""
    sizes = context_sizes(test)
    longest, target = split(test, args)
    base = Posterior(average.model, None, longest, 1).log_score(target).numpy()
    rows = []
    for size in sizes:
        known = longest if size == sizes[-1] else longest.split_context(size, seed=args.seed)[0]
        person = posterior(model, guide, known, args)
        difference = person.log_score(target).numpy() - base
        error = difference.std(ddof=1) / math.sqrt(len(difference))
        high = (person.pareto_k > 0.7).float().mean().item()
        rows.append((size, base.mean(), difference.mean(), error, high))
    columns = ["known choices", "average person", "gain", "its standard error", "share k > .7"]
    report.title("Do people differ in ways that can be predicted?")
    report.say(
        f"Mean log score of {target.num_comparisons:,} unseen choices of {len(target):,} people "
        f"who took no part in the fit ({len(test) - len(target):,} others have no more than "
        f"{sizes[-1]} choices), nats per choice: higher is better, guessing scores −0.693. "
        "*Gain* is the individual model's score less the average person's; its standard error is "
        "over people. *k > .7* is the share of people for whom the approximation is in doubt.\n"
    )
    report.tabulate(pd.DataFrame(rows, columns=columns), 4)
    report.say("\n" + verdict(*rows[-1][:1], *rows[-1][2:4]))


def context_sizes(test: Preferences) -> list[int]:
    return [n for n in CONTEXT_SIZES if n == 0 or np.mean(test.counts > n) >= 0.5]


def split(test: Preferences, args: argparse.Namespace) -> tuple[Preferences, Preferences]:
    """Splits into the largest context and the rest; people without a rest are left out."""
    with quiet("[0-9]+ of [0-9]+ people have no target"):
        return test.split_context(context_sizes(test)[-1], seed=args.seed)


def verdict(size: int, gain: float, error: float) -> str:
    after = f"After {size} known choices of a person the individual model"
    amount = f"by {abs(gain):.4f} ± {error:.4f} nats a choice"
    if gain > 2 * error:
        return f"{after} predicts better {amount}: people differ, and a few choices tell how."
    if gain < -2 * error:
        return f"{after} predicts worse {amount}: here the average person is the better bet."
    return (
        f"{after} cannot be told from the average person (gain {gain:+.4f} ± {error:.4f} nats a "
        "choice): these data do not show differences that a few choices would reveal."
    )


def rank(data: Preferences, report: Report, args: argparse.Namespace) -> None:
    """Ranks items for the average person, with errors clustered by person."""
    items = common_items(data, data.num_items)
    average = fit_average(data, "linear", args)
    order = average.ranking(items, seed=args.seed)
    order.to_csv(report.folder / "ranking.csv")
    report.title("Ranking for the average person")
    report.say(
        f"Homogeneous linear BTL fitted to all {len(data):,} people: utilities in nats, centred "
        f"over {len(order):,} items, with standard errors clustered by person; intervals of ranks "
        "are 90 %, from the same normal approximation. All items are in `ranking.csv`.\n"
    )
    columns = ["utility", "standard_error", "rank", "rank_lower", "rank_upper"]
    report.tabulate(order[columns].head(10), 2)
    report.picture(
        "ranking.png",
        ranking(
            order["utility"].head(40),
            order["lower"].head(40),
            order["upper"].head(40),
            list(order.index[:40]),
        ),
        "Utilities of the leading items to the average person with 90 % intervals",
    )


def describe_differences(model, guide, data: Preferences, report, args) -> None:
    """Describes how much people differ, and who does."""
    report.title("How much do people differ?")
    within, between = disagreement(model, data, args)
    report.say(
        f"On a pair of this file, the model has the same person contradict themselves with "
        f"probability {within:.3f} when asked twice, and two people disagree with probability "
        f"{between:.3f}: taste accounts for {between - within:.3f}, inconsistency for the rest."
    )
    everybody = posterior(model, guide, data, args)
    items = common_items(data, MAX_ITEMS)
    people = everybody.differences(items)
    people["pareto_k"] = everybody.pareto_k.numpy()
    people.to_csv(report.folder / "people.csv")
    doubtful = (people["pareto_k"] > 0.7).mean()
    report.say(
        f"\nEverybody's posterior given all of their choices, over the {len(items)} items compared "
        "most often. *Direction* is the correlation of a person's utilities with the average "
        "person's, *scale* their standard deviation in nats: a small scale means that choices are "
        "hard to predict, from indifference or from carelessness. The approximation is in doubt "
        f"(k > .7) for {doubtful:.0%} of them. All are in `people.csv`."
    )
    for title, order in (
        ("differ most in direction", people.sort_values("direction_upper")),
        ("choose most consistently", people.sort_values("scale_lower", ascending=False)),
        ("choose least consistently", people.sort_values("scale_upper")),
    ):
        report.say(f"\nPeople who {title} (90 % intervals):\n")
        report.tabulate(order.drop(columns="pareto_k").head(5), 2)
    draw_people(people, report)
    draw_a_person(model, guide, data, report, args)


def disagreement(model, data: Preferences, args: argparse.Namespace) -> tuple[float, float]:
    """Returns the probabilities that one person, and that two people, answer a pair differently."""
    rng = np.random.default_rng(args.seed)
    pairs = data.resample_pairs(np.array([min(MAX_PAIRS, data.num_comparisons)]), rng)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        z = model.prior(1).sample((2000,))
        prob = model.choice(pairs, z).mean.double().squeeze(1)
    within = 2 * (prob * (1 - prob)).mean()
    mean = prob.mean(0)
    return within.item(), (2 * mean * (1 - mean)).mean().item()


def common_items(data: Preferences, number: int) -> list:
    """Names the items compared most often, within the largest component of the comparisons."""
    uses = np.bincount(np.concatenate([data.left, data.right]), minlength=data.num_items)
    labels = data.components()
    known = labels == 0 if data.items is None else labels >= 0
    order = np.argsort(-uses, kind="stable")
    return list(data.item_names[order[known[order]][:number]])


def draw_people(people: pd.DataFrame, report: Report) -> None:
    shown = people.sample(min(40, len(people)), random_state=0)
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 9), layout="tight")
    labels = ("direction: correlation with the average", "scale (nats)")
    for ax, name, label in zip(axes, ("direction", "scale"), labels, strict=True):
        columns = [shown[name + suffix] for suffix in ("", "_lower", "_upper")]
        forest(*columns, list(shown.index), label=label, reference=people[name].median(), ax=ax)
    caption = f"{len(shown)} of {len(people):,} people: posterior median and 90 % interval"
    figure.suptitle(f"{caption}; dashed: median person", fontsize=10)
    report.picture("people.png", axes[0], caption)


def draw_a_person(model, guide, data: Preferences, report: Report, args) -> None:
    """Draws what is known of the person with most comparisons up to 40."""
    few = np.where(data.counts <= 40, data.counts, 0)
    one = data.subset([int(few.argmax()) if few.any() else int(data.counts.argmin())])
    name, shown = one.user_names[0], slice(0, 40)
    person = posterior(model, guide, one, args)
    p = person.choice_prob(one)
    names = (one.item_names[side[shown]] for side in (one.left, one.right))
    fields = (tensor[0, shown] for tensor in (p.mean, p.lower, p.upper))
    report.picture(
        "person.png",
        choice_intervals(*fields, one.choice[shown], zip(*names, strict=True)),
        f"Choices of {name}: probability that the first is preferred, with 90 % interval",
    )
    items = common_items(data, 12)
    report.picture(
        "ranks.png",
        rank_distribution(person.rank_prob(items)[0], items),
        f"Where {name} would rank the {len(items)} items compared most often",
    )


def export(model, guide, test: Preferences, report: Report, args: argparse.Namespace) -> None:
    """Writes the posteriors of the people left out, for ArviZ."""
    context, target = split(test, args)
    size = context.counts.max()
    exported = posterior(model, guide, context, args).to_inference_data(target)
    exported.to_netcdf(str(report.folder / "posterior.nc"))
    report.title("Files")
    report.say(
        f"- `posterior.nc`: posteriors of {len(context)} people who took no part in the fit, given "
        f"{size} of their choices, and predictions of the rest: `arviz.from_netcdf`.\n"
        "- `model/`: the fitted model: `model, guide = fssa_bayes.load(...)`.\n"
        "- `ranking.csv`, `people.csv`: the tables above, whole."
    )


# ---------------------------------------------------------------------- the command


def working_folder(args: argparse.Namespace) -> Path:
    """Makes the folder that becomes `--out` once everything is in it."""
    if args.out.exists() and not args.overwrite:
        raise FileExistsError(f"--out must not exist yet, got {args.out}: pass --overwrite")
    folder = args.out.with_name(args.out.name + ".part")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def finish(folder: Path, args: argparse.Namespace) -> None:
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    previous = args.out.with_name(args.out.name + ".previous")
    if args.out.exists():
        args.out.rename(previous)
    folder.rename(args.out)
    shutil.rmtree(previous, ignore_errors=True)
    print(f"\nAll of it is in {args.out}; begin with {args.out / 'summary.md'}")


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.{digits}f}"
    return str(value).replace("|", r"\|")


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.split("=") for pair in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"must read like a1=left,a2=right,equal=tie, got {text!r}")
    return dict(pairs)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="csv, csv.gz, tsv or parquet file of comparisons")
    for name, what in (
        ("user", "names the person"),
        ("left", "names the first item"),
        ("right", "names the second item"),
        ("choice", "holds 1 / 0 / 0.5, left / right / tie, or the preferred item's name"),
    ):
        parser.add_argument(
            f"--{name}", required=True, metavar="COLUMN", help=f"column that {what}"
        )
    parser.add_argument("--choice-labels", type=_labels, help="a1=left,a2=right,equal=tie")
    parser.add_argument("--items", type=Path, help="item features: csv, parquet or npz")
    parser.add_argument("--users", type=Path, help="person covariates: csv, parquet or npz")
    parser.add_argument("--ties", choices=("drop", "half"), default="drop")
    parser.add_argument("--delimiter", help="character between cells; by the file's name if absent")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--utility", choices=("bilinear", "linear", "mlp"))
    parser.add_argument("--model", type=Path, help="a model saved before, to use without a fit")
    parser.add_argument("--latent-dim", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600, help="steps of each objective")
    parser.add_argument("--draws", type=int, default=500, help="posterior draws a person")
    parser.add_argument("--test-size", type=float, default=0.2, help="share of people left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--debug", action="store_true", help="show where in the code an error arose"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse_args()
    try:
        main(arguments)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if arguments.debug:
            raise
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
