"""Weighted draws from the posteriors of people."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes._weights import MOST_PARETO_K
from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL

__all__ = [
    "LEAST_ESS",
    "LEAST_SHARE",
    "Draws",
    "Proposals",
    "check_draws",
    "check_finite",
    "thin",
    "thin_weights",
]

LEAST_ESS = 200.0
"""Effective draws that suffice: an error of .02 for a probability known to ±.3."""

LEAST_SHARE = 0.2
"""Share of the draws that has to be effective where there are fewer than 1,000."""


@dataclass(frozen=True)
class Proposals:
    """Holds draws and their importance weights.

    Attributes:
        z: Draws with shape (S, U, K).
        log_weights: Unnormalised log p(z) p(C|z) / m(z), in nats, with shape (S, U). Their mean
            estimates p(C).
        log_joint: Log p(z) p(C|z) of every draw, (S, U).
    """

    z: Tensor
    log_weights: Tensor
    log_joint: Tensor


@dataclass(frozen=True)
class Draws:
    """Holds draws from the posteriors of all people of a data set, on the CPU.

    Attributes:
        z: Draws with shape (S, U, K).
        log_weights: Normalised log-weights with shape (S, U).
        log_joint: Log p(z) p(C|z) of every draw, (S, U).
        pareto_k: Pareto k-hat of the weights before they were smoothed, (U,); NaN where draws have
            equal weights from the beginning.
        relative_ess: Effective sample size of the weights as a share of the draws, (U,), also
            after resampling; NaN as `pareto_k`.
        weighted: Whether the weights differ; False for the guide's own draws, for a model without
            latent factor and after resampling.
        shared: Whether a person's draws are those of the prior that people share, Boolean (U,);
            None for nobody.
    """

    z: Tensor
    log_weights: Tensor
    log_joint: Tensor
    pareto_k: Tensor
    relative_ess: Tensor
    weighted: bool
    shared: Tensor | None = None

    @classmethod
    def of_posterior(cls, z: Tensor, log_joint: Tensor, log_weights: Tensor | None = None) -> Draws:
        """Holds draws that were not proposed.

        Args:
            z: Draws with shape (S, U, K).
            log_joint: Log p(z) p(C|z) of every draw, (S, U).
            log_weights: Normalised log-weights with shape (S, U); equal ones if None.
        """
        unknown = torch.full(log_joint.shape[1:], math.nan)
        equal = log_weights is None
        return cls(
            z, _equal(log_joint) if equal else log_weights, log_joint, unknown, unknown, not equal
        )

    def enough_for(self, count: int) -> Tensor:
        """Tells whether the weights can be relied upon for `count` draws, Boolean (U,).

        Their effective sample size is at least 200, or a fifth of `count` where that is less, and
        their k-hat at most .7. Shared draws need no k-hat: their weights are likelihoods, which
        have no tail, and they lie evenly.
        """
        least = min(LEAST_ESS, LEAST_SHARE * count)
        has_no_tail = self.pareto_k <= MOST_PARETO_K
        if self.shared is not None:
            has_no_tail |= self.shared
        return has_no_tail & (self.relative_ess * len(self.z) >= least)

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
            log_joint=self.log_joint.gather(0, index),
            weighted=False,
        )

    def put(self, people: np.ndarray, others: Draws) -> Draws:
        """Gives some people other draws of their own, as many as before.

        Args:
            people: Positions of the people, with shape (u,).
            others: Their draws, (S, u).
        """
        index = torch.from_numpy(people)
        own = {"pareto_k": 0, "relative_ess": 0, "z": 1, "log_weights": 1, "log_joint": 1}
        changed = {
            name: getattr(self, name).index_copy(axis, index, getattr(others, name))
            for name, axis in own.items()
        }
        if self.shared is not None:
            changed["shared"] = self.shared.index_fill(0, index, False)
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

    `pareto_k` remains that of all weights, and `relative_ess` becomes that of the draws kept.

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
    effective = 1 / np.square(np.exp(np.stack(log_weights))).sum(-1)
    return replace(
        draws,
        z=draws.z.gather(0, index.unsqueeze(-1).expand(*index.shape, draws.z.shape[-1])),
        log_weights=torch.from_numpy(np.stack(log_weights, -1)).float(),
        relative_ess=torch.from_numpy(effective / count).float(),
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
    broken |= ~torch.isfinite(z.sum((0, 2)))  # A sum is faster than looking at each number.
    if broken.any():
        first = context.user_names[int(broken.nonzero()[0])]
        raise FloatingPointError(
            f"the posterior of user {first!r} is not finite ({int(broken.sum())} such "
            "people): the model's parameters or features are out of range"
        )
