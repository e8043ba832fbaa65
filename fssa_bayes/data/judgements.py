"""Which comparisons belong together: judgements, each a ranking or a comparison that stands alone.

Data ask this module alone whether they have rankings. :class:`Judgements` answers for data without
any, from the number of comparisons alone; :class:`RankedJudgements` answers for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fssa_bayes.data.ragged import list_ranges, number_runs, offsets_of
from fssa_bayes.data.rankings import Slots, check_rankings, list_slots

__all__ = ["Judgements", "RankedJudgements", "find_judgements"]


def find_judgements(
    left: np.ndarray,
    right: np.ndarray,
    choice: np.ndarray,
    ranking: np.ndarray | None,
    person: np.ndarray,
) -> Judgements:
    """Finds the judgements of data, of which `ranking` says what rankings there are.

    Args:
        left: Position of each comparison's left item, with shape (R,).
        right: The same for the right item.
        choice: The outcome of each row, (R,).
        ranking: Equal numbers for the rows of a ranking, (R,); None for no rankings.
        person: Position of the person, non-decreasing, (R,).

    Raises:
        ValueError: If rows of one number are not those of a ranking.
    """
    if ranking is not None:
        number = check_rankings(left, right, choice, ranking, person)
        if np.bincount(number).max(initial=0) > 1:
            return RankedJudgements(len(left), number)
    return Judgements(len(left))


@dataclass(frozen=True, eq=False)
class Judgements:
    """Describes the judgements of data in which every comparison stands alone.

    Attributes:
        num_comparisons: Number of comparisons R.
    """

    num_comparisons: int

    @property
    def ranking(self) -> np.ndarray | None:
        """Number of each comparison's judgement, with shape (R,); None without rankings."""
        return None

    @property
    def noun(self) -> str:
        """What messages call a judgement, in the plural."""
        return "comparisons"

    @property
    def heads(self) -> np.ndarray:
        """Number of the first comparison of each of J judgements, with shape (J,)."""
        return np.arange(self.num_comparisons)

    @property
    def inside(self) -> np.ndarray:
        """Whether a comparison is one of several of a ranking, with shape (R,)."""
        return np.zeros(self.num_comparisons, dtype=bool)

    @property
    def has_rankings(self) -> bool:
        """Whether some comparisons make up a ranking."""
        return False

    @property
    def num_rankings(self) -> int:
        """Number of rankings of three items or more."""
        return 0

    def list_slots(
        self, left: np.ndarray, right: np.ndarray, choice: np.ndarray
    ) -> tuple[Slots, np.ndarray]:
        """Lists the items of the rankings, and the number of each ranking's judgement, (G,)."""
        return list_slots(*(x[:0] for x in (left, right, choice, self._none))), self._none

    @property
    def _none(self) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def count_before(self, comparison: np.ndarray) -> np.ndarray:
        """Counts the judgements that begin before comparisons given by number."""
        return comparison

    def head_of(self, comparison: np.ndarray) -> np.ndarray:
        """Returns the first comparison of the judgement that each comparison belongs to."""
        return comparison

    def begins(self, comparison: np.ndarray) -> np.ndarray | None:
        """Tells which comparisons begin a judgement; None where all of them do."""
        return None

    def select(self, comparison: np.ndarray) -> Judgements:
        """Describes the judgements of comparisons (Q,) given by number, each judgement whole."""
        return Judgements(len(comparison))

    def expand(self, judgement: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists the comparisons of judgements given by number, those of a person end to end.

        Args:
            judgement: Number of each of Q judgements, person by person, with shape (Q,).
            counts: Number of judgements of each person, with shape (U,).

        Returns:
            Numbers of the comparisons, and how many each person has, with shape (U,).
        """
        return judgement, counts

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Repeats a value of each judgement (J,) for all its comparisons, with shape (R,)."""
        return values

    def check(
        self, left: np.ndarray, right: np.ndarray, choice: np.ndarray, person: np.ndarray
    ) -> None:
        """Refuses choices that make no rankings of what are rankings here."""


@dataclass(frozen=True, eq=False)
class RankedJudgements(Judgements):
    """Describes the judgements of data with rankings.

    Attributes:
        num_comparisons: Number of comparisons R.
        number: Number of each comparison's judgement, from 0 up in order, with shape (R,).
    """

    number: np.ndarray

    @property
    def ranking(self) -> np.ndarray:
        return self.number

    @property
    def noun(self) -> str:
        return "judgements"

    @cached_property
    def heads(self) -> np.ndarray:
        return np.flatnonzero(self._begins)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.append(self.heads, self.num_comparisons)

    @cached_property
    def _begins(self) -> np.ndarray:
        return np.diff(self.number, prepend=-1) != 0

    @cached_property
    def inside(self) -> np.ndarray:
        return np.bincount(self.number, minlength=1)[self.number] > 1

    @property
    def has_rankings(self) -> bool:
        return bool(self.inside.any())

    @property
    def num_rankings(self) -> int:
        return int((np.diff(self._starts) > 1).sum())

    def list_slots(
        self, left: np.ndarray, right: np.ndarray, choice: np.ndarray
    ) -> tuple[Slots, np.ndarray]:
        own, number = number_runs(self.number[self.inside])
        return list_slots(*(x[self.inside] for x in (left, right, choice)), number), own

    def count_before(self, comparison: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.heads, comparison)

    def head_of(self, comparison: np.ndarray) -> np.ndarray:
        return self.heads[np.searchsorted(self.heads, comparison, side="right") - 1]

    def begins(self, comparison: np.ndarray) -> np.ndarray:
        return self._begins[comparison]

    def select(self, comparison: np.ndarray) -> RankedJudgements:
        # Where a ranking begins counts, not its number: a person may have one ranking twice.
        return RankedJudgements(len(comparison), np.cumsum(self.begins(comparison)) - 1)

    def expand(self, judgement: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = self._starts[judgement]
        size = self._starts[judgement + 1] - start
        rows = list_ranges(start, size)
        return rows, np.diff(offsets_of(size)[offsets_of(counts)])

    def spread(self, values: np.ndarray) -> np.ndarray:
        return values[self.number]

    def check(
        self, left: np.ndarray, right: np.ndarray, choice: np.ndarray, person: np.ndarray
    ) -> None:
        check_rankings(left, right, choice, self.number, person)
