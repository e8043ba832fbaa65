"""What importance weights are worth: Kish's effective number of draws, and Pareto smoothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "MOST_PARETO_K",
    "effective_sample_size",
    "log_moments",
    "pareto_smooth",
    "size_from_moments",
]

MOST_PARETO_K = 0.7
"""Pareto k-hat above which importance weights are not relied upon.

References:
    Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
"""

_LEAST_TAIL = 5  # Weights of which a tail can be fitted.
_BLOCK = 32  # People whose tails are fitted at once, so that the grid stays in the cache.


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Computes Kish's :math:`(\sum w)^2 / \sum w^2` over the draws of log-weights (S, U).

    References:
        Kong (1992), A note on importance sampling using standardized weights.
    """
    return size_from_moments(log_moments(log_weights))


def log_moments(log_weights: Tensor) -> Tensor:
    r"""Computes :math:`\log \sum w` and :math:`\log \sum w^2` of log-weights (S, U), (2, U)."""
    return torch.stack([log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)])


def size_from_moments(moments: Tensor) -> Tensor:
    """Computes the effective sample size from the moments of :func:`log_moments`, with shape (U,).

    The moments of several sets of draws add up, in logs, to those of all draws together.
    """
    return torch.exp(2 * moments[0] - moments[1])


def pareto_smooth(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooths the largest importance weights of each person by a fitted Pareto tail.

    The largest min(S / 5, 3 √S) weights of a person become quantiles of the tail, in their order.

    Args:
        log_weights: Unnormalised log-weights with shape (U, S).

    Returns:
        Normalised log-weights with shape (U, S) and Pareto k-hat with shape (U,). Where all
        weights of a person are equal there is no tail, and k-hat is 0; where a tail cannot be
        fitted, as to fewer than 25 draws, k-hat is infinite and the weights are as they were.

    References:
        Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    # In rows, so that a person's sums are taken in one order however many people there are.
    log_weights = np.asarray(log_weights, dtype=np.float64, order="C")
    draws = log_weights.shape[1]
    smoothed = log_weights - log_weights.max(-1, keepdims=True)
    order, tail = _largest(smoothed, min(int(np.ceil(min(draws / 5, 3 * draws**0.5))), draws - 1))
    cutoff = np.maximum(tail[:, :1], np.log(np.finfo(np.float64).tiny))
    length = (tail > cutoff).sum(-1)
    pareto_k = np.full(len(log_weights), np.inf)
    # Weights that are equal but for rounding leave no tail to fit.
    even = np.ptp(log_weights, axis=-1) <= 1e-4
    pareto_k[even] = 0.0
    for size in np.unique(length[~even & (length >= _LEAST_TAIL)]):
        people = np.flatnonzero(~even & (length == size))
        for some in np.array_split(people, -(-len(people) // _BLOCK)):
            start = np.exp(cutoff[some])
            excess, pareto_k[some] = _smooth_tails(np.exp(tail[some, -size:]) - start)
            place = some[:, None], order[some, -size:]
            smoothed[place] = np.minimum(np.log(start + excess), 0.0)
    return smoothed - np.log(np.exp(smoothed).sum(-1, keepdims=True)), pareto_k


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and values of the `count` + 1 largest of each row, ascending."""
    order = np.argpartition(values, -count - 1, -1)[:, -count - 1 :]
    order = np.take_along_axis(order, np.take_along_axis(values, order, -1).argsort(-1), -1)
    return order, np.take_along_axis(values, order, -1)


def _smooth_tails(tails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replaces excesses over a threshold (U, T), ascending, by quantiles of fitted distributions.

    Returns:
        The quantiles with shape (U, T), and k-hat with shape (U,). Where no distribution can be
        fitted the excesses are as they were, and k-hat is infinite.
    """
    with np.errstate(all="ignore"):  # Excesses may have any size.
        shape, scale = _fit_pareto(tails)
        size = tails.shape[1]
        exponential = -np.log1p(-(np.arange(size) + 0.5) / size)
        k = shape[:, None]
        safe = np.where(np.abs(k) < np.finfo(np.float64).eps, 1.0, k)
        quantiles = np.where(safe == k, np.expm1(k * exponential) / safe, exponential)
        quantiles = scale[:, None] * quantiles
    fitted = np.isfinite(shape) & (scale > 0)
    return np.where(fitted[:, None], quantiles, tails), np.where(fitted, shape, np.inf)


def _fit_pareto(tails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates shape and scale of generalised Pareto distributions, (U,), of excesses (U, T).

    The shape is drawn towards ½ with the weight of ten excesses.

    References:
        Zhang & Stephens (2009), A new and efficient estimation method for the generalized Pareto
        distribution, Technometrics 51(3).
    """
    size = tails.shape[1]
    points = 30 + int(size**0.5)
    grid = 1 - np.sqrt(points / (np.arange(points) + 0.5))
    quartile = tails[:, int(size / 4 + 0.5) - 1, None]
    rate = grid / (3 * quartile) + 1 / tails[:, -1:]
    shape = np.log1p(-rate[..., None] * tails[:, None]).mean(-1)
    log_likelihood = size * (np.log(-rate / shape) - shape - 1)
    weight = np.exp(log_likelihood - log_likelihood.max(-1, keepdims=True))
    rate = (rate * weight).sum(-1) / weight.sum(-1)
    shape = np.log1p(-rate[:, None] * tails).mean(-1)
    return (size * shape + 5.0) / (size + 10.0), -shape / rate
