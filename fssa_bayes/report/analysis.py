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
from fssa_bayes.inference import (
    FitResult,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    Objective,
    Sleep,
    fit,
)
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.posterior import Posterior
from fssa_bayes.report import findings
from fssa_bayes.report.alternatives import chooses_by_attributes, name_kind, say_what_is_ranked
from fssa_bayes.report.covariates import describe_covariates
from fssa_bayes.report.heterogeneity import judge_heterogeneity
from fssa_bayes.report.page import Section
from fssa_bayes.report.report import Report
from fssa_bayes.report.tastes import (
    check_price,
    describe_payments,
    fit_mixed_logit,
    is_mixed_logit,
)
from fssa_bayes.report.utility import choose_utility
from fssa_bayes.report.words import with_headings

if TYPE_CHECKING:
    from fssa_bayes._arviz import InferenceData

__all__ = ["Analysis", "Collector", "analyse", "hear_warnings", "rank"]

_STEP_SIZE = 1500  # Comparisons in a step of the fit, on average.
_MIN_PEOPLE = 5  # Fewest people that can be divided into people to fit and people to score.
_MIN_CHOOSERS = 20  # Fewest people of a fit by whom a number of latent dimensions is chosen.
_DEFAULT_DIMENSIONS = 5  # Most latent dimensions that are not asked for.
_LATENT_DIMS = (1, 2, 4, 8)  # Numbers to choose from.
_MAX_LIKELIHOOD_PARAMETERS = 200  # Of a linear utility, up to which maximum likelihood is quick.
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
    num_bootstrap: int | None = None,
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
        utility: Utility of the model that is fitted; None is `"linear"` for items without features,
            for choices from sets, and where people are few for a network, else `"bilinear"`.
        latent_dim: Its number of latent dimensions. None is one for each attribute for a mixed
            logit of choices from sets; the number of features, up to 5, for another linear utility
            of items with features, whose coefficients then have any covariance; else 2. `"auto"`
            chooses 1, 2, 4 or 8 by people of the fit who are held out, which takes a fit more for
            each.
        price: Name of the price among the features of a linear utility, for what people are willing
            to pay; None for none.
        steps: Steps of each objective of its fit.
        num_samples: Posterior draws S of each person.
        test_size: Share of the people left out of the fit, in (0, 1).
        penalty: Weight of a prior on the utilities of the ranking, as in :func:`rank`.
        num_bootstrap: Data sets simulated for the test of whether people differ, where the
            distribution of its statistic is not known; 0 leaves the test out there, and None is 19,
            or 0 where a fit takes long.
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
        ("num_bootstrap", 0 if num_bootstrap is None else num_bootstrap, 0),
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
        return _of_few_people(data, fitted, price, found, title, num_samples, penalty, seed, start)
    train, test = data.split_users(test_size, seed=seed)
    is_mixed = fitted is None and is_mixed_logit(data, utility)
    form = choose_utility(train, "linear" if is_mixed else utility)
    if latent_dim is None and not is_mixed:
        latent_dim = default_dimensions(train, form.name)
    if choose and fitted is None:
        with hear_warnings() as heard:
            latent_dim, section = choose_dimensions(train, form.name, steps, seed)
        found.add(section, heard)
    with hear_warnings() as heard:
        result = None
        if fitted is None:
            options = {"checkpoint": checkpoint, "progress_bar": progress_bar}
            if is_mixed:
                result = fit_mixed_logit(train, latent_dim, seed, **options)
            else:
                result = fit_people(train, form.name, latent_dim, steps, seed, **options)
        model, guide = fitted or (result.model, result.guide)
        average = fit_average(train, model, seed)
        ties = findings.model_of_ties(data)
        with hear_warnings():  # Of fits to simulated data, too.
            alike = judge_heterogeneity(data, model.latent_dim, ties, seed, num_bootstrap)
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
            alike=alike,
            num_people=len(data),
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
            differ=alike.differ,
            warnings=[form.warning] if form.warning and result is not None else [],
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
        origin = f"fitted to the same people; {describe_convergence(result, steps)}"
    done = (
        "The average person of the comparison has the form of utility of the individual model, and "
        f"is fitted to the {len(train):,} people who are not left out. The average person of the "
        f"ranking, or of the coefficients, is another fit, to all {len(data):,} people. "
        f"Individual model: {origin}."
    )
    found.add(Section("What was done", (done,)))
    leader = say_ranking(data, ranking)
    why = [form.note] if form.note and result is not None else []
    answer = [alike.verdict] if alike.verdict else []
    summary = [*findings.opening(data, model), *why, *leader, *answer, comparison.verdict]
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
    price: str | None,
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
        by_attributes = chooses_by_attributes(data)
        described = "The coefficients describe" if by_attributes else "The ranking describes"
        few = (
            f"{people} for a model of individual people, which needs at least {_MIN_PEOPLE}: some "
            f"to fit and some to judge by. {described} these people's choices."
        )
        if price is not None:
            few += f" What they pay in units of {price!r} takes such a model: it is left out."
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
    utility: str,
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
        objective=list_stages(model, steps),
        seed=seed,
        checkpoint=checkpoint,
        progress_bar=progress_bar,
        **_fit_options(train),
    )


def list_stages(model: HeterogeneousBTL, steps: int) -> list[Objective]:
    """Lists the stages of a fit of individual people: maximum likelihood where it is quick."""
    size = model.num_features * (1 + model.latent_dim)
    if model.is_mixed_logit and size <= _MAX_LIKELIHOOD_PARAMETERS:
        return [MaximumLikelihood(), Sleep(steps=steps)]
    return [ImportanceWeightedELBO(16, steps=steps), Sleep(steps=steps)]


def build_people(
    train: Preferences, utility: str, latent_dim: int
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Builds the model in which everybody has a latent factor of their own, and its guide."""
    if utility == "linear":  # A covariance of more dimensions is no other.
        latent_dim = min(latent_dim, _most_dimensions(train))
    model = HeterogeneousBTL(
        train.num_features,
        latent_dim,
        utility=utility,
        ties=findings.model_of_ties(train),
        num_covariates=train.num_covariates,
    )
    return model, NeuralProcessGuide(model)


def default_dimensions(train: Preferences, utility: str) -> int:
    """Counts the dimensions of a model for which no number is asked for.

    A covariance of lower rank than that of people's coefficients makes intervals too narrow: with
    five features and 400 or 800 simulated people, of nominal 90 % intervals of a person's scale 34
    to 38 % held the truth with two dimensions.
    """
    if utility == "linear" and train.items is not None:
        return min(_most_dimensions(train), _DEFAULT_DIMENSIONS)
    return 2


def _most_dimensions(train: Preferences) -> int:
    """Counts the dimensions in which coefficients of a linear utility can differ."""
    return max(1, train.num_features - (train.items is None))


def _fit_options(train: Preferences) -> dict[str, object]:
    """Lists the options that fits of individual people have in common."""
    return {
        "batch_size": int(np.clip(_STEP_SIZE / train.counts.mean(), 8, 64)),
        "validation": _choose_validation(train),
        "refit": False,
    }


def choose_dimensions(
    train: Preferences, utility: str, steps: int, seed: int
) -> tuple[int, Section]:
    """Chooses the number of latent dimensions on a quarter of the people of the fit.

    Args:
        train: The people of the fit.
        utility: Utility of the model.
        steps: Steps of each objective of a fit.
        seed: Seed of the split, of initial weights and of draws.

    Returns:
        The number, and the part of the report that tells how it was chosen.
    """
    heading = "In how many dimensions do people differ?"
    most = max(_LATENT_DIMS)
    if utility == "linear":
        most = _most_dimensions(train)
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
        fit_options={"objective": ImportanceWeightedELBO(16, steps=steps), **_fit_options(train)},
    )
    how = (
        f"{choice} A quarter of these people are predicted by a fit to the others: log p of all "
        "choices of a person, in nats, differences paired by person."
    )
    table = with_headings(choice.choosing.round(3).reset_index())
    return choice.latent_dim, Section(heading, (how,), table)


def describe_convergence(result: FitResult, steps: int) -> str:
    """Tells whether the first stage's loss still fell, beyond its noise, in the last two fifths.

    Args:
        result: The fit.
        steps: Largest number of steps of each stage.
    """
    first = result.history["stage"] == result.history["stage"].iloc[0]
    loss = result.history.loc[first, "loss"].to_numpy()
    if result.history["stage"].iloc[0] == MaximumLikelihood().name:
        return f"maximum likelihood, to convergence in {len(loss)} iterations"
    if len(loss) < steps and result.held_out is not None:
        return (
            f"{len(loss)} of at most {steps} steps, ended where people held out of the fit were "
            "predicted no better: more steps would not help"
        )
    if len(loss) < 20:
        return f"{len(loss)} steps, too few to tell whether the loss had settled"
    before, after = np.array_split(loss[-2 * max(2, len(loss) // 5) :], 2)
    change = after.mean() - before.mean()
    error = math.hypot(*(part.std(ddof=1) / math.sqrt(len(part)) for part in (before, after)))
    falls = "had settled"
    if change < -2 * error:
        falls = (
            f"was still falling: more steps may help, --steps {2 * steps} (steps={2 * steps} in "
            f"Python) in place of {steps}"
        )
    return (
        f"{len(loss)} steps, between whose last two fifths the loss {falls} "
        f"({change:+.2f} ± {error:.2f} nats a person)"
    )
