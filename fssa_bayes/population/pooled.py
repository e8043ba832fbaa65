r"""The log-likelihood of a homogeneous model with linear utility, for Newton's method.

Equal answers are counted once. Where items have no features and comparisons are wins alone, what
is left are numbers of wins: with :math:`n_{ij}` comparisons of two items and the probability
:math:`p_{ij}` of a win, minus the Hessian is the Laplacian of the graph whose edges have the
weights :math:`n_{ij} p_{ij} (1 - p_{ij})`. All other answers are events of multinomial logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from fssa_bayes.data import label_components
from fssa_bayes.population.events import Answers, Events
from fssa_bayes.population.newton import Concave

__all__ = ["WinCounts", "pooled_likelihood"]

_CHUNK = 65_536  # Rows whose features are held at once.


def pooled_likelihood(answers: Answers, penalty: float) -> Concave:
    """Returns the log-likelihood of answers, with the prior of a penalty.

    Its parameters are those of the answers.

    Args:
        answers: The answers.
        penalty: Weight of the prior of :meth:`HeterogeneousBTL.log_prior`; 0 for none, where the
            utilities of items without features have their constants held.
    """
    has_items = answers.features is None
    if has_items and answers.are_wins:
        likelihood: Concave = WinCounts.of(answers)
    else:
        likelihood = Chunks(answers, list(_split(answers)))
    if penalty:
        has_prior = np.ones(answers.num_parameters, dtype=bool)
        if answers.tie is not None:
            has_prior[answers.num_coefficients] = False
        return Penalised(likelihood, penalty, has_prior)
    if has_items:
        return Held(likelihood, label_components(*answers.ends, answers.num_items))
    return likelihood


@dataclass(frozen=True, eq=False)
class WinCounts:
    """Holds how often items won against one another.

    Attributes:
        first: Position of the first item of each of C pairs, all different, with shape (C,).
        second: Position of the second item, (C,).
        wins: Number of wins of the first item, half wins included, (C,).
        total: Number of comparisons of the pair, (C,).
        num_items: Number of items M, whose utilities are the parameters.
    """

    first: np.ndarray
    second: np.ndarray
    wins: np.ndarray
    total: np.ndarray
    num_items: int

    @classmethod
    def of(cls, answers: Answers) -> WinCounts:
        """Counts the wins among answers."""
        low, high = np.minimum(*answers.ends), np.maximum(*answers.ends)
        pair, place = np.unique(low * np.int64(answers.num_items) + high, return_inverse=True)
        total = np.bincount(place, answers.weight)
        wins = np.bincount(place, np.where(answers.better == low, answers.weight, 0.0))
        return cls(*np.divmod(pair, answers.num_items), wins, total, answers.num_items)

    def log_prob(self, parameters: np.ndarray) -> float:
        """Evaluates the log-likelihood at utilities (M,), in nats."""
        return self._evaluate(parameters[self.first] - parameters[self.second])

    def _evaluate(self, margin: np.ndarray) -> float:
        log_loss = np.maximum(margin, 0) + np.log1p(np.exp(-np.abs(margin)))
        return float(self.wins @ margin - self.total @ log_loss)

    def differentiate(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the log-likelihood, its gradient (M,) and minus its Hessian (M, M)."""
        size, margin = self.num_items, parameters[self.first] - parameters[self.second]
        prob = expit(margin)
        residual = self.wins - self.total * prob
        gradient = np.bincount(self.first, residual, size)
        gradient -= np.bincount(self.second, residual, size)
        laplacian = np.zeros((size, size))
        laplacian[self.first, self.second] = -self.total * prob * expit(-margin)
        laplacian += laplacian.T
        np.fill_diagonal(laplacian, -laplacian.sum(0))
        return self._evaluate(margin), gradient, laplacian


@dataclass(frozen=True, eq=False)
class Chunks:
    """Sums the log-likelihood of answers over parts, whose features are held one at a time.

    Attributes:
        answers: The answers.
        parts: First and last row, and first and last event, of each part.
    """

    answers: Answers
    parts: list[tuple[slice, slice]]

    def _events(self) -> Iterator[Events]:
        for rows, events in self.parts:
            number = np.arange(rows.start, rows.stop)
            event = self.answers.event[rows] - events.start
            yield Events(self.answers.matrix(number), event, self.answers.weight[events])

    def log_prob(self, parameters: np.ndarray) -> float:
        """Evaluates the log-likelihood at parameters (P,), in nats."""
        return sum(events.log_prob(parameters) for events in self._events())

    def differentiate(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the log-likelihood, its gradient (P,) and minus its Hessian (P, P)."""
        parts = [events.differentiate(parameters) for events in self._events()]
        return tuple(sum(part) for part in zip(*parts, strict=True))


def _split(answers: Answers) -> Iterator[tuple[slice, slice]]:
    """Splits answers into parts of about 65,536 rows, events whole."""
    start, num_rows = 0, len(answers)
    while start < num_rows:
        stop = min(start + _CHUNK, num_rows)
        if stop < num_rows:
            stop = int(np.searchsorted(answers.event, answers.event[stop - 1], side="right"))
        yield slice(start, stop), slice(answers.event[start], answers.event[stop - 1] + 1)
        start = stop


@dataclass(frozen=True, eq=False)
class Penalised:
    """Adds the prior p Σ log σ(w) + log σ(−w) to a log-likelihood.

    Attributes:
        likelihood: The log-likelihood.
        penalty: p.
        has_prior: Which parameters have the prior, (P,).
    """

    likelihood: Concave
    penalty: float
    has_prior: np.ndarray

    def log_prob(self, parameters: np.ndarray) -> float:
        """Evaluates likelihood and prior at parameters (P,), in nats."""
        return self.likelihood.log_prob(parameters) + self._prior(parameters)

    def _prior(self, parameters: np.ndarray) -> float:
        size = np.abs(parameters[self.has_prior])
        return -self.penalty * float((size + 2 * np.log1p(np.exp(-size))).sum())

    def differentiate(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns likelihood and prior, the gradient (P,) and minus the Hessian (P, P)."""
        value, gradient, information = self.likelihood.differentiate(parameters)
        weight, prob = self.penalty * self.has_prior, expit(parameters)
        information[np.diag_indices(len(weight))] += 2 * weight * prob * expit(-parameters)
        gradient = gradient + weight * (1 - 2 * prob)
        return value + self._prior(parameters), gradient, information


@dataclass(frozen=True, eq=False)
class Held:
    """Holds the mean utility of each component of the comparison graph where it is.

    No comparison tells it. Minus the Hessian gets curvature along it, so that it has an inverse.

    Attributes:
        likelihood: The log-likelihood.
        components: Component of each item, whose utilities are the first parameters, (M,).
    """

    likelihood: Concave
    components: np.ndarray

    def log_prob(self, parameters: np.ndarray) -> float:
        """Evaluates the log-likelihood at parameters (P,), in nats."""
        return self.likelihood.log_prob(parameters)

    def differentiate(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns value, gradient (P,) and minus the Hessian (P, P), which has an inverse then."""
        value, gradient, information = self.likelihood.differentiate(parameters)
        items = slice(len(self.components))
        curvature = np.diagonal(information)[items].mean()
        share = curvature / np.bincount(self.components)[self.components]
        together = self.components[:, None] == self.components
        information[items, items] += together * share
        return value, gradient, information
