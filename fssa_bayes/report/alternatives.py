"""The parts of an analysis that are of choices from sets: words, coefficients, a person's sets."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fssa_bayes import plots
from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences, find_recurrence
from fssa_bayes.inference import FitResult, fit
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import has_population_estimates
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.study import draw_figure
from fssa_bayes.report.words import with_headings

__all__ = [
    "chooses_by_attributes",
    "count_judgements",
    "describe_coefficients",
    "describe_unit",
    "draw_sets",
    "has_own_items",
    "name_kind",
    "say_what_is_ranked",
    "tabulate_average",
    "tabulate_population",
]

_LEVEL = 0.9  # Probability of intervals.


def count_judgements(data: Preferences) -> str:
    """Counts comparisons, rankings and choices from sets in words."""
    summary = data.summary()
    if data.alternatives is not None:
        number, sizes = len(summary.component_sizes), summary.component_sizes
        of = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[-1]:,} to {sizes[0]:,}"
        were = "choice situation" if number == 1 else "choice situations"
        return f"{number:,} {were} with {of} alternatives each"
    low, high = summary.alternatives
    of = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    counted = (
        (summary.lone_comparisons, "comparison", ""),
        (summary.choice_sets, "choice", f" from sets of {of} alternatives"),
        (summary.rankings, "ranking", ""),
    )
    said = [f"{n:,} {what}{'' if n == 1 else 's'}{rest}" for n, what, rest in counted if n]
    return " and ".join(said or ["0 comparisons"])


def has_own_items(data: Preferences) -> bool:
    """Tells whether every alternative on offer, with features, is an item of one situation."""
    if data.alternatives is not None:
        return True
    return data.has_rankings and data.items is not None and not find_recurrence(data)


def chooses_by_attributes(data: Preferences) -> bool:
    """Tells whether choices are from sets of alternatives that attributes describe."""
    if data.items is None:
        return False
    if data.alternatives is not None:
        return True
    if not data.has_rankings:
        return False
    summary = data.summary()
    return summary.choice_sets > 0 and not summary.rankings


def name_kind(data: Preferences) -> str:
    """Names what the data hold, for a title."""
    if data.alternatives is not None:
        return "Choices from sets"
    if not data.has_rankings:
        return "Paired comparisons"
    summary = data.summary()
    if not summary.rankings:
        return "Choices from sets"
    is_mixed = summary.choice_sets or summary.lone_comparisons
    return "Rankings and choices" if is_mixed else "Rankings"


def say_what_is_ranked(data: Preferences) -> str:
    """Says whether a ranking is of the items themselves, or of what their features are worth."""
    if data.items is None:
        return (
            "Items are ranked by free strengths, one an item, as no features of items were given "
            "(--items)."
        )
    features = "feature" if data.num_features == 1 else f"{data.num_features:,} features"
    return (
        f"Items are ranked by the utility fitted to their {features} (--items), not by free "
        "strengths of their own: items of equal features have equal places."
    )


def describe_unit(data: Preferences, *, has_ties: bool) -> tuple[str, str]:
    """Says what is scored, and what guessing scores.

    Args:
        data: The judgements.
        has_ties: Whether a tie is a third answer to a comparison.

    Returns:
        The name of one judgement, and the rest of a sentence about its score.
    """
    summary = data.summary()
    if not data.has_rankings:
        return "choice", f"; guessing scores −{math.log(3 if has_ties else 2):.3f}"
    if summary.rankings:
        return "judgement", (
            ". A judgement is a ranking, a choice from a set, or a comparison that stands alone"
        )
    sizes = np.diff(np.append(data.judgement_heads, data.num_comparisons)) + 1
    guess = np.log(sizes).mean()
    return "choice", f". A choice from a set is one event; guessing scores −{guess:.3f}"


def describe_coefficients(
    data: Preferences, seed: int, penalty: float = 0.0, *, ties: str | None = None
) -> Section:
    """Tabulates the average person's coefficients, where items are of one judgement each.

    Args:
        data: The judgements, whose items have features.
        seed: Seed of the fit.
        penalty: Weight of a prior on the coefficients, as of :class:`HeterogeneousBTL`.
        ties: The model of ties, as there.
    """
    with seeded(seed):
        model = HeterogeneousBTL(data.num_features, 0, "linear", ties=ties, penalty=penalty)
    average = fit(model, None, data, validation=None, seed=seed, progress_bar=False)
    section = tabulate_average(average, seed)
    why = (
        "Every alternative on offer has attributes of its own, so that alternatives are not ranked."
    )
    text = [*section.text, why]
    if penalty:
        text.append(f"A prior of weight {penalty:g} (penalty) draws the estimates together.")
    return replace(section, heading="What matters to the average person", text=text)


def tabulate_average(average: FitResult, seed: int) -> Section:
    """Tabulates and draws the coefficients of a homogeneous model: the multinomial logit.

    Args:
        average: Its fit to the judgements, whose items have features.
        seed: Seed of the fit.
    """
    table = average.population(level=_LEVEL, seed=seed)
    table = table.loc[["mean"]].droplevel(0).rename_axis("feature")
    columns = ["estimate", "se_sandwich", "lower", "upper"]
    table = table[columns].rename(columns={"se_sandwich": "standard_error"})
    text = [
        "Multinomial (conditional) logit, in which everybody is the average person, fitted to "
        f"{count_judgements(average.data)}: the change of utility with a unit of the feature, in "
        f"nats, with standard errors clustered by person and {100 * _LEVEL:.0f} % intervals. "
        f"Log-likelihood {average.log_marginal_likelihood().value:,.3f}."
    ]
    shown = table.dropna()
    figures = []
    if len(shown):
        axes = plots.ranking(
            shown["estimate"],
            shown["lower"],
            shown["upper"],
            list(shown.index),
            label="coefficient (nats a unit of the feature)",
            what="feature",
        )
        caption = "Coefficients of the average person, with 90 % intervals"
        figures.append(draw_figure(axes, caption, "coefficients.png"))
    return Section(
        "Coefficients of the average person",
        text,
        with_headings(table.round(4).reset_index()),
        figures,
        files={"coefficients.csv": table},
    )


def tabulate_population(result: FitResult | None, seed: int) -> list[Section]:
    """Tabulates the population's coefficients where the utility is linear; else nothing.

    Args:
        result: The fit of the model of individual people; None where it was fitted before.
        seed: Seed of the draws.
    """
    if result is None or not has_population_estimates(result.model):
        return []
    table = result.population(seed=seed)[["estimate", "se_sandwich"]]
    table = table.rename(columns={"se_sandwich": "standard_error"})
    why = (
        "Means, standard deviations and correlations of people's coefficients, in nats a unit of "
        "the feature, with sandwich standard errors, people as clusters. The mean here is that of "
        "people's own coefficients. As a rule it lies further from 0 than the coefficients of the "
        "average person, who stands for people of different tastes."
    )
    likelihood = (
        f"Log-likelihood {result.log_marginal_likelihood(seed=seed)} of the choices of "
        f"{len(result.data):,} people, by importance sampling; ± is the error of that."
    )
    return [
        Section(
            "Coefficients of the population",
            [why, likelihood],
            with_headings(table.round(4).reset_index(), estimate="estimate"),
            files={"population.csv": table},
        )
    ]


def draw_sets(person: Posterior, one: Preferences, most: int) -> Figure:
    """Draws the probabilities of the alternatives in the first situations of a person.

    Args:
        person: The posterior of the person.
        one: The person's judgements.
        most: Largest number of alternatives that are drawn.
    """
    table = person.alternative_prob(one, level=_LEVEL)
    situation = table.index.get_level_values("situation")
    ends = np.flatnonzero(np.append(np.diff(situation) != 0, True)) + 1
    whole = ends[ends <= most]  # Situations that fit into the picture as a whole.
    table = table.head(whole[-1] if len(whole) else most)
    called = {}
    if one.alternatives is not None:  # Its items are named by person and situation as well.
        items = table.index.get_level_values("item")
        called = dict(zip(items, one.alternatives[one.item_names.get_indexer(items)], strict=True))
    names = [
        f"{number + 1}: {called.get(item, item)}{' *' if chosen == 1 else ''}"
        for (_, number, item), chosen in table["chosen"].items()
    ]
    axes = plots.forest(
        table["mean"],
        # A mean may lie outside of the interval of a skewed posterior.
        table[["lower", "mean"]].min(axis=1),
        table[["upper", "mean"]].max(axis=1),
        names,
        label="probability of being chosen",
        sort=False,
    )
    name = one.user_names[0]
    caption = (
        f"Choices of person {name}: probability of each alternative, with 90 % interval, the "
        "population held fixed; * marks what was chosen"
    )
    return draw_figure(axes, caption, "person.png")
