"""What are a few answers of a person worth? Gains by number of known answers, on real people.

People are dealt into folds; the first ones are left out in turn and the models fitted to the other
people by maximum likelihood. Of people left out 0, 1, 2, 3, 5, 10, 20 and 50 answers are known and
all others predicted. The predictors are those of :func:`fssa_bayes.baselines.few_shot_fitters`.
Nothing is tuned: the mixture has three classes everywhere, and tastes as many dimensions as there
are coefficients, or two where items have no features of their own (llmfao) or many (ukp, whose
embeddings are reduced to 8 principal components). To keep a data set within minutes, one or two
folds of four are left out, the mixture starts four times, and 600 of the people of ukp take part.

Electricity and yogurt come with the package; the others are read from `--crowds`, those that are
there. Gains have standard errors over people, all folds and seeds together: with several seeds the
answers that are known differ, and a person counts once. `--figure` draws the gains.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.harness import Row
from fssa_bayes import Posterior, Preferences
from fssa_bayes.baselines import Predictions, few_shot_fitters
from fssa_bayes.checks import compare_by_context, score_folds
from fssa_bayes.datasets import electricity, llmfao, swiss_route, table, train_choice, ukp_convarg
from fssa_bayes.datasets import yogurt as yogurts
from fssa_bayes.diagnostics import brier_decomposition
from fssa_bayes.posterior import ChoiceProbability

SIZES = (0, 1, 2, 3, 5, 10, 20, 50)
_COMPONENTS = 8  # Principal components of the embeddings of ukp.


@dataclass(frozen=True)
class Crowd:
    """Tells how people are read and modelled.

    Attributes:
        read: Reads them from the folder with the files.
        files: Names of the files; none where they come with the package.
        latent_dim: Number of latent dimensions of tastes; None for all coefficients.
        options: Other arguments of the models.
        personal: What differs between people beside tastes.
        num_folds: Number of folds.
        rounds: How many of them are left out.
        num_populations: Number of populations drawn; 0 for the estimate alone.
        most_people: Number of people that take part, drawn at random once; None for all.
    """

    read: Callable[[Path], Preferences]
    files: tuple[str, ...] = ()
    latent_dim: int | None = None
    options: dict[str, object] = field(default_factory=dict)
    personal: tuple[str, ...] = ()
    num_folds: int = 4
    rounds: int = 4
    num_populations: int = 20
    most_people: int | None = None


def read_indecision(folder: Path) -> Preferences:
    """Reads the choices between two patients, a third answer being to flip a coin."""
    columns = {"user": "user", "left": "left", "right": "right", "choice": "choice"}
    items = folder / "indecision_ties_items.csv.gz"
    return table.read(folder / "indecision_ties.csv.gz", items=items, ties="keep", **columns).data


def read_ukp(folder: Path) -> Preferences:
    """Reads the judgements of arguments, with components of the embeddings as features."""
    path, embeddings = folder / ukp_convarg.FILE, folder / ukp_convarg.EMBEDDINGS
    data = ukp_convarg.read(path, embeddings)
    features = data.items.double()
    _, _, vectors = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    names = [f"component {number + 1}" for number in range(_COMPONENTS)]
    components = pd.DataFrame((features @ vectors[:_COMPONENTS].T).numpy(), data.item_names, names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the comparison graph has")
        columns = {"user": "worker", "left": "arg1", "right": "arg2", "choice": "label"}
        labels = {"a1": "left", "a2": "right", "equal": "tie"}
        return table.read(path, items=components, ties="keep", choice_labels=labels, **columns).data


CROWDS = {
    "electricity": Crowd(lambda _: electricity.read(), rounds=1),
    "yogurt": Crowd(lambda _: yogurts.read(), rounds=2),
    "train_choice": Crowd(
        lambda folder: train_choice.read(folder / "train_choice.csv.gz"),
        ("train_choice.csv.gz",),
        rounds=1,
    ),
    "swiss_route": Crowd(
        lambda folder: swiss_route.read(folder / swiss_route.FILE),
        (swiss_route.FILE, swiss_route.ITEMS, swiss_route.USERS),
        rounds=1,
    ),
    "indecision_ties": Crowd(
        read_indecision,
        ("indecision_ties.csv.gz", "indecision_ties_items.csv.gz"),
        personal=("ties",),
        rounds=2,
    ),
    "llmfao": Crowd(
        lambda folder: llmfao.read(folder / llmfao.FILE),
        (llmfao.FILE,),
        latent_dim=2,
        options={"position_bias": True},
        personal=("ties",),
        rounds=2,
        num_populations=0,
    ),
    "ukp": Crowd(
        read_ukp,
        (ukp_convarg.FILE, ukp_convarg.EMBEDDINGS),
        latent_dim=2,
        options={"position_bias": True},
        personal=("ties",),
        rounds=1,
        num_populations=0,
        most_people=600,
    ),
}


@dataclass
class Kept:
    """Holds what a predictor says of some people's unseen answers, for its calibration.

    Attributes:
        key: Name of the predictor.
        known: Number of known answers.
        prob: Probabilities: of left, or of each alternative of a choice set.
        chosen: 1 where left or the alternative was chosen, else 0.
        user: The person of each.
        pit: Of each question that was asked repeatedly, the randomised probability integral
            transform of how often its likeliest alternative was chosen; None if not computed.
        retest: Of each person asked a question repeatedly, the share of pairs of answers to one
            question that agree; None if not computed.
    """

    key: str
    known: int
    prob: np.ndarray
    chosen: np.ndarray
    user: np.ndarray
    pit: np.ndarray | None = None
    retest: pd.Series | None = None


class Recorder:
    """Makes predictions and keeps them.

    Args:
        predictor: What predicts.
        key: Its name.
        known: Number of known answers.
        kept: The list that predictions are added to.
    """

    def __init__(
        self, predictor: Posterior | Predictions, key: str, known: int, kept: list[Kept]
    ) -> None:
        self.predictor, self.key, self.known, self.kept = predictor, key, known, kept

    def log_score(self, target: Preferences) -> torch.Tensor:
        return self.predictor.log_score(target)

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        prob = self.predictor.choice_prob(target)
        if target.has_rankings:
            table = self.predictor.alternative_prob(target)
            user = table.index.get_level_values("user").astype(str).to_numpy()
            own = table["mean"].to_numpy(), (table["chosen"] == 1).to_numpy().astype(float)
            kept = Kept(self.key, self.known, *own, user)
        else:
            user = target.user_names.astype(str).to_numpy().repeat(target.counts)
            chosen = (target.choice == 1).astype(float)
            kept = Kept(self.key, self.known, prob.mean[target.batch().mask].numpy(), chosen, user)
        if self.key in ("posterior", "personal answers") and self.known in (5, 10):
            kept.pit = frequencies(self.predictor, target)
        if self.key == "homogeneous" and self.known == 0:
            kept.retest = agreement(self.predictor.alternative_prob(target))
        self.kept.append(kept)
        return prob


def frequencies(posterior: Posterior, target: Preferences, num_draws: int = 99) -> np.ndarray:
    """Ranks how often an alternative was chosen among frequencies that the posterior simulates.

    Of each question, a set of alternatives, that these people were asked together at least twice,
    the alternative is counted that is the likeliest. Answers of one person share that person's z.

    Args:
        posterior: The posterior of the people.
        target: Their unseen answers.
        num_draws: Number of simulated frequencies.

    Returns:
        The randomised probability integral transform of each frequency, uniform if it is right.
    """
    table = posterior.alternative_prob(target).reset_index()
    asked = name_questions(table)
    size = table.groupby(["user", "situation"]).ngroup().groupby(asked).nunique()
    total = table.groupby([asked, "item"])["mean"].sum()
    likeliest = total.groupby(level=0).idxmax()
    pairs = pd.MultiIndex.from_arrays([asked, table["item"]])
    counted = np.flatnonzero(pairs.isin(likeliest[size > 1]))
    question, names = pd.factorize(asked[counted])
    if not len(names):
        return np.empty(0)
    observed = np.bincount(question, (table["chosen"] == 1)[counted])
    rng, below, equal = np.random.default_rng(0), np.zeros(len(names)), np.zeros(len(names))
    log_weights = torch.zeros(1, len(target))
    for number in range(num_draws):
        z = posterior.z[number : number + 1]
        prob = Predictions(posterior.model, posterior.context, z, log_weights)
        prob = prob.alternative_prob(target)["mean"].to_numpy()[counted]
        simulated = np.bincount(question, rng.random(len(counted)) < prob)
        below, equal = below + (simulated < observed), equal + (simulated == observed)
    return (below + rng.random(len(names)) * (equal + 1)) / (num_draws + 1)


def agreement(table: pd.DataFrame) -> pd.Series:
    """Computes the share of pairs of a person's answers to one question that agree, by person."""
    table = table.reset_index()
    asked = name_questions(table)
    chosen = (table["chosen"] == 1).groupby([table["user"], asked, table["item"]]).sum()
    groups = chosen.groupby(level=[0, 1])
    number = table.groupby([table["user"], asked])["situation"].nunique()
    pairs = (number * (number - 1)).groupby(level=0).sum()
    ties = number - groups.sum()
    same = (chosen * (chosen - 1)).groupby(level=[0, 1]).sum() + ties * (ties - 1)
    same = same.groupby(level=0).sum()
    repeated = pairs > 0
    return same[repeated] / pairs[repeated]


def name_questions(table: pd.DataFrame) -> np.ndarray:
    """Returns, for each row, the alternatives of its situation as one text."""
    situation = table.groupby(["user", "situation"], sort=False).ngroup()
    names = table["item"].astype(str).groupby(situation).agg(lambda x: " | ".join(sorted(x)))
    return names.loc[situation].to_numpy()


def run(args: argparse.Namespace) -> Iterator[Row]:
    tables = {}
    for name, crowd in CROWDS.items():
        if crowd.files and (
            args.crowds is None or not all((args.crowds / file).is_file() for file in crowd.files)
        ):
            print(f"few_shot: {name} skipped, it needs {', '.join(crowd.files)} in --crowds")
            continue
        if args.quick and name != "yogurt":
            continue
        tables[name], rows = study(name, crowd, args)
        yield from rows
    if args.figure is not None or args.json is not None:
        plot(tables, args.figure or args.json.with_suffix(".png"))


def study(name: str, crowd: Crowd, args: argparse.Namespace) -> tuple[pd.DataFrame, Iterator[Row]]:
    """Leaves people out; returns the gains over the homogeneous model, and all rows."""
    data, kept = crowd.read(args.crowds), []
    if crowd.most_people is not None and len(data) > crowd.most_people:
        people = np.random.default_rng(0).permutation(len(data))[: crowd.most_people]
        data = data.subset(np.sort(people))
    if args.quick:
        data = data.subset(range(40))
    parts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of few people, and of heavy workers.
        for seed in args.seeds[:1] if args.quick else args.seeds:
            fitters = few_shot_fitters(
                crowd.options,
                latent_dim=crowd.latent_dim,
                num_classes=0 if args.quick else 3,
                num_restarts=4,
                num_samples=100 if args.quick else 400,
                num_populations=0 if args.quick else crowd.num_populations,
                personal=crowd.personal,
                seed=seed,
            )
            recorded = {key: _recording(key, fitter, kept) for key, fitter in fitters.items()}
            scores = score_folds(
                recorded,
                data,
                SIZES[:4] if args.quick else SIZES,
                num_folds=crowd.num_folds,
                folds=range(1 if args.quick else crowd.rounds),
                seed=seed,
            )
            parts.append(scores.assign(seed=seed))
    scores = pd.concat(parts)
    gains = compare_by_context(_mean_over_seeds(scores), "homogeneous")
    print(check(name, gains, compare_by_context(_mean_over_seeds(scores), "mode")), flush=True)
    return gains, _rows(name, scores, gains, _calibration(kept))


def _recording(key: str, fitter: Callable, kept: list) -> Callable:
    """Keeps what a predictor says, with the number of known answers."""

    def fit(train: Preferences) -> Callable[[Preferences], Recorder]:
        predict = fitter(train)

        def at(context: Preferences) -> Recorder:
            return Recorder(predict(context), key, int(context.judgement_counts.max()), kept)

        return at

    return fit


def _mean_over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Takes the mean of each person's scores over seeds, so that a person counts once."""
    keys = ["known", "predictor", "user"]
    columns = ["unseen", "log_score", "accuracy"]
    return scores.groupby(keys, sort=False)[columns].mean().reset_index()


def check(name: str, gains: pd.DataFrame, over_mode: pd.DataFrame) -> str:
    """Says after ten answers, or as many as there are, whether ours is beside the mode or below.

    Differences count from two standard errors over people on.

    Args:
        name: Name of the data.
        gains: Gains over everybody alike.
        over_mode: Gains over the personal maximum a posteriori.
    """
    known = max(size for size in gains.index.get_level_values("known") if size <= 10)
    ours, mode, beside = (
        gains.loc[(known, "posterior")],
        gains.loc[(known, "mode")],
        over_mode.loc[(known, "posterior")],
    )

    def over(row: pd.Series, words: tuple[str, str, str]) -> str:
        size = row["gain"] / row["standard_error"]
        word = words[0] if size > 2 else words[2] if size < -2 else words[1]
        return f"{word} ({row['gain']:+.4f} ± {row['standard_error']:.4f})"

    words = ("above", "not told apart from", "BELOW")
    return (
        f"few_shot: {name}, {known} known: the posterior against the mode: {over(beside, words)}; "
        f"against everybody alike: {over(ours, words)}, the mode {over(mode, words)}"
    )


def _calibration(kept: list[Kept]) -> dict[tuple[int, str], list[tuple[str, float, float]]]:
    """Lists miscalibration (CORP), coverage of frequencies and agreement with standard errors."""
    found = {}
    for known, key in dict.fromkeys((each.known, each.key) for each in kept):
        own = [each for each in kept if (each.known, each.key) == (known, key)]
        prob, chosen, user = (
            np.concatenate([getattr(each, name) for each in own])
            for name in ("prob", "chosen", "user")
        )
        rows = found.setdefault((known, key), [])
        if len(np.unique(user)) >= 10:
            score = brier_decomposition(prob, chosen, user).miscalibration
            rows.append(("miscalibration (± s.e.)", score.value, score.standard_error))
        pit = np.concatenate([each.pit for each in own if each.pit is not None] or [[]])
        if len(pit) >= 50:
            inside = (pit > 0.05) & (pit < 0.95)
            metric = f"coverage of 90 % intervals, {len(pit)} frequencies (± s.e.)"
            rows.append((metric, inside.mean(), inside.std() / len(pit) ** 0.5))
        retests = [each.retest for each in own if each.retest is not None]
        retest = pd.concat(retests).groupby(level=0).mean() if retests else pd.Series()
        if len(retest) >= 20:
            metric = f"same answer asked again, {len(retest)} people (± s.e.)"
            rows.append((metric, retest.mean(), retest.std() / len(retest) ** 0.5))
    return found


def _rows(name: str, scores: pd.DataFrame, gains: pd.DataFrame, calibration: dict) -> Iterator[Row]:
    """Lists scores, gains over the homogeneous model and the mode, and miscalibration."""
    over_mode = compare_by_context(_mean_over_seeds(scores), "mode")
    for (known, key), row in gains.iterrows():
        case = f"{name}, {known} known"

        def of(metric: str, value: float, error: float, unit: str = "nats") -> Row:
            low, high = value - error, value + error
            return Row("few_shot", case, key, metric, unit, value, low, high)  # noqa: B023

        people = int(row["people"])
        yield Row(
            "few_shot", case, key, f"log score, {people} people", "nats", *[row["log_score"]] * 3
        )
        yield Row("few_shot", case, key, "accuracy", "", *[row["accuracy"]] * 3)
        if key != "homogeneous":
            yield of("gain (mean ± s.e.)", row["gain"], row["standard_error"])
        if key.startswith(("posterior", "personal")):
            beside = over_mode.loc[(known, key)]
            yield of("gain over mode (± s.e.)", beside["gain"], beside["standard_error"])
        for metric, value, error in calibration.get((known, key), []):
            yield of(metric, value, error, "Brier" if "miscal" in metric else "")
    for key in ("posterior", "personal answers"):
        own = scores[scores["predictor"].isin(["homogeneous", key])]
        by_seed = []
        for _, of_seed in own[own["known"] == 10].groupby("seed"):
            if key in set(of_seed["predictor"]):
                by_seed.append(compare_by_context(of_seed, "homogeneous").loc[(10, key), "gain"])
        if len(by_seed) > 1:
            yield Row(
                "few_shot",
                f"{name}, 10 known",
                key,
                "gain (median, range over seeds)",
                "nats",
                *(float(f(by_seed)) for f in (np.median, np.min, np.max)),
            )


def plot(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Draws gains by number of known answers, ± 2 standard errors, a panel for each crowd."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = {
        "posterior": ("black", "o", "-"),
        "personal answers": ("tab:red", "D", "-"),
        "mode": ("tab:blue", "s", "--"),
        "mixture": ("tab:green", "^", ":"),
    }
    columns = min(len(tables), 3)
    lines = -(-len(tables) // columns)
    size = 3.6 * columns, 2.9 * lines + 0.5
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for ax in axes.flat[len(tables) :]:
        ax.set_visible(False)
    for ax, (name, gains) in zip(axes.flat, tables.items(), strict=False):
        known = gains.index.get_level_values("known").unique()
        for shift, (key, (color, marker, line)) in enumerate(styles.items()):
            if key not in gains.index.get_level_values("predictor"):
                continue
            rows = gains.xs(key, level="predictor")
            ax.errorbar(
                np.arange(len(rows)) + 0.08 * (shift - 1.5),
                rows["gain"],
                2 * rows["standard_error"],
                color=color,
                marker=marker,
                linestyle=line,
                markersize=4,
                linewidth=1,
                capsize=2,
                label=key,
            )
        ax.axhline(0, color="0.5", linewidth=0.8)
        ax.set_xticks(np.arange(len(known)), known)
        people = int(gains["people"].max())
        ax.set_title(f"{name} ({people:,} people)", fontsize=10)
    for ax in axes.flat[max(0, len(tables) - columns) : len(tables)]:  # The lowest of a column.
        ax.set_xlabel("known answers")
    for row in axes:
        row[0].set_ylabel("gain, nats a choice")
    handles = {}
    for ax in axes.flat:
        found, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)
