r"""The spread between people: sums of products of one person's residuals.

With e = y − p̄ the residual of a choice from its probability p̄ averaged over people, the spread of a
person in the direction a is :math:`\sum_{n \ne m} a_{nm} e_n e_m`;
:func:`fssa_bayes.checks.predictive_checks` lists the directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.checks.selection import mark_at_most
from fssa_bayes.data import Batch, Preferences, column_moments
from fssa_bayes.data.comparisons import replace, select_where
from fssa_bayes.data.judgements import Judgements
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["TIES", "Spread", "prepare_spreads", "share_items", "spread_weights"]

TIES = "spread: ties"
"""Name of the spread whose residuals are those of ties."""

_MAX_WIDTH = 300  # Most comparisons of a person to take products of; drawn if there are more.
_WEIGHTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Spread:
    """Holds what the residual products of a few people need, with N comparisons at most.

    Attributes:
        rows: Numbers of the comparisons, in the order of `mask`.
        marginal: Probability of left for each of the comparisons, averaged over people.
        tie: Probability of a tie, averaged over people, or None in a model without ties.
        mask: True where there is a comparison, (U, N).
        weights: Weights a (U, N, N) of each spread, with a zero diagonal.
    """

    rows: np.ndarray
    marginal: np.ndarray
    tie: np.ndarray | None
    mask: Tensor
    weights: dict[str, Tensor]

    def residuals(self, choices: np.ndarray, name: str) -> Tensor:
        """Returns residuals (B, U, N) of choices (B, R): those of ties for the spread of ties."""
        chosen = choices[:, self.rows]
        residual = (chosen == 0.5) - self.tie if name == TIES else chosen - self.marginal
        padded = torch.zeros(len(choices), *self.mask.shape)
        padded[:, self.mask] = torch.from_numpy(residual.astype(np.float32))
        return padded


def prepare_spreads(
    model: HeterogeneousBTL,
    data: Preferences,
    features: list[str],
    seed: int,
    *,
    marginal_draws: int = 500,
) -> list[Spread]:
    """Prepares the residual products, people with similar numbers of comparisons together.

    Args:
        model: The model.
        data: Whose comparisons they are; of a person with more than 300, 300 are drawn.
        features: Names of the features that have a spread of their own.
        seed: Seed of the comparisons that are drawn.
        marginal_draws: Draws of z over which probabilities and covariances are averaged.

    Returns:
        One entry a few people; together they hold everybody with at least two comparisons.
    """
    draws = marginal_draws if model.latent_dim else 1
    # The same draws for every comparison, shifted by the person's covariates.
    z = model.average_prior(draws).sample().unsqueeze(1)
    scale = 1.0
    if data.items is not None:
        scale = column_moments(data.items)[1].to(model.device)
        scale = scale.where(scale > 0, 1.0)
    keep = mark_at_most(data.counts, _MAX_WIDTH, seed)
    # A part of a ranking is no ranking: every comparison stands alone.
    data = replace(data, judgements=Judgements(data.num_comparisons))
    data, kept = select_where(data, keep), np.flatnonzero(keep)
    order = np.argsort(data.counts, kind="stable")
    order = order[data.counts[order] > 1]
    spreads, start = [], 0
    while start < len(order):
        width = data.counts[order[start : start + 1024]]
        cells = np.arange(1, len(width) + 1) * width * np.maximum(width, draws)
        stop = start + max(1, int(np.searchsorted(cells, _WEIGHTS_AT_ONCE)))
        people, start = order[start:stop], stop
        batch = data.batch(people).to(model.device)
        everybody = (z + model.location(batch.covariates)).expand(-1, batch.num_users, -1)
        likelihood = model.choice(batch, everybody)
        prob, tie = likelihood.outcomes.left.exp(), likelihood.outcomes.tie
        if tie is not None:  # A tie counts one half.
            prob = prob + tie.exp() / 2
        mean = prob.mean(0)
        rows = [np.arange(data.offsets[u], data.offsets[u + 1]) for u in people]
        weights = spread_weights(model, batch, prob - mean, mean, scale, features)
        marginal = mean[batch.mask].cpu().numpy()
        if tie is not None:
            tie = tie.exp().mean(0)[batch.mask].cpu().numpy()
        numbers = kept[np.concatenate(rows)]
        spreads.append(Spread(numbers, marginal, tie, batch.mask.cpu(), weights))
    return spreads


def spread_weights(
    model: HeterogeneousBTL,
    batch: Batch,
    deviation: Tensor,
    mean: Tensor,
    scale: Tensor | float,
    features: list[str],
) -> dict[str, Tensor]:
    """Computes the weights a_nm of each spread.

    Args:
        model: The model.
        batch: The people's comparisons.
        deviation: Deviations of probabilities of left from their mean over draws, (S, U, N).
        mean: That mean, p̄, with shape (U, N).
        scale: Standard deviation of each feature over the items.
        features: Names of the features that have a spread of their own.

    Returns:
        Weights by the name of the spread, with shape (U, N, N), 0 on the diagonal and in the
        padding.
    """
    side = 2.0 * (mean > 0.5) - 1.0
    directions = {"left": torch.ones_like(mean).unsqueeze(-1), "favourites": side.unsqueeze(-1)}
    if batch.items.dtype == torch.int64:
        similar = share_items(batch)
    else:
        difference = ((batch.items[batch.left] - batch.items[batch.right]) / scale).to(mean)
        directions |= {name: difference[..., [d]] for d, name in enumerate(features)}
        similar = difference @ difference.mT
    weights = {name: values @ values.mT for name, values in directions.items()}
    first = {"left": weights.pop("left"), "favourites": weights.pop("favourites")}
    if model.has_ties:
        first["ties"] = torch.ones_like(first["left"])
    own = {}
    if model.latent_dim:  # c_nm / (v_n v_m).
        variance = (mean * (1 - mean)).clamp(min=1e-3)
        covariance = torch.einsum("sun,sum->unm", deviation, deviation) / len(deviation)
        covariance = covariance / variance.unsqueeze(-1) / variance.unsqueeze(-2)
        own = {"the model's directions": covariance}
    weights = first | {
        "similar pairs": similar,
        **own,
        **weights,
    }
    both = batch.mask.unsqueeze(-1) & batch.mask.unsqueeze(-2)
    both &= ~torch.eye(mean.shape[-1], dtype=torch.bool, device=mean.device)
    return {f"spread: {name}": (w * both).float().cpu() for name, w in weights.items()}


def share_items(batch: Batch) -> Tensor:
    """Computes d_n·d_m, (U, N, N), where each item is a feature: ±1 for each item in common."""

    def same(one: Tensor, other: Tensor) -> Tensor:
        return (one.unsqueeze(-1) == other.unsqueeze(-2)).float()

    left, right = batch.left, batch.right
    return same(left, left) + same(right, right) - same(left, right) - same(right, left)
