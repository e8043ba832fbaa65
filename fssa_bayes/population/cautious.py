"""Populations for few people: of individuals, and of people who are all alike."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.few import (
    PEOPLE_PER_PARAMETER,
    number_of_parameters,
    people_per_parameter,
)
from fssa_bayes.population.sampled import population_draws
from fssa_bayes.posterior import PopulationDraws
from fssa_bayes.sampling import person_log_marginal_likelihood

__all__ = ["akaike_gains", "cautious_population", "of_people_alike", "share_of_individuals"]

_BOOTSTRAPS = 1000

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
    individual model against the homogeneous one, averaged over bootstraps of the people; 0 below 10
    choices for each parameter. With fewer
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
        Yao, Vehtari, Simpson & Gelman (2018), Using stacking to average Bayesian predictive
        distributions, Bayesian Analysis 13, section 3.4, on bootstrapped weights.
        Peduzzi et al. (1996), A simulation study of the number of events per variable in logistic
        regression analysis, J. Clin. Epidemiol. 49.
    """
    enough = people_per_parameter(model, data)
    if enough >= _ENOUGH:
        return "fixed"
    check_unweighted(
        data,
        "choose_population(), which people few for each parameter call for (or else "
        "population='fixed' or result.population_draws()),",
    )
    average = fit_average()
    options = {"num_samples": num_samples, "seed": seed}
    differ = 0
    if data.num_comparisons >= _CHOICES_PER_PARAMETER * number_of_parameters(model, data):
        gains = akaike_gains(model, guide, data, average, **options)
        differ = round(num * share_of_individuals(gains, seed=seed))
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


def share_of_individuals(gains: Tensor, *, seed: int = 0) -> float:
    """Returns the weight of a model by its gains over another one, person by person.

    The weight is that of Akaike, averaged over Bayesian bootstraps of the people: few people do not
    tell the sum of their gains.

    Args:
        gains: Log-likelihood less that of the other model, less the share of a person in the
            difference of Akaike's penalties, in nats, with shape (U,).
        seed: Seed of the bootstraps.
    """
    rng = np.random.default_rng(seed)
    people = rng.dirichlet(np.ones(len(gains)), size=_BOOTSTRAPS) * len(gains)
    return float(expit(people @ gains.cpu().double().numpy()).mean())


@torch.no_grad()
def akaike_gains(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    average: HeterogeneousBTL,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Estimates log-likelihoods of new people under `model` less those under `average`, in nats.

    Their sum is half the difference of Akaike's criterion. `average` is the homogeneous model;
    other arguments are those of :func:`cautious_population`.

    Returns:
        The differences of people, with shape (U,).
    """
    values = []
    for one, its_guide in ((model, guide), (average, None)):
        value, _, _ = person_log_marginal_likelihood(
            one, its_guide, data, num_samples, _TARGET_ERROR, _MAX_SAMPLES, seed
        )
        values.append(value - number_of_parameters(one, data) / len(data))
    return values[0] - values[1]


@torch.no_grad()
def of_people_alike(model: HeterogeneousBTL, average: HeterogeneousBTL) -> HeterogeneousBTL:
    """Copies a model, with the utilities and answers of a homogeneous one for everybody."""
    twin = copy.deepcopy(model)
    twin.utility.mean.copy_(average.utility.mean)
    twin.utility.loading.zero_()
    for loading in twin.personal_parameters():
        loading.zero_()
    answers = average.answer_parameters()
    for name, value in twin.answer_parameters().items():
        value.copy_(answers[name])
    return twin
