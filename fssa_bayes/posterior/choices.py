"""Choices predicted from draws of z: probabilities, intervals, scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.model import BradleyTerry

__all__ = [
    "ChoiceProbability",
    "Likelihoods",
    "Predictor",
    "describe_choices",
    "describe_part",
    "join_choices",
    "score_choices",
    "score_part",
    "weighted_mean",
    "weighted_quantiles",
]


_SORTED = 2**20  # Draws that are sorted at once, so that they stay in the cache.

# Which people, their comparisons, p(choices | z) of all draws, normalised log-weights (S, U).
Likelihoods = tuple[slice, Batch, BradleyTerry, Tensor]


@dataclass(frozen=True)
class ChoiceProbability:
    """Describes the posterior of the probability that left is preferred.

    Probabilities are those of answers: position bias and lapses are part of them, and with ties
    mean, tie and the probability of right sum to 1.

    Every field has shape (U, N), aligned with `target.batch()`, and is NaN in padding. Intervals
    are empirical-Bayes: the population parameters are fixed at their estimates, unless the
    posterior was made with draws of them, `population=result.population_draws()`.

    Attributes:
        mean: Posterior mean of P(left | z), the probability to bet on: σ(margin) without ties and
            lapses.
        lower: Posterior 5 % quantile of P(left | z).
        upper: Posterior 95 % quantile.
        epistemic: Mutual information of choice and z, in nats, which more choices of this person
            would reduce.
        aleatoric: Expected entropy of the choice given z, in nats, which they would not reduce.
            Both are of two outcomes, or of three with ties.
        tie: Posterior mean of P(tie | z); 0 in a model without ties.
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor
    epistemic: Tensor
    aleatoric: Tensor
    tie: Tensor


def describe_choices(parts: Iterable[Likelihoods], target: Preferences) -> ChoiceProbability:
    """Averages the probabilities of choices over weighted draws of z.

    Args:
        parts: The people in order, a few at a time, as :meth:`Posterior.likelihoods` yields them.
        target: The comparisons that these are likelihoods of.

    Returns:
        Weighted mean, 5 % and 95 % quantiles, and both parts of the uncertainty.
    """
    return join_choices([describe_part(part) for part in parts], target)


@torch.no_grad()
def describe_part(part: Likelihoods) -> tuple[slice, ChoiceProbability]:
    """Does what :func:`describe_choices` does for some people, with fields (u, N)."""
    people, batch, likelihood, log_weights = part
    prob, outcomes = likelihood.mean, likelihood.outcomes
    average = partial(weighted_mean, weights=log_weights.exp())
    mean = average(prob).clamp(0, 1)
    tie = torch.zeros_like(mean)
    if outcomes.tie is not None:
        tie = torch.minimum(average(outcomes.tie.exp()), 1 - mean)
    aleatoric = average(outcomes.entropy())
    total = sum(torch.special.entr(p) for p in (mean, tie, 1 - mean - tie))
    values = (
        mean,
        *weighted_quantiles(prob, log_weights.exp(), (0.05, 0.95)),
        (total - aleatoric).clamp(min=0),
        aleatoric,
        tie,
    )
    return people, ChoiceProbability(*(v.masked_fill(~batch.mask, math.nan).cpu() for v in values))


def join_choices(
    parts: Iterable[tuple[slice, ChoiceProbability]], target: Preferences
) -> ChoiceProbability:
    """Joins what :func:`describe_part` says of all people, with fields (U, N)."""
    width = int(target.counts.max(initial=0))
    out = ChoiceProbability(
        *(torch.full((len(target), width), math.nan) for _ in fields(ChoiceProbability))
    )
    for people, part in parts:
        for field in fields(ChoiceProbability):
            value = getattr(part, field.name)
            getattr(out, field.name)[people, : value.shape[1]] = value
    return out


def score_choices(parts: Iterable[Likelihoods]) -> Tensor:
    """Averages log mean_z p(y | z) over each person's judgements, in nats, with shape (U,).

    Args:
        parts: The people in order, a few at a time, as :meth:`Posterior.likelihoods` yields them.
    """
    return torch.cat([score_part(part) for part in parts])


@torch.no_grad()
def score_part(part: Likelihoods) -> Tensor:
    """Does what :func:`score_choices` does for some people, (u,)."""
    _, batch, likelihood, log_weights = part
    score = likelihood.log_predictive(log_weights, batch.choice) * batch.judgement_mask
    # A running sum is taken in order, so that padding at the end changes no digit.
    total = F.pad(score, (1, 0)).cumsum(-1)[:, -1]
    return (total / batch.judgement_mask.sum(-1)).cpu()


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Averages draws (S, U, N) with normalised weights (S, U), to (U, N)."""
    # Draws come last, so that they are added in one order wherever a comparison stands.
    return (values.permute(1, 2, 0).contiguous() * weights.T.unsqueeze(1)).sum(-1)


def weighted_quantiles(values: Tensor, weights: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """Inverts the weighted distribution function of draws.

    Args:
        values: Draws with shape (S, U, N).
        weights: Weights with shape (S, U), normalised or not.
        levels: Levels of the quantiles, between 0 and 1.

    Returns:
        The quantile of each level, with shape (U, N).
    """
    # Draws come last: sorting along the first dimension has large strides and is slow.
    values, weights = values.permute(1, 2, 0), weights.T.unsqueeze(1)
    parts = [
        _quantiles(part.contiguous(), weights, levels)
        for part in values.split(max(1, _SORTED // max(len(values) * values.shape[-1], 1)), 1)
    ]
    return list(torch.cat(parts, 1).unbind(-1))


def _quantiles(values: Tensor, weights: Tensor, levels: Sequence[float]) -> Tensor:
    """Returns quantiles (U, N, L) of draws (U, N, S) with weights (U, 1, S)."""
    if values.device.type == "cpu":  # NumPy sorts short rows many times faster than PyTorch.
        order = torch.from_numpy(np.argsort(values.numpy(), -1))
    else:
        order = values.argsort(-1)
    cumulative = weights.expand_as(values).gather(-1, order).double().cumsum(-1)
    level = torch.tensor(levels, dtype=torch.float64, device=values.device) * cumulative[..., -1:]
    position = torch.searchsorted(cumulative, level).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, order.gather(-1, position))


class Predictor(Protocol):
    """The methods that a comparison of models needs of a posterior or a baseline."""

    def log_score(self, target: Preferences) -> Tensor:
        """Returns each person's mean log-probability of unseen choices, in nats, (U,)."""

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Returns probabilities of unseen choices."""
