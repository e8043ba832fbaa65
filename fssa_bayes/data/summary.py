"""What a set of comparisons holds, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fssa_bayes.data.comparisons import Comparisons
from fssa_bayes.data.graph import describe_separation, find_components
from fssa_bayes.data.keys import combine_keys, count_repeated

__all__ = ["Summary", "count_repetitions", "count_sides", "find_recurrence", "summarise"]

# Rows about items, which have others in their place where items are alternatives of one situation.
_OF_ITEMS = ("people", "items", "features of an item", "comparisons", "choice sets")
_OF_ITEMS += ("per person", "judgements", "rankings", "connected components", "half wins")
_OF_ITEMS += ("ties kept", "ties dropped", "repeated answers", "contradicted pairs")


@dataclass(frozen=True)
class Summary:
    """Describes a set of comparisons; `print` it.

    Attributes:
        users: Number of people.
        items: Number of items in the table.
        features: Number of features of an item, or None where items have none.
        comparisons: Number of comparisons, those that make up rankings included.
        per_user: Smallest, median and largest number of judgements of a person.
        half_wins: Comparisons with choice ½ that count as half a win each.
        dropped_ties: Ties that `ties="drop"` removed.
        duplicates: Comparisons of a pair that the same person had answered before, the same way.
        identical: Those among them whose items stood on the same sides, too, of the same advantage:
            the rows that reading warns of.
        contradictions: Pairs that one person answered in different ways.
        unused_items: Items that nobody compared.
        component_sizes: Sizes of the connected components of the comparison graph, largest first,
            unused items left out.
        ties: Comparisons with choice ½ that are ties proper, kept by `ties="keep"`.
        rankings: Rankings of three items or more, of which more than the best item is known.
        stages: Their stages: choices of the best among the items left.
        open_pairs: Pairs of items below the ranked ones, that a ranking says nothing about.
        choice_sets: Choices of one item from a set of three or more.
        alternatives: Smallest and largest number of items in such a set.
        broken: Rankings that were broken into pairs, and their stages.
        sides: Comparisons whose places are an advantage for left, for neither and for right, and
            those of which it is not known; None where they are for left everywhere.
        reference_levels: Column and reference level of categorical features and covariates.
        separated: Which items, by name, won or lost in a way that leaves them no finite utility,
            for items without features; `""` for none.
        people_are_named: Whether the data say who answered; else each comparison or ranking
            counts as one of `users`.
        lone_comparisons: Comparisons that are no rows of rankings or choice sets.
        items_recur: Whether some item is in two judgements; else every item is of one situation.
        alternative_names: Number of distinct names of alternatives, where every alternative on
            offer is an item of its own; 0 elsewhere.
    """

    users: int
    items: int
    features: int | None
    comparisons: int
    per_user: tuple[int, float, int]
    half_wins: int
    dropped_ties: int
    duplicates: int
    contradictions: int
    unused_items: int
    component_sizes: tuple[int, ...]
    ties: int = 0
    rankings: int = 0
    stages: int = 0
    open_pairs: int = 0
    choice_sets: int = 0
    alternatives: tuple[int, int] = (0, 0)
    broken: tuple[int, int] = (0, 0)
    sides: tuple[int, int, int, int] | None = None
    reference_levels: tuple[tuple[str, str], ...] = ()
    separated: str = ""
    people_are_named: bool = True
    lone_comparisons: int = 0
    items_recur: bool = True
    identical: int = 0
    alternative_names: int = 0

    def __str__(self) -> str:
        return "\n".join(f"{name:<22}{value}" for name, value in self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Lists what was counted, and the number in words."""
        low, median, high = self.per_user
        sizes = ", ".join(map(str, self.component_sizes[:5]))
        sizes += ", …" if len(self.component_sizes) > 5 else ""
        rows = [
            ("people", f"{self.users:,}" if self.people_are_named else "not named"),
            ("items", f"{self.items:,} ({self.unused_items:,} never compared)"),
            ("features of an item", "none" if self.features is None else f"{self.features:,}"),
            ("comparisons", f"{self.lone_comparisons:,}"),
            ("per person", f"{low:,} to {high:,}, median {median:g}"),
        ]
        if not self.people_are_named:  # Then each judgement is of a person of its own.
            rows[4] = ("judgements", f"{self.users:,}, taken for independent")
        if self.rankings:
            pairs = f"{self.stages:,} stages; {self.open_pairs:,} pairs left open"
            rows.insert(4, ("rankings", f"{self.rankings:,} ({pairs})"))
        if self.choice_sets:
            low, high = self.alternatives
            of = f"{low:,} alternatives" if low == high else f"{low:,} to {high:,} alternatives"
            rows.insert(4, ("choice sets", f"{self.choice_sets:,} of {of}"))
        if self.broken[0]:
            what = f"{self.broken[0]:,} of {self.broken[1]:,} stages, scored as if independent"
            rows.insert(4, ("rankings in pairs", what))
        if self.lone_comparisons or self.dropped_ties:
            repeated = f"{self.duplicates:,}"
            if self.duplicates:
                repeated += f" ({self.identical:,} with the items on the same sides)"
            rows += [
                ("half wins", f"{self.half_wins:,}"),
                ("ties kept", f"{self.ties:,}"),
                ("ties dropped", f"{self.dropped_ties:,}"),
                ("repeated answers", repeated),
                ("contradicted pairs", f"{self.contradictions:,}"),
            ]
        if not self.lone_comparisons and (self.rankings or self.choice_sets):
            rows = [row for row in rows if row[0] != "comparisons"]
        components = f"{len(self.component_sizes):,} (sizes {sizes or 'none'})"
        if not self.items_recur and len(self.component_sizes) > 1:
            components = "none larger than a judgement: every item is in one alone"
        rows.append(("connected components", components))
        if self.sides is not None:
            where = ("left", "neither", "right", "not known")
            shown = [f"{n:,} {place}" for n, place in zip(self.sides, where, strict=True) if n]
            rows.append(("place of advantage", ", ".join(shown)))
        if self.reference_levels:
            shown = ", ".join(f"{column}: {level}" for column, level in self.reference_levels)
            rows.append(("reference levels", shown))
        if self.separated:
            rows.append(("no finite utility", self.separated))
        if self.alternative_names:
            return [*self._rows_of_situations(), *(row for row in rows if row[0] not in _OF_ITEMS)]
        return rows

    def _rows_of_situations(self) -> list[tuple[str, str]]:
        """Describes situations whose alternatives are items of their own, in the words of choices.

        The connected components are the situations.
        """
        low, median, high = self.per_user
        sizes = self.component_sizes or (0,)
        of = f"{sizes[-1]:,}" if sizes[-1] == sizes[0] else f"{sizes[-1]:,} to {sizes[0]:,}"
        rows = [
            ("people", f"{self.users:,}" if self.people_are_named else "not named"),
            ("choice situations", f"{len(self.component_sizes):,}"),
            ("alternatives", f"{of} a situation; {self.alternative_names:,} distinct names"),
            ("attributes", f"{self.features or 0:,} of an alternative"),
        ]
        if self.people_are_named:
            rows.append(("choices a person", f"{low:,} to {high:,}, median {median:g}"))
        return rows


def summarise(data: Comparisons) -> Summary:
    """Counts people, items, comparisons, ties, repetitions, contradictions and components."""
    labels = find_components(data)
    duplicates, contradictions = count_repetitions(data)
    counts = data.judgement_counts
    half_wins = int(data.half_wins.sum())
    return Summary(
        users=len(data),
        items=data.num_items,
        features=None if data.items is None else data.num_features,
        comparisons=data.num_comparisons,
        per_user=(int(counts.min()), float(np.median(counts)), int(counts.max())),
        half_wins=0 if data.ties == "keep" else half_wins,
        dropped_ties=data.dropped_ties,
        duplicates=duplicates,
        contradictions=contradictions,
        unused_items=int((labels < 0).sum()),
        component_sizes=tuple(int(size) for size in np.bincount(labels[labels >= 0])),
        ties=half_wins if data.ties == "keep" else 0,
        **count_rankings(data),
        broken=data.broken,
        sides=None if data.side is None else count_sides(data.side),
        reference_levels=tuple(
            (str(column), str(levels[0]))
            for column, levels in [*data.feature_levels.items(), *data.covariate_levels.items()]
        ),
        separated=describe_separation(data) if data.items is None else "",
        people_are_named=data.people_are_named,
        lone_comparisons=int((~data.judgements.inside).sum()),
        items_recur=find_recurrence(data),
        identical=count_identical(data),
        alternative_names=count_alternatives(data, labels),
    )


def count_alternatives(data: Comparisons, labels: np.ndarray) -> int:
    """Counts names of alternatives on offer, where each is an item of its own; else 0.

    Args:
        data: The comparisons.
        labels: Component of each item, −1 of what was not on offer, (M,).
    """
    if data.alternatives is None:
        return 0
    return len(np.unique(data.alternatives.codes[labels >= 0]))


def find_recurrence(data: Comparisons) -> bool:
    """Tells whether some item is in two judgements."""
    number = data.judgements.spread(np.arange(data.num_judgements))
    of = np.full(data.num_items, -1, dtype=np.int64)
    for side in (data.left, data.right):
        of[side] = number
    return any((of[side] != number).any() for side in (data.left, data.right))


def count_sides(side: np.ndarray) -> tuple[int, int, int, int]:
    """Counts comparisons whose place is an advantage for left, neither, right, or not known."""
    left, neither, right = (int((side == value).sum()) for value in (1, 0, -1))
    return left, neither, right, len(side) - left - neither - right


def count_rankings(data: Comparisons) -> dict[str, int | tuple[int, int]]:
    """Counts rankings, their stages and open pairs, and choice sets with their sizes."""
    slots, own = data.judgements.list_slots(data.left, data.right, data.choice)
    if not len(own):
        return {}
    size = np.bincount(slots.ranking)
    last = slots.last
    # A set of three or more, of which one is chosen, leaves two or more in the last place.
    is_choice = (last == 2) & (size > 2)
    unranked = (size - last + 1)[~is_choice]
    sizes = size[is_choice]
    return {
        "rankings": int((~is_choice).sum()),
        "stages": int((last - 1)[~is_choice].sum()),
        "open_pairs": int((unranked * (unranked - 1) // 2).sum()),
        "choice_sets": len(sizes),
        "alternatives": (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0),
    }


def count_repetitions(data: Comparisons) -> tuple[int, int]:
    """Counts answers repeated by one person and pairs that one person answered differently.

    Comparisons that stand alone are counted, and not the pairs of rankings.
    """
    answered = ~data.judgements.inside
    columns = (data.left, data.right, data.choice, data.person)
    left, right, choice, person = (column[answered] for column in columns)
    low, high = np.minimum(left, right), np.maximum(left, right)
    low_wins = (2 * np.where(left == low, choice, 1 - choice)).astype(np.int64)
    sizes = len(data), data.num_items, data.num_items, 3
    key = np.sort(combine_keys([person, low, high, low_wins], sizes)[0])
    same_pair, same_answer = np.diff(key // 3) == 0, np.diff(key) == 0
    pair = np.concatenate([[0], np.cumsum(~same_pair)])
    contradicted = np.diff(pair[1:][same_pair & ~same_answer], prepend=-1) != 0
    return int((same_pair & same_answer).sum()), int(contradicted.sum())


def count_identical(data: Comparisons) -> int:
    """Counts comparisons with the person, sides, answer and advantage of an earlier one."""
    answered = ~data.judgements.inside
    side = np.zeros(data.num_comparisons) if data.side is None else np.nan_to_num(data.side, nan=2)
    answer = (2 * data.choice + 3 * (side + 1)).astype(np.int64)
    columns = (column[answered] for column in (data.person, data.left, data.right, answer))
    sizes = len(data), data.num_items, data.num_items, 12
    return count_repeated(combine_keys(list(columns), sizes)[0])
