"""How often regions around reference points hold the truth (TARP)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.diagnostics._checks import (
    LEAST_USERS,
    as_tensor,
    check_level,
    check_number,
    require,
)
from fssa_bayes.diagnostics.ecdf import ecdf_band, uniformity_p_value
from fssa_bayes.diagnostics.transforms import draws_and_truth, weighted_pit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["TarpResult", "tarp"]


@dataclass(frozen=True)
class TarpResult:
    """Holds the expected coverage of regions around reference points.

    Attributes:
        level: Credibility levels, with shape (K,).
        coverage: Share of the users whose truth lies in the region of that level, (K,).
        lower: Lower end of the simultaneous band, (K,).
        upper: Upper end, (K,).
        pit: Posterior mass nearer to the reference than the truth, uniform if right, (U,).
        p_value: Of uniformity.
        rejected: Whether the coverage leaves the band.
    """

    level: np.ndarray
    coverage: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    pit: Tensor
    p_value: float
    rejected: bool


def tarp(
    draws: ArrayLike,
    log_weights: ArrayLike | None,
    truth: ArrayLike,
    references: ArrayLike | Callable[[int], ArrayLike],
    *,
    scale: ArrayLike | None = None,
    prob: float = 0.95,
    seed: int = 0,
) -> TarpResult:
    """Tests expected coverage with random points (TARP), for several dimensions at once.

    A user's region is the ball around a reference point that reaches to the truth; the posterior
    mass inside is uniform if the posterior is right. That holds for references that depend on the
    data, on nothing, or on randomness, but not on the truth or on these draws. With references
    that do not depend on the data, the prior returned as posterior passes the test; an estimate
    from the context is a reference that depends on the data.

    By context size: `pit` is one more quantity for :func:`sbc_test`, whose band then holds for it
    and all others together, and for :func:`coverage`.

    Args:
        draws: Quantities of every draw, with shape (S, U, Q); in comparable units, or see `scale`.
        log_weights: Log-weights with shape (S, U); None for equal ones.
        truth: The quantities at the true z, with shape (U, Q).
        references: Points with shape (U, Q), or a function of a seed that returns them.
        scale: Units by which the quantities are divided, with shape (Q,).
        prob: Probability that the coverage of an exact posterior stays inside the band.
        seed: Seed of the references, if they are a function, and of randomised ties.

    Returns:
        Coverage by level with its band, and the test.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, a scale is not positive, or
            there are fewer than 20 users or draws.

    References:
        Lemos et al. (2023), Sampling-based accuracy testing of posterior estimators for general
        inference, ICML.
    """
    draws, truth = draws_and_truth(draws, truth)
    users, size = truth.shape
    check_number("the number of users", users, LEAST_USERS)
    check_level("prob", prob)
    points = references(seed) if callable(references) else references
    points = as_tensor("references", points, (users, size)).cpu().to(truth.dtype)
    if scale is not None:
        scale = as_tensor("scale", scale, (size,)).cpu().to(truth.dtype)
        require("scale", scale, scale > 0, "be positive")
        draws, truth, points = draws / scale, truth / scale, points / scale
    distance = torch.linalg.vector_norm(draws - points, dim=-1, keepdim=True)
    true_distance = torch.linalg.vector_norm(truth - points, dim=-1, keepdim=True)
    pit = weighted_pit(distance, log_weights, true_distance, seed=seed).squeeze(-1)
    band = ecdf_band(users, prob=prob)
    ecdf = np.searchsorted(np.sort(pit.numpy()), band.points, side="right") / users
    p_value = uniformity_p_value(pit.numpy())
    lower, upper = band.points + band.lower, band.points + band.upper
    return TarpResult(band.points, ecdf, lower, upper, pit, p_value, p_value <= 1 - prob)
