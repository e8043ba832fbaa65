"""Bell & McCaffrey's errors in the space of the observations, written out with NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import linalg


def bell_mccaffrey(
    design: np.ndarray, weights: np.ndarray, residuals: np.ndarray, offsets: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the covariance CR2 of a generalised linear model with a canonical link.

    Args:
        design: Derivatives of the margins by the coefficients, with shape (N, P).
        weights: Variances of the observations under the model, (N,).
        residuals: Observations less their expectations, (N,).
        offsets: Where the observations of each cluster begin, and the end.

    Returns:
        The covariance (P, P), and the square root A_g of every cluster times its design, (N, P).
    """
    whitened = np.sqrt(weights)[:, None] * design
    inverse = np.linalg.pinv(whitened.T @ whitened)
    adjusted = np.zeros_like(design)
    meat = np.zeros_like(inverse)
    for rows in (slice(*pair) for pair in pairwise(offsets)):
        own = whitened[rows]
        kept = np.eye(len(own)) - own @ inverse @ own.T
        adjusted[rows] = np.linalg.inv(linalg.sqrtm(kept).real) @ own
        score = adjusted[rows].T @ (residuals[rows] / np.sqrt(weights[rows]))
        meat += np.outer(score, score)
    return inverse @ meat @ inverse, adjusted


def satterthwaite(
    design: np.ndarray,
    weights: np.ndarray,
    adjusted: np.ndarray,
    offsets: Sequence[int],
    contrast: np.ndarray,
) -> float:
    """Returns the degrees of freedom of a contrast (P,) with independent observations.

    The variance is Σ_g (q_gᵀ ε)² of whitened errors ε ~ N(0, 1): a mixture of chi-squares whose
    weights are the eigenvalues of the Gram matrix of q.
    """
    whitened = np.sqrt(weights)[:, None] * design
    inverse = np.linalg.pinv(whitened.T @ whitened)
    kept = np.eye(len(design)) - whitened @ inverse @ whitened.T
    columns = []
    for rows in (slice(*pair) for pair in pairwise(offsets)):
        columns.append(kept[:, rows] @ adjusted[rows] @ inverse @ contrast)
    eigenvalues = np.linalg.eigvalsh(np.stack(columns) @ np.stack(columns).T)
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
