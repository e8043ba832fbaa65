"""What do these people prefer, how much do they differ, and how sure can we be?

Reads a file of paired comparisons and writes a folder that a colleague can read: `summary.md` with
figures and tables, `posterior.nc` for ArviZ, and the fitted model for next month.

What to see: whether a model of individual people predicts their unseen choices better than one of
the average person, with the standard error of the difference (either sign is a finding); which
items lead, and how far the ranking can be trusted; who differs most, in direction or in
consistency; with `--users`, what people's covariates do to their utilities.

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
from fssa_bayes.population import covariate_effects

CONTEXT_SIZES = (0, 1, 2, 3, 5, 10)  # As far as half the people have more choices.
MAX_ITEMS = 100  # Items that people are compared by, those compared most often.
MAX_PAIRS = 1000  # Pairs that disagreement is averaged over.
MAX_SHOWN = 12  # Items whose utilities are set against covariates.
REFITS = 10  # Fits to people drawn with replacement, for standard errors of networks.
MAX_COEFFICIENTS = 1500  # Up to which their standard errors need no refits.
STEP_SIZE = 1500  # Comparisons in a step of the fit, on average.


MIN_PEOPLE = 5
MIN_JUDGES = 10  # People whose scores can have a standard error worth the name.
RESULTS = {
    *("covariates.csv", "model", "people.csv", "people.png", "person.png", "posterior.nc"),
    *("ranking.csv", "ranking.png", "ranks.png", "summary.md"),
}
EMPIRICAL_BAYES = (
    "Intervals for a person are empirical-Bayes: they hold the population at its estimate, and are "
    "too narrow where few people inform many parameters."
)


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
    check_output(args)
    report = Report(args.part)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", "the largest context has")  # pareto_k is the judge.
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ people have no target")  # Said below.
        # The average person has none, and where the individual model has none is said below.
        warnings.filterwarnings("ignore", "the model does not use the covariates")
        report.say(f"# Paired comparisons in {args.path.name}")
        data = read(args, report)
        args.part.mkdir(parents=True, exist_ok=True)
        train, test = data.split_users(args.test_size, seed=args.seed)
        model, guide, origin, result = fit_people(train, args)
        average = fit_average(train, model.config["utility"], args)
        gain = compare(model, guide, average, test, report, args)
        rank(data, report, args)
        describe_differences(model, guide, data, gain, report, args)
        if data.covariates is not None:
            describe_covariates(model, data, result, report, args)
        export(model, guide, test, report, args)
    report.title("What was done")
    report.say(
        f"The average person's model was fitted to {len(train):,} people. Individual model: "
        f"{origin}. Seed {args.seed}, {time.perf_counter() - start:.0f} s.\n\n{EMPIRICAL_BAYES}"
    )
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        report.say(f"\n- Warning: {message}.")
    save(args.part / "model", model, guide, overwrite=True)
    report.write()
    finish(args)


# ---------------------------------------------------------------------- data


def read(args: argparse.Namespace, report: Report) -> Preferences:
    """Reads the file and says what is in it."""
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
    report.say(f"```\n{'rows read':<22}{read.rows:,}\n{read.data.summary()}\n```")
    for column, count in read.missing.items():
        report.say(f"\n- {count} rows were left out: nothing in column {column!r}.")
    if len(read.data) < MIN_PEOPLE:
        raise ValueError(
            f"{args.path} must have at least {MIN_PEOPLE} people, some to fit and some to judge "
            f"by, got {len(read.data)}"
        )
    return read.data


# ---------------------------------------------------------------------- models


def fit_average(data: Preferences, utility: str, args: argparse.Namespace) -> FitResult:
    """Fits the homogeneous model: everybody is the average person."""
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(data.num_features, 0, utility=utility, ties=ties(data))
    validation = None if utility == "linear" else held_out_share(data)
    return fit(model, None, data, validation=validation, seed=args.seed, progress_bar=False)


def ties(data: Preferences) -> str | None:
    """Names the model of ties that the data need: none where they count as half a win each."""
    return "davidson" if data.summary().ties else None


def held_out_share(data: Preferences) -> float | None:
    """Networks are stopped early by people held out, if there are enough."""
    return 0.1 if len(data) >= 20 else None


def fit_people(
    train: Preferences, args: argparse.Namespace
) -> tuple[HeterogeneousBTL, NeuralProcessGuide, str, FitResult | None]:
    """Fits the model in which everybody has a latent factor of their own, or loads it."""
    if args.model is not None:
        if args.utility or args.latent_dim:
            raise ValueError("--utility and --latent-dim are those of --model: leave them out")
        model, guide = load(args.model)
        return model, guide, f"loaded from {args.model}", None
    utility = args.utility or ("linear" if train.items is None else "bilinear")
    width = args.latent_dim or 2
    torch.manual_seed(args.seed)
    covariates = 0 if train.covariates is None else len(train.covariate_names)
    model = HeterogeneousBTL(
        train.num_features, width, utility=utility, ties=ties(train), num_covariates=covariates
    )
    guide = NeuralProcessGuide(model)
    result = fit(
        model,
        guide,
        train,
        objective=[ImportanceWeightedELBO(16), Sleep()],
        steps=args.steps,
        batch_size=int(np.clip(STEP_SIZE / train.counts.mean(), 8, 64)),
        validation=None if utility == "linear" else held_out_share(train),
        refit=False,
        seed=args.seed,
        checkpoint=args.part / "checkpoint",
    )
    origin = f"utility {utility!r}, {width} latent dimensions, fitted to the same people"
    return model, guide, f"{origin}; {convergence(result)}", result


def convergence(result: FitResult) -> str:
    """Tells whether the loss of the first stage still fell at its end, beyond its noise."""
    first = result.history["stage"] == result.history["stage"].iloc[0]
    loss = result.history.loc[first, "loss"].to_numpy()
    before, after = np.array_split(loss[-2 * max(2, len(loss) // 5) :], 2)
    change = after.mean() - before.mean()
    error = math.hypot(*(part.std(ddof=1) / math.sqrt(len(part)) for part in (before, after)))
    falls = "was still falling: more --steps may help" if change < -2 * error else "had settled"
    return (
        f"{len(loss)} steps, over the last fifth of which the loss {falls} "
        f"({change:+.2f} ± {error:.2f} nats a person)"
    )


def posterior(model, guide, context: Preferences, args: argparse.Namespace) -> Posterior:
    return Posterior(model, guide, context, args.draws, seed=args.seed)


# ---------------------------------------------------------------------- findings


def compare(model, guide, average: FitResult, test: Preferences, report, args) -> float:
    """Scores unseen choices of the people left out, and returns how sure the gain's sign is."""
    sizes = context_sizes(test)
    longest, target = test.split_context(sizes[-1], seed=args.seed)
    base = Posterior(average.model, None, longest, 1).log_score(target).numpy()
    rows = []
    for size in sizes:
        known = longest if size == sizes[-1] else longest.split_context(size, seed=args.seed)[0]
        person = posterior(model, guide, known, args)
        difference = person.log_score(target).numpy() - base
        error = np.nan
        if len(difference) > 1:
            error = difference.std(ddof=1) / math.sqrt(len(difference))
        doubtful = (person.pareto_k > 0.7).float().mean().item()
        rows.append((size, base.mean(), difference.mean(), error, doubtful))
    columns = ["known choices", "average person", "gain", "its standard error", "share k > .7"]
    report.title("Do people differ in ways that can be predicted?")
    guess = math.log(3 if model.has_ties else 2)
    who = "who took no part in the fit" if args.model is None else "left out of the average's fit"
    report.say(
        f"Log score of {target.num_comparisons:,} unseen choices of {len(target):,} people {who} "
        f"({len(test) - len(target):,} others have no more than {sizes[-1]} choices): the mean "
        "over people of each one's mean, nats per choice; higher is better, guessing scores "
        f"−{guess:.3f}. *Gain* is the individual model's score less the average person's; its "
        "standard error is over people. *k > .7* is the share of people for whom the approximation "
        "is in doubt.\n"
    )
    if args.model is not None:
        report.say(
            f"People of this file may have been part of the fit of {args.model}: then the "
            "gain flatters it.\n"
        )
    report.tabulate(pd.DataFrame(rows, columns=columns), 4)
    size, _, gain, error, _ = rows[-1]
    report.say("\n" + verdict(size, gain, error, len(target)))
    return gain / error if len(target) >= MIN_JUDGES else np.nan


def context_sizes(test: Preferences) -> list[int]:
    return [n for n in CONTEXT_SIZES if n == 0 or np.mean(test.counts > n) >= 0.5]


def verdict(size: int, gain: float, error: float, people: int) -> str:
    after = f"After {size} known choices of a person the individual model"
    amount = f"by {abs(gain):.4f} ± {error:.4f} nats a choice"
    if people < MIN_JUDGES:
        return f"**Too few to judge by: {people}** (gain {gain:+.4f} nats a choice)."
    if gain > 2 * error:
        return f"**{after} predicts better {amount}: people differ, and a few choices tell how.**"
    if gain < -2 * error:
        return f"**{after} predicts worse {amount}: the average person is the better bet.**"
    return (
        f"**{after} cannot be told from the average person** (gain {gain:+.4f} ± {error:.4f} nats "
        "a choice): these data do not show differences that a few choices would reveal."
    )


def rank(data: Preferences, report: Report, args: argparse.Namespace) -> None:
    """Ranks items for the average person, with errors clustered by person, group by group."""
    average = fit_average(data, "linear", args)
    labels = data.components()
    position = np.flatnonzero(labels >= 0)
    groups = labels[position]
    order = average.ranking(data.item_names[position], groups=groups, seed=args.seed)
    order.to_csv(report.folder / "ranking.csv")
    report.title("Ranking for the average person")
    report.say(
        f"Homogeneous linear BTL fitted to all {len(data):,} people: utilities in nats, with "
        "standard errors clustered by person; intervals of ranks are 90 %, from the same normal "
        "approximation. All items are in `ranking.csv`.\n"
    )
    if average.model.has_ties:
        nu = average.model.log_tie.exp().item()
        report.say(
            f"Two items of the same utility tie with probability {nu / (2 + nu):.3f}, the less the "
            f"further their utilities are apart (Davidson's ν = {nu:.3f}).\n"
        )
    if data.items is not None:
        report.say(
            f"Utility is linear in the items' {data.num_features} features: an item's place rests "
            "on them, not on its own comparisons alone.\n"
        )
    if groups.max() > 0:
        report.say(
            f"The items fall into {groups.max() + 1} groups that were never compared with each "
            "other; each is centred and ranked by itself. Shown is the largest, of "
            f"{np.sum(groups == 0)} items.\n"
        )
    shown = order[order["group"] == 0]
    columns = ["utility", "standard_error", "rank", "rank_lower", "rank_upper"]
    report.tabulate(shown[columns].head(10), 2)
    top = shown.head(40)
    report.picture(
        "ranking.png",
        ranking(top["utility"], top["lower"], top["upper"], list(top.index)),
        "Utilities of the leading items to the average person with 90 % intervals",
    )


def describe_differences(model, guide, data: Preferences, certainty: float, report, args) -> None:
    """Describes how much people differ, and who does."""
    report.title("How much do people differ?")
    if not certainty > 2:
        report.say(
            "What follows is what the individual model believes. The comparison above does not "
            "show that it predicts anything: take it as a description, not as a finding.\n"
        )
    within, between = disagreement(model, data, args)
    half = "; a tie counts as half a win each way" if data.summary().half_wins else ""
    report.say(
        f"On a pair of this file, the model has one person answer differently when asked twice "
        f"with probability {within:.3f}, and two people with probability {between:.3f} (averages "
        f"over the fitted population{half}). The difference, {between - within:.3f}, is taste."
    )
    everybody = posterior(model, guide, data, args)
    items = common_items(data, MAX_ITEMS)
    if len(items) < 3:
        report.say("\nTwo items are too few to compare people by.")
        return
    people = everybody.differences(items)
    people["pareto_k"] = everybody.pareto_k.numpy()
    people.to_csv(report.folder / "people.csv")
    doubtful = (people["pareto_k"] > 0.7).mean()
    report.say(
        f"\nEverybody's posterior given all of their choices, over the {len(items)} items of the "
        "largest group compared most often. *Direction* is the correlation of a person's utilities "
        "with the average person's, *scale* their standard deviation in nats: a small scale means "
        "that choices are hard to predict, from indifference or from carelessness. Medians and "
        f"90 % intervals; all people are in `people.csv`. {EMPIRICAL_BAYES} The approximation is "
        f"in doubt (k > .7) for {doubtful:.0%} of them."
    )
    for title, order in (
        ("who differ most in direction", people.sort_values("direction_upper")),
        ("who choose most consistently", people.sort_values("scale_lower", ascending=False)),
        ("who choose least consistently", people.sort_values("scale_upper")),
    ):
        report.say(f"\nPeople {title}:\n")
        report.tabulate(order.drop(columns="pareto_k").head(5), 3)
    draw_people(people, report)
    draw_a_person(model, guide, data, report, args)


def disagreement(model, data: Preferences, args: argparse.Namespace) -> tuple[float, float]:
    """Returns the probabilities that one person, and that two people, answer a pair differently."""
    rng = np.random.default_rng(args.seed)
    pairs = data.resample_pairs(np.array([min(MAX_PAIRS, data.num_comparisons)]), rng)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        z = model.sample_population(2000, data).unsqueeze(1)
        outcomes = model.choice(pairs, z).outcomes
    prob = torch.stack([x.exp().double().squeeze(1) for x in outcomes if x is not None])
    same, same_of_two = (p.square().sum(0).mean().item() for p in (prob, prob.mean(1)))
    return 1 - same, 1 - same_of_two


def describe_covariates(
    model, data: Preferences, result: FitResult | None, report: Report, args
) -> None:
    """Tabulates what covariates do to utilities, and to the coefficients where these are few."""
    report.title("What do covariates do?")
    if not model.num_covariates:
        report.say(f"The model from {args.model} does not use the covariates of {args.users.name}.")
        return
    report.say(
        "Covariates say where a person's tastes are to be expected before any choice: the gain at "
        "0 known choices, above, is what they predict.\n"
    )
    linear = model.utility.is_linear
    unknown = np.zeros(model.num_covariates, dtype=bool)
    if linear and result is not None and data.items is not None and data.num_features <= 30:
        effects = result.population(seed=args.seed).loc["effect"]
        missing = effects["se_sandwich"].isna().to_numpy()
        unknown = missing.reshape(model.num_covariates, -1).all(1)
        spanned = (
            f" With {model.latent_dim} latent dimensions effects lie in the directions in which "
            f"people differ (--latent-dim {data.num_features} leaves them free)."
        )
        report.say(
            "Change of the mean coefficient with a unit of the covariate, in nats per unit of the "
            "feature, the other covariates held fixed; errors are sandwich, with people as "
            f"clusters.{spanned if model.latent_dim < data.num_features else ''}\n"
        )
        report.tabulate(effects[["estimate", "se_sandwich"]].rename_axis("effect"), 4)
    items = common_items(data, MAX_SHOWN)
    if len(items) < 2:
        return
    draws, errors = None, "They have no standard errors: those need the people of the fit."
    if result is not None and linear and small(model):
        draws = result.population_draws(seed=args.seed)
        errors = (
            "Standard errors: normal approximation with the sandwich covariance; – for covariates "
            "none of whose effects above has one."
        )
    elif result is not None:
        steps = max(10, (args.steps or 600) // 6)
        objective = ImportanceWeightedELBO(16, steps=steps)
        draws = result.bootstrap(REFITS, seed=args.seed, objective=objective, validation=None)
        errors = (
            f"Standard errors: the spread of {REFITS} refits to people drawn with replacement, "
            "themselves known to a quarter."
        )
    effects = covariate_effects(model, data, items, population=draws, seed=args.seed)
    if linear and small(model):  # The draws hold at its estimate what the data do not tell.
        effects.loc[np.repeat(unknown, len(items)), ["utility_se", "wins_se"]] = np.nan
    effects.to_csv(report.folder / "covariates.csv")
    report.say(
        f"\nChange with a unit of the covariate, averaged over people, for the {len(items)} items "
        "compared most often: of the average *utility*, centred over these items, in nats; and of "
        "the probability that the item *wins* against another of them. All else, and the other "
        f"covariates, held fixed; associations, not causes. {errors} All rows are in "
        "`covariates.csv`.\n"
    )
    # The largest first, as the covariates vary.
    typical = data.covariates.std(0).repeat_interleave(len(items)).numpy()
    order = np.argsort(-(effects["wins"] * typical).abs().to_numpy())
    report.tabulate(effects.iloc[order].head(12).reset_index(), 5)


def small(model: HeterogeneousBTL) -> bool:
    """Tells whether the information on all coefficients is a matrix of a few megabytes."""
    return model.num_features * (1 + model.latent_dim) <= MAX_COEFFICIENTS


def common_items(data: Preferences, number: int) -> list:
    """Names the items compared most often, within the largest component of the comparisons."""
    uses = np.bincount(np.concatenate([data.left, data.right]), minlength=data.num_items)
    order = np.argsort(-uses, kind="stable")
    return list(data.item_names[order[data.components()[order] == 0][:number]])


def draw_people(people: pd.DataFrame, report: Report) -> None:
    shown = people.sample(min(40, len(people)), random_state=0)
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 9), layout="tight")
    labels = ("direction: correlation with the average", "scale (nats)")
    for ax, name, label in zip(axes, ("direction", "scale"), labels, strict=True):
        columns = [shown[name + suffix] for suffix in ("", "_lower", "_upper")]
        forest(*columns, list(shown.index), label=label, reference=people[name].median(), ax=ax)
    which = "all" if len(shown) == len(people) else f"{len(shown)} at random of the {len(people):,}"
    caption = f"{which} people: posterior median and 90 % interval, the population held fixed"
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
        f"Choices of person {name}: probability that the first is preferred, with 90 % interval, "
        "the population held fixed; both markers: a tie",
    )
    items = common_items(data, 12)
    report.picture(
        "ranks.png",
        rank_distribution(person.rank_prob(items)[0], items),
        f"Where person {name} would rank the {len(items)} items compared most often, the "
        "population held fixed",
    )


def export(model, guide, test: Preferences, report: Report, args: argparse.Namespace) -> None:
    """Writes the posteriors of the people left out, for ArviZ."""
    context, target = test.split_context(context_sizes(test)[-1], seed=args.seed)
    exported = posterior(model, guide, context, args).to_inference_data(target)
    path = report.folder / "posterior.nc"
    try:
        exported.to_netcdf(str(path))
    except Exception as error:  # HDF5 says "disk full" in many words, none of them an OSError.
        raise OSError(f"{path} could not be written, is the disk full? {error}") from error
    report.title("Files")
    report.say(
        f"- `posterior.nc`: posteriors of the {len(context)} people scored above, given "
        f"{context.counts.max()} of their choices, and predictions of the rest: "
        "`arviz.from_netcdf`.\n"
        "- `model/`: the individual model: `model, guide = fssa_bayes.load(...)`.\n"
        "- `ranking.csv`, `people.csv`: the tables above, whole."
    )


# ---------------------------------------------------------------------- the command


def check_output(args: argparse.Namespace) -> None:
    """Names the folder that becomes `--out` once everything is in it, and sees that it can."""
    args.out = args.out.resolve()
    args.part = args.out.with_name(args.out.name + ".part")
    if not args.out.exists():
        return
    if not args.overwrite:
        raise FileExistsError(f"--out must not exist yet, got {args.out}: pass --overwrite")
    found = {path.name for path in args.out.iterdir()} if args.out.is_dir() else {args.out.name}
    if foreign := sorted(found - RESULTS):
        raise FileExistsError(
            f"--overwrite replaces nothing but earlier results, got {args.out} with {foreign[:3]}"
        )


def finish(args: argparse.Namespace) -> None:
    shutil.rmtree(args.part / "checkpoint", ignore_errors=True)
    previous = args.out.with_name(args.out.name + ".previous")
    if args.out.exists():
        args.out.rename(previous)
    args.part.rename(args.out)
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
    parser.add_argument(
        "--ties",
        choices=("drop", "half", "keep"),
        default="drop",
        help="keep: a tie is an answer of its own, and the model has them",
    )
    parser.add_argument("--delimiter", help="character between cells; by the file's name if absent")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in --out")
    parser.add_argument("--utility", choices=("bilinear", "linear", "mlp"))
    parser.add_argument("--model", type=Path, help="a model saved before, to use without a fit")
    parser.add_argument("--latent-dim", type=int, help="latent dimensions; 2 if absent")
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
        lines = [f"error: {error}", *getattr(error, "__notes__", [])]
        part = getattr(arguments, "part", None)
        if part is not None and (part / "checkpoint").exists():
            lines.append(
                f"{part} holds what was done so far: the same command goes on from there; "
                "delete it to begin afresh"
            )
        elif part is not None:
            shutil.rmtree(part, ignore_errors=True)
        sys.exit("\n".join(lines))
