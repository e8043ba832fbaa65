r"""Directions in which no choice becomes less probable: the recession cone of a log-likelihood.

With a row :math:`a` for every answer that was not given (:class:`Answers`), these are the
directions d with :math:`a·d ≥ 0` for every row. Along one with :math:`a·d > 0` for some row the
likelihood rises for ever, so that it has no maximum: choices are *separated*. The rows with
:math:`a·d = 0` in every direction of the cone are what remains in the limit.

References:
    Albert & Anderson (1984), On the existence of maximum likelihood estimates in logistic
    regression models, Biometrika 71.
    Konis (2007), Linear programming algorithms for detecting separated data in binary logistic
    regression models, University of Oxford.
    Correia, Guimarães & Zylkin (2019), Verifying the existence of maximum likelihood estimates for
    generalized linear models, arXiv 1903.01633.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from fssa_bayes.data import rank_classes
from fssa_bayes.population.events import Answers, Events, Matrix

__all__ = ["Cone", "find_cone", "find_layered_cone", "flat_cone", "rising"]

_TOLERANCE = 2e-6  # Share of a direction's largest entry below which a row of unit length is 0.
_LONGEST = 1e5  # Largest entry of a direction along which a row of unit length rises by 1.
_RANK = 1e-10  # Share of the largest eigenvalue of a Gram matrix below which one is 0.
_FIRST_ROWS = 2000  # Rows that are looked at first, with eight for each parameter.
_MORE_ROWS = 2000  # Rows that are added at once.
_PROBED = 1e-4  # Product with a random direction, standard normal, below which it is rounding.
_ROUNDS = 3  # Linear programmes, each with more rows, before no direction is claimed.
_MOST_NEWTON = 2000  # Most parameters for which a maximum is tried before a linear programme.
_NEWTON_STEPS = 20


@dataclass(frozen=True, eq=False)
class Cone:
    """Describes the recession cone of some answers.

    Attributes:
        answers: The answers.
        working: Numbers of the rows that suffice to describe the cone.
        direction: A direction within the cone along which every separated row rises, (P,); 0
            without separation.
        scale: Units of the parameters in which rows are compared, (P,).
        span: Orthonormal basis of what the other rows span, in these units, with shape (P, ·).
    """

    answers: Answers
    working: np.ndarray
    direction: np.ndarray
    scale: np.ndarray
    span: np.ndarray

    def sees(self, contrasts: np.ndarray) -> np.ndarray:
        """Tells which contrasts (Q, P) depend on what separated rows alone say, with shape (Q,)."""
        everything = _row_space(_rescale(self.answers.unit_matrix(self.working), self.scale))
        part = np.linalg.norm(self.outside(contrasts) @ everything, axis=1)
        return part > 1e-5 * np.linalg.norm(contrasts / self.scale, axis=1)

    def outside(self, contrasts: np.ndarray) -> np.ndarray:
        """Returns what of contrasts (Q, P) the remaining rows do not span, in units of `scale`."""
        return _null_part(contrasts / self.scale, self.span)

    def signs(self, contrasts: np.ndarray) -> np.ndarray:
        """Tells where contrasts (Q, P) without a finite estimate go: 1, −1 or, if neither, 0, (Q,).

        1 stands for infinity, and −1 for minus infinity.
        """
        distinct, place = np.unique(contrasts, axis=0, return_inverse=True)
        rise = np.sign(distinct @ self.direction)
        values = [self._sign(*pair) if pair[1] else 0 for pair in zip(distinct, rise, strict=True)]
        return np.array(values, dtype=np.int64)[place.ravel()]

    def _sign(self, contrast: np.ndarray, sign: float) -> int:
        """Returns the sign if it is proved that the contrast never changes against it, else 0."""
        working, contrast = self.working, sign * contrast / self.scale
        contrast = contrast / np.abs(contrast).max()
        for _ in range(_ROUNDS):
            direction = _least(_rescale(self.answers.unit_matrix(working), self.scale), contrast)
            if contrast @ direction >= -_TOLERANCE:
                return int(sign)
            worse = _worst(self.answers.unit_product(direction / self.scale), working)
            if not len(worse):
                break
            working = np.concatenate([working, worse])
        return 0

    def held(self, contrast: np.ndarray) -> Cone:
        """Describes the part of the cone in which a contrast (P,) does not rise."""
        return find_cone(self.answers, -contrast[None])


def find_cone(answers: Answers, extra: np.ndarray | None = None) -> Cone:
    """Finds the recession cone by linear programmes over few of the rows, checked on all.

    Args:
        answers: The rows, each once.
        extra: Further rows (·, P), or None.
    """
    rng = np.random.default_rng(0)
    size = min(len(answers), _FIRST_ROWS + 8 * answers.num_parameters)
    working = np.sort(rng.permutation(len(answers))[:size])
    while True:
        matrix = answers.unit_matrix(working)
        if extra is not None:
            matrix = _stack(matrix, extra / np.linalg.norm(extra, axis=1, keepdims=True))
        direction, scale, span = _separate(matrix)
        product = answers.unit_product(direction)
        worse = _worst(product, working)
        if not len(worse):
            # A row outside of the span of those that remain has a random product with what is
            # orthogonal to the span.
            probe = _null_part(rng.normal(size=(1, answers.num_parameters)), span)[0]
            new = np.abs(answers.unit_product(probe / scale)) > _PROBED
            new &= np.abs(product) <= _TOLERANCE
            new[working] = False
            worse = np.flatnonzero(new)[:_MORE_ROWS]
        if not len(worse):
            return Cone(answers, working, direction, scale, span)
        working = np.concatenate([working, worse])


def rising(answers: Answers, direction: np.ndarray) -> np.ndarray:
    """Tells which answers rise along a direction (P,) of their parameters, with shape (Q,)."""
    return answers.unit_product(direction) > _TOLERANCE


def find_layered_cone(answers: Answers) -> Cone:
    """Finds the recession cone of wins between classes, of which none won against itself."""
    level = rank_classes(answers.better, answers.worse, answers.num_items)
    size = answers.num_parameters
    direction = level / max(level.max(initial=0), 1)
    return Cone(answers, np.arange(len(answers)), direction, np.ones(size), np.zeros((size, 0)))


def flat_cone(answers: Answers) -> Cone:
    """Returns a cone without a direction, for answers that are not searched."""
    size = answers.num_parameters
    return Cone(answers, np.arange(0), np.zeros(size), np.ones(size), np.eye(size))


def _stack(matrix: Matrix, extra: np.ndarray) -> Matrix:
    if sparse.issparse(matrix):
        return sparse.vstack([matrix, sparse.csr_array(extra)]).tocsr()
    return np.vstack([matrix, extra])


def _rescale(matrix: Matrix, scale: np.ndarray) -> Matrix:
    return matrix @ sparse.diags_array(1 / scale) if sparse.issparse(matrix) else matrix / scale


def _worst(product: np.ndarray, working: np.ndarray) -> np.ndarray:
    """Numbers the rows that fall most along a direction and are not looked at yet."""
    product = product.copy()
    product[working] = 0
    falling = np.flatnonzero(product < -_TOLERANCE)
    return falling[np.argsort(product[falling])[:_MORE_ROWS]]


def _separate(matrix: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns direction, scale and span of a :class:`Cone`, for rows of unit length."""
    largest = abs(matrix).max(0)
    largest = largest.toarray() if hasattr(largest, "toarray") else np.asarray(largest)
    scale = np.where(largest > 0, largest, 1.0).ravel()
    matrix = _rescale(matrix, scale)
    direction = _try_maximum(matrix) if len(scale) <= _MOST_NEWTON else None
    if direction is None:
        direction = _steepest(matrix)
    remain = matrix @ direction <= _TOLERANCE * np.abs(direction).max(initial=0)
    span = _row_space(matrix[np.flatnonzero(remain)])
    # Rows that remain are 0 to rounding, not to the tolerance of a linear programme.
    direction = _null_part(direction[None], span)[0]
    largest = np.abs(direction).max(initial=0)
    return direction / (largest if largest > 0 else 1.0) / scale, scale, span


def _try_maximum(unit: Matrix) -> np.ndarray | None:
    """Proves by Newton's method that no row, or every row, is separated; None where it cannot.

    At a maximum the rows add up to 0 with positive weights, the probabilities of other answers:
    along a direction in which none falls, none can rise (Stiemke's theorem).
    """
    size = unit.shape[0]
    events = Events(unit, np.arange(size), np.ones(size))
    point = events.maximise(np.zeros(unit.shape[1]), max_steps=_NEWTON_STEPS)
    margin = unit @ point
    weight = np.exp(-np.logaddexp(0, margin))
    if np.linalg.norm(unit.T @ weight) < _TOLERANCE * weight.min(initial=1.0):
        return np.zeros(len(point))
    if margin.min(initial=1.0) > 10 * _TOLERANCE * np.abs(point).max():
        return point
    return None


def _steepest(unit: Matrix) -> np.ndarray:
    """Finds a direction (P,) along which as many rows as possible rise, and none falls."""
    rows, size = unit.shape
    constraints = sparse.hstack([-sparse.csr_array(unit), sparse.eye_array(rows)], format="csr")
    cost = np.concatenate([np.zeros(size), -np.ones(rows)])
    bounds = np.array([(-_LONGEST, _LONGEST)] * size + [(0.0, 1.0)] * rows)
    solution = _solve(cost, constraints, bounds)
    rises = solution[size:] > 0.5
    return solution[:size] if rises.any() else np.zeros(size)


def _least(matrix: Matrix, contrast: np.ndarray) -> np.ndarray:
    """Finds the direction of the cone, with entries of −1 to 1, in which a contrast is least."""
    bounds = np.array([(-1.0, 1.0)] * len(contrast))
    return _solve(contrast, -sparse.csr_array(matrix), bounds)


def _solve(cost: np.ndarray, constraints: sparse.csr_array, bounds: np.ndarray) -> np.ndarray:
    result = linprog(
        cost, A_ub=constraints, b_ub=np.zeros(constraints.shape[0]), bounds=bounds, method="highs"
    )
    if result.x is None:
        raise RuntimeError(f"the linear programme that looks for separation: {result.message}")
    return result.x


def _row_space(matrix: Matrix) -> np.ndarray:
    """Returns an orthonormal basis (P, ·) of what the rows of a matrix span."""
    gram = matrix.T @ matrix
    gram = gram.toarray() if hasattr(gram, "toarray") else gram
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, values > _RANK * max(values.max(initial=0), 1e-300)]


def _null_part(contrasts: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Takes from contrasts (Q, P) what lies in a span (P, ·)."""
    return contrasts - contrasts @ span @ span.T
