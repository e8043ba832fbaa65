"""The marginal likelihood of people by importance sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes._weights import log_moments, size_from_moments
from fssa_bayes.data import Preferences, user_slices
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.importance import propose
from fssa_bayes.sampling.modes import Modes, find_all_modes
from fssa_bayes.sampling.steady import map_people

__all__ = ["Estimate", "estimate_log_marginal_likelihood", "person_log_marginal_likelihood"]


@dataclass(frozen=True)
class Estimate:
    """Holds a Monte-Carlo estimate and how far it can be trusted.

    Attributes:
        value: The estimate, in nats.
        standard_error: Its Monte-Carlo standard error, of independent draws with these weights: an
            upper bound for up to 16 dimensions, where Sobol points take their place.
        bias: Its estimated bias (the logarithm of a mean is too low on average).
        min_ess: The smallest effective sample size of a person's draws.
    """

    value: float
    standard_error: float
    bias: float
    min_ess: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.standard_error:.2f}"


def estimate_log_marginal_likelihood(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    target_error: float,
    max_samples: int,
    seed: int,
) -> Estimate:
    """Estimates the log marginal likelihood of all people, drawing until it is precise enough.

    Where people have weights, it is the sum of each person's, weighted.

    Each person's draws are doubled together until the standard error of the sum is below
    `target_error` or a person has `max_samples` draws. The draws of all rounds are used.

    Args:
        model: The model.
        guide: Its guide; it may be None as for :class:`fssa_bayes.Posterior`.
        data: The people and their choices.
        num_samples: Number of draws a person in the first round.
        target_error: Standard error of the sum at which drawing stops, in nats.
        max_samples: Number of draws a person that is not exceeded by doubling.
        seed: Seed of the draws.
    """
    values, variance, ess = person_log_marginal_likelihood(
        model, guide, data, num_samples, target_error, max_samples, seed
    )
    bias = -variance / 2
    if data.weights is not None:
        weights = torch.from_numpy(data.weights).to(values.device)
        values, bias, variance = weights * values, weights * bias, weights.square() * variance
    return Estimate(
        value=values.sum().item(),
        standard_error=variance.sum().sqrt().item(),
        bias=bias.sum().item(),
        min_ess=ess.min().item(),
    )


def person_log_marginal_likelihood(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    target_error: float,
    max_samples: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates log p(C) of each person; see :func:`estimate_log_marginal_likelihood`.

    The values themselves are not weighted, but the error at which drawing stops is that of the
    weighted sum.

    Returns:
        The estimates in nats, their Monte-Carlo variances and effective sample sizes, each in
        double precision on the model's device with shape (U,).
    """
    sums, squares = None, 1.0
    if data.weights is not None:
        squares = torch.from_numpy(data.weights).to(model.device).square()
    drawn = 0
    modes = find_all_modes(model, data) if model.is_mixed_logit else None
    while True:
        # First and second moments of the weights, in logs: additive over rounds.
        streams = Streams(seed, "evidence", drawn)
        draw = partial(_draw_moments, model, guide, data, modes, num_samples, streams)
        moments = torch.cat(map_people(model.device, draw, list(user_slices(data, num_samples))), 1)
        sums = moments if sums is None else torch.logaddexp(sums, moments)
        drawn += num_samples
        ess = size_from_moments(sums)
        total = 1 if model.latent_dim == 0 else drawn
        variance = (1 / ess - 1 / total).clamp(min=0)
        error = (squares * variance).sum().sqrt().item()
        if error <= target_error or 2 * drawn > max_samples:
            return sums[0] - math.log(total), variance, ess
        num_samples = drawn


def _draw_moments(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    modes: Modes | None,
    num_samples: int,
    streams: Streams,
    people: slice,
) -> Tensor:
    """Draws once for some people, and returns the log-moments of their weights, (2, u)."""
    batch = data.batch(range(people.start, people.stop)).to(model.device)
    own = modes and modes.of(people)
    draws = propose(model, guide, batch, num_samples, streams=streams, modes=own)
    return log_moments(draws.log_weights.double())
