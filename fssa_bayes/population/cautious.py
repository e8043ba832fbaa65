"""Populations for few people: of individuals, and of people who are all alike."""

from __future__ import annotations

import copy
import math

import torch

from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.few import number_of_parameters
from fssa_bayes.population.sampled import population_draws
from fssa_bayes.posterior import PopulationDraws
from fssa_bayes.sampling import estimate_log_marginal_likelihood

__all__ = ["akaike_gain", "cautious_population", "of_people_alike"]

_TARGET_ERROR = 0.5  # Monte-Carlo error of a log-likelihood, in nats.
_MAX_SAMPLES = 8_000


def cautious_population(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    average: HeterogeneousBTL,
    *,
    num: int = 50,
    num_samples: int = 1000,
    seed: int = 0,
) -> PopulationDraws:
    """Draws populations in which people differ, and populations in which they are alike.

    Few people cannot tell whether they differ: a covariance that was fitted to their noise predicts
    worse than none. The share of populations in which people differ is the Akaike weight of the
    individual model against the homogeneous one, with the correction for small samples.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide.
        data: The comparisons the model was fitted to.
        average: The homogeneous model, fitted to the same comparisons in the same units.
        num: Number of populations.
        num_samples: Draws of each training person's z.
        seed: Seed of the draws.

    Returns:
        The populations.

    References:
        Hurvich & Tsai (1989), Regression and time series model selection in small samples.
        Burnham & Anderson (2002), Model selection and multimodel inference, chapters 2 and 4.
    """
    gain = akaike_gain(model, guide, data, average, num_samples=num_samples, seed=seed)
    differ = round(num / (1 + math.exp(min(-gain, 500.0))))
    options = {"num_samples": num_samples, "seed": seed}
    members = []
    if differ:
        members += population_draws(model, guide, data, num=max(2, differ), **options).members
    if differ < num:
        alike = population_draws(average, None, data, num=max(2, num - differ), **options).members
        twins = [(of_people_alike(model, one), guide) for one, _ in alike]
        members = [*members[:differ], *twins[: num - differ]]
    return PopulationDraws(
        tuple(members),
        f"{differ} populations in which people differ and {num - differ} in which they are alike, "
        "by Akaike weights; normal approximation with the sandwich covariance",
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

    Half the difference of Akaike's criterion, corrected for small samples; −∞ where the people are
    no more than the parameters of `model` and one. Arguments are those of
    :func:`cautious_population`.
    """
    values = []
    for one, its_guide in ((model, guide), (average, None)):
        parameters, people = number_of_parameters(one, data), int((data.counts > 0).sum())
        if people <= parameters + 1:
            return -math.inf
        with seeded(seed):
            estimate = estimate_log_marginal_likelihood(
                one, its_guide, data, num_samples, _TARGET_ERROR, _MAX_SAMPLES
            )
        values.append(estimate.value - parameters * people / (people - parameters - 1))
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
