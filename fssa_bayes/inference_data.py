"""The one place that knows which ArviZ is installed."""

from __future__ import annotations

import numpy as np

__all__ = ["pareto_smooth"]


def pareto_smooth(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooths the largest importance weights of each user by a fitted Pareto tail.

    Args:
        log_weights: Unnormalised log-weights with shape (U, S).

    Returns:
        Normalised log-weights with shape (U, S) and Pareto k-hat with shape (U,). Where all
        weights of a user are equal there is no tail, and k-hat is 0.

    References:
        Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz import psislw
    else:
        psislw = array_stats.psislw
    log_weights = np.asarray(log_weights, dtype=np.float64)
    smoothed = log_weights - np.logaddexp.reduce(log_weights, axis=-1, keepdims=True)
    pareto_k = np.zeros(len(log_weights))
    # Weights that are equal but for rounding leave no tail to fit.
    spread = np.ptp(log_weights, axis=-1)
    uneven = (spread > 1e-4) | np.isnan(spread)
    if uneven.any():
        smoothed[uneven], pareto_k[uneven] = psislw(log_weights[uneven])
    return smoothed, pareto_k
