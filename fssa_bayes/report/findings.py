"""The parts of an analysis: comparison, ranking, differences between people."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from fssa_bayes import plots
from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences, first_names
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import FitResult, fit
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import PopulationDraws, Posterior
from fssa_bayes.report.alternatives import (
    chooses_by_attributes,
    count_judgements,
    describe_coefficients,
    describe_unit,
    draw_sets,
    has_own_items,
    say_what_is_ranked,
    tabulate_average,
    tabulate_population,
)
from fssa_bayes.report.heterogeneity import Heterogeneity
from fssa_bayes.report.page import Section
from fssa_bayes.report.people import (
    MAX_DRAWN,
    ORDER,
    choose_person,
    common_items,
    draw_a_person,
    draw_people,
    find_person,
    name_people,
    order_people,
    say_who_is_consistent,
)
from fssa_bayes.report.study import draw_figure
from fssa_bayes.report.tastes import describe_tastes
from fssa_bayes.report.words import with_headings

__all__ = [
    "Comparison",
    "compare",
    "count_people",
    "describe_average",
    "describe_data",
    "describe_differences",
    "model_of_ties",
    "numbers_of",
    "numbers_of_ranking",
    "opening",
    "rank_items",
    "say_leader",
]

_EMPIRICAL_BAYES = (
    "Intervals for a person are empirical-Bayes: they hold the population at its estimate, and are "
    "too narrow where few people inform many parameters."
)
_DRAWN = "Intervals for a person include how uncertain the population is, which is drawn."
_CONTEXT_SIZES = (0, 1, 2, 3, 5, 10)  # Known choices, up to the largest that half exceed.
_MIN_JUDGES = 10  # Fewest people for a standard error.
_MOST_PEOPLE = 10  # Rows of the table of people.
_MOST_COEFFICIENTS = 30  # Features of items whose coefficients are tabulated.
_MAX_ITEMS = 100  # Items that people are compared by, those compared most often.
_MAX_PAIRS = 1000  # Pairs that disagreement is averaged over.


def model_of_ties(data: Preferences) -> str | None:
    """Names the model of ties that the data need: none where they count as half a win each."""
    return "davidson" if data.ties == "keep" and data.half_wins.any() else None


def numbers_of(data: Preferences) -> dict[str, object]:
    """Counts people, comparisons and items; people are None where they are not named.

    Where every alternative on offer is an item of its own, situations and names of alternatives are
    counted in place of items.
    """
    numbers = {
        "people": len(data) if data.people_are_named else None,
        "comparisons": int((~data.judgements.inside).sum()),  # Not pairs of rankings.
        "judgements": data.num_judgements,
        "items": data.num_items,
        "features": None if data.items is None else data.num_features,
    }
    if data.alternatives is not None:
        summary = data.summary()
        numbers["items"] = None
        numbers["situations"] = len(summary.component_sizes)
        numbers["alternatives"] = summary.alternative_names
    return numbers


def numbers_of_ranking(section: Section) -> dict[str, object]:
    """Names the leader of a ranking, with utility and standard error, and who is not ranked.

    The leader is the item of rank 1 in the largest group, whose utility may be infinite; None where
    the choices leave open which item that is, or where items are not ranked.
    """
    if "ranking.csv" not in section.files:
        return {"leader": None, "no_finite_utility": []}
    table, leader = section.files["ranking.csv"], _find_leader(section)
    finite = np.isfinite(table["utility"])
    name, utility, error = None, math.nan, math.nan
    if leader is not None:
        name, utility, error = str(leader.name), leader["utility"], leader["standard_error"]
    return {
        "leader": name,
        "leader_utility": float(utility),
        "leader_standard_error": float(error),
        "no_finite_utility": [str(item) for item in table.index[~finite]],
    }


def say_leader(ranking: Section) -> list[str]:
    """Says in a sentence which item leads a ranking, and how sure that is; nothing if none does."""
    leader = _find_leader(ranking)
    if leader is None or not np.isfinite([leader["utility"], leader["standard_error"]]).all():
        return []
    worst = int(leader["rank_upper"])
    return [
        f"{str(leader.name)!r} leads for the average person, by {leader['utility']:.2f} ± "
        f"{leader['standard_error']:.2f} nats over the mean item; 90 % interval of its rank: 1"
        + (f" to {worst}." if worst > 1 else ".")
    ]


def _find_leader(ranking: Section) -> pd.Series | None:
    """Returns the row of the item of rank 1 in the largest group, or None if there is none."""
    if "ranking.csv" not in ranking.files:
        return None
    table = ranking.files["ranking.csv"]
    first = table[(table["group"] == 0) & (table["rank"] == 1)]
    return first.iloc[0] if len(first) else None


def count_people(data: Preferences) -> str:
    """Says how many people there are."""
    return "1 person" if len(data) == 1 else f"{len(data):,} people"


def name_judges(data: Preferences) -> str:
    """Says how many people there are, or how many judgements where nobody is named."""
    if data.people_are_named:
        return count_people(data)
    what = "comparison" if data.ranking is None else "judgement"
    return f"{len(data):,} {what}{'' if len(data) == 1 else 's'}"


def opening(data: Preferences, model: HeterogeneousBTL | None) -> list[str]:
    """Says in a sentence who chose among what, and in another which model describes them."""
    who = count_people(data) if data.people_are_named else "People not named"
    if data.alternatives is not None:
        names = data.summary().alternative_names
        line = (
            f"{who}, {count_judgements(data)} ({names:,} distinct names), described by "
            f"{data.num_features:,} attributes."
        )
        return [line, *_name_model(data, model)]
    line = f"{who}, {count_judgements(data)}, of {data.num_items:,} items"
    if not data.has_rankings:
        line = f"{who}, {count_judgements(data)} of {data.num_items:,} items"
    features = "" if data.items is None else f", each with {data.num_features:,} features"
    return [line + features + ".", *_name_model(data, model)]


def _name_model(data: Preferences, model: HeterogeneousBTL | None) -> list[str]:
    """Says in a sentence which model describes people one by one; nothing without a model."""
    if model is None:
        return []
    config = model.config
    ties = ", ties as answers of their own" if model.has_ties else ""
    if chooses_by_attributes(data) and model.is_mixed_logit:
        correlated = "independent" if config.get("correlation") == "none" else "correlated"
        return [
            f"Model of individual people: a mixed logit, whose {correlated} normal coefficients "
            f"differ in {config['latent_dim']} dimensions."
        ]
    width = config["latent_dim"]
    return [
        f"Model of individual people: utility {config['utility']}, {width} latent "
        f"dimension{'' if width == 1 else 's'}{ties}."
    ]


def _name_average(data: Preferences) -> str:
    """Names the model of the average person by what is observed: pairs, rankings or choices."""
    if not data.has_rankings:
        return "Bradley–Terry model"
    return "Plackett–Luce model" if data.summary().rankings else "Multinomial logit"


def describe_data(
    data: Preferences,
    rows_read: int | None = None,
    rows_missing: Mapping[str, int] | None = None,
    warnings: Sequence[str] = (),
) -> Section:
    """Tabulates what the data hold.

    Args:
        data: The comparisons.
        rows_read: Number of rows of the file they come from; None if unknown.
        rows_missing: Number of rows left out for an empty cell, by column.
        warnings: What reading the file warned of.

    Returns:
        A part of a report.
    """
    rows = [] if rows_read is None else [("rows read", f"{rows_read:,}")]
    rows += data.summary().rows()
    text = []
    for column, count in (rows_missing or {}).items():
        were = "row was" if count == 1 else "rows were"
        text.append(f"{count:,} {were} left out: nothing in column {column!r}.")
    if data.dropped_ties:
        were = "tie was" if data.dropped_ties == 1 else "ties were"
        text.append(
            f"{data.dropped_ties:,} {were} left out; ties='half' counts a tie as half a win each, "
            "'keep' as an answer of its own."
        )
    table = pd.DataFrame(rows, columns=["what", "how many"])
    return Section("The data", text, table, warnings=warnings)


@dataclass(frozen=True)
class Comparison:
    """Holds how well people are predicted one by one, against as the average person.

    Attributes:
        section: The part of the report.
        verdict: The answer in a sentence.
        certainty: The gain divided by its standard error; NaN where people are too few.
        numbers: The main figures by name.
        posterior: Posteriors of the people, given the largest number of known choices, with the
            population held fixed.
        target: The choices that were predicted.
    """

    section: Section
    verdict: str
    certainty: float
    numbers: dict[str, object]
    posterior: Posterior
    target: Preferences


def compare(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    average: HeterogeneousBTL,
    test: Preferences,
    num_samples: int,
    seed: int,
    *,
    seen_before: bool,
    alike: Heterogeneity,
    num_people: int,
    population: str | PopulationDraws = "fixed",
) -> Comparison:
    """Scores unseen choices of the people left out, by individual model and average person.

    Args:
        model: The model of individual people.
        guide: Its guide.
        average: The model of the average person.
        test: The people left out.
        num_samples: Posterior draws S of each person.
        seed: Seed of splits and draws.
        seen_before: Whether these people may have taken part in the fit of `model`.
        alike: The test of everybody alike, which stands in the same part of the report.
        num_people: Number of all people, of whom `test` are a part.
        population: As for :class:`fssa_bayes.Posterior`.
    """
    sizes = [n for n in _CONTEXT_SIZES if n == 0 or np.mean(test.judgement_counts > n) >= 0.5]
    longest, target = test.split_context(sizes[-1], seed=seed)
    base = Posterior(average, None, longest, 1).log_score(target).numpy()
    rows = []
    for size in sizes:
        known = longest if size == sizes[-1] else longest.split_context(size, seed=seed)[0]
        person = Posterior(model, guide, known, num_samples, seed=seed, population=population)
        difference = person.log_score(target).numpy() - base
        error = np.nan
        if len(difference) > 1:
            error = difference.std(ddof=1) / math.sqrt(len(difference))
        doubtful = (~person.reliable).float().mean().item()
        rows.append((size, base.mean(), difference.mean(), error, doubtful))
    unit, guess = describe_unit(target, has_ties=model.has_ties)
    columns = [
        f"known {unit}s",
        f"average person's log score (nats a {unit})",
        f"gain (nats a {unit})",
        "standard error of the gain",
        "share of people in doubt",
    ]
    table = pd.DataFrame(rows, columns=columns).round(4)
    who = "left out of the average's fit" if seen_before else "who took no part in the fit"
    text = [
        f"Log score of {target.num_judgements:,} unseen {unit}s of {len(target):,} people {who} "
        f"({len(test) - len(target):,} others have no more than {sizes[-1]} {unit}s): the mean "
        f"over people of each person's mean, nats per {unit}. Higher is better{guess}. Gain is the "
        "individual model's score less the average person's; the standard error of the gain is "
        "over people. In doubt is the share of people whose draws cannot be relied upon."
    ]
    if isinstance(population, PopulationDraws):
        text.append(
            "People are few for the parameters of their population, which is not held at its "
            f"estimate here: {population.method}."
        )
    if seen_before:
        text.append(
            "People of this file may have been part of the fit of the model: then the gain "
            "flatters the model."
        )
    size, score, gain, error, _ = rows[-1]
    verdict = _verdict(size, gain, error, len(target), _say_share(test, target, num_people))
    section = Section(
        "Do people differ in ways that can be predicted?",
        [*text, verdict],
        table,
        parts=[alike.section],
    )
    numbers = {
        "known_choices": size,
        "average_log_score": float(score),
        "gain": float(gain),
        "gain_standard_error": float(error),
        "people_scored": len(target),
    } | alike.numbers
    certainty = gain / error if len(target) >= _MIN_JUDGES else np.nan
    if person.population is not None:  # Several populations cannot be exported.
        person = Posterior(model, guide, longest, num_samples, seed=seed)
    return Comparison(section, verdict, certainty, numbers, person, target)


def _say_share(test: Preferences, target: Preferences, num_people: int) -> str:
    """Says which share of the people would leave out enough of them to judge by."""
    needed = _MIN_JUDGES * len(test) / (len(target) * num_people)
    share = math.ceil(20 * needed) / 20
    if share <= 0.5:
        return f"--test-size {share:.2g} (test_size={share:.2g} in Python) leaves out enough"
    return (
        "leave_users_out of fssa_bayes.comparison predicts everybody in turn, by fits to the others"
    )


def _verdict(size: int, gain: float, error: float, people: int, remedy: str) -> str:
    after = f"After {size} known choices of a person the individual model"
    amount = f"by {abs(gain):.4f} ± {error:.4f} nats a choice"
    if people < _MIN_JUDGES:
        return (
            f"Whether the individual model predicts people better cannot be judged by {people} "
            f"people left out, fewer than {_MIN_JUDGES} (gain {gain:+.4f} nats a choice): {remedy}."
        )
    if gain > 2 * error:
        return f"{after} predicts better {amount}: people differ, and a few choices tell how."
    if gain < -2 * error:
        return f"{after} predicts worse {amount}: the average person is the better bet."
    return (
        f"{after} cannot be told from the average person (gain {gain:+.4f} ± {error:.4f} nats a "
        "choice): these data do not show differences that a few choices would reveal."
    )


def describe_average(data: Preferences, seed: int, penalty: float = 0.0) -> Section:
    """Ranks items, or tabulates coefficients where situations have items of their own."""
    if has_own_items(data):
        return describe_coefficients(data, seed, penalty, ties=model_of_ties(data))
    return rank_items(data, seed, penalty)


def rank_items(data: Preferences, seed: int, penalty: float = 0.0) -> Section:
    """Ranks items for the average person, with errors clustered by person, group by group.

    Args:
        data: The comparisons.
        seed: Seed of the draws that intervals of ranks come from.
        penalty: Weight of a prior on the utilities, as of :class:`HeterogeneousBTL`.
    """
    with seeded(seed):
        ties = model_of_ties(data)
        model = HeterogeneousBTL(data.num_features, 0, "linear", ties=ties, penalty=penalty)
    average = fit(model, None, data, validation=None, seed=seed, progress_bar=False)
    labels = data.components()
    position = np.flatnonzero(labels >= 0)
    groups = labels[position]
    order = average.ranking(data.item_names[position], groups=groups, seed=seed)
    errors = "clustered by person, corrected where few people compared an item"
    if np.count_nonzero(data.counts) == 1:
        errors = "that take the comparisons for independent"
    elif not data.people_are_named:
        what = "comparisons" if data.ranking is None else "judgements"
        errors = f"that take the {what} for independent, as the data do not say who answered"
    text = [
        f"{_name_average(data)} of the average person, fitted to {name_judges(data)}: utilities in "
        f"nats, with standard errors {errors}. Intervals are 90 %, those of ranks from the same "
        "approximation."
    ]
    if penalty:
        text.append(
            f"A prior of weight {penalty:g} (penalty) draws the estimates together and keeps all "
            "of them finite."
        )
    if model.has_ties:
        nu = model.log_tie.exp().item()
        text.append(
            f"Two items of the same utility tie with probability {nu / (2 + nu):.3f}, and the less "
            f"the further their utilities are apart (Davidson's ν = {nu:.3f})."
        )
    text.insert(0, say_what_is_ranked(data))
    if groups.max() > 0:
        text.append(
            f"The items fall into {groups.max() + 1} groups that were never compared with each "
            "other; each group is centred and ranked by itself. Shown is the largest, of "
            f"{np.sum(groups == 0)} items."
        )
    shown = order[order["group"] == 0]
    columns = ["utility", "standard_error", "lower", "upper", "rank", "rank_lower", "rank_upper"]
    finite = np.isfinite(order["utility"])
    if not finite.all():
        text.append(
            f"Without a finite utility, {int((~finite).sum())} of {len(order)} items: "
            f"{first_names(order.index[~finite])}. {_describe_infinite(order['utility'])} The "
            "others are centred without them. An interval with one end is by the profile "
            "likelihood, which takes comparisons for independent."
        )
    known = order["standard_error"].notna() | ~finite
    if not known.all():
        names = first_names(order.index[~known.to_numpy()])
        text.append(
            f"{int((~known).sum())} of {len(order)} items have no standard error, since these data "
            f"do not tell it: {names}. An estimate by itself says little."
        )
    drawn = shown["standard_error"].notna() | np.isinf(shown["utility"])
    top = shown[drawn].head(MAX_DRAWN)
    figures = []
    if len(top):
        axes = plots.ranking(top["utility"], top["lower"], top["upper"], list(top.index))
        caption = "Utilities of the leading items to the average person, with 90 % intervals"
        figures.append(draw_figure(axes, caption, "ranking.png"))
    return Section(
        "Ranking for the average person",
        text,
        with_headings(shown[columns].head(10).round(3).reset_index()),
        figures,
        parts=[tabulate_average(average, seed)] if chooses_by_attributes(data) else (),
        files={"ranking.csv": order},
    )


def _describe_infinite(utility: pd.Series) -> str:
    """Says why items have no finite utility: they are at infinity, or have no place at all."""
    said, infinite, unknown = [], utility[np.isinf(utility)], utility[utility.isna()]
    if len(infinite):
        said.append(
            f"All that the choices say of {first_names(infinite.index)} points one way, up or down."
        )
    if len(unknown):
        said.append(
            f"The choices put {first_names(unknown.index)} at no finite distance from the others, "
            "neither above nor below all of them."
        )
    return " ".join(said)


def describe_differences(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    certainty: float,
    num_samples: int,
    seed: int,
    population: str | PopulationDraws = "fixed",
    result: FitResult | None = None,
    price: Hashable | None = None,
    *,
    differ: bool = False,
    warnings: Sequence[str] = (),
) -> Section:
    """Describes how much people differ, and who does.

    Args:
        model: The model of individual people.
        guide: Its guide.
        data: All people.
        certainty: How many standard errors the individual model predicts better by.
        num_samples: Posterior draws S of each person.
        seed: Seed of the draws.
        population: As for :class:`fssa_bayes.Posterior`.
        result: The fit of the model, if it was not fitted before.
        price: Name of the price among the features, for what each person pays; None for none.
        differ: Whether the test of all people says that they differ.
        warnings: What the intervals of people lack.
    """
    heading, text = "How much do people differ?", []
    if not certainty > 2:
        believed = "What follows is what the individual model believes."
        if differ:
            believed = (
                "The test above says that people differ; what follows is how, as the individual "
                "model believes."
            )
        text.append(
            f"{believed} The comparison above does not show that it predicts anything: take it as "
            "a description, not as a finding."
        )
    within, between = _disagreement(model, data, seed)
    half = "; a tie counts as half a win each way" if data.summary().half_wins else ""
    text.append(
        f"On a pair of this file{' (an alternative beside another)' if data.has_rankings else ''}, "
        f"the model has one person answer differently when asked twice "
        f"with probability {within:.3f}, and two people with probability {between:.3f} (averages "
        f"over the fitted population{half}). The difference, {between - within:.3f}, is taste."
    )
    drawn = isinstance(population, PopulationDraws)
    if chooses_by_attributes(data) and model.utility.is_linear:
        everybody = Posterior(model, guide, data, num_samples, seed=seed, population=population)
        intervals = _DRAWN if drawn else _EMPIRICAL_BAYES
        tastes = describe_tastes(everybody, find_person(data), intervals, price, seed)
        parts = [*tabulate_population(result, seed), *tastes.parts]
        return replace(tastes, heading=heading, text=[*text, *tastes.text], parts=parts)
    if has_own_items(data):
        text.append(
            "Every alternative on offer is an item of its own, so that people are not compared by "
            "items. A linear utility (--utility linear) has coefficients that they are compared by."
        )
        figures = [draw_sets(*choose_person(model, guide, data, num_samples, seed), MAX_DRAWN)]
        return Section(heading, text, figures=figures, warnings=warnings)
    items = common_items(data, _MAX_ITEMS)
    if len(items) < 3:
        few = "Two items are too few to compare people by."
        return Section(heading, [*text, few], warnings=warnings)
    everybody = Posterior(model, guide, data, num_samples, seed=seed, population=population)
    people = everybody.differences(items)
    people["reliable"] = everybody.reliable.numpy()
    people = order_people(people)
    doubtful = 1 - people["reliable"].mean()
    text.append(
        f"Everybody's posterior given all of their choices, over the {len(items)} items of the "
        "largest group compared most often. Direction is the correlation of a person's utilities "
        "with the average person's, scale their standard deviation in nats: a small scale means "
        "that choices are hard to predict, from indifference or from carelessness. Medians and "
        f"90 % intervals. {_DRAWN if drawn else _EMPIRICAL_BAYES} The draws cannot be relied "
        f"upon for {doubtful:.0%} of the people."
    )
    text.append(say_who_is_consistent(people))
    shown = people.drop(columns="reliable").head(_MOST_PEOPLE).round(3).reset_index()
    title = "People who differ most in direction" if len(people) > _MOST_PEOPLE else "People"
    has_features = data.items is not None and data.num_features <= _MOST_COEFFICIENTS
    population_parts = tabulate_population(result, seed) if has_features else []
    return Section(
        heading,
        text,
        warnings=warnings,
        figures=[
            draw_people(people, drawn=drawn),
            *draw_a_person(model, guide, data, num_samples, seed),
        ],
        files={"people.csv": people},
        parts=[*population_parts, Section(title, [ORDER], name_people(shown))],
    )


def _disagreement(model: HeterogeneousBTL, data: Preferences, seed: int) -> tuple[float, float]:
    """Returns the probabilities that one person, and that two people, answer a pair differently."""
    rng, data = np.random.default_rng(seed), data.for_model(model)
    pairs = data.resample_pairs(np.array([min(_MAX_PAIRS, data.num_comparisons)]), rng)
    with torch.no_grad(), seeded(seed):
        z = model.sample_population(2000, data).unsqueeze(1)
        outcomes = model.choice(pairs, z).outcomes
    prob = torch.stack([x.exp().double().squeeze(1) for x in outcomes if x is not None])
    same, same_of_two = (p.square().sum(0).mean().item() for p in (prob, prob.mean(1)))
    return 1 - same, 1 - same_of_two
