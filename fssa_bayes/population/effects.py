r"""What user covariates do to utilities, in terms that every utility identifies.

A model with covariates w says :math:`z = B \tilde w + ζ`. Neither B nor z is identified, but the
population's average centred utility of an item is, and so is the probability that an item is
preferred. The effect of a covariate is the change of these two where everybody's value of the
covariate is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences, identified_covariates
from fssa_bayes.model import HeterogeneousBTL, align, positions
from fssa_bayes.posterior import PopulationDraws

__all__ = ["average_over_people", "choose_items", "covariate_effects", "effect_of_covariate"]

_MOST_ITEMS = 200  # Items that are compared with each other.
_CHUNK = 2**22  # Probabilities of pairs held at once.


@torch.no_grad()
def covariate_effects(
    model: HeterogeneousBTL,
    data: Preferences,
    items: Sequence | None = None,
    *,
    population: PopulationDraws | None = None,
    num_draws: int = 4000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Tabulates how average utilities change with a unit of each covariate.

    Everybody's covariate is set half a standard deviation higher and lower, all else as it is, and
    the difference is divided by the standard deviation; a covariate with two values is set to the
    one and the other. So an effect that is not linear is averaged over the people of the data, by
    their weights.
    People and ζ are drawn once and are the same for both settings.

    Args:
        model: A fitted model with covariates, of any utility and prior.
        data: The people whose covariates are changed, such as those of the fit, and the item table.
        items: Names of the items, at least 2; all of the table if None, up to 200.
        population: Draws of the population's parameters, by `FitResult.population_draws` or
            `FitResult.bootstrap`, for standard errors.
        num_draws: Number of draws of a person and their ζ.
        seed: Seed of the draws.

    Returns:
        One row a covariate and item (index `covariate`, `item`). Columns: `utility`, the change of
        the average utility, centred over the items, in nats per unit of the covariate; `wins`,
        that of the probability that the item is preferred to another one of the items, by utilities
        alone (without ties, position bias and lapses); `utility_se` and `wins_se`, the standard
        deviations of both over `population`, NaN without. A covariate that is constant or
        collinear with the others has NaN.

    Raises:
        ValueError: If the model has no covariates or others than the data, an item is unknown,
            there are too few or too many items, or `population` holds draws of another model.
    """
    if not model.num_covariates:
        raise ValueError("model must have covariates, got num_covariates=0")
    data = align(model, data)
    if not isinstance(num_draws, int) or num_draws < 1:
        raise ValueError(f"num_draws must be an integer of at least 1, got {num_draws!r}")
    members = [] if population is None else [member for member, _ in population.members]
    if any(member.config != model.config for member in members):
        raise ValueError("population must hold draws of this model, got those of another one")
    table, names = choose_items(data, items)
    found = identified_covariates(data.covariates)
    estimates = []
    for one in (model, *members):
        with seeded(seed):
            people = draw_people(data, num_draws)
            rest = one.average_prior(num_draws).sample()
        estimates.append(
            [
                effect_of_covariate(one, data.covariates, table, people, rest, column)
                for column in range(one.num_covariates)
            ]
        )
    values = torch.stack([torch.stack(rows) for rows in estimates])  # (P, W, 2, M)
    values = values.double().cpu().masked_fill(~found[:, None, None], torch.nan)
    error = torch.full_like(values[0], torch.nan)
    if members:
        error = values[1:].std(0)
    columns = {"utility": values[0, :, 0], "utility_se": error[:, 0]}
    columns |= {"wins": values[0, :, 1], "wins_se": error[:, 1]}
    index = pd.MultiIndex.from_product([data.covariate_names, names], names=["covariate", "item"])
    return pd.DataFrame({k: v.flatten().numpy() for k, v in columns.items()}, index=index)


def draw_people(data: Preferences, number: int) -> Tensor:
    """Draws positions of people, (number,), in proportion to their weights if they have any."""
    if data.weights is None:
        return torch.randint(len(data), (number,))
    return torch.multinomial(torch.from_numpy(data.weights), number, replacement=True)


def choose_items(data: Preferences, items: Sequence | None) -> tuple[Tensor, pd.Index]:
    """Looks up the items that are compared with each other.

    Args:
        data: The item table.
        items: Names of 2 to 200 different items; all of the table if None.

    Returns:
        Features (M, D) or positions (M,) of the items, and their names.

    Raises:
        ValueError: If an item is unknown or named twice, or there are too few or too many.
    """
    if items is None and data.num_items > _MOST_ITEMS:
        raise ValueError(
            f"items must name at most {_MOST_ITEMS} items, of which the table has {data.num_items}"
        )
    index = torch.arange(data.num_items)
    if items is not None:
        index = positions("items", items, data.item_names)
    if len(index.unique()) < len(index):
        raise ValueError(f"items must be different names, got {list(items)}")
    if not 2 <= len(index) <= _MOST_ITEMS:
        raise ValueError(f"items must be 2 to {_MOST_ITEMS} names, got {len(index)}")
    names = data.item_names[np.asarray(index)]
    return (index if data.items is None else data.items[index]), names


def effect_of_covariate(
    model: HeterogeneousBTL,
    covariates: Tensor,
    table: Tensor,
    people: Tensor,
    rest: Tensor,
    column: int,
) -> Tensor:
    """Returns changes of centred utilities and of wins by a unit of one covariate, (2, M).

    Args:
        model: The model.
        covariates: Everybody's covariates with shape (U, W).
        table: Features (M, D) or positions (M,) of the items.
        people: Positions of the people drawn, (N,).
        rest: ζ, the part of their z that covariates leave open, (N, K).
        column: Position of the covariate.
    """
    values = covariates[:, column]
    settings = values.unique()
    if len(settings) != 2:
        half = values.double().std(unbiased=False).clamp(min=1e-30) / 2
        settings = (values - half).to(values), (values + half).to(values)
    low, high = (value.expand_as(values) for value in settings)
    sides = []
    for value in (low, high):
        changed = covariates.clone()
        changed[:, column] = value
        z = rest + model.location(changed[people])
        sides.append(average_over_people(model, table.to(model.device), z))
    width = (high - low).to(sides[0]).mean()
    return (sides[1] - sides[0]) / width


def average_over_people(model: HeterogeneousBTL, table: Tensor, z: Tensor) -> Tensor:
    """Averages centred utilities and probabilities of winning over people z (N, K), to (2, M)."""
    count = len(table)
    total = torch.zeros(2, count, device=z.device, dtype=torch.float64)
    for part in z.split(max(1, _CHUNK // count**2)):
        utility = model.item_utility(table, part)
        total[0] += (utility - utility.mean(-1, keepdim=True)).double().sum(0)
        prob = torch.sigmoid(utility.unsqueeze(-1) - utility.unsqueeze(-2))
        # The probability ½ of an item against itself does not count.
        total[1] += ((prob.double().sum(-1) - 0.5) / (count - 1)).sum(0)
    return total / len(z)
