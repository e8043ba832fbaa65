"""What do these people prefer, how much do they differ, and how sure can we be?

:func:`analyse` fits a model of individual people and one of the average person to a part of the
people, compares both on the unseen choices of the others, ranks the items and describes who
differs. :func:`rank` is the ranking alone.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from fssa_bayes._random import seeded
from fssa_bayes.comparison import choose_latent_dim
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.inference import FitResult, ImportanceWeightedELBO, Sleep, fit
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.posterior import Posterior
from fssa_bayes.report import findings
from fssa_bayes.report.alternatives import chooses_by_attributes, name_kind, say_what_is_ranked
from fssa_bayes.report.covariates import describe_covariates
from fssa_bayes.report.page import Section
from fssa_bayes.report.report import Report
from fssa_bayes.report.tastes import (
    check_price,
    describe_payments,
    fit_mixed_logit,
    is_mixed_logit,
)

if TYPE_CHECKING:
    from fssa_bayes._arviz import InferenceData

__all__ = ["Analysis", "Collector", "analyse", "hear_warnings", "rank"]

_STEP_SIZE = 1500  # Comparisons in a step of the fit, on average.
_MIN_PEOPLE = 5  # Fewest people that can be divided into people to fit and people to score.
_MIN_CHOOSERS = 20  # Fewest people of a fit by whom a number of latent dimensions is chosen.
_LATENT_DIMS = (1, 2, 4, 8)  # Numbers to choose from.
_IGNORED = (
    "the largest context has",  # `reliable` judges that.
    "[0-9]+ of [0-9]+ people have no target",  # The comparison says how many.
    "the model does not use the covariates",  # The average person has none.
    ".* rows have an empty cell",  # The description of the data counts them.
    "Glyph [0-9]+ .*missing from",  # The caption of the figure says so.
    "[0-9,]+ people are few for the",  # The comparison draws the population, and says so.
)


@dataclass(frozen=True)
class Analysis:
    """Holds what an analysis found, and the model that it is about.

    Attributes:
        report: The findings.
        figures: The main findings as numbers, by name.
        model: The model of individual people; None where people are too few for one.
        guide: Its guide.
        posterior: Posteriors of the people left out, for ArviZ; None where there is no model.
    """

    report: Report
    figures: dict[str, object]
    model: HeterogeneousBTL | None = None
    guide: NeuralProcessGuide | None = None
    posterior: InferenceData | None = None


def analyse(
    data: Preferences,
    *,
    title: str | None = None,
    about_data: Section | None = None,
    fitted: tuple[HeterogeneousBTL, NeuralProcessGuide | None] | None = None,
    utility: str | None = None,
    latent_dim: int | str | None = None,
    price: Hashable | None = None,
    steps: int = 600,
    num_samples: int = 500,
    test_size: float = 0.2,
    penalty: float = 0.0,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    progress_bar: bool = True,
    tell: Callable[[Section], None] | None = None,
) -> Analysis:
    """Analyses the comparisons, rankings or choices from sets of many people.

    Choices from sets whose alternatives are described by attributes, under a linear utility, have a
    mixed logit by maximum likelihood as the model of individual people: for the comparison fitted
    to a part of the people, for tables and figures to everybody.

    Args:
        data: The comparisons.
        title: Title of the report; None to name what the data hold.
        about_data: The part of the report that describes the data; None to make one of `data`.
        fitted: A model of individual people and its guide, fitted before; None to fit one.
        utility: Utility of the model that is fitted; None is `"linear"` for items without features
            and for choices from sets, and `"bilinear"` for others.
        latent_dim: Its number of latent dimensions; `"auto"` chooses 1, 2, 4 or 8 by people of the
            fit who are held out, which takes a fit more for each. None is 2, and for a mixed logit
            of choices from sets one for each attribute.
        price: Name of the price among the features of a linear utility, for what people are willing
            to pay; None for none.
        steps: Steps of each objective of its fit.
        num_samples: Posterior draws S of each person.
        test_size: Share of the people left out of the fit, in (0, 1).
        penalty: Weight of a prior on the utilities of the ranking, as in :func:`rank`.
        seed: Seed of the split, of initial weights and of draws.
        checkpoint: Folder from which a fit that was interrupted goes on; None keeps nothing.
        progress_bar: Whether to show the progress of the fit.
        tell: Called with every section when it is found; None tells nothing.

    Returns:
        The findings. With fewer than five people the ranking, no fit and no comparison.

    Raises:
        ValueError: If an option is out of range, or `fitted` does not fit the data.
    """
    start = time.perf_counter()
    check_unweighted(data, "analyse()")
    _check_penalty(penalty)
    choose = latent_dim == "auto"
    for argument, value, least in (
        ("latent_dim", 1 if choose or latent_dim is None else latent_dim, 1),
        ("steps", steps, 1),
        ("num_samples", num_samples, 25),
    ):
        if value < least:
            raise ValueError(f"{argument} must be at least {least}, got {value}")
    if price is not None:
        if fitted is not None:
            raise ValueError("price needs a fit for its standard errors, got a model fitted before")
        check_price(data, price, utility)
        utility = "linear"
    if utility is None and chooses_by_attributes(data):
        utility = "linear"
    title = title or name_kind(data)
    if fitted is not None:
        with hear_warnings():  # Every posterior warns of the same, beside the results.
            _check_fitted(*fitted, data)
    found = Collector(tell)
    found.add(about_data or findings.describe_data(data))
    if len(data) < _MIN_PEOPLE:
        return _of_few_people(data, fitted, found, title, num_samples, penalty, seed, start)
    train, test = data.split_users(test_size, seed=seed)
    is_mixed = fitted is None and is_mixed_logit(data, utility)
    if choose and fitted is None:
        with hear_warnings() as heard:
            latent_dim, section = choose_dimensions(train, utility, steps, seed)
        found.add(section, heard)
    with hear_warnings() as heard:
        result = None
        if fitted is None:
            options = {"checkpoint": checkpoint, "progress_bar": progress_bar}
            if is_mixed:
                result = fit_mixed_logit(train, latent_dim, seed, **options)
            else:
                result = fit_people(train, utility, latent_dim or 2, steps, seed, **options)
        model, guide = fitted or (result.model, result.guide)
        average = fit_average(train, model, seed)
        population = "fixed"
        if result is not None:
            population = result.choose_population(min(50, num_samples), seed=seed)
        comparison = findings.compare(
            model,
            guide,
            average.model,
            test,
            num_samples,
            seed,
            seen_before=fitted is not None,
            population=population,
        )
    found.add(comparison.section, heard)
    ranking = found.make(lambda: findings.describe_average(data, seed, penalty))
    with hear_warnings() as heard:
        if is_mixed:
            result = fit_mixed_logit(data, latent_dim, seed, progress_bar=progress_bar)
            model = result.model
            population = result.choose_population(min(50, num_samples), seed=seed)
        differences = findings.describe_differences(
            model,
            guide,
            data,
            comparison.certainty,
            num_samples,
            seed,
            population,
            result,
            price,
        )
    found.add(differences, heard)
    if price is not None:
        found.make(lambda: describe_payments(result, price, seed))
    if data.covariates is not None:
        found.make(lambda: describe_covariates(model, data, result, steps, seed))
    with hear_warnings():
        exported = comparison.posterior.to_inference_data(comparison.target)
    origin = "fitted before"
    if is_mixed:
        origin = (
            "a mixed logit by maximum marginal likelihood, fitted to the same people for the "
            "comparison and posterior.nc, and then to everybody for all tables, figures and model/"
        )
    elif result is not None:
        origin = f"fitted to the same people; {describe_convergence(result)}"
    done = (
        f"The average person's model was fitted to {len(train):,} people. Individual model: "
        f"{origin}."
    )
    found.add(Section("What was done", (done,)))
    leader = say_ranking(data, ranking)
    summary = [*findings.opening(data, model), *leader, comparison.verdict]
    numbers = findings.numbers_of(data) | comparison.numbers | findings.numbers_of_ranking(ranking)
    report = found.report(title, summary, seed, start)
    return Analysis(report, numbers, model, guide, exported)


def _check_fitted(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, data: Preferences
) -> None:
    """Raises a ValueError unless a model fitted before describes individuals of these data."""
    if model.latent_dim == 0:
        raise ValueError(
            "fitted must be a model of individual people, with latent_dim of at least 1, got 0"
        )
    align(model, data)
    check_guide(model, guide, may_lack=model.is_mixed_logit)


def _of_few_people(
    data: Preferences,
    fitted: tuple[HeterogeneousBTL, NeuralProcessGuide | None] | None,
    found: Collector,
    title: str,
    num_samples: int,
    penalty: float,
    seed: int,
    start: float,
) -> Analysis:
    """Ranks the items, and describes the people by a model fitted before, if there is one."""
    ranking = found.make(lambda: findings.describe_average(data, seed, penalty))
    leader = say_ranking(data, ranking)
    people = f"{len(data)} {'person is' if len(data) == 1 else 'people are'} too few"
    numbers = findings.numbers_of(data) | findings.numbers_of_ranking(ranking)
    if fitted is None:
        few = (
            f"{people} for a model of individual people, which needs at least {_MIN_PEOPLE}: some "
            "to fit and some to judge by. The ranking describes these people's choices."
        )
        report = found.report(title, [*findings.opening(data, None), *leader, few], seed, start)
        return Analysis(report, numbers)
    few = (
        f"{people} to tell whether the model predicts their choices, which needs at least "
        f"{_MIN_PEOPLE}. What the model believes of them is a description."
    )
    found.make(lambda: findings.describe_differences(*fitted, data, math.nan, num_samples, seed))
    with hear_warnings():
        exported = Posterior(*fitted, data, num_samples, seed=seed).to_inference_data()
    report = found.report(title, [*findings.opening(data, fitted[0]), *leader, few], seed, start)
    return Analysis(report, numbers, *fitted, exported)


def rank(
    data: Preferences,
    *,
    title: str | None = None,
    about_data: Section | None = None,
    penalty: float = 0.0,
    seed: int = 0,
    tell: Callable[[Section], None] | None = None,
) -> Analysis:
    """Ranks the items of paired comparisons by classical Bradley–Terry.

    Choices from sets are scored by the multinomial (conditional) logit, rankings by Plackett–Luce.
    Where every alternative on offer has attributes of its own, the table is of their coefficients.

    Args:
        data: The comparisons.
        title: Title of the report; None to name what the data hold.
        about_data: The part of the report that describes the data; None to make one of `data`.
        penalty: Weight of a prior that keeps the utilities finite where choices are separated, as
            of :class:`HeterogeneousBTL`; 0 for none.
        seed: Seed of the draws that intervals of ranks come from.
        tell: Called with every section when it is found; None tells nothing.

    Returns:
        The ranking with standard errors clustered by person.

    Raises:
        ValueError: If the penalty is negative or not finite.
    """
    _check_penalty(penalty)
    check_unweighted(data, "rank()")
    start, found = time.perf_counter(), Collector(tell)
    ranking = found.make(lambda: findings.describe_average(data, seed, penalty))
    found.add(about_data or findings.describe_data(data))
    summary = [*findings.opening(data, None), *say_ranking(data, ranking)]
    report = found.report(title or name_kind(data), summary, seed, start)
    return Analysis(report, findings.numbers_of(data) | findings.numbers_of_ranking(ranking))


def say_ranking(data: Preferences, ranking: Section) -> list[str]:
    """Says which item leads, and what is ranked; nothing where nothing is."""
    if "ranking.csv" not in ranking.files:
        return []
    return [*findings.say_leader(ranking), say_what_is_ranked(data)]


def _check_penalty(penalty: float) -> None:
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty must be a number of at least 0, got {penalty}")


class Collector:
    """Collects the sections of a report, each with what its making warned of.

    A warning stands once, beside the first section that it concerns.

    Args:
        tell: Called with every section; None tells nothing.
    """

    def __init__(self, tell: Callable[[Section], None] | None = None) -> None:
        self.tell = tell
        self.sections: list[Section] = []

    def add(self, section: Section, heard: Sequence[str] = ()) -> Section:
        """Adds a section, with warnings that concern it, and tells it."""
        said = {text for other in self.sections for text in other.warnings}
        new = [text for text in dict.fromkeys((*section.warnings, *heard)) if text not in said]
        section = replace(section, warnings=tuple(new))
        self.sections.append(section)
        if self.tell is not None:
            self.tell(section)
        return section

    def make(self, make: Callable[[], Section]) -> Section:
        """Adds what a function returns."""
        with hear_warnings() as heard:
            section = make()
        return self.add(section, heard)

    def report(self, title: str, summary: Sequence[str], seed: int, start: float) -> Report:
        """Makes the report, whose opening counts the warnings."""
        number = sum(len(section.warnings) for section in self.sections)
        if number:
            stand = "1 warning stands" if number == 1 else f"{number} warnings stand"
            summary = [*summary, f"{stand} beside the results, at the head of their section."]
        version, seconds = metadata.version("fssa_bayes"), time.perf_counter() - start
        footer = f"fssa_bayes {version}; seed {seed}; {seconds:.0f} s."
        return Report(title, self.sections, summary, footer)


@contextmanager
def hear_warnings() -> Iterator[list[str]]:
    """Collects the warnings of a block, each once, in place of printing them."""
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for message in _IGNORED:
            warnings.filterwarnings("ignore", message)
        yield heard
    heard += dict.fromkeys(str(warning.message) for warning in caught)


def fit_average(data: Preferences, individual: HeterogeneousBTL, seed: int) -> FitResult:
    """Fits the homogeneous model: everybody is the average person.

    Args:
        data: The comparisons.
        individual: The model that is compared with the average person: utility, position bias and
            lapses are of the same form. A module of one's own becomes a linear utility.
        seed: Seed of initial weights and of the fit.
    """
    config = individual.config
    utility = "linear" if config["utility"] == "module" else config["utility"]
    answers = {name: config[name] for name in ("position_bias", "lapses")}
    with seeded(seed):
        model = HeterogeneousBTL(
            data.num_features, 0, utility, ties=findings.model_of_ties(data), **answers
        )
    validation = _choose_validation(data)
    return fit(model, None, data, validation=validation, seed=seed, progress_bar=False)


def _choose_validation(data: Preferences) -> str | None:
    """Lets networks be stopped early by people held out, if there are enough."""
    return "auto" if len(data) >= 20 else None


def fit_people(
    train: Preferences,
    utility: str | None,
    latent_dim: int,
    steps: int,
    seed: int,
    checkpoint: str | os.PathLike | None,
    *,
    progress_bar: bool,
) -> FitResult:
    """Fits the model in which everybody has a latent factor of their own; see :func:`analyse`."""
    with seeded(seed):
        model, guide = build_people(train, utility, latent_dim)
    return fit(
        model,
        guide,
        train,
        objective=[ImportanceWeightedELBO(16), Sleep()],
        seed=seed,
        checkpoint=checkpoint,
        progress_bar=progress_bar,
        **_fit_options(train, steps),
    )


def build_people(
    train: Preferences, utility: str | None, latent_dim: int
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Builds the model in which everybody has a latent factor of their own, and its guide."""
    model = HeterogeneousBTL(
        train.num_features,
        latent_dim,
        utility=_name_utility(train, utility),
        ties=findings.model_of_ties(train),
        num_covariates=train.num_covariates,
    )
    return model, NeuralProcessGuide(model)


def _name_utility(train: Preferences, utility: str | None) -> str:
    return utility or ("linear" if train.items is None else "bilinear")


def _fit_options(train: Preferences, steps: int) -> dict[str, object]:
    """Lists the options that fits of individual people have in common."""
    return {
        "steps": steps,
        "batch_size": int(np.clip(_STEP_SIZE / train.counts.mean(), 8, 64)),
        "validation": _choose_validation(train),
        "refit": False,
    }


def choose_dimensions(
    train: Preferences, utility: str | None, steps: int, seed: int
) -> tuple[int, Section]:
    """Chooses the number of latent dimensions on a quarter of the people of the fit.

    Args:
        train: The people of the fit.
        utility: Utility of the model, as in :func:`analyse`.
        steps: Steps of each objective of a fit.
        seed: Seed of the split, of initial weights and of draws.

    Returns:
        The number, and the part of the report that tells how it was chosen.
    """
    heading = "In how many dimensions do people differ?"
    most = max(_LATENT_DIMS)
    if _name_utility(train, utility) == "linear":  # A covariance of more dimensions is no other.
        most = max(1, train.num_features - (train.items is None))
    dims = [width for width in _LATENT_DIMS if width <= most]
    if len(train) < _MIN_CHOOSERS or len(dims) < 2:
        why = (
            f"The model has {dims[0]} latent dimension: to choose among more takes "
            f"{_MIN_CHOOSERS} people of the fit, and two features or three items for a linear "
            f"utility, got {len(train)} people and {train.num_features} features or items."
        )
        return dims[0], Section(heading, (why,))
    choice = choose_latent_dim(
        train,
        dims,
        build=lambda width: build_people(train, utility, width),
        seed=seed,
        fit_options={"objective": ImportanceWeightedELBO(16), **_fit_options(train, steps)},
    )
    how = (
        f"{choice} A quarter of these people are predicted by a fit to the others: log p of all "
        "choices of a person, in nats, differences paired by person."
    )
    return choice.latent_dim, Section(heading, (how,), choice.choosing.round(3).reset_index())


def describe_convergence(result: FitResult) -> str:
    """Tells whether the first stage's loss still fell, beyond its noise, in the last two fifths."""
    first = result.history["stage"] == result.history["stage"].iloc[0]
    loss = result.history.loc[first, "loss"].to_numpy()
    if len(loss) < 20:
        return f"{len(loss)} steps, too few to tell whether the loss had settled"
    before, after = np.array_split(loss[-2 * max(2, len(loss) // 5) :], 2)
    change = after.mean() - before.mean()
    error = math.hypot(*(part.std(ddof=1) / math.sqrt(len(part)) for part in (before, after)))
    falls = "was still falling: more steps may help" if change < -2 * error else "had settled"
    return (
        f"{len(loss)} steps, between whose last two fifths the loss {falls} "
        f"({change:+.2f} ± {error:.2f} nats a person)"
    )
