"""Are people enough for the parameters of their population to be held at the estimate?"""

from __future__ import annotations

import math

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.parameters import has_population_estimates, identify_tastes

__all__ = [
    "PEOPLE_PER_PARAMETER",
    "describe_few_people",
    "number_of_parameters",
    "people_per_parameter",
]

PEOPLE_PER_PARAMETER = 10
"""People for each parameter below which draws of the population predict better than its estimate.

Measured by `python -m benchmarks few_people`.
"""


def number_of_parameters(model: HeterogeneousBTL, data: Preferences) -> int:
    """Counts the parameters of a linear utility's population that data can identify.

    They are w0, the covariance of rank K, effects of covariates and those of the answers. Items
    without features have utilities up to a constant for each person.
    """
    features = model.num_features - (data.items is None)
    rank = min(model.taste_dim, features)
    covariance = features * rank - rank * (rank - 1) // 2
    if model.utility.is_restricted:
        loading, _, entries = identify_tastes(model.utility)
        rank, covariance = loading.shape[1], entries.shape[1]
    personal = 0
    if model.personal is not None:
        personal = int(model.personal.free.sum())
        rank += len(model.personal.names)
    effects = rank * model.num_covariates
    return features + covariance + effects + len(model.answer_parameters()) + personal


def people_per_parameter(model: HeterogeneousBTL, data: Preferences) -> float:
    """Counts the people of a fit for each parameter of their population.

    Infinite for models of everybody alike, and for those whose populations cannot be drawn by
    `population_draws`: all but linear utilities with a normal prior and at most 2,000 parameters.

    Args:
        model: The model.
        data: The comparisons of the people that it is fitted to.
    """
    if not (model.latent_dim and has_population_estimates(model)):
        return math.inf
    return int((data.counts > 0).sum()) / number_of_parameters(model, data)


def describe_few_people(model: HeterogeneousBTL, data: Preferences) -> str | None:
    """Says that people are few for the parameters of their population; None where they are not.

    Arguments are those of :func:`people_per_parameter`.
    """
    if people_per_parameter(model, data) >= PEOPLE_PER_PARAMETER:
        return None
    return (
        f"{int((data.counts > 0).sum()):,} people are few for the "
        f"{number_of_parameters(model, data)} parameters of their population, fewer than "
        f"{PEOPLE_PER_PARAMETER} each"
    )
