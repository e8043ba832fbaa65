"""The likelihood ratio of the heterogeneous model if everybody is alike.

No variance between people is the boundary of what variances can be, so the limit of the likelihood
ratio is a mixture of chi-squares.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fssa_bayes.data import Preferences, check_unweighted, user_batches
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import feature_differences

__all__ = [
    "boundary_draws",
    "cone_maximum",
    "half_chi_square_tail",
    "nearest_covariance",
    "variance_scores",
]


def half_chi_square_tail(statistic: float) -> float:
    """Returns the probability that ½χ²₀ + ½χ²₁, the limit for one variance, is as large."""
    return 1.0 if statistic <= 0 else float(0.5 * stats.chi2.sf(statistic, 1))


@torch.no_grad()
def boundary_draws(
    average: HeterogeneousBTL, data: Preferences, latent_dim: int, num: int, *, seed: int = 0
) -> np.ndarray:
    r"""Draws the limit of the likelihood ratio if everybody is alike, for a linear utility.

    The limit is :math:`\max_Σ\, 2\,\mathrm{tr}(SΣ) - \mathrm{vec}(Σ)^T I\,\mathrm{vec}(Σ)` over
    covariances Σ of rank at most K. S is a normal draw of the score of Σ, and I its information
    after w0 is accounted for.

    Args:
        average: The homogeneous model at its maximum.
        data: The comparisons.
        latent_dim: Largest rank K of the covariance under the alternative.
        num: Number of draws.
        seed: Seed of the draws.

    Returns:
        Draws with shape (num,), at least 0.

    Raises:
        ValueError: If the average person's choices are certain, as where all are separated.

    References:
        Self & Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood
        ratio tests under nonstandard conditions.
    """
    check_unweighted(data, "boundary_draws()")
    score, slope = variance_scores(average, data)
    size = score.shape[-1]
    if not size:
        raise ValueError(
            "data must leave the average person's choices uncertain to tell whether people differ, "
            "got choices that are all separated"
        )
    moments = score.flatten(1).T @ score.flatten(1)
    cross = score.flatten(1).T @ slope
    of_mean = slope.T @ slope
    efficient = moments - cross @ torch.linalg.pinv(of_mean, hermitian=True) @ cross.T
    values, vectors = torch.linalg.eigh(efficient)
    root = vectors * values.clamp(min=0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, len(root), generator=generator, dtype=root.dtype)
    linear = (noise @ root.T).reshape(num, size, size)
    return cone_maximum(linear, efficient, min(latent_dim, size)).numpy()


def variance_scores(average: HeterogeneousBTL, data: Preferences) -> tuple[Tensor, Tensor]:
    """Returns people's scores of Σ at 0, ½(g gᵀ − H), (U, D, D), and their scores g of w0, (U, D).

    H is the information of a person's choices about w0. Coefficients are in units in which their
    information is the identity, so that :func:`cone_maximum` is well conditioned; directions
    without information are left out.
    """
    slopes, curvatures = [], []
    for _, batch in user_batches(data, 16, average.device):
        difference = feature_differences(average, batch).double()
        z = batch.choice.new_zeros(1, batch.num_users, 0)
        prob = average.choice(batch, z).mean[0].double()
        residual = (batch.choice - prob) * batch.mask
        spread = prob * (1 - prob) * batch.mask
        slopes.append(torch.einsum("un,und->ud", residual, difference).cpu())
        curvatures.append(torch.einsum("un,und,une->ude", spread, difference, difference).cpu())
    slope, curvature = torch.cat(slopes), torch.cat(curvatures)
    values, vectors = torch.linalg.eigh(curvature.mean(0))
    informative = values > 1e-9 * values[-1]
    whiten = vectors[:, informative] / values[informative].sqrt()
    slope = slope @ whiten
    curvature = whiten.T @ curvature @ whiten
    return 0.5 * (slope.unsqueeze(-1) * slope.unsqueeze(-2) - curvature), slope


def cone_maximum(linear: Tensor, quadratic: Tensor, rank: int, steps: int = 100) -> Tensor:
    """Maximises 2 tr(SΣ) − vec(Σ)ᵀ I vec(Σ) over covariances Σ of a rank at most.

    Accelerated projected gradient ascent. Below full rank the set of covariances is not convex: the
    ascent starts at the best Σ of full rank and at 0, and the larger maximum is returned.

    Args:
        linear: The matrices S, with shape (B, D, D).
        quadratic: The matrix I, with shape (D², D²), positive semidefinite.
        rank: Largest rank of Σ.
        steps: Largest number of steps of an ascent.

    Returns:
        The maximum for each S, at least 0, with shape (B,).

    References:
        Beck & Teboulle (2009), A fast iterative shrinkage-thresholding algorithm for linear inverse
        problems.
    """
    size = linear.shape[-1]
    step = 1 / torch.linalg.eigvalsh(quadratic)[-1]

    def value(sigma: Tensor) -> Tensor:
        flat = sigma.flatten(1)
        return 2 * (linear.flatten(1) * flat).sum(-1) - ((flat @ quadratic) * flat).sum(-1)

    def ascend(sigma: Tensor, rank: int) -> Tensor:
        ahead, momentum = sigma, 1.0
        for number in range(steps):
            gradient = linear - (ahead.flatten(1) @ quadratic).reshape(ahead.shape)
            new = nearest_covariance(ahead + step * gradient, rank)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - sigma)
            settled = number % 10 == 9 and (value(new) - value(sigma)).abs().max() < 1e-4
            sigma, momentum = new, following
            if settled:
                break
        return sigma

    full = ascend(torch.zeros_like(linear), size)
    best = value(full)
    if rank < size:
        starts = nearest_covariance(full, rank), torch.zeros_like(linear)
        best = torch.maximum(*(value(ascend(start, rank)) for start in starts))
    return best.clamp(min=0)


def nearest_covariance(matrix: Tensor, rank: int) -> Tensor:
    """Returns the covariances of a rank at most that are nearest to matrices (B, D, D)."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = values.clamp(min=0)
    values[..., : values.shape[-1] - rank] = 0
    return (vectors * values.unsqueeze(-2)) @ vectors.mT
