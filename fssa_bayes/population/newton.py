"""Newton's method for concave log-likelihoods, with steps halved where they do not improve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import linalg

__all__ = ["Ascent", "Concave", "climb", "solve_well_posed", "solve_with_ridge"]

_MAX_STEPS = 200
_LEAST_PIVOT = 1e-12  # Share of the largest pivot below which a direction has no information.


class Concave(Protocol):
    """A concave function of parameters (P,)."""

    def log_prob(self, parameters: np.ndarray) -> float:
        """Evaluates the function."""

    def differentiate(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the value, its gradient (P,) and minus its Hessian (P, P)."""


@dataclass(frozen=True, eq=False)
class Ascent:
    """Tells where Newton's method ended.

    Attributes:
        point: The parameters, (P,).
        gradient: The last gradient that was evaluated, (P,).
        num_steps: Number of steps.
        is_maximum: Whether rounding hides whatever is left to be gained.
    """

    point: np.ndarray
    gradient: np.ndarray
    num_steps: int
    is_maximum: bool


def climb(
    function: Concave,
    start: np.ndarray,
    solve: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    max_steps: int = _MAX_STEPS,
    after_step: Callable[[float], None] = lambda value: None,
) -> Ascent:
    """Maximises a concave function by Newton's method.

    Args:
        function: The function.
        start: Where to begin, (P,).
        solve: Returns the step (P,) for a gradient (P,) and minus the Hessian (P, P).
        max_steps: Largest number of steps.
        after_step: Is told the value after each step.

    Returns:
        The last point, which is the maximum where there is one and steps suffice.

    Raises:
        LinAlgError: If `solve` does.
    """
    point = np.array(start, dtype=np.float64)
    value, gradient, information = function.differentiate(point)
    for number in range(max_steps):
        step = solve(gradient, information)
        decrement = step @ gradient
        if not decrement > 1e-18 * (1 + abs(value)):
            return Ascent(point, gradient, number, bool(np.isfinite(decrement)))
        length = 1.0
        while (new := function.log_prob(point + length * step)) < value + 1e-4 * length * decrement:
            length /= 2
            if length < 1e-9:  # Rounding hides what is left to be gained, or nothing is finite.
                is_small = bool(decrement < 1e-8)
                return Ascent(point + step if is_small else point, gradient, number, is_small)
        point = point + length * step
        after_step(new)
        if new - value < 1e-15 * (1 + abs(value)) and decrement < 1e-16 * (1 + abs(value)):
            return Ascent(point, gradient, number + 1, True)
        value, gradient, information = function.differentiate(point)
    return Ascent(point, gradient, max_steps, False)


def solve_with_ridge(
    gradient: np.ndarray, information: np.ndarray, fixed: np.ndarray | None = None
) -> np.ndarray:
    """Solves for a step; a ridge of 1e-12 of the mean curvature keeps idle directions still.

    Args:
        gradient: The gradient, (P,).
        information: Minus the Hessian, (P, P).
        fixed: A contrast (P,) whose value the step leaves as it is; None for none.
    """
    size = len(gradient)
    ridge = 1e-12 * max(np.trace(information) / size, 1e-300)
    factor = linalg.cho_factor(information + ridge * np.eye(size))
    step = linalg.cho_solve(factor, gradient)
    if fixed is not None:
        along = linalg.cho_solve(factor, fixed)
        step = step - along * (fixed @ step) / (fixed @ along)
    return step


def solve_well_posed(gradient: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Solves for a step where every direction has information.

    Raises:
        LinAlgError: If a direction has none, but for rounding.
    """
    factor = linalg.cho_factor(information)
    pivots = np.diagonal(factor[0]) ** 2
    if not pivots.min() > _LEAST_PIVOT * pivots.max():
        raise linalg.LinAlgError("the information is singular")
    return linalg.cho_solve(factor, gradient)
