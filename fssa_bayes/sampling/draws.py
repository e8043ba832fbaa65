"""Weighted draws from the posteriors of people."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes._weights import effective_sample_size, pareto_smooth
from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL

__all__ = [
    "Draws",
    "check_draws",
    "check_finite",
    "thin",
    "thin_weights",
]


@dataclass(frozen=True)
class Draws:
    """Holds draws from the posteriors of all people of a data set, on the CPU.

    Attributes:
        z: Draws with shape (S, U, K).
        log_weights: Normalised log-weights with shape (S, U).
        log_ratio: Log p(z) p(C|z) / q(z|C) of the draws from the guide alone, (S_q, U).
        log_guide: Log q(z|C) of every draw, (S, U).
        log_joint: Log p(z) p(C|z) of every draw, (S, U).
        weight_k: Pareto k-hat of the weights before they were smoothed, (U,); NaN without weights.
        weighted: Whether the weights differ; False for the guide's own draws, for a model without
            latent factor and after resampling.
    """

    z: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    log_guide: Tensor
    log_joint: Tensor
    weight_k: Tensor
    weighted: bool

    @classmethod
    def of_posterior(
        cls,
        z: Tensor,
        log_joint: Tensor,
        log_weights: Tensor | None = None,
        log_guide: Tensor | None = None,
    ) -> Draws:
        """Holds draws that no guide proposed.

        Args:
            z: Draws with shape (S, U, K).
            log_joint: Log p(z) p(C|z) of every draw, (S, U).
            log_weights: Normalised log-weights with shape (S, U); equal ones if None.
            log_guide: Log q(z|C) of every draw, (S, U); NaN if None.
        """
        unknown = log_joint.new_full(log_joint.shape[1:], math.nan)
        return cls(
            z=z,
            log_weights=_equal(log_joint) if log_weights is None else log_weights,
            log_ratio=log_joint[:0],
            log_guide=unknown.expand_as(log_joint) if log_guide is None else log_guide,
            log_joint=log_joint,
            weight_k=unknown,
            weighted=log_weights is not None,
        )

    @cached_property
    def pareto_k(self) -> Tensor:
        """Pareto k-hat of p(z|C) / q(z|C) on draws of the guide alone, with shape (U,)."""
        if not len(self.log_ratio):  # None of the draws is the guide's.
            return self.log_ratio.new_full(self.log_ratio.shape[1:], math.nan)
        _, pareto_k = pareto_smooth(self.log_ratio.double().T.numpy())
        return torch.from_numpy(pareto_k).float()

    @cached_property
    def relative_ess(self) -> Tensor:
        """Effective sample size of the guide's own draws as a share of their number, (U,)."""
        if not len(self.log_ratio):
            return self.log_ratio.new_full(self.log_ratio.shape[1:], math.nan)
        ratio = self.log_ratio.double()
        return (effective_sample_size(ratio) / len(ratio)).float()

    def resample(self, seed: int, keys: np.ndarray) -> Draws:
        """Returns equally weighted draws: these draws themselves where they are not weighted.

        Args:
            seed: Seed of the draws.
            keys: Keys of the people's random streams, with shape (U,).
        """
        if not self.weighted:
            return self
        draws, _, width = self.z.shape
        # Systematic resampling, in an order that is random for each person and not sorted.
        cumulative = self.log_weights.T.contiguous().double().exp().cumsum(-1)
        uniform = Streams(seed, "resampling").uniform(keys, draws + 1, like=cumulative)
        point = (torch.arange(draws) + uniform[:, :1]) / draws * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, point).clamp(max=draws - 1)
        order = uniform[:, 1:].argsort(-1)
        index = index.gather(-1, order).T
        return replace(
            self,
            z=self.z.gather(0, index.unsqueeze(-1).expand(*index.shape, width)),
            log_weights=_equal(self.log_weights),
            log_guide=self.log_guide.gather(0, index),
            log_joint=self.log_joint.gather(0, index),
            weighted=False,
        )

    def put(self, people: np.ndarray, others: Draws) -> Draws:
        """Gives some people other draws, as many as before; `log_ratio` and `weight_k` stay.

        Args:
            people: Positions of the people, with shape (u,).
            others: Their draws, (S, u).
        """
        index = torch.from_numpy(people)
        names = ("z", "log_weights", "log_guide", "log_joint")
        changed = {n: getattr(self, n).index_copy(1, index, getattr(others, n)) for n in names}
        return replace(self, **changed)


def _equal(values: Tensor) -> Tensor:
    """Returns equal normalised log-weights for draws with values (S, U)."""
    return torch.zeros_like(values).log_softmax(0)


def check_draws(model: HeterogeneousBTL, num_samples: int, correct: str | None) -> None:
    """Raises a ValueError unless that many draws can be taken and corrected in that way."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}")
    if correct == "psis" and model.latent_dim and num_samples < 25:
        raise ValueError(f"num_samples must be at least 25 for correct='psis', got {num_samples}")
    if correct not in ("psis", None):
        raise ValueError(f"correct must be 'psis' or None, got {correct!r}")


def thin(draws: Draws, count: int, seed: int, keys: np.ndarray) -> Draws:
    """Keeps `count` of each person's weighted draws, none of them twice; all means stay unbiased.

    Draws of large weight keep their weight. Some of the others are kept, each with a probability in
    proportion to its weight, and share the remaining weight equally. The random numbers follow from
    the seed and from the keys of the people's streams, (U,).

    References:
        Fearnhead & Clifford (2003), On-line inference for hidden Markov models via particle
        filters, JRSS B 65(4).
    """
    weights = draws.log_weights.T.contiguous().double().exp().numpy()
    streams = Streams(seed, "thinning")
    kept = (thin_weights(w, count, streams.of(k)) for w, k in zip(weights, keys, strict=True))
    index, log_weights = zip(*kept, strict=True)
    index = torch.from_numpy(np.stack(index, -1))
    return replace(
        draws,
        z=draws.z.gather(0, index.unsqueeze(-1).expand(*index.shape, draws.z.shape[-1])),
        log_weights=torch.from_numpy(np.stack(log_weights, -1)).float(),
        log_guide=draws.log_guide.gather(0, index),
        log_joint=draws.log_joint.gather(0, index),
    )


def thin_weights(
    weights: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses draws of one person, see :func:`thin`.

    Args:
        weights: Weights with shape (R,).
        count: Number of draws that are kept.
        rng: Source of randomness.

    Returns:
        The positions of the draws that are kept, and their new log-weights, each with shape
        (count,).
    """
    order = np.argsort(-weights, kind="stable")
    ordered = weights[order] / weights.sum()
    rest = ordered[::-1].cumsum()[::-1]  # Mass from this draw on.
    share = rest[:count] / (count - np.arange(count))
    large = int(np.argmax(ordered[:count] <= share))
    threshold = share[large]
    points = (rng.random() + np.arange(count - large)) * threshold
    small = large + np.searchsorted(ordered[large:].cumsum(), points, side="right")
    small = np.minimum(small, len(weights) - 1)
    chosen = np.concatenate([np.arange(large), small])
    new = np.concatenate([ordered[:large], np.full(count - large, threshold)])
    with np.errstate(divide="ignore"):
        return order[chosen], np.log(new)


def check_finite(z: Tensor, log_weights: Tensor, context: Preferences) -> None:
    """Raises a FloatingPointError unless every person has finite draws z and a finite weight."""
    broken = ~(torch.isfinite(log_weights).any(0) & ~torch.isnan(log_weights).any(0))
    broken |= ~torch.isfinite(z).all(-1).all(0)
    if broken.any():
        first = context.user_names[int(broken.nonzero()[0])]
        raise FloatingPointError(
            f"the posterior of user {first!r} is not finite ({int(broken.sum())} such "
            "people): the model's parameters or features are out of range"
        )
