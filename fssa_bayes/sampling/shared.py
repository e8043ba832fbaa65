"""Draws of the prior that all people share, weighted by each person's likelihood.

In one or two dimensions a thousand Sobol points of the prior lie close to each other everywhere, so
that few posteriors are missed; and where the utility is a product of factors, those of the person
are evaluated once for everybody. A bilinear posterior by 1,000 draws took .05 ms a person before
any choice was known, and .59 ms after ten, where draws of the guide took .57 and 1.1 ms (`python -m
benchmarks proposals`). People whose weights cannot be relied upon get draws of their own. Errors of
people who share draws are correlated: that of a mean over many people does not shrink with their
number.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fssa_bayes._random import Streams
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide, push, standard_normal_log_prob
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.draws import Draws, Proposals, check_finite
from fssa_bayes.sampling.importance import draw_parts, draw_posterior, name_mixture, weigh
from fssa_bayes.sampling.points import normal_points
from fssa_bayes.sampling.steady import pad_draws, pad_items, steady_backend

__all__ = ["SHARED", "draw_first", "may_share", "share_prior"]

SHARED = "prior"
"""The method of people whose draws are the shared ones."""

_MOST_DIMENSIONS = 2  # Beyond, draws of the prior rarely lie where a posterior does.


def may_share(model: HeterogeneousBTL) -> bool:
    """Tells whether people can share draws of the prior, and gain time by it.

    They can where nothing moves the prior. Draws around the mode of a mixed logit cost little more.
    """
    return (
        0 < model.latent_dim <= _MOST_DIMENSIONS
        and model.utility.is_product
        and not model.is_mixed_logit
        and not model.num_covariates
    )


def draw_first(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    num_samples: int,
    *,
    seed: int,
) -> tuple[Draws, np.ndarray]:
    """Draws from the posterior of every person, by shared draws where these suffice.

    Arguments are those of :func:`fssa_bayes.sampling.draw_posterior`, for Pareto-smoothed weights.

    Returns:
        The draws, and how each person's were made: `SHARED` or the name of the mixture, (U,).
    """
    mixture = name_mixture(model)
    if not may_share(model):
        draws = draw_posterior(model, guide, context, num_samples, seed=seed, correct="psis")
        return draws, np.full(len(context), mixture, dtype=object)
    draws = share_prior(model, context, num_samples, seed=seed)
    method = np.full(len(context), SHARED, dtype=object)
    people = np.flatnonzero(~draws.enough_for(num_samples).numpy())
    if len(people):
        some = context.subset(people)
        own = draw_posterior(model, guide, some, num_samples, seed=seed, correct="psis")
        draws, method[people] = draws.put(people, own), mixture
    return draws, method


@torch.no_grad()
def share_prior(
    model: HeterogeneousBTL,
    context: Preferences,
    num_samples: int,
    *,
    seed: int,
    purpose: str = "posterior",
) -> Draws:
    """Weighs the same draws of the prior for everybody.

    Arguments are those of :func:`fssa_bayes.sampling.draw_posterior`.
    """
    streams = Streams(seed, f"{purpose}, shared")
    noise = normal_points(num_samples, model.latent_dim, streams, [0]).to(model.device, model.dtype)
    z, log_det = push(model.transforms_around(model.location(None)), pad_draws(noise))
    log_prior = (standard_normal_log_prob(pad_draws(noise)) - log_det).T
    z = z.transpose(0, 1)

    def draw(people: slice) -> Proposals:
        batch = pad_items(context.batch(range(people.start, people.stop)).to(model.device).clean())
        own = z.expand(-1, batch.num_users, -1)
        likelihood = model.choice(batch, own, backend=steady_backend(model.device))
        log_prob = likelihood.log_prob(batch.choice)
        parts = own, log_prob, log_prior + log_prob
        return Proposals(*(part[:num_samples] for part in parts))

    drawn = draw_parts(model.device, draw, context, num_samples)
    check_finite(drawn.z, drawn.log_weights, context)
    return replace(weigh(drawn), shared=torch.ones(len(context), dtype=torch.bool))
