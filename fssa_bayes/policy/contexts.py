"""Contexts of preference rows: other choices of the same person, on other prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fssa_bayes.data import Batch, Preferences, check_unweighted, first_names
from fssa_bayes.policy.checks import check_positions
from fssa_bayes.policy.conversations import plain_content, plain_text
from fssa_bayes.policy.rows import PreferenceRows
from fssa_bayes.policy.tokens import TokenisedPairs

__all__ = ["Contexts", "PairsInContext"]

_SHOWN = 60  # Characters of a prompt in an error.


class Contexts:
    """Draws contexts: some of a person's other rows, never one that shares the target's prompt.

    Args:
        rows: The rows targets and contexts come from.
        preferences: `rows.to_preferences(…)`, for the features, in the order of those of the model
            whose guide reads the contexts (`.for_model(model)`).
        max_context: Largest size of a context; sizes are uniform from `min_context` to it, or to
            the number of a person's rows with other prompts where that is smaller.
        min_context: Smallest size of a context. A policy learns the meaning of z from contexts that
            identify z; after few choices most draws of z are far from the person's own.
        seed: Seed of sizes and draws.

    Raises:
        ValueError: If `preferences` do not belong to `rows`, or the sizes are not in order.
    """

    def __init__(
        self,
        rows: PreferenceRows,
        preferences: Preferences,
        *,
        max_context: int = 10,
        min_context: int = 0,
        seed: int = 0,
    ) -> None:
        check_unweighted(preferences, "training of a policy")
        counts = np.bincount(rows.user)
        if not (
            np.array_equal(preferences.counts, counts)
            and preferences.user_names.equals(rows.user_names)
        ):
            raise ValueError(
                f"preferences must be made by rows.to_preferences, got {preferences} for {rows}"
            )
        _check_same_choices(rows, preferences)
        if max_context < 0:
            raise ValueError(f"max_context must be at least 0, got {max_context}")
        if not 0 <= min_context <= max_context:
            raise ValueError(
                f"min_context must lie between 0 and max_context={max_context}, got {min_context}"
            )
        self.rows, self.preferences = rows, preferences
        self.max_context, self.min_context, self.seed = max_context, min_context, seed
        self._order = np.argsort(rows.user, kind="stable")  # Comparison -> row.
        self._comparison = np.argsort(self._order, kind="stable")  # Row -> comparison.

    def available(self, row: int) -> np.ndarray:
        """Lists the rows of the person of `row` that have another prompt than it."""
        rows, offsets = self.rows, self.preferences.offsets
        person = rows.user[row]
        own = self._order[offsets[person] : offsets[person + 1]]
        return own[rows.prompt[own] != rows.prompt[row]]

    def draw(self, row: int, step: int = 0, num_context: int | None = None) -> np.ndarray:
        """Draws the context of a target as a function of (seed, step, row) alone.

        Args:
            row: The target.
            step: Number of the draw, for example the training step.
            num_context: Size of the context, None for a random one.

        Returns:
            Positions of rows. Those of a smaller `num_context` are the first of a larger one's.

        Raises:
            ValueError: If the person has fewer than `num_context` rows with other prompts, or it
                is negative.
        """
        available = self.available(row)
        rng = np.random.default_rng([self.seed, step, row])
        largest = min(self.max_context, len(available))
        size = int(rng.integers(min(self.min_context, largest), largest + 1))
        if num_context is not None:
            if num_context < 0:
                raise ValueError(f"num_context must be at least 0, got {num_context}")
            if num_context > len(available):
                raise ValueError(
                    f"num_context={num_context} is more than the {len(available)} other rows of "
                    f"user {first_names(self.rows.users[[row]])} with other prompts than row {row}"
                )
            size = num_context
        return rng.permutation(available)[:size]

    def batch(
        self, rows: Sequence[int] | np.ndarray, step: int = 0, num_context: int | None = None
    ) -> Batch:
        """Draws a context for each of U targets, as `guide.posterior` takes them."""
        rows = check_positions("rows", np.asarray(rows), len(self.rows))
        return self.gather([self.draw(int(row), step, num_context) for row in rows], rows)

    def gather(self, contexts: Sequence[np.ndarray], rows: np.ndarray) -> Batch:
        """Pads U contexts, each given by positions of rows, into one batch.

        Args:
            contexts: Rows of each context.
            rows: The U targets, for the covariates and names of their people.
        """
        data, people = self.preferences, self.rows.user[rows]
        sizes = np.array([len(context) for context in contexts], dtype=np.int64)
        mask = np.arange(sizes.max(initial=0)) < sizes[:, None]
        seen = self._comparison[np.concatenate([*contexts, np.zeros(0, np.int64)]).astype(np.int64)]
        pairs = np.stack([data.left[seen], data.right[seen]])
        used, position = np.unique(pairs, return_inverse=True)
        left, right = np.zeros((2, *mask.shape), dtype=np.int64)
        choice = np.zeros(mask.shape, dtype=np.float32)
        left[mask], right[mask] = position.reshape(pairs.shape)
        choice[mask] = data.choice[seen]
        side = None if data.side is None else np.zeros(mask.shape, dtype=np.float32)
        if side is not None:
            side[mask] = data.side[seen]
        used = torch.from_numpy(used.astype(np.int64))
        return Batch(
            items=used if data.items is None else data.items[used],
            left=torch.from_numpy(left),
            right=torch.from_numpy(right),
            choice=torch.from_numpy(choice),
            mask=torch.from_numpy(mask),
            covariates=None if data.covariates is None else data.covariates[people],
            people=people,
            side=None if side is None else torch.from_numpy(side),
        )


@dataclass(frozen=True)
class PairsInContext:
    """Holds pairs and the contexts of their rows.

    Attributes:
        pairs: The pairs.
        contexts: Contexts of `pairs.rows`.
        name: Name of the pairs in messages.
        context_name: Name of the contexts in messages.

    Raises:
        ValueError: If the contexts are of other rows.
    """

    pairs: TokenisedPairs
    contexts: Contexts
    name: str
    context_name: str

    def __post_init__(self) -> None:
        if self.contexts is None or self.contexts.rows is not self.pairs.rows:
            raise ValueError(f"{self.context_name} must be of the rows of {self.name}, got others")

    def describe(self, pair: int) -> str:
        """Names the row of a pair."""
        row, rows = int(self.pairs.row[pair]), self.pairs.rows
        prompt = rows.prompts[row]
        text = prompt if isinstance(prompt, str) else plain_content(prompt[-1])
        text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        return f"row {row} of {self.name} (user {first_names(rows.users[[row]])}, prompt {text!r})"

    def digest(self) -> str:
        """Returns a SHA-256 of tokens and contexts."""
        digest = hashlib.sha256(self.pairs.digest().encode())
        digest.update(self.contexts.preferences.digest().encode())
        return digest.hexdigest()


def _check_same_choices(rows: PreferenceRows, preferences: Preferences) -> None:
    """Refuses comparisons in another order than the rows, which would be contexts of other rows."""
    items = rows.item_texts()
    if list(preferences.item_names) != items:
        raise ValueError(
            "preferences must be made by rows.to_preferences, got items other than the rows' "
            "texts in their order"
        )
    place = {text: number for number, text in enumerate(items)}
    order = np.argsort(rows.user, kind="stable")
    chosen, rejected = (
        [place[plain_text(rows.prompts[row], column[row])] for row in order]
        for column in (rows.chosen, rows.rejected)
    )
    left_won = np.asarray(preferences.choice) > 0.5
    left, right = np.asarray(preferences.left), np.asarray(preferences.right)
    found = np.where(left_won, left, right), np.where(left_won, right, left)
    if not (np.array_equal(found[0], chosen) and np.array_equal(found[1], rejected)):
        raise ValueError(
            "preferences must be made by rows.to_preferences, got choices in another order than "
            "the rows, or others"
        )
