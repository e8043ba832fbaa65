"""Pictures of people: how they differ from the average, and what is known of one of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fssa_bayes import plots
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.alternatives import draw_sets
from fssa_bayes.report.page import Figure
from fssa_bayes.report.study import draw_figure
from fssa_bayes.report.words import with_headings

__all__ = [
    "MAX_DRAWN",
    "ORDER",
    "choose_person",
    "common_items",
    "draw_a_person",
    "draw_people",
    "find_person",
    "name_people",
    "order_people",
    "say_who_is_consistent",
]

MAX_DRAWN = 40
"""Rows of a picture."""

_MOST_NAMED = 3  # People who are named for their consistency, at either end.

ORDER = (
    "In the order of the upper end of the direction's interval: those first who are the surest to "
    "differ from the average."
)
"""The order of people in tables, files and pictures."""


def find_person(data: Preferences) -> int:
    """Finds the person with most comparisons up to 40, whom pictures show."""
    few = np.where(data.counts <= MAX_DRAWN, data.counts, 0)
    return int(few.argmax()) if few.any() else int(data.counts.argmin())


def choose_person(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    seed: int,
) -> tuple[Posterior, Preferences]:
    """Returns posterior and data of the person with most comparisons up to 40."""
    one = data.subset([find_person(data)])
    return Posterior(model, guide, one, num_samples, seed=seed), one


def common_items(data: Preferences, number: int) -> list:
    """Names the items compared most often, within the largest component of the comparisons."""
    uses = np.bincount(np.concatenate([data.left, data.right]), minlength=data.num_items)
    order = np.argsort(-uses, kind="stable")
    return list(data.item_names[order[data.components()[order] == 0][:number]])


def order_people(people: pd.DataFrame) -> pd.DataFrame:
    """Puts people, as of `Posterior.differences`, into the order of :data:`ORDER`."""
    return people.sort_values("direction_upper", kind="stable")


def name_people(people: pd.DataFrame) -> pd.DataFrame:
    """Heads the columns of a table of people in words, with units."""
    headings = {}
    for name, unit in (("direction", "correlation"), ("scale", "nats")):
        headings[name] = f"{name} ({unit}), median"
        headings[f"{name}_lower"] = f"{name}, lower end (90\u00a0%)"
        headings[f"{name}_upper"] = f"{name}, upper end (90\u00a0%)"
    return with_headings(people, **headings)


def say_who_is_consistent(people: pd.DataFrame) -> str:
    """Names the people who are the surest to choose consistently, and inconsistently."""
    most = people.sort_values("scale_lower", ascending=False, kind="stable").head(_MOST_NAMED)
    least = people.sort_values("scale_upper", kind="stable").head(_MOST_NAMED)
    ends = [
        ", ".join(f"{name} ({row[column]:.2f})" for name, row in rows.iterrows())
        for rows, column in ((most, "scale_lower"), (least, "scale_upper"))
    ]
    return (
        f"The most consistent choices, by the lower end of the scale's interval in nats: {ends[0]}."
        f" The least consistent, by its upper end: {ends[1]}."
    )


def draw_people(people: pd.DataFrame, *, drawn: bool = False) -> Figure:
    """Draws direction and scale of some people side by side, both in the order of the table.

    Args:
        people: A table in the order of :func:`order_people`.
        drawn: Whether the population was drawn, and not held at its estimate.
    """
    import matplotlib.pyplot as plt

    number = min(MAX_DRAWN, len(people))
    chosen = np.random.default_rng(0).choice(len(people), number, replace=False)
    shown = people.iloc[np.sort(chosen)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 9), layout="tight")
    labels = ("direction: correlation with the average", "scale (nats)")
    for ax, name, label in zip(axes, ("direction", "scale"), labels, strict=True):
        columns = [shown[name + suffix] for suffix in ("", "_lower", "_upper")]
        plots.forest(
            *columns,
            list(shown.index),
            label=label,
            reference=people[name].median(),
            sort=False,
            ax=ax,
        )
    which = "All" if len(shown) == len(people) else f"{len(shown)} at random of the {len(people):,}"
    population = "drawn" if drawn else "held fixed"
    caption = f"{which} people: posterior median and 90 % interval, the population {population}"
    figure.suptitle(f"{caption}; dashed: median person", fontsize=10)
    caption += "; both panels in the order of the table of people"
    return draw_figure(axes[0], caption, "people.png")


def draw_a_person(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    seed: int,
) -> list[Figure]:
    """Draws what is known of the person with most comparisons up to 40."""
    person, one = choose_person(model, guide, data, num_samples, seed)
    name, shown = one.user_names[0], slice(0, MAX_DRAWN)
    if one.has_rankings:
        choices = draw_sets(person, one, MAX_DRAWN)
    else:
        p = person.choice_prob(one)
        names = (one.item_names[side[shown]] for side in (one.left, one.right))
        fields = (tensor[0, shown] for tensor in (p.mean, p.lower, p.upper))
        choices = draw_figure(
            plots.choice_intervals(*fields, one.choice[shown], zip(*names, strict=True)),
            f"Choices of person {name}: probability that the first item is preferred, with 90 % "
            "interval, the population held fixed; both markers: a tie",
            "person.png",
        )
    items = common_items(data, 12)
    ranks = plots.rank_distribution(person.rank_prob(items)[0], items)
    return [
        choices,
        draw_figure(
            ranks,
            f"Where person {name} would rank the {len(items)} items compared most often, the "
            "population held fixed",
            "ranks.png",
        ),
    ]
