r"""UltraFeedback: responses of language models to 64,000 prompts, rated for several objectives.

Every pair of responses to a prompt becomes a comparison for each objective: the response with the
higher rating is preferred, pairs with equal ratings are left out. A simulated person has one
objective and answers pairs of different prompts by it. *Conflicting* pairs, on which the objectives
disagree, are the only ones that tell people apart; the published study uses them alone, for
helpfulness against honesty (HH) and these two against truthfulness (HHT).

Two things differ from the published code. Training and test pairs are split by prompt: a split
of pairs at random puts responses of one prompt into both. And no target of a person is in that
person's context.

The data are published by OpenBMB under the MIT licence, as `openbmb/UltraFeedback`, with ratings
from 1 to 5 by GPT-4.

References:
    Cui et al. (2024), UltraFeedback: boosting language models with scaled AI feedback, ICML.
    Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998, section 5.2.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._records import read_records
from fssa_bayes.datasets._simulation import check_sizes

__all__ = [
    "HH",
    "HHT",
    "HUB_NAME",
    "OBJECTIVES",
    "Dropped",
    "ResponsePairs",
    "UltraFeedback",
    "Users",
    "read",
]

HUB_NAME = "openbmb/UltraFeedback"
"""Name of the data set on the Hugging Face hub."""

OBJECTIVES = ("helpfulness", "honesty", "truthfulness", "instruction_following")
"""What the responses are rated for."""

HH = ("helpfulness", "honesty")
"""Objectives of the published HH set."""

HHT = ("helpfulness", "honesty", "truthfulness")
"""Objectives of the published HHT set."""


@dataclass(frozen=True)
class Dropped:
    """Counts what reading left out.

    Attributes:
        not_numeric: Responses without a number as rating, by objective ("N/A", or none at all); a
            response counts once, for the first such objective.
        empty: Responses without text.
        single: Prompts with fewer than two responses left.
    """

    not_numeric: dict[str, int]
    empty: int
    single: int

    def __str__(self) -> str:
        ratings = ", ".join(f"{count:,} of {name}" for name, count in self.not_numeric.items())
        return (
            f"left out: {sum(self.not_numeric.values()):,} responses without a rating ({ratings}), "
            f"{self.empty:,} empty ones, {self.single:,} prompts with fewer than two responses"
        )


@dataclass(frozen=True, eq=False)
class UltraFeedback:
    """Holds prompts, and for each at least two responses with their ratings.

    Attributes:
        prompts: The prompts, each once.
        responses: M responses, those to a prompt lying together.
        prompt: Position in `prompts` of each response's prompt, with shape (M,).
        ratings: Ratings with shape (M, number of objectives).
        objectives: Names of the objectives.
        dropped: What was left out.
    """

    prompts: list[str]
    responses: list[str]
    prompt: np.ndarray
    ratings: np.ndarray
    objectives: tuple[str, ...]
    dropped: Dropped

    def __repr__(self) -> str:
        return f"UltraFeedback({len(self.prompts)} prompts, {len(self.responses)} responses)"

    def pairs(
        self, objectives: Sequence[str] = HH, *, conflict: float | None = 1.0, seed: int = 0
    ) -> ResponsePairs:
        """Makes all pairs of responses to a prompt on which every objective has a preference.

        Args:
            objectives: Two objectives or more, such as :data:`HH` or :data:`HHT`.
            conflict: Share of pairs on which the objectives disagree: 1, as published, keeps these
                alone; for another share as many pairs as possible are kept, at random; None keeps
                all.
            seed: Seed of the draws.

        Returns:
            The pairs, without ties of any objective and without pairs of equal texts.

        Raises:
            ValueError: If an objective was not read, `conflict` is no probability, or no pair is
                left.
        """
        names = [] if isinstance(objectives, str) else list(objectives)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"objectives must be two or more different names, got {objectives!r}")
        unknown = [name for name in names if name not in self.objectives]
        if unknown:
            raise ValueError(
                f"objectives must be among those read, {', '.join(self.objectives)}, got "
                f"{unknown[0]!r}"
            )
        columns = [self.objectives.index(name) for name in names]
        if conflict is not None and not 0 <= conflict <= 1:
            raise ValueError(f"conflict must lie between 0 and 1 or be None, got {conflict}")
        left, right = _all_pairs(self.prompt)
        gap = self.ratings[left][:, columns] - self.ratings[right][:, columns]
        decided = (gap != 0).all(1)
        same = [self.responses[a] == self.responses[b] for a, b in zip(left, right, strict=True)]
        decided &= ~np.array(same)
        chosen = (gap[decided] > 0).T
        divided = (chosen != chosen[0]).any(0)
        kept = _keep_share(divided, conflict, np.random.default_rng(seed))
        if not len(kept):
            raise ValueError(
                f"no pair is left: of {len(left)} pairs {decided.sum()} have no tie in "
                f"{', '.join(objectives)}, and on {divided.sum()} of these the objectives disagree "
                f"(conflict={conflict})"
            )
        left, right = left[decided][kept], right[decided][kept]
        items, position = np.unique(np.stack([left, right]), return_inverse=True)
        left, right = position.reshape(2, -1)
        return ResponsePairs(self, tuple(objectives), items, left, right, chosen[:, kept])


class Users(NamedTuple):
    """Holds the comparisons of simulated people and each one's objective, names (U,)."""

    data: Preferences
    objective: np.ndarray


@dataclass(frozen=True, eq=False)
class ResponsePairs:
    """Holds pairs of responses to one prompt each, and what every objective prefers.

    Attributes:
        source: The prompts and responses.
        objectives: Names of the objectives.
        items: Position in `source.responses` of each item, with shape (M,).
        left: Item of each pair, with shape (R,).
        right: The same for the other response.
        choice: True where the objective prefers left, with shape (objectives, R).
    """

    source: UltraFeedback
    objectives: tuple[str, ...]
    items: np.ndarray
    left: np.ndarray
    right: np.ndarray
    choice: np.ndarray

    def __len__(self) -> int:
        """Returns the number of pairs R."""
        return len(self.left)

    @property
    def item_prompt(self) -> np.ndarray:
        """Position in `source.prompts` of each item's prompt, with shape (M,)."""
        return self.source.prompt[self.items]

    @property
    def prompt(self) -> np.ndarray:
        """Position in `source.prompts` of each pair's prompt, with shape (R,)."""
        return self.item_prompt[self.left]

    @property
    def conflicting(self) -> np.ndarray:
        """Whether the objectives disagree, with shape (R,)."""
        return (self.choice != self.choice[0]).any(0)

    @property
    def conflict_fraction(self) -> float:
        """Share of pairs on which the objectives disagree."""
        return float(self.conflicting.mean())

    def summary(self) -> str:
        """Counts prompts, items, pairs and conflicts in a line."""
        return (
            f"{len(np.unique(self.prompt)):,} prompts, {len(self.items):,} responses, "
            f"{len(self):,} pairs, {100 * self.conflict_fraction:.1f} % conflicting "
            f"({' / '.join(self.objectives)})"
        )

    def texts(self, template: str = "Human: {prompt}\n\nAssistant: {response}") -> list[str]:
        """Writes each item as one text for an embedder, in the order of `items`.

        Where texts are cut, `tokenizer.truncation_side = "left"` keeps the responses.
        """
        if "{prompt}" not in template or "{response}" not in template:
            raise ValueError(f"template must hold {{prompt}} and {{response}}, got {template!r}")
        return [
            template.format(
                prompt=self.source.prompts[self.source.prompt[item]],
                response=self.source.responses[item],
            )
            for item in self.items
        ]

    def split_prompts(
        self, test_size: float = 0.2, *, seed: int = 0
    ) -> tuple[ResponsePairs, ResponsePairs]:
        """Splits prompts at random into training and test prompts, and the pairs with them.

        Both keep the items of the whole, so that one table of features serves both.

        Raises:
            ValueError: If `test_size` is not in (0, 1) or there are fewer than two prompts.
        """
        if not 0 < test_size < 1:
            raise ValueError(f"test_size must lie between 0 and 1, got {test_size}")
        prompts = np.unique(self.prompt)
        if len(prompts) < 2:
            raise ValueError(f"split_prompts needs at least 2 prompts, got {len(prompts)}")
        size = min(max(round(test_size * len(prompts)), 1), len(prompts) - 1)
        held_out = np.random.default_rng(seed).permutation(prompts)[:size]
        test = np.isin(self.prompt, held_out)
        return self._subset(~test), self._subset(test)

    def _subset(self, rows: np.ndarray) -> ResponsePairs:
        return dataclasses.replace(
            self, left=self.left[rows], right=self.right[rows], choice=self.choice[:, rows]
        )

    def users(
        self,
        features: np.ndarray | Tensor,
        num_users: int,
        num_comparisons: int,
        *,
        objectives: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Users:
        """Simulates people, each with one objective, who answer pairs of different prompts.

        Args:
            features: Features of the items, with shape (M, D), such as embeddings of
                :meth:`texts`.
            num_users: Number of people U, an equal number for each objective.
            num_comparisons: Number of comparisons of each person, no two of one prompt, so that
                no prompt of a person's context is among that person's targets.
            objectives: Whose people; all if None.
            seed: Seed of the draws.

        Returns:
            The comparisons, whose items are those of this object, and everybody's objective.

        Raises:
            ValueError: If features have another number of rows, a size is below 1, there are
                fewer prompts than comparisons, or an objective is not among those of the pairs.
        """
        objectives = self.objectives if objectives is None else tuple(objectives)
        self._check_users(features, num_users, num_comparisons, objectives)
        rng = np.random.default_rng(seed)
        objective = rng.permutation(np.resize(np.arange(len(objectives)), num_users))
        prompt = self.prompt
        pair = np.concatenate(
            [_different_prompts(prompt, num_comparisons, rng) for _ in range(num_users)]
        )
        row = np.array([self.objectives.index(name) for name in objectives])[objective]
        data = Preferences(
            self.left[pair],
            self.right[pair],
            self.choice[np.repeat(row, num_comparisons), pair],
            np.arange(num_users + 1) * num_comparisons,
            items=features,
        )
        return Users(data, np.array(objectives)[objective])

    def _check_users(
        self,
        features: np.ndarray | Tensor,
        num_users: int,
        num_comparisons: int,
        objectives: tuple[str, ...],
    ) -> None:
        if features.ndim != 2 or len(features) != len(self.items):
            raise ValueError(
                f"features must have one row for each of the {len(self.items)} items, got shape "
                f"{tuple(features.shape)}"
            )
        check_sizes(num_users, num_comparisons)
        num_prompts = len(np.unique(self.prompt))
        if num_comparisons > num_prompts:
            raise ValueError(
                f"num_comparisons must be at most the number of prompts, {num_prompts}, got "
                f"{num_comparisons}"
            )
        unknown = [name for name in objectives if name not in self.objectives]
        if unknown or not objectives:
            raise ValueError(f"objectives must be among {self.objectives}, got {objectives}")
        if len(set(objectives)) < len(objectives):
            raise ValueError(f"objectives must be different names, got {objectives}")

    def records(
        self, users: Users | Preferences, *, conversational: bool = False
    ) -> list[dict[str, Any]]:
        """Lists comparisons as rows of prompt, chosen, rejected and user, as TRL reads them.

        Args:
            users: What :meth:`users` returned, or a part of its data such as contexts.
            conversational: Whether texts become lists of messages, for a chat template.
        """
        data = users.data if isinstance(users, Users) else users
        if data.num_items != len(self.items):
            raise ValueError(
                f"users must be made by these pairs, of {len(self.items)} items, got people who "
                f"compare {data.num_items}"
            )
        left_won = data.choice > 0.5
        chosen = self.items[np.where(left_won, data.left, data.right)]
        rejected = self.items[np.where(left_won, data.right, data.left)]
        names = data.user_names[data.person]
        wrap = _message if conversational else (lambda _, text: text)
        return [
            {
                "prompt": wrap("user", self.source.prompts[self.source.prompt[winner]]),
                "chosen": wrap("assistant", self.source.responses[winner]),
                "rejected": wrap("assistant", self.source.responses[loser]),
                "user": name,
            }
            for winner, loser, name in zip(chosen, rejected, names.tolist(), strict=True)
        ]


def read(source: str | os.PathLike = HUB_NAME, *, objectives: Sequence[str] = HHT) -> UltraFeedback:
    """Reads prompts, responses and ratings.

    A response counts if it has a number as rating for every objective. (The published code asks
    for all four of :data:`OBJECTIVES`.) Records of the same prompt are one prompt.

    Args:
        source: A .jsonl (or .jsonl.gz) or .parquet file, a folder of such files, or the name of a
            data set on the hub, for which the package `datasets` is needed.
        objectives: Objectives to read, of those rated.

    Raises:
        FileNotFoundError: If a path is given and nothing is there.
        ImportError: If the hub is asked and `datasets` is not installed, or the file is parquet
            and pyarrow is not.
        OSError: If the hub cannot be reached.
        ValueError: If a record has another structure, an objective is rated nowhere, or no prompt
            has two responses.
    """
    objectives = tuple(objectives) if not isinstance(objectives, str) else (objectives,)
    if not objectives or len(set(objectives)) < len(objectives):
        raise ValueError(f"objectives must be different names, at least one, got {objectives}")
    found: dict[str, list[tuple[str, list[float]]]] = {}
    tally = _Tally(objectives)
    for where, record in read_records(
        source, columns=("instruction", "completions"), hub_name=HUB_NAME
    ):
        prompt, completions = _fields(where, record)
        rated = found.setdefault(prompt, [])
        rated.extend(filter(None, (tally.take(where, entry) for entry in completions)))
    tally.check(source)
    kept = {prompt: rated for prompt, rated in found.items() if len(rated) > 1}
    if not kept:
        raise ValueError(
            f"source must have a prompt with two rated responses, {str(source)!r} has none: of "
            f"{len(found)} prompts; {tally.dropped(len(found))}"
        )
    return UltraFeedback(
        prompts=list(kept),
        responses=[response for rated in kept.values() for response, _ in rated],
        prompt=np.repeat(np.arange(len(kept)), [len(rated) for rated in kept.values()]),
        ratings=np.array([ratings for rated in kept.values() for _, ratings in rated]),
        objectives=objectives,
        dropped=tally.dropped(len(found) - len(kept)),
    )


class _Tally:
    """Reads responses and ratings of completions and counts what cannot be used."""

    def __init__(self, objectives: tuple[str, ...]) -> None:
        self.objectives = objectives
        self.seen: set[str] = set()
        self.not_numeric: Counter[str] = Counter()
        self.empty = 0

    def take(self, where: str, completion: Any) -> tuple[str, list[float]] | None:
        """Returns a response and its ratings, or None if it is to be left out."""
        if not isinstance(completion, Mapping) or not isinstance(completion.get("response"), str):
            raise ValueError(f"every completion must have a 'response' of text, {where} has not")
        annotations = _mapping(where, "annotations", completion.get("annotations"))
        self.seen.update(name for name, entry in annotations.items() if entry is not None)
        ratings = []
        for name in self.objectives:
            entry = _mapping(where, f"annotations.{name}", annotations.get(name))
            rating = _number(entry.get("Rating"))
            if rating is None:
                self.not_numeric[name] += 1
                return None
            ratings.append(rating)
        if not completion["response"].strip():
            self.empty += 1
            return None
        return completion["response"], ratings

    def check(self, source: str | os.PathLike) -> None:
        """Refuses a source in which an objective is rated nowhere."""
        missing = [name for name in self.objectives if name not in self.seen]
        if missing:
            raise ValueError(
                f"source {str(source)!r} has no scores of {', '.join(missing)} "
                f"(completions[].annotations.{missing[0]}.Rating); it has "
                f"{', '.join(sorted(self.seen)) or 'none'}"
            )

    def dropped(self, single: int) -> Dropped:
        counts = {name: self.not_numeric[name] for name in self.objectives}
        return Dropped(counts, self.empty, single)


def _mapping(where: str, name: str, value: Any) -> Mapping:
    """Returns a part of a completion, empty where there is none, or refuses another structure."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        rule = "an object with one entry an objective"
        if "." in name:
            rule = "an object with a 'Rating'"
        raise ValueError(
            f"completions[].{name} must be {rule}, got {type(value).__name__} in {where}"
        )
    return value


def _number(rating: Any) -> float | None:
    try:
        value = float(rating)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _fields(where: str, record: Any) -> tuple[str, Sequence]:
    for name, kind in (("instruction", str), ("completions", Sequence | np.ndarray)):
        if not isinstance(record, Mapping) or name not in record:
            has = list(record) if isinstance(record, Mapping) else type(record).__name__
            raise ValueError(f"every record must have {name!r}, {where} has {has}")
        if not isinstance(record[name], kind) or (
            name == "completions" and isinstance(record[name], str)
        ):
            raise ValueError(
                f"{name!r} must be {'text' if kind is str else 'a list'}, got "
                f"{type(record[name]).__name__} in {where}"
            )
    return record["instruction"], record["completions"]


def _all_pairs(prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists all pairs of responses of the same prompt, which lie together."""
    starts = np.flatnonzero(np.diff(prompt, prepend=-1))
    ends = np.append(starts[1:], len(prompt))
    pairs: Iterable = (
        pair
        for start, end in zip(starts, ends, strict=True)
        for pair in combinations(range(start, end), 2)
    )
    left, right = np.array(list(pairs)).T
    return left, right


def _keep_share(divided: np.ndarray, share: float | None, rng: np.random.Generator) -> np.ndarray:
    """Chooses, in order, as many pairs as possible of which the given share is divided."""
    if share is None:
        return np.arange(len(divided))
    pools = [rng.permutation(np.flatnonzero(divided == kind)) for kind in (True, False)]
    shares = (share, 1 - share)
    total = min(len(pool) / part for pool, part in zip(pools, shares, strict=True) if part > 0)
    sizes = [int(total * part + 1e-9) for part in shares]
    return np.sort(np.concatenate([pool[:n] for pool, n in zip(pools, sizes, strict=True)]))


def _different_prompts(prompt: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draws pairs one after the other, none of a prompt that was drawn before."""
    pair = rng.integers(len(prompt), size=2 * number + 20)
    _, first = np.unique(prompt[pair], return_index=True)
    if len(first) < number:  # So few prompts that a random order of all pairs is needed.
        pair = rng.permutation(len(prompt))
        _, first = np.unique(prompt[pair], return_index=True)
    return pair[np.sort(first)[:number]]


def _message(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]
