"""Questions that a person may be asked: pairs, choices of the best of several items, rankings."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL, positions

__all__ = [
    "KINDS",
    "MOST_QUESTIONS",
    "Pool",
    "check_model",
    "find_asked",
    "list_pairs",
    "list_questions",
    "number_sets",
    "read_candidates",
    "read_pool",
]

KINDS = ("choice", "ranking")
"""What is asked of three items or more: which is the best, or their whole order."""

MOST_QUESTIONS = 20_000
"""Questions that are compared with each other at most, unless more are given to be scored."""

_MOST_RANKED = 5  # Items of a ranking: a sixth would make 720 answers.


@dataclass(frozen=True)
class Pool:
    """Holds questions of one size and the names of their items.

    Attributes:
        items: Positions of the items of Q questions in the item table, int64 with shape (Q, m).
        kind: One of :data:`KINDS`; two items make a comparison of left and right in either.
        names: Names of the items of the table.
        has_ties: Whether a comparison may be answered by a tie.
    """

    items: np.ndarray
    kind: str
    names: pd.Index
    has_ties: bool = False

    def __len__(self) -> int:
        """Returns the number of questions Q."""
        return len(self.items)

    @property
    def size(self) -> int:
        """Number m of items of a question."""
        return self.items.shape[1]

    @property
    def is_ranking(self) -> bool:
        """Whether an answer is an order of the items."""
        return self.kind == "ranking" and self.size > 2

    @property
    def orders(self) -> np.ndarray:
        """All orders of the m places of a question, the best first, with shape (m!, m)."""
        return np.array(list(itertools.permutations(range(self.size))))

    @property
    def questions(self) -> list[tuple]:
        """The questions as tuples of names."""
        columns = [self.names[column].tolist() for column in self.items.T]
        return list(zip(*columns, strict=True))

    @property
    def sets(self) -> np.ndarray:
        """Numbers of the sets of items, (Q,): questions that differ in order alone have one."""
        return number_sets(self.items, len(self.names))

    def select(self, which: np.ndarray) -> Pool:
        """Returns some of the questions, given as positions or as a Boolean mask."""
        return Pool(self.items[which], self.kind, self.names, self.has_ties)

    def reverse(self) -> Pool:
        """Returns the questions in their own order, and then each with its items reversed."""
        both = np.concatenate([self.items, self.items[:, ::-1]])
        return Pool(both, self.kind, self.names, self.has_ties)

    def name_answers(self, which: np.ndarray) -> list:
        """Names an answer to each question.

        Args:
            which: Number of the answer, with shape (Q,): of left, right and tie; of the item in
                its question; or of the order in :attr:`orders`.
        """
        if self.size == 2:
            return [("left", "right", "tie")[answer] for answer in which]
        if not self.is_ranking:
            return self.names[self.items[np.arange(len(self)), which]].tolist()
        ordered = np.take_along_axis(self.items, self.orders[which], 1)
        return Pool(ordered, self.kind, self.names).questions


def read_pool(
    model: HeterogeneousBTL,
    context: Preferences,
    pool: Sequence | np.ndarray | pd.DataFrame | None,
    kind: str = "choice",
    *,
    argument: str = "pool",
    most: int | None = None,
    seed: int = 0,
) -> Pool:
    """Reads questions, by the names of their items.

    Args:
        model: The model, which must be able to score the answers.
        context: The people's data in the terms of the model, which name the items.
        pool: Questions, each of which is a sequence of distinct items; an array or a DataFrame has
            a row for each. None for all pairs of items.
        kind: One of :data:`KINDS`.
        argument: Name of the argument, for messages.
        most: How many pairs at most are taken, at random, where `pool` is None; None for all.
        seed: Seed of the random choice.

    Raises:
        TypeError: If a question is not a sequence of names.
        ValueError: If there is no question, an item is unknown or stands twice in a question,
            questions are of different sizes, or the model has no probabilities of such answers.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    check_model(model)
    names = context.item_names
    if pool is None:
        items = list_pairs(len(names), most, seed)
    else:
        items = _find_items(argument, pool, names)
    _check_distinct(argument, items, names)
    size = items.shape[1]
    if kind == "ranking" and size > _MOST_RANKED:
        raise ValueError(
            f"{argument} must rank at most {_MOST_RANKED} items, got {size}: {size} items have "
            f"{math.factorial(size):,} orders"
        )
    model.check_rankings(size > 2)
    return Pool(items, kind, names, model.has_ties)


def read_candidates(
    model: HeterogeneousBTL,
    context: Preferences,
    pool: Sequence | np.ndarray | pd.DataFrame | None,
    kind: str = "choice",
    *,
    both_orders: bool = False,
    seed: int = 0,
) -> Pool:
    """Reads a pool, each question once, and draws some of them where there are too many.

    Arguments are those of :func:`read_pool`.

    Args:
        both_orders: Whether a pair and its reverse are two questions.
        seed: Seed of the draw.

    Raises:
        TypeError: As :func:`read_pool`.
        ValueError: As :func:`read_pool`.

    Warns:
        UserWarning: If questions are drawn.
    """
    most = MOST_QUESTIONS // 2 if both_orders else MOST_QUESTIONS
    read = read_pool(model, context, pool, kind, most=most, seed=seed)
    total = context.num_items * (context.num_items - 1) // 2 if pool is None else 0
    if both_orders and read.size == 2:
        read, total = read.reverse(), 2 * total
        number = read.items[:, 0] * len(read.names) + read.items[:, 1]
    else:
        number = read.sets
    read = read.select(np.sort(np.unique(number, return_index=True)[1]))
    total = max(total, len(read))
    if total > MOST_QUESTIONS:
        warnings.warn(
            f"pool has {total:,} questions: {MOST_QUESTIONS:,} of them are compared, drawn at "
            f"random by seed={seed}",
            stacklevel=3,
        )
    if len(read) > MOST_QUESTIONS:
        rng = np.random.default_rng(seed)
        read = read.select(np.sort(rng.choice(len(read), MOST_QUESTIONS, replace=False)))
    return read


def check_model(model: HeterogeneousBTL) -> None:
    """Raises a ValueError where a model knows the utilities of items by distribution alone."""
    if model.utility.is_random:
        raise ValueError(
            "questions are chosen by utilities, which a person has for good, got a model with "
            f"utility={model.config['utility']!r}, in which they are drawn anew for each answer"
        )


def list_pairs(num_items: int, most: int | None = None, seed: int = 0) -> np.ndarray:
    """Lists the pairs of items by position, (Q, 2), or `most` of them at random, in order."""
    total = num_items * (num_items - 1) // 2
    if total == 0:
        raise ValueError(f"pool=None takes the pairs of items, got {num_items} items")
    if most is None or total <= most:
        return np.stack(np.triu_indices(num_items, 1), -1)
    rng = np.random.default_rng(seed)
    number = np.sort(rng.choice(total, most, replace=False, shuffle=False))
    # Pairs of right item j, all i < j, are numbered from j (j - 1) / 2.
    right = ((1 + np.sqrt(8.0 * number + 1)) / 2).astype(np.int64)
    right -= right * (right - 1) // 2 > number
    right += right * (right + 1) // 2 <= number
    return np.stack([number - right * (right - 1) // 2, right], -1)


def find_asked(
    context: Preferences, person: int, asked: Sequence | None, num_items: int
) -> list[tuple[int, ...]]:
    """Lists what a person has been asked already, each question as sorted positions of items.

    Args:
        context: The people's data, whose comparisons and rankings have been asked.
        person: Position of the person.
        asked: Further questions, each a sequence of names; None for none.
        num_items: Number of items of the questions that are looked for.
    """
    found = []
    own = slice(*context.offsets[person : person + 2])
    left, right, choice = (x[own] for x in (context.left, context.right, context.choice))
    judgements = context.judgements.select(np.arange(own.start, own.stop))
    if num_items == 2:
        alone = ~judgements.inside
        found = [*zip(left[alone].tolist(), right[alone].tolist(), strict=True)]
    else:
        slots, _ = judgements.list_slots(left, right, choice)
        ends = np.flatnonzero(np.diff(slots.ranking)) + 1
        found = [tuple(items.tolist()) for items in np.split(slots.item, ends)]
    for question in () if asked is None else list_questions("asked", asked):
        found.append(tuple(positions("asked", list(question), context.item_names).tolist()))
    return [tuple(sorted(items)) for items in found if len(items) == num_items]


def list_questions(argument: str, questions: Iterable) -> list:
    """Lists questions; raises a TypeError unless each is a sequence of names."""
    if isinstance(questions, str):
        raise TypeError(f"{argument} must be a sequence of questions, got the string {questions!r}")
    if not np.iterable(questions):
        raise TypeError(f"{argument} must be a sequence of questions, got {questions!r}")
    rows = list(questions)
    for row in rows:
        if isinstance(row, str) or not pd.api.types.is_list_like(row):
            raise TypeError(
                f"{argument} must hold questions, each a sequence of items, got {row!r}: "
                "itertools.combinations(items, 2) gives the pairs of some items"
            )
    return rows


def number_sets(items: np.ndarray, num_items: int) -> np.ndarray:
    """Numbers sets of items (Q, m), given in any order, so that equal sets have one number."""
    first, *others = np.sort(items, -1).T.astype(np.int64)
    for column in others:
        _, first = np.unique(first * num_items + column, return_inverse=True)
    return first


def _find_items(argument: str, pool: Sequence | np.ndarray, names: pd.Index) -> np.ndarray:
    """Finds the positions (Q, m) of the items of questions."""
    if isinstance(pool, pd.DataFrame):
        pool = pool.to_numpy(dtype=object).tolist()
    rows = list_questions(argument, pool)
    if not rows:
        raise ValueError(f"{argument} must have at least one question, got none")
    sizes = [len(row) for row in rows]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        raise ValueError(
            f"{argument} must have questions of one size, got {tuple(rows[0])} of {sizes[0]} items "
            f"and {tuple(rows[other])} of {sizes[other]}: ask for each size by itself"
        )
    if sizes[0] < 2:
        raise ValueError(f"{argument} must have questions of two items or more, got {rows[0]!r}")
    if isinstance(pool, np.ndarray):
        flat: Sequence[Hashable] | np.ndarray = pool.reshape(-1)
    else:
        flat = [item for row in rows for item in row]
    return positions(f"the items of {argument}", flat, names).numpy().reshape(-1, sizes[0])


def _check_distinct(argument: str, items: np.ndarray, names: pd.Index) -> None:
    """Raises a ValueError if an item stands twice in a question."""
    ordered = np.sort(items, -1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
    if repeated.any():
        row = int(repeated.argmax())
        question = tuple(names[items[row]].tolist())
        raise ValueError(f"{argument} must not repeat an item, got {question} at question {row}")
