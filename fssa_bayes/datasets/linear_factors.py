r"""Linear factors of known rank: people whose coefficients vary in K directions.

    z_u ~ N(0, I_K),    w_u = w0 + Λ z_u,    x ~ N(0, I_D),    y ~ BradleyTerry(w_u·(left − right))

a mixed logit whose mean w0 and covariance ΛΛᵀ, of rank K, are known, so that estimates of either
and of the rank can be judged. Over people the margin of a pair whose features differ by d is normal
with mean :math:`d^\top w_0` and variance :math:`d^\top \Lambda \Lambda^\top d`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._simulation import check_sizes, new_pairs

__all__ = [
    "LinearFactors",
    "Population",
    "choice_prob",
    "draw_population",
    "known_log_loss",
    "population_choice_prob",
    "simulate",
]

_NODES = 64


class Population(NamedTuple):
    """Holds the mean w0 (D,) and loadings Λ (D, K) of people's coefficients, in nats."""

    mean: np.ndarray
    loadings: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Covariance ΛΛᵀ of the coefficients, with shape (D, D)."""
        return self.loadings @ self.loadings.T


class LinearFactors(NamedTuple):
    """Holds simulated choices and the coefficients of the people, with shape (U, D)."""

    data: Preferences
    coefficients: np.ndarray


def draw_population(
    num_features: int, rank: int, *, spread: float = 1.0, seed: int = 0
) -> Population:
    """Draws a population whose coefficients vary in `rank` directions.

    Args:
        num_features: Number of features D.
        rank: Number of directions K, at most D.
        spread: Standard deviation along each direction, in nats a unit of the features; 0 for
            people who do not differ.
        seed: Seed of the draws.

    Returns:
        A standard normal mean, and orthogonal loadings.

    Raises:
        ValueError: If `rank` does not lie in 0 … D or `spread` is negative.
    """
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    if not 0 <= rank <= num_features:
        raise ValueError(f"rank must lie in 0 … {num_features}, the number of features, got {rank}")
    if not 0 <= spread < np.inf:
        raise ValueError(f"spread must be at least 0 and finite, got {spread}")
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=num_features)
    directions, _ = np.linalg.qr(rng.normal(size=(num_features, num_features)))
    return Population(mean, spread * directions[:, :rank])


def simulate(
    num_users: int, num_comparisons: int, population: Population, *, seed: int = 0
) -> LinearFactors:
    """Draws people, pairs and choices.

    Args:
        num_users: Number of people U.
        num_comparisons: Number of comparisons of each person; every item is new.
        population: Mean and loadings of the coefficients.
        seed: Seed of the draws.

    Returns:
        The comparisons and every person's coefficients.

    Raises:
        ValueError: If a size is below 1, or mean and loadings disagree in shape.
    """
    check_sizes(num_users, num_comparisons)
    mean, loadings = (np.asarray(part, dtype=np.float64) for part in population)
    if mean.ndim != 1 or loadings.ndim != 2 or len(loadings) != len(mean):
        raise ValueError(
            f"population must hold a mean (D,) and loadings (D, K), got shapes {mean.shape} and "
            f"{loadings.shape}"
        )
    rng = np.random.default_rng(seed)
    coefficients = mean + rng.normal(size=(num_users, loadings.shape[1])) @ loadings.T
    total = num_users * num_comparisons
    # Items are stored in single precision, so choices are made on what is stored.
    items = rng.normal(size=(total, 2, len(mean))).astype(np.float32)
    difference = items[:, 0].astype(np.float64) - items[:, 1]
    margin = (difference * np.repeat(coefficients, num_comparisons, axis=0)).sum(1)
    choice = rng.random(total) < special.expit(margin)
    return LinearFactors(new_pairs(items, choice, num_comparisons), coefficients)


def choice_prob(data: Preferences, coefficients: np.ndarray) -> np.ndarray:
    """Evaluates the probability (R,) that left is preferred, given coefficients (U, D)."""
    repeated = np.repeat(coefficients, data.counts, axis=0)
    return special.expit((_difference(data) * repeated).sum(1))


def population_choice_prob(data: Preferences, population: Population) -> np.ndarray:
    """Evaluates the probability that left is preferred, for people nothing is known of, (R,).

    The best possible prediction without context, by Gauss–Hermite quadrature over the margin.
    """
    difference = _difference(data)
    scale = np.linalg.norm(difference @ population.loadings, axis=1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    margin = (difference @ population.mean)[:, None] + scale[:, None] * nodes
    return special.expit(margin) @ (weights / weights.sum())


def known_log_loss(coefficients: np.ndarray) -> np.ndarray:
    r"""Evaluates the expected log-loss for people with known coefficients, in nats, (U,).

    Nobody can do better: the entropy of a choice whose margin is
    :math:`\mathcal{N}(0, 2\,\lVert w_u \rVert^2)`.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    scale = np.sqrt(2) * np.linalg.norm(coefficients, axis=-1, keepdims=True)
    prob = special.expit(scale * nodes)
    return (special.entr(prob) + special.entr(1 - prob)) @ (weights / weights.sum())


def _difference(data: Preferences) -> np.ndarray:
    items = data.items.double().numpy()
    return items[data.left] - items[data.right]
