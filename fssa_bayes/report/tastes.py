"""The parts of an analysis that are of attributes: what people's coefficients are, what they pay.

Where alternatives are described by attributes and the utility is linear, people differ in their
coefficients, the tastes of a mixed logit, and not in the places of items that return.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import partial

import numpy as np
import pandas as pd
import torch

from fssa_bayes import plots
from fssa_bayes.data import Preferences, first_names
from fssa_bayes.inference import FitResult, fit
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import has_population_estimates, people_per_parameter
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.alternatives import chooses_by_attributes
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.study import draw_figure

__all__ = [
    "check_price",
    "describe_payments",
    "describe_tastes",
    "draw_tastes",
    "fit_mixed_logit",
    "is_mixed_logit",
]

_MAX_ATTRIBUTES = 40  # Rows of a table or picture.
_DRAWN_PEOPLE = 4096  # People drawn from the population, for the range of a picture.
_MIN_PEOPLE = 5  # People of the fit for each parameter, from which coefficients are correlated.
_MAX_RANDOM = 100  # Attributes of a mixed logit whose coefficients all differ between people.


def check_price(
    data: Preferences, price: Hashable, utility: str | None, argument: str = "price"
) -> None:
    """Raises a ValueError unless a price is among the features and the utility can be linear.

    Args:
        data: The choices.
        price: Name of the price.
        utility: The utility asked for, or None.
        argument: What the caller calls the price.
    """
    if utility not in (None, "linear"):
        raise ValueError(f"{argument} needs a linear utility, got {utility}")
    if data.items is None:
        raise ValueError(f"{argument} must be a feature, and these items have none, got {price!r}")
    if price not in data.feature_names:
        raise ValueError(
            f"{argument} must be one of the features [{first_names(data.feature_names)}], got "
            f"{price!r}"
        )


def is_mixed_logit(data: Preferences, utility: str | None) -> bool:
    """Tells whether people are described by a mixed logit of choices by not too many attributes."""
    few = data.num_features <= _MAX_RANDOM
    return utility == "linear" and few and chooses_by_attributes(data)


def fit_mixed_logit(
    data: Preferences, latent_dim: int | None, seed: int, **options: object
) -> FitResult:
    """Fits the mixed logit by maximum marginal likelihood.

    Args:
        data: The people of the fit.
        latent_dim: Number of latent dimensions; None for a normal coefficient of each attribute,
            correlated where there are at least five people for each parameter.
        seed: Seed of the fit.
        **options: More arguments of :func:`fssa_bayes.fit`.
    """
    if latent_dim is not None:
        latent_dim = min(latent_dim, data.num_features)
    build = partial(HeterogeneousBTL.for_data, data, latent_dim, seed=seed, utility="linear")
    model = build()
    enough = people_per_parameter(model, data)  # Infinite beyond what a table can hold.
    if latent_dim is None and not _MIN_PEOPLE <= enough < math.inf:
        model = build(correlation="none")
    return fit(model, None, data, seed=seed, **options)


def describe_payments(result: FitResult, price: Hashable, seed: int) -> Section:
    """Tabulates what the population is willing to pay, with standard errors.

    Args:
        result: The fit of the model of individual people, whose utility is linear.
        price: Name of the price among the features.
        seed: Seed of the draws.
    """
    heading = "Willingness to pay"
    if not has_population_estimates(result.model):
        return Section(heading, ["The population has too many parameters for standard errors."])
    table = result.willingness_to_pay(price, seed=seed).rename_axis("attribute")
    positive, error = table[["price_positive", "se_price_positive"]].iloc[0]
    text = [
        f"What people pay for a unit of each attribute, in units of {str(price)!r}: minus the "
        "attribute's coefficient divided by that of the price. A ratio of coefficients that differ "
        "between people need not have a mean, so that the table has the median person, and the "
        "ends between which the middle 90 % of the people lie. Standard errors are the spread over "
        "a hundred populations drawn from the normal approximation of the estimates, people as "
        f"clusters. The estimates are those of the fit to {len(result.data):,} people."
    ]
    if positive > 0:
        text.append(
            f"{positive:.1%} (± {error:.1%}) of the people have a coefficient of the price above "
            "0: a ratio to it means nothing for them."
        )
    shown = table[["median", "se_median", "lower", "se_lower", "upper", "se_upper"]]
    names = ["median person", "se of median", "lower end", "se of lower end", "upper end"]
    names.append("se of upper end")
    return Section(
        heading,
        text,
        shown.set_axis(names, axis=1).round(4).reset_index(),
        files={"wtp.csv": table},
    )


def describe_tastes(
    everybody: Posterior, person: int, intervals: str, price: Hashable | None, seed: int
) -> Section:
    """Tabulates people's coefficients, and draws those of one person upon the population's.

    Args:
        everybody: The posteriors of all people, given all of their choices.
        person: Position of the person who is drawn.
        intervals: What the intervals include, a sentence.
        price: Name of the price, for what each person pays; None for no such table.
        seed: Seed of the people drawn from the population.
    """
    table = everybody.coefficients().rename_axis(["user", "attribute"])
    reliable = everybody.reliable.numpy()
    columns = ("posterior_mean", "posterior_sd", "interval_lower", "interval_upper")
    written = table.set_axis(columns, axis=1)
    written["reliable"] = np.repeat(reliable, everybody.context.num_features)
    text = [
        "people.csv holds the coefficients of every person given all of the person's choices, a "
        "row a person and attribute: posterior mean and standard deviation, and the ends of the "
        f"90 % interval, in nats a unit of the attribute. {intervals} The draws cannot be relied "
        f"upon for {1 - reliable.mean():.0%} of the people. The table shows how the posterior "
        "means spread over people, and in how many the interval lies above or below 0."
    ]
    files = {"people.csv": written}
    if price is not None:
        own = everybody.willingness_to_pay(price).rename_axis(["user", "attribute"])
        files["wtp_people.csv"] = own
        text.append(
            "wtp_people.csv holds what every person pays for a unit of each attribute; nobody has "
            "an interval there whose coefficient of the price is above 0 with probability .05 or "
            "more."
        )
    return Section(
        "",
        text,
        figures=[draw_tastes(everybody, table, person, seed)],
        parts=[Section("Coefficients of the people", table=_spread(table))],
        files=files,
    )


def _spread(table: pd.DataFrame) -> pd.DataFrame:
    """Describes how the coefficients of people (index `user`, `attribute`) spread."""
    above, below = table["lower"] > 0, table["upper"] < 0
    by_attribute = table.assign(above=above, below=below).groupby("attribute", sort=False)
    levels = {"10 % lie below": 0.1, "median person": 0.5, "10 % lie above": 0.9}
    columns = {name: by_attribute["mean"].quantile(level) for name, level in levels.items()}
    columns |= {f"interval {where} 0": by_attribute[where].mean() for where in ("below", "above")}
    spread = pd.DataFrame(columns).head(_MAX_ATTRIBUTES)
    shares = [name for name in spread if name.startswith("interval")]
    return (
        spread.round(4).assign(**{n: spread[n].map("{:.0%}".format) for n in shares}).reset_index()
    )


@torch.no_grad()
def draw_tastes(everybody: Posterior, table: pd.DataFrame, person: int, seed: int) -> Figure:
    """Draws a person's coefficients with intervals upon those of the population.

    Attributes have units of their own, so that each coefficient is multiplied by the standard
    deviation of its attribute over the alternatives.

    Args:
        everybody: The posteriors of all people.
        table: Their coefficients, as :meth:`Posterior.coefficients`.
        person: Position of the person.
        seed: Seed of the people drawn from the population.
    """
    data, model = everybody.context, everybody.model
    name = data.user_names[person]
    width = data.num_features
    own = table.iloc[person * width : (person + 1) * width]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(_DRAWN_PEOPLE, model.latent_dim, generator=generator, dtype=torch.float64)
    drawn = model.average_coefficients(noise).cpu().numpy()
    low, median, high = np.quantile(drawn, (0.05, 0.5, 0.95), axis=0)
    scale = data.items.double().std(0, correction=0).numpy()
    shown = np.flatnonzero(scale > 0)[:_MAX_ATTRIBUTES]
    columns = (own["mean"], own["lower"], own["upper"], median, low, high)
    mean, lower, upper, median, low, high = (
        (np.asarray(column) * scale)[shown] for column in columns
    )
    axes = plots.upon_population(
        mean,
        np.minimum(lower, mean),
        np.maximum(upper, mean),
        (median, low, high),
        [str(feature) for feature in data.feature_names[shown]],
        label="coefficient (nats a standard deviation of the attribute)",
        what="attribute",
        who=f"person {name}",
    )
    held = "held fixed" if everybody.population is None else "drawn"
    caption = (
        f"Tastes of person {name}, who made {int(data.judgement_counts[person]):,} choices: "
        f"coefficients with 90 % intervals, the population {held}, upon the range of the "
        "population. Each is for a change of the attribute by its standard deviation over the "
        "alternatives of the file"
    )
    return draw_figure(axes, caption, "person.png")
