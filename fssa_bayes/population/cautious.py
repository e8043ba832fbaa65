"""Populations for few people: of individuals, and of people who are all alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch

from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.few import (
    PEOPLE_PER_PARAMETER,
    number_of_parameters,
    people_per_parameter,
)
from fssa_bayes.population.sampled import population_draws
from fssa_bayes.posterior import PopulationDraws
from fssa_bayes.sampling import estimate_log_marginal_likelihood

__all__ = ["akaike_gain", "cautious_population", "of_people_alike"]

_ENOUGH = 20  # People for each parameter who can tell whether people differ.
_CHOICES_PER_PARAMETER = 10  # Fewer, and a covariance is fitted to noise (Peduzzi et al. 1996).
_TARGET_ERROR = 0.5  # Monte-Carlo error of a log-likelihood, in nats.
_MAX_SAMPLES = 8_000


def cautious_population(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    fit_average: Callable[[], HeterogeneousBTL],
    *,
    num: int = 50,
    num_samples: int = 1000,
    seed: int = 0,
) -> PopulationDraws | str:
    """Draws populations in which people differ, and populations in which they are alike.

    Few people cannot tell whether they differ: a covariance that was fitted to their noise predicts
    worse than none. The share of populations in which people differ is the Akaike weight of the
    individual model against the homogeneous one; 0 below 10 choices for each parameter. With fewer
    than 10 people for each parameter these populations are drawn, with 10 to 20 they are the
    estimate.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide.
        data: The comparisons the model was fitted to.
        fit_average: Fits the homogeneous model to the same comparisons, in the same units.
        num: Number of populations.
        num_samples: Draws of each training person's z.
        seed: Seed of the draws.

    Returns:
        The populations; `"fixed"` where all are the estimate, as from 20 people for each parameter.

    References:
        Burnham & Anderson (2002), Model selection and multimodel inference, chapters 2 and 4.
        Peduzzi et al. (1996), A simulation study of the number of events per variable in logistic
        regression analysis, J. Clin. Epidemiol. 49.
    """
    enough = people_per_parameter(model, data)
    if enough >= _ENOUGH:
        return "fixed"
    average = fit_average()
    gain = akaike_gain(model, guide, data, average, num_samples=num_samples, seed=seed)
    differ = round(num / (1 + math.exp(min(-gain, 500.0))))
    options = {"num_samples": num_samples, "seed": seed}
    members = [(model, guide)] * differ
    if enough >= PEOPLE_PER_PARAMETER:
        if differ == num:
            return "fixed"
    elif differ:
        members = population_draws(model, guide, data, num=max(2, differ), **options).members
    if differ < num:
        alike = population_draws(average, None, data, num=max(2, num - differ), **options).members
        twins = [(of_people_alike(model, one), guide) for one, _ in alike]
        members = [*members[:differ], *twins[: num - differ]]
    return PopulationDraws(
        tuple(members),
        f"{differ} populations in which people differ and {num - differ} in which they are alike, "
        "by Akaike weights",
    )


@torch.no_grad()
def akaike_gain(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    average: HeterogeneousBTL,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> float:
    """Estimates the log-likelihood of new data under `model` less that under `average`, in nats.

    Half the difference of Akaike's criterion; −∞ below 10 choices for each parameter of `model`.
    `average` is the homogeneous model; other arguments are those of :func:`cautious_population`.
    """
    if data.num_comparisons < _CHOICES_PER_PARAMETER * number_of_parameters(model, data):
        return -math.inf
    values = []
    for one, its_guide in ((model, guide), (average, None)):
        with seeded(seed):
            estimate = estimate_log_marginal_likelihood(
                one, its_guide, data, num_samples, _TARGET_ERROR, _MAX_SAMPLES
            )
        values.append(estimate.value - number_of_parameters(one, data))
    return values[0] - values[1]


@torch.no_grad()
def of_people_alike(model: HeterogeneousBTL, average: HeterogeneousBTL) -> HeterogeneousBTL:
    """Copies a model, with the utilities and answers of a homogeneous one for everybody."""
    twin = copy.deepcopy(model)
    twin.utility.mean.copy_(average.utility.mean)
    twin.utility.loading.zero_()
    answers = average.answer_parameters()
    for name, value in twin.answer_parameters().items():
        value.copy_(answers[name])
    return twin
