"""Forecasts of choices that are calibrated, or wrong in a known way."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit


def choices(
    users: int = 500, number: int = 8, *, scale: float = 1.0, shift: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts (U, N) whose log-odds are `shift` off and 1 / `scale` times as large, and choices.

    A posterior too narrow (scale < 1) gives log-odds too large.
    """
    rng = np.random.default_rng(seed)
    prob = expit(2 * rng.normal(size=(users, number)))
    choice = (rng.random(prob.shape) < prob).astype(float)
    return expit(logit(prob) / scale + shift), choice


def alike(users: int, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated forecasts of people all of whose choices fall on the same side."""
    prob = rng.choice([0.2, 0.5, 0.8], size=(users, 1)).repeat(number, 1)
    return prob, (rng.random((users, 1)) < prob).astype(float)  # One draw for the whole row.
