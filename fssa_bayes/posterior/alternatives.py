"""Choices among alternatives: the probability of each, and its interval, from draws of z.

Every judgement is a *situation*: a choice from a set, a ranking, or a comparison, which is a set of
two alternatives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.posterior.choices import Likelihoods, weighted_mean, weighted_quantiles

__all__ = ["check_level", "describe_alternatives", "tabulate_alternatives"]


_LANES = 64  # Numbers: whole vectors of every processor.


class _Described(NamedTuple):
    """Holds numbers of the alternatives of some situations, in the order of the data, (P,) each."""

    mean: Tensor
    lower: Tensor
    upper: Tensor
    epistemic: Tensor
    aleatoric: Tensor


def check_level(level: float) -> None:
    """Raises a ValueError unless `level` is the probability of an interval."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


def describe_alternatives(level: float) -> Callable[[Likelihoods], tuple[_Described, _Described]]:
    """Returns a function that describes the alternatives of some people's situations.

    Args:
        level: Probability of the intervals.

    Returns:
        A function of :data:`fssa_bayes.posterior.choices.Likelihoods`. It returns what it finds of
        the alternatives of comparisons, and of the items of rankings.
    """
    check_level(level)
    return partial(_describe_part, levels=((1 - level) / 2, (1 + level) / 2))


@torch.no_grad()
def _describe_part(part: Likelihoods, levels: tuple[float, float]) -> tuple[_Described, _Described]:
    _, batch, likelihood, log_weights = part
    rankings, width = likelihood.rankings, batch.mask.shape[1]
    alone = batch.mask.flatten().nonzero()[:, 0] if rankings is None else rankings.alone
    answers = [x.flatten(-2)[..., alone] for x in likelihood.outcomes if x is not None]
    log_prob, there = torch.stack(answers, -1), torch.ones(len(alone), 2, dtype=torch.bool)
    pairs = _describe(log_prob, log_weights[:, alone // width], levels, there)
    if rankings is None:
        return pairs, _Described(*(x[:0] for x in pairs))
    log_prob = rankings.log_prob_of_first(likelihood.margin)
    there, weights = ~rankings.is_padding, log_weights[:, rankings.first // width]
    return pairs, _describe(log_prob, weights, levels, there.cpu(), shift=-1)


def _describe(
    log_prob: Tensor,
    log_weights: Tensor,
    levels: tuple[float, float],
    there: Tensor,
    *,
    shift: int = 0,
) -> _Described:
    """Describes log-probabilities (S, G, J) of J answers in G situations.

    Args:
        log_prob: Log-probabilities, −∞ in padding.
        log_weights: Normalised log-weights (S, G).
        levels: Levels of both quantiles.
        there: Which answers are alternatives to be described: of the first ones, (G, J').
        shift: By how many places alternatives are moved at the end, as the base of a ranking stands
            first among its slots and last in the data.
    """
    # Draws side by side are whole vectors, whose exponentials do not depend on their place.
    log_prob = log_prob.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    prob, weights = log_prob.exp(), log_weights.exp()
    entropy = -(prob * log_prob.masked_fill(prob == 0, 0.0))
    mean = weighted_mean(prob, weights).clamp(0, 1)
    aleatoric = _add_up(weighted_mean(entropy, weights))
    # A function of whole vectors does not depend on the place in memory.
    total = torch.special.entr(F.pad(mean.flatten(), (0, -mean.numel() % _LANES)))
    total = _add_up(total[: mean.numel()].view_as(mean))
    epistemic = (total - aleatoric).clamp(min=0)
    values = (
        mean,
        *weighted_quantiles(prob, weights, levels),
        epistemic.unsqueeze(-1).expand_as(mean),
        aleatoric.unsqueeze(-1).expand_as(mean),
    )
    shown = there.roll(shift, -1)
    return _Described(*(x[:, : there.shape[1]].cpu().roll(shift, -1)[shown] for x in values))


def _add_up(values: Tensor) -> Tensor:
    """Sums over the last dimension in order, so that zeros at its end change no bit."""
    return sum(values.unbind(-1))


def tabulate_alternatives(
    parts: list[tuple[_Described, _Described]], target: Preferences
) -> pd.DataFrame:
    """Joins what is known of all people's alternatives, as :meth:`Posterior.alternative_prob` says.

    Args:
        parts: What :func:`describe_alternatives` finds, of all people in order.
        target: The situations.
    """
    judgements = target.judgements
    alone = np.flatnonzero(~judgements.inside)
    slots, own = judgements.list_slots(target.left, target.right, target.choice)
    # Comparisons come first, then rankings, as in `values`.
    judgement = np.concatenate([np.repeat(judgements.count_before(alone), 2), own[slots.ranking]])
    pair = np.stack([target.left, target.right], -1)[alone]
    choice = np.stack([target.choice, 1 - target.choice], -1)[alone]
    item = np.concatenate([pair.ravel(), slots.item])
    chosen = np.concatenate([choice.ravel(), slots.place == 1])
    values = _Described(
        *(torch.cat([*pairs, *ranked]).numpy() for pairs, ranked in _by_field(parts))
    )
    order = np.argsort(judgement, kind="stable")
    judgement = judgement[order]
    counts = target.judgement_counts
    person = np.repeat(np.arange(len(target)), counts)[judgement]
    number = judgement - (np.cumsum(counts) - counts)[person]
    names = target.user_names[person], number, target.item_names[item[order]]
    index = pd.MultiIndex.from_arrays(names, names=["user", "situation", "item"])
    columns = {name: getattr(values, name)[order] for name in ("mean", "lower", "upper")}
    columns |= {"chosen": chosen[order]}
    columns |= {name: getattr(values, name)[order] for name in ("epistemic", "aleatoric")}
    return pd.DataFrame(columns, index=index)


def _by_field(
    parts: list[tuple[_Described, _Described]],
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Lists, for each field, those of comparisons and those of rankings, part by part."""
    pairs, ranked = zip(*parts, strict=True)
    return [
        ([getattr(x, name) for x in pairs], [getattr(x, name) for x in ranked])
        for name in _Described._fields
    ]
