r"""Choices as events of multinomial logits, whose log-likelihood is concave.

An event has the log-probability :math:`-\log(1 + \sum_k e^{-a_k·γ})` with a row :math:`a_k` for
each answer that was not given: what the given answer's index exceeds the other's by is
:math:`a_k·γ`. A comparison has one row, a comparison with ties two, a stage of a ranking one for
each item that is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from scipy import sparse

from fssa_bayes.data import Preferences, count_keys, distinct_keys, list_stage_wins
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.newton import climb, solve_with_ridge

__all__ = ["Answers", "Events", "Features", "Matrix", "list_answers", "scale_rows"]

Matrix = np.ndarray | sparse.csr_array

_CHUNK = 65_536  # Rows whose features are looked at together.
_COUNTED = 2**22  # Comparisons that are counted at once, for the memory of data on disk.


@dataclass(frozen=True, eq=False)
class Events:
    """Holds the rows of events and how often each event occurred.

    Attributes:
        rows: Rows a with shape (Q, P), dense or sparse.
        event: Number of the event that each row belongs to, non-decreasing from 0, (Q,).
        weight: How often each of E events occurred, (E,).
    """

    rows: Matrix
    event: np.ndarray
    weight: np.ndarray

    def where(self, keep: np.ndarray) -> Events:
        """Returns the events without some rows (Q,): without answers that have no probability."""
        event, weight = self.event[keep], self.weight
        used, event = np.unique(event, return_inverse=True)
        return Events(self.rows[keep], event, weight[used])

    def log_prob(self, parameters: np.ndarray) -> float:
        """Evaluates the log-likelihood at parameters γ (P,), in nats."""
        return float(-self.weight @ self._normalise(parameters)[0])

    def differentiate(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the log-likelihood, its gradient (P,) and minus its Hessian (P, P)."""
        normaliser, prob = self._normalise(parameters)
        weighted = self.weight[self.event] * prob
        if self._has_single_rows:
            curvature = weighted * np.exp(-normaliser)  # 1 − p without cancellation.
            information = self.rows.T @ scale_rows(self.rows, curvature)
        else:
            information = self.rows.T @ scale_rows(self.rows, weighted)
            expected = self._sum_rows(prob)
            information = information - expected.T @ scale_rows(expected, self.weight)
        if sparse.issparse(information):
            information = information.toarray()
        return float(-self.weight @ normaliser), self.rows.T @ weighted, information

    def _normalise(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns log(1 + Σ e^−m) of each event (E,), and each row's probability (Q,)."""
        margin = self.rows @ parameters
        if self._has_single_rows:
            normaliser = np.logaddexp(0, -margin)
        else:
            starts = np.searchsorted(self.event, np.arange(len(self.weight)))
            normaliser = np.logaddexp(0, np.logaddexp.reduceat(-margin, starts))
        return normaliser, np.exp(-margin - normaliser[self.event])

    @property
    def _has_single_rows(self) -> bool:
        return len(self.weight) == len(self.event)

    def _sum_rows(self, prob: np.ndarray) -> Matrix:
        """Sums the rows of each event, weighted by their probability, to shape (E, P)."""
        place = self.event, np.arange(len(self.event))
        return sparse.csr_array((prob, place), shape=(len(self.weight), len(prob))) @ self.rows

    def maximise(
        self, start: np.ndarray, fixed: np.ndarray | None = None, *, max_steps: int = 200
    ) -> np.ndarray:
        """Maximises the log-likelihood by Newton's method, from a start (P,).

        Args:
            start: Where to begin; directions that no row depends on stay there.
            fixed: A contrast (P,) whose value stays that of the start; None for none.
            max_steps: Largest number of steps.

        Returns:
            The maximum, with shape (P,); where there is none, the last point.
        """
        solve = partial(solve_with_ridge, fixed=fixed)
        return climb(self, start, solve, max_steps=max_steps).point


def scale_rows(matrix: Matrix, factor: np.ndarray) -> Matrix:
    """Multiplies each row of a matrix (Q, P), dense or sparse, by a factor (Q,)."""
    if sparse.issparse(matrix):
        return sparse.diags_array(factor) @ matrix
    return matrix * factor[:, None]


@dataclass(frozen=True, eq=False)
class Features:
    """Holds the features of items as they are stored, and how to centre and scale them.

    A table of embeddings is not copied to double precision as a whole.

    Attributes:
        stored: The table, with shape (M, D).
        centre: What is taken from each column, (D,).
        scale: What each column is divided by then, (D,).
    """

    stored: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    def differences(self, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        """Returns the scaled differences of the features of pairs of items, (Q, D)."""
        stored = self.stored
        return (stored[better].astype(np.float64) - stored[worse]) / self.scale

    def utilities(self, coefficients: np.ndarray) -> np.ndarray:
        """Multiplies the features of all items by coefficients (D,), to shape (M,)."""
        values = np.empty(len(self.stored))
        for start in range(0, len(values), _CHUNK):
            part = slice(start, start + _CHUNK)
            values[part] = (self.stored[part] - self.centre) / self.scale @ coefficients
        return values


@dataclass(frozen=True, eq=False)
class Answers:
    """Lists the rows of all answers by the items that they compare, without their matrix.

    A row is `scale` · (x_better − x_worse), with `bias` for the position bias and `tie` for log ν
    where the model has these parameters.

    Attributes:
        better: Position of the item with the plus sign, with shape (Q,).
        worse: Position of the item with the minus sign, (Q,).
        scale: 1 where an answer excludes the other item's win, ½ where a tie is concerned, (Q,).
        bias: The entry of the position bias, (Q,); None in a model without one.
        tie: The entry of log ν, (Q,); None in a model without ties.
        features: Features of the items; None where every item has a coefficient of its own.
        num_items: Number of items M.
        event: Number of the event that a row belongs to, non-decreasing from 0, (Q,).
        weight: How often each of E events occurred, weighted by person, (E,).
    """

    better: np.ndarray
    worse: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    tie: np.ndarray | None
    features: Features | None
    num_items: int
    event: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.better)

    @property
    def num_parameters(self) -> int:
        """Number P of coefficients and of parameters of the answers."""
        return self.num_coefficients + len(self._answer_columns())

    @property
    def num_coefficients(self) -> int:
        """Number of coefficients: of items, or of features D."""
        return self.num_items if self.features is None else len(self.features.scale)

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the better and the worse item of each row, each (Q,)."""
        return self.better, self.worse

    @property
    def are_wins(self) -> bool:
        """Whether each event is the win of one item against another, and nothing else."""
        return not self._answer_columns() and len(self.weight) == len(self.event)

    def _answer_columns(self) -> list[np.ndarray]:
        return [column for column in (self.tie, self.bias) if column is not None]

    def product(self, parameters: np.ndarray) -> np.ndarray:
        """Multiplies all rows by parameters (P,), to shape (Q,)."""
        size = self.num_coefficients
        utility = parameters[:size]
        if self.features is not None:
            utility = self.features.utilities(utility)
        total = self.scale * (utility[self.better] - utility[self.worse])
        for column, value in zip(self._answer_columns(), parameters[size:], strict=True):
            total = total + column * value
        return total

    def matrix(self, which: np.ndarray) -> Matrix:
        """Returns some rows as a matrix, sparse where items have no features."""
        better, worse, scale = self.better[which], self.worse[which], self.scale[which]
        others = [column[which] for column in self._answer_columns()]
        if self.features is not None:
            difference = scale[:, None] * self.features.differences(better, worse)
            return np.column_stack([difference, *others])
        row = np.arange(len(scale))
        entries = np.concatenate([scale, -scale, *others])
        columns = [better, worse, *(np.full_like(row, self.num_items + i) for i in range(2))]
        columns = np.concatenate(columns[: 2 + len(others)])
        shape = (len(scale), self.num_parameters)
        return sparse.csr_array((entries, (np.tile(row, 2 + len(others)), columns)), shape=shape)

    @cached_property
    def length(self) -> np.ndarray:
        """Length of each row, with shape (Q,)."""
        others = sum((column**2 for column in self._answer_columns()), np.zeros(len(self)))
        if self.features is None:
            return np.sqrt(2 * self.scale**2 + others)
        squares = np.empty(len(self))
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            difference = self.features.differences(self.better[part], self.worse[part])
            squares[part] = np.einsum("qd,qd->q", difference, difference)
        length = np.sqrt(self.scale**2 * squares + others)
        return np.where(length > 0, length, 1.0)  # Items of equal features.

    def unit_product(self, parameters: np.ndarray) -> np.ndarray:
        """Multiplies all rows, divided by their length, by parameters (P,), to shape (Q,)."""
        return self.product(parameters) / self.length

    def unit_matrix(self, which: np.ndarray) -> Matrix:
        """Returns some rows, divided by their length, as a matrix."""
        return scale_rows(self.matrix(which), 1 / self.length[which])

    def events(self) -> Events:
        """Returns the events with the matrix of all rows."""
        return Events(self.matrix(np.arange(len(self))), self.event, self.weight)

    def between(self, classes: np.ndarray) -> Answers:
        """Returns the rows between items of different classes (M,), with a coefficient a class."""
        better, worse = classes[self.better], classes[self.worse]
        count = int(classes.max()) + 1
        pair = distinct_keys((better * np.int64(count) + worse)[better != worse], count**2)
        ones = np.ones(len(pair))
        return Answers(
            *(pair // count, pair % count, ones, None, None, None, count),
            event=np.arange(len(pair)),
            weight=ones,
        )

    def distinct(self) -> Answers:
        """Returns the rows that differ, each as an event of its own."""
        columns = [self.better, self.worse, 2 * self.scale]
        columns += [2 * column + 2 for column in self._answer_columns()]
        key = np.zeros(len(self), dtype=np.int64)
        for column, size in zip(columns, (1, self.num_items, 3, 5, 5), strict=False):
            key = key * size + column.astype(np.int64)
        first = np.unique(key, return_index=True)[1]
        parts = {
            name: getattr(self, name)[first]
            for name in ("better", "worse", "scale", "bias", "tie")
            if getattr(self, name) is not None
        }
        return replace(self, **parts, event=np.arange(len(first)), weight=np.ones(len(first)))


def list_answers(model: HeterogeneousBTL, data: Preferences) -> Answers:
    """Lists the answers of comparisons and rankings, equal comparisons once.

    The parameters are those of the model, in its units: coefficients (those of the average person
    where people differ), log ν and position bias. A lapse rate is not among them.
    """
    merged = _merge_comparisons(data, model.bias is not None)
    parts = _comparison_rows(*merged, has_ties=model.has_ties)
    ranked = _ranking_rows(data)
    offset = len(parts[-1])
    better, worse, scale, side, tie, event = (
        np.concatenate([part, other]) for part, other in zip(parts[:-1], ranked[:-1], strict=True)
    )
    event[len(parts[0]) :] += offset
    features = None
    if data.items is not None:
        units = (
            value.double().cpu().numpy() for value in (model.feature_mean, model.feature_scale)
        )
        features = Features(data.items.numpy(), *units)
    return Answers(
        better,
        worse,
        scale,
        None if model.bias is None else side * scale,
        tie if model.has_ties else None,
        features,
        data.num_items,
        event,
        np.concatenate([parts[-1], ranked[-1]]),
    )


def _merge_comparisons(data: Preferences, has_sides: bool) -> tuple[np.ndarray, ...]:
    """Lists the different comparisons that stand alone, and how often each was answered so.

    Returns:
        Left, right, choice, factor of the position bias, and number of the comparisons, each (C,).
    """
    size, rows = 9 * data.num_items**2, range(0, max(data.num_comparisons, 1), _COUNTED)
    alone = ~data.judgements.inside
    parts = [
        _count_part(data, has_sides, start + np.flatnonzero(alone[start : start + _COUNTED]))
        for start in rows
    ]
    keys, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    key, count = (keys, counts) if len(parts) == 1 else count_keys(keys, size, counts)
    pair, answer = np.divmod(key, 9)
    left, right = np.divmod(pair, data.num_items)
    return left, right, answer // 3 / 2, answer % 3 - 1.0, count.astype(np.float64)


def _count_part(
    data: Preferences, has_sides: bool, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns keys of the different ones of comparisons (Q,) given by number, and their counts."""
    left, right = (side[number].astype(np.int64) for side in (data.left, data.right))
    twice = (2 * data.choice[number]).astype(np.int64)
    factor = np.ones(len(left), dtype=np.int64)
    if not has_sides:
        swap = left > right
        left, right = np.where(swap, right, left), np.where(swap, left, right)
        twice = np.where(swap, 2 - twice, twice)
    elif data.side is not None:
        factor = data.side[number].astype(np.int64)
    key = ((left * data.num_items + right) * 3 + twice) * 3 + factor + 1
    weight = None
    if data.weights is not None:
        weight = data.weights[np.searchsorted(data.offsets, number, side="right") - 1]
    return count_keys(key, 9 * data.num_items**2, weight)


def _comparison_rows(
    left: np.ndarray,
    right: np.ndarray,
    choice: np.ndarray,
    factor: np.ndarray,
    count: np.ndarray,
    *,
    has_ties: bool,
) -> tuple[np.ndarray, ...]:
    """Returns better, worse, scale, side, tie, event and weight of comparisons."""
    by_left, by_right = np.flatnonzero(choice >= 0.5), np.flatnonzero(choice <= 0.5)
    number = np.concatenate([by_left, by_right])
    on_left = np.arange(len(number)) < len(by_left)
    better = np.where(on_left, left[number], right[number])
    worse = np.where(on_left, right[number], left[number])
    side, tied = (2.0 * on_left - 1) * factor[number], choice[number] == 0.5
    if not has_ties:  # Half a win each: two events.
        weight = np.where(tied, 0.5, 1.0) * count[number]
        ones, event = np.ones(len(number)), np.arange(len(number))
        return better, worse, ones, side, 0 * ones, event, weight
    # A win excludes the other's win and a tie; a tie excludes both wins.
    first, second = number, number[~tied]
    columns = (
        np.concatenate([better, better[~tied]]),
        np.concatenate([worse, worse[~tied]]),
        np.concatenate([np.where(tied, 0.5, 1.0), np.full(len(second), 0.5)]),
        np.concatenate([side, side[~tied]]),
        np.concatenate([np.where(tied, 1.0, 0.0), np.full(len(second), -1.0)]),
    )
    event = np.concatenate([first, second])
    order = np.argsort(event, kind="stable")
    return *(column[order] for column in columns), event[order], count


def _ranking_rows(data: Preferences) -> tuple[np.ndarray, ...]:
    """Returns the same of rankings, whose stages are events."""
    slots, own = data.judgements.list_slots(data.left, data.right, data.choice)
    wins = list_stage_wins(slots)
    better, worse = slots.item[wins.winner], slots.item[wins.loser]
    stage, event = np.unique(wins.stage, return_inverse=True)
    order = np.argsort(event, kind="stable")
    ones = np.ones(len(order))
    columns = better[order], worse[order], ones, 0 * ones, 0 * ones, event[order]
    weight = np.ones(len(stage))
    if data.weights is not None:
        person = data.person[data.judgements.heads[own[slots.ranking[stage]]]]
        weight = data.weights[person]
    return *columns, weight
