r"""Preference rows of text: prompt, chosen, rejected, user; their tokens and their contexts.

The formats are those that TRL reads: strings, which are joined as they are, or conversations,
lists of `{"role", "content"}`, which the tokenizer's chat template renders. Nothing is ever cut
short: a pair that is longer than `max_length` is dropped and counted.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Batch, Preferences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Contexts",
    "Conversation",
    "Dropped",
    "PreferenceRows",
    "ResponseBatch",
    "TokenisedPairs",
]

Message = dict[str, str]
Conversation = str | list[Message]


@dataclass(frozen=True)
class ResponseBatch:
    """Holds R sequences, each a prompt and a response to it, padded on the right to T tokens.

    Attributes:
        input_ids: Tokens of prompt and response, int64 with shape (R, T).
        attention_mask: 1 at tokens, 0 in padding, int64 with shape (R, T).
        response_mask: True at the tokens of the response, which are scored, with shape (R, T).
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor

    def __len__(self) -> int:
        """Returns the number of sequences R."""
        return len(self.input_ids)

    @property
    def prompt_lengths(self) -> Tensor:
        """Number of tokens of every prompt, int64 with shape (R,)."""
        return self.attention_mask.sum(-1) - self.response_mask.sum(-1)

    def to(self, device: torch.device | str | None) -> ResponseBatch:
        """Moves every tensor to `device`."""
        return ResponseBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device)
        )

    def select(self, rows: Tensor | slice) -> ResponseBatch:
        """Returns some of the sequences, no wider than they need."""
        needed = self.attention_mask[rows].any(0)  # On whichever side the padding is.
        if not needed.any():
            needed[:1] = True
        return ResponseBatch(
            self.input_ids[rows][:, needed],
            self.attention_mask[rows][:, needed],
            self.response_mask[rows][:, needed],
        )

    @classmethod
    def from_texts(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Conversation],
        responses: Sequence[Conversation],
        *,
        max_length: int | None = None,
    ) -> ResponseBatch:
        """Tokenises prompts and a response to each, for scoring.

        Args:
            tokenizer: Tokenizer, with a chat template where prompts are conversations.
            prompts: R strings or conversations.
            responses: R strings or conversations, as the prompts are.
            max_length: Largest number of tokens of prompt and response together, None for any.

        Raises:
            ValueError: If the lengths differ, a prompt has no tokens, a response is empty or a
                sequence is too long.
        """
        if len(prompts) != len(responses) or not len(prompts):
            raise ValueError(
                "prompts and responses must be of one length of at least 1, got "
                f"{len(prompts)} and {len(responses)}"
            )
        _check_tokenizer(tokenizer, prompts)
        texts = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            prompt, response = _read("prompts", prompt, row), _read("responses", response, row)
            _check_same_format(prompt, response, row)
            texts.append(_render(tokenizer, prompt, [response]))
        table = _TokenTable(tokenizer)
        prompt_rows, response_rows = table.add(
            [head for head, _ in texts],
            [tail for _, (tail,) in texts],
            [isinstance(prompt, str) for prompt in prompts],
        )
        _check_prompts(table.lengths[prompt_rows])
        lengths = table.lengths[prompt_rows] + table.lengths[response_rows]
        for rule, wrong in {
            "have at least one token": table.lengths[response_rows] == 0,
            f"fit into max_length={max_length}": lengths > (max_length or np.inf),
        }.items():
            if wrong.any():
                row = int(wrong.argmax())
                raise ValueError(f"responses must {rule}, got {texts[row][1][0]!r} at row {row}")
        return table.batch(prompt_rows, response_rows)


@dataclass(frozen=True)
class Dropped:
    """Counts the rows that tokenising left out.

    Attributes:
        too_long: Pairs of which prompt and longer response exceed `max_length` tokens.
        empty: Pairs of which the chat template leaves nothing of a response.
        identical: Pairs whose two responses become the same tokens.
    """

    too_long: int = 0
    empty: int = 0
    identical: int = 0

    @property
    def total(self) -> int:
        """Number of rows left out."""
        return self.too_long + self.empty + self.identical


class PreferenceRows:
    """Stores rows of (prompt, chosen, rejected, user); most people start from `from_records`.

    Args:
        prompts: R strings or conversations. None for an entry takes the messages that both of its
            responses, conversations then, begin with.
        chosen: The preferred responses, in the format of the prompts.
        rejected: The other responses.
        users: Name of the person of every row.

    Attributes:
        prompts: The R prompts.
        chosen: The R preferred responses.
        rejected: The R other responses.
        user_names: Names of the U people, in order of first appearance.
        user: Position in `user_names` of each row's person, int64 with shape (R,).
        prompt: Number of each row's prompt among the distinct prompts, int64 with shape (R,).

    Raises:
        ValueError: If there are no rows, lengths differ, a response is empty, the two responses
            of a row are the same, a user is missing, or a row mixes strings and conversations.
        TypeError: If a text is neither a string nor a list of messages.
    """

    def __init__(
        self,
        prompts: Sequence[Conversation | None],
        chosen: Sequence[Conversation],
        rejected: Sequence[Conversation],
        users: Sequence,
    ) -> None:
        sizes = {len(prompts), len(chosen), len(rejected), len(users)}
        if len(sizes) > 1 or sizes == {0}:
            raise ValueError(
                "prompts, chosen, rejected and users must be of one length of at least 1, got "
                f"{len(prompts)}, {len(chosen)}, {len(rejected)} and {len(users)}"
            )
        missing = np.flatnonzero(pd.isna(pd.Series(list(users), dtype=object)))
        if len(missing):
            raise ValueError(f"users must have no missing values, got one at row {missing[0]}")
        rows = [
            _read_row(*row, number)
            for number, row in enumerate(zip(prompts, chosen, rejected, strict=True))
        ]
        self.prompts, self.chosen, self.rejected = (
            list(column) for column in zip(*rows, strict=True)
        )
        self.user, names = pd.factorize(pd.Series(list(users), dtype=object))
        self.user_names = pd.Index(names)
        self.prompt = pd.factorize(np.array([_key(prompt) for prompt in self.prompts], object))[0]

    @classmethod
    def from_records(
        cls,
        records: Iterable[Mapping[str, Any]],
        *,
        prompt: str = "prompt",
        chosen: str = "chosen",
        rejected: str = "rejected",
        user: str = "user",
    ) -> PreferenceRows:
        """Reads rows from dictionaries, such as a list of them or a `datasets.Dataset`.

        Args:
            records: One mapping a row. Without a prompt of its own, a conversational row has the
                messages that both responses begin with as its prompt.
            prompt: Key of the prompt.
            chosen: Key of the preferred response.
            rejected: Key of the other response.
            user: Key of the person's name.

        Raises:
            ValueError: If a key is missing, and for what the class refuses.
        """
        columns: tuple[list, ...] = ([], [], [], [])
        for row, record in enumerate(records):
            for key in (chosen, rejected, user):
                if key not in record:
                    raise ValueError(
                        f"every row must have {key!r}, got {list(record)} at row {row}"
                    )
            values = (record.get(prompt), record[chosen], record[rejected], record[user])
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        return cls(*columns)

    @classmethod
    def from_dataframe(
        cls,
        df: pd.DataFrame,
        *,
        prompt: str = "prompt",
        chosen: str = "chosen",
        rejected: str = "rejected",
        user: str = "user",
    ) -> PreferenceRows:
        """Reads rows from a table with one row per comparison; see :meth:`from_records`."""
        if not isinstance(df, pd.DataFrame):
            raise TypeError(f"df must be a pandas DataFrame, got {type(df).__name__}")
        keys = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "user": user}
        return cls.from_records(df.to_dict("records"), **keys)

    # ------------------------------------------------------------------ sizes and splits

    def __len__(self) -> int:
        """Returns the number of rows R."""
        return len(self.prompts)

    def __repr__(self) -> str:
        return (
            f"PreferenceRows({len(self)} rows, {len(self.user_names)} people, "
            f"{len(np.unique(self.prompt))} prompts)"
        )

    @property
    def users(self) -> pd.Index:
        """Name of every row's person, with shape (R,)."""
        return self.user_names[self.user]

    def subset(self, rows: np.ndarray | Sequence[int]) -> PreferenceRows:
        """Returns some of the rows, given as positions or as a Boolean mask (R,)."""
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise ValueError(f"a mask of rows must have shape ({len(self)},), got {rows.shape}")
            rows = np.flatnonzero(rows)
        rows = _positions("rows", rows, len(self))
        if not len(rows):
            raise ValueError("rows must name at least one row, got none")
        derived = object.__new__(PreferenceRows)
        derived.prompts = [self.prompts[row] for row in rows]
        derived.chosen = [self.chosen[row] for row in rows]
        derived.rejected = [self.rejected[row] for row in rows]
        derived.user, names = pd.factorize(self.user[rows])
        derived.user_names = self.user_names[names]
        derived.prompt = pd.factorize(self.prompt[rows])[0]
        return derived

    def split_prompts(
        self, test_size: float = 0.2, *, seed: int = 0
    ) -> tuple[PreferenceRows, PreferenceRows]:
        """Splits the distinct prompts, and the rows with them, into training and test rows.

        Args:
            test_size: Share of the prompts that are held out, in (0, 1).
            seed: Seed of the split.

        Raises:
            ValueError: If `test_size` is not in (0, 1) or there are fewer than two prompts.
        """
        return self._split("split_prompts", "prompts", self.prompt, test_size, seed)

    def split_users(
        self, test_size: float = 0.2, *, seed: int = 0
    ) -> tuple[PreferenceRows, PreferenceRows]:
        """Splits the people, and the rows with them, into training and test rows.

        Args:
            test_size: Share of the people who are held out, in (0, 1).
            seed: Seed of the split.

        Raises:
            ValueError: If `test_size` is not in (0, 1) or there are fewer than two people.
        """
        return self._split("split_users", "people", self.user, test_size, seed)

    def _split(
        self, name: str, units: str, code: np.ndarray, test_size: float, seed: int
    ) -> tuple[PreferenceRows, PreferenceRows]:
        total = int(code.max()) + 1
        if not 0 < test_size < 1:
            raise ValueError(f"test_size must lie between 0 and 1, got {test_size}")
        if total < 2:
            raise ValueError(f"{name} needs at least 2 {units}, got {total}")
        held_out = min(max(round(test_size * total), 1), total - 1)
        test = np.isin(code, np.random.default_rng(seed).permutation(total)[:held_out])
        return self.subset(~test), self.subset(test)

    # ------------------------------------------------------------------ what models see

    def item_texts(self) -> list[str]:
        """Lists the distinct (prompt, response) texts in order of first appearance.

        A conversation becomes lines of `role: content`.
        """
        return list(self._items())

    def _items(self) -> dict[str, int]:
        items: dict[str, int] = {}
        for prompt, *responses in zip(self.prompts, self.chosen, self.rejected, strict=True):
            for response in responses:
                items.setdefault(_plain(prompt, response), len(items))
        return items

    def to_preferences(
        self, embed: Callable[[list[str]], Tensor] | Tensor, *, seed: int = 0
    ) -> Preferences:
        """Describes the same choices by features, for a reward model and its guide.

        The items are the distinct (prompt, response) texts. Which side a response stands on is
        drawn at random, since rows do not tell: a position bias cannot be learned from them.

        Args:
            embed: Function from a list of M texts to features (M, D), for example one that calls
                a text encoder; or the features of :meth:`item_texts` themselves.
            seed: Seed of the sides.

        Returns:
            Comparisons of the same people in the same order; a person's rows keep their order.

        Raises:
            ValueError: If the features are not finite or not M rows.
        """
        items = self._items()
        features = embed(list(items)) if callable(embed) else embed
        if len(features) != len(items):
            raise ValueError(f"embed must give {len(items)} rows of features, got {len(features)}")
        features = torch.as_tensor(features).detach().cpu().float()
        pairs = np.array(
            [
                (items[_plain(prompt, chosen)], items[_plain(prompt, rejected)])
                for prompt, chosen, rejected in zip(
                    self.prompts, self.chosen, self.rejected, strict=True
                )
            ]
        )
        chosen_left = np.random.default_rng(seed).integers(2, size=len(self)).astype(bool)
        left, right = np.where(chosen_left[:, None], pairs, pairs[:, ::-1]).T
        order = np.argsort(self.user, kind="stable")
        counts = np.bincount(self.user)
        return Preferences(
            left[order],
            right[order],
            chosen_left[order].astype(np.float32),
            np.concatenate([[0], np.cumsum(counts)]),
            items=features,
            item_names=list(items),
            user_names=self.user_names,
        )

    def tokenise(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
    ) -> TokenisedPairs:
        """Tokenises all rows.

        Strings: the tokenizer's own beginning, prompt, response, end-of-sequence token.
        Conversations: what the chat template makes of them; the prompt ends with the mark at which
        the model is to begin, the response with the end-of-sequence token if the template has one.

        Args:
            tokenizer: Tokenizer, with a chat template where rows are conversations.
            max_length: Largest number of tokens of prompt and longer response, None for any.

        Raises:
            ValueError: If the tokenizer lacks a padding token, an end-of-sequence token (for
                strings) or a chat template (for conversations), if a prompt has no tokens, or if
                no row is left.

        Warns:
            UserWarning: If rows are left out, with their numbers.
        """
        return TokenisedPairs(self, tokenizer, max_length)


class TokenisedPairs(torch.utils.data.Dataset):
    """Stores the tokens of preference rows, every distinct text once.

    Args:
        rows: The rows.
        tokenizer: See :meth:`PreferenceRows.tokenise`.
        max_length: The same.

    Attributes:
        rows: All the rows, those left out too: these may still serve as context.
        row: Position in `rows` of every pair, int64 with shape (P,).
        dropped: How many rows were left out, and why.
    """

    def __init__(
        self,
        rows: PreferenceRows,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
    ) -> None:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens or None, got {max_length}")
        _check_tokenizer(tokenizer, rows.prompts)
        self.rows = rows
        triples = zip(rows.prompts, rows.chosen, rows.rejected, strict=True)
        texts = [_render(tokenizer, prompt, responses) for prompt, *responses in triples]
        self._table = _TokenTable(tokenizer)
        columns = self._table.add(
            2 * [head for head, _ in texts],
            [tails[side] for side in (0, 1) for _, tails in texts],
            2 * [isinstance(prompt, str) for prompt in rows.prompts],
        )
        # Of the chosen and of the rejected sequence; prompts differ where a token joins both parts.
        prompt, response = (column.reshape(2, -1) for column in columns)
        lengths = self._table.lengths
        longer = (lengths[prompt] + lengths[response]).max(0)
        empty = (lengths[response] == 0).any(0)
        identical = ~empty & (prompt[0] == prompt[1]) & (response[0] == response[1])
        too_long = ~empty & ~identical & (longer > (np.inf if max_length is None else max_length))
        self.dropped = Dropped(int(too_long.sum()), int(empty.sum()), int(identical.sum()))
        keep = ~(empty | identical | too_long)
        self._report(max_length, int(longer.min()))
        self.row = np.flatnonzero(keep)
        self._prompt, self._response = prompt[:, keep], response[:, keep]
        _check_prompts(lengths[self._prompt].min(0), self.row)

    def _report(self, max_length: int | None, shortest: int) -> None:
        dropped, total = self.dropped, len(self.rows)
        reasons = (
            f"{dropped.too_long} longer than max_length={max_length} tokens, {dropped.empty} with "
            f"an empty response, {dropped.identical} whose responses are the same tokens"
        )
        if dropped.total == total:
            raise ValueError(
                f"no row is left of {total}: {reasons}; the shortest has {shortest} tokens"
            )
        if dropped.total:
            warnings.warn(f"{dropped.total} of {total} rows left out: {reasons}", stacklevel=4)

    def __len__(self) -> int:
        """Returns the number of pairs P."""
        return len(self.row)

    def __getitem__(self, pair: int) -> tuple[TokenisedPairs, int]:
        """Returns whose pair it is, and which: :meth:`batch` gathers the tokens of many at once."""
        return self, int(pair)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of prompt and longer response of every pair, with shape (P,)."""
        lengths = self._table.lengths
        return (lengths[self._prompt] + lengths[self._response]).max(0)

    def digest(self) -> str:
        """Returns a SHA-256 of the tokens of all pairs, to recognise the data by."""
        digest = hashlib.sha256()
        for column in (self.row, self._prompt, self._response, self._table.lengths):
            digest.update(column.tobytes())
        digest.update(np.concatenate(self._table.tokens).tobytes())
        return digest.hexdigest()

    def batch(self, pairs: np.ndarray | Sequence[int]) -> ResponseBatch:
        """Returns 2 P sequences: the chosen ones of P pairs, then the rejected ones."""
        pairs = _positions("pairs", np.asarray(pairs), len(self))
        return self._table.batch(self._prompt[:, pairs].ravel(), self._response[:, pairs].ravel())


class Contexts:
    """Draws contexts: some of a person's other rows, never one that shares the target's prompt.

    Args:
        rows: The rows targets and contexts come from.
        preferences: `rows.to_preferences(…)`, for the features.
        max_context: Largest size of a context; sizes are uniform from `min_context` to it, or to
            the number of a person's rows with other prompts where that is smaller.
        min_context: Smallest size of a context. A policy learns what z means from contexts that
            tell z: after few choices draws are mostly of other people than the one who chose.
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
                    f"user {self.rows.users[row]!r} with other prompts than row {row}"
                )
            size = num_context
        return rng.permutation(available)[:size]

    def batch(
        self, rows: Sequence[int] | np.ndarray, step: int = 0, num_context: int | None = None
    ) -> Batch:
        """Draws a context for each of U targets, as `guide.posterior` takes them."""
        rows = _positions("rows", np.asarray(rows), len(self.rows))
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
        used = torch.from_numpy(used.astype(np.int64))
        return Batch(
            items=used if data.items is None else data.items[used],
            left=torch.from_numpy(left),
            right=torch.from_numpy(right),
            choice=torch.from_numpy(choice),
            mask=torch.from_numpy(mask),
            covariates=None if data.covariates is None else data.covariates[people],
            people=people,
        )


# ---------------------------------------------------------------------- tokens


class _TokenTable:
    """Holds the tokens of distinct texts one after the other, and pads some of them to a batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.tokens: list[np.ndarray] = []
        self._known: dict[tuple[int, ...], int] = {}

    def add(
        self, heads: Sequence[str], tails: Sequence[str], plain: Sequence[bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adds prompts and the responses that follow them, and returns the positions of both.

        Args:
            heads: Text of every prompt.
            tails: Text of every response.
            plain: Whether they are strings, which get the tokenizer's beginning and end; the
                others are what the chat template wrote.
        """
        where = np.empty((2, len(heads)), dtype=np.int64)
        plain = np.asarray(plain)
        for kind, encode in ((True, self._encode_strings), (False, self._encode_chats)):
            rows = np.flatnonzero(plain == kind)
            pieces = encode([heads[row] for row in rows], [tails[row] for row in rows])
            where[:, rows] = [[self._position(tokens) for tokens in column] for column in pieces]
        return where[0], where[1]

    def _position(self, tokens: Sequence[int]) -> int:
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = len(self.tokens)
            self.tokens.append(np.asarray(key, dtype=np.int64))
        return self._known[key]

    def _encode_strings(
        self, heads: list[str], tails: list[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        end = self._tokenizer.eos_token_id
        pairs = zip(self._encode(heads, special=True), self._encode(heads), strict=True)
        prompts = [open_ended(self._tokenizer, tokens, own) for tokens, own in pairs]
        responses = self._encode(tails)
        return prompts, [r if r and r[-1] == end else [*r, end] for r in responses]

    def _encode_chats(
        self, heads: list[str], tails: list[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Encodes prompt and response as one text, as the model will meet it, and parts them.

        A token that holds the end of the prompt and the beginning of the response is of the latter.
        """
        if not self._tokenizer.is_fast:  # It cannot tell which characters a token stands for.
            return self._encode(heads), self._encode(tails)
        texts = [head + tail for head, tail in zip(heads, tails, strict=True)]
        ids, offsets = self._encode(texts), self._encode(texts, "offset_mapping")
        sizes = [
            next((place for place, (_, stop) in enumerate(spans) if stop > len(head)), len(spans))
            for head, spans in zip(heads, offsets, strict=True)
        ]
        rows = list(zip(ids, sizes, strict=True))
        return [tokens[:size] for tokens, size in rows], [tokens[size:] for tokens, size in rows]

    def _encode(self, texts: list[str], what: str = "input_ids", *, special: bool = False) -> list:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return []
        encoded = self._tokenizer(
            distinct,
            add_special_tokens=special,
            return_offsets_mapping=what == "offset_mapping",
            verbose=False,
        )[what]
        known = dict(zip(distinct, encoded, strict=True))
        return [known[text] for text in texts]

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of every text, with shape (texts,)."""
        return np.array([len(tokens) for tokens in self.tokens], dtype=np.int64)

    def batch(self, prompts: np.ndarray, responses: np.ndarray) -> ResponseBatch:
        """Joins R prompts and responses and pads them on the right."""
        pieces = [
            self.tokens[text] for pair in zip(prompts, responses, strict=True) for text in pair
        ]
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int64).reshape(-1, 2)
        column = np.arange(max(int(sizes.sum(-1).max()), 1))
        filled = column < sizes.sum(-1, keepdims=True)
        ids = np.full(filled.shape, self._tokenizer.pad_token_id, dtype=np.int64)
        ids[filled] = np.concatenate(pieces)
        response = filled & (column >= sizes[:, :1])
        return ResponseBatch(
            torch.from_numpy(ids),
            torch.from_numpy(filled.astype(np.int64)),
            torch.from_numpy(response),
        )


def _render(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, responses: Sequence[Conversation]
) -> tuple[str, list[str]]:
    """Returns the prompt's text and, for each response, the text that follows it."""
    if isinstance(prompt, str):
        return prompt, list(responses)
    head = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    texts = [tokenizer.apply_chat_template(prompt + r, tokenize=False) for r in responses]
    # Some templates begin an answer otherwise than they ask for one (thinking marks, say).
    if not all(text.startswith(head) for text in texts):
        head = _beginning(tokenizer, head, min(_agreement(head, text) for text in texts))
    return head, [_ended(text[len(head) :], tokenizer.eos_token) for text in texts]


def _beginning(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> str:
    """Returns what whole tokens make of the first `length` characters of a text."""
    if not tokenizer.is_fast:
        return text[:length]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return text[: max((stop for _, stop in encoded["offset_mapping"] if stop <= length), default=0)]


def _ended(text: str, end: str | None) -> str:
    """Cuts off the space that a template puts after the end-of-sequence token at the end.

    Nobody generates it. Where the token parts messages, the last of them follows it, and stays.
    """
    head, mark, rest = text.rpartition(end) if end else ("", "", text)
    return head + mark if mark and not rest.strip() else text


def open_ended(tokenizer: PreTrainedTokenizerBase, tokens: list[int], own: list[int]) -> list[int]:
    """Takes from a prompt the end-of-sequence token that some tokenizers put after every text.

    Args:
        tokenizer: The tokenizer.
        tokens: The prompt's tokens with those that the tokenizer adds.
        own: Its tokens without; an end-of-sequence token of its own stays.
    """
    end = tokenizer.eos_token_id
    if not own and tokenizer.bos_token_id == end:  # A beginning, not an end.
        return tokens
    added = _closing(tokens, end) - _closing(own, end)
    return tokens[: len(tokens) - added] if added > 0 else tokens


def _closing(tokens: Sequence[int], end: int | None) -> int:
    """Counts how often the end-of-sequence token stands at the end."""
    return len(tokens) - next((n for n in range(len(tokens), 0, -1) if tokens[n - 1] != end), 0)


# ---------------------------------------------------------------------- checks


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation]) -> None:
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "tokenizer must have a padding token, got none; set tokenizer.pad_token, for example "
            "to tokenizer.eos_token"
        )
    plain = [isinstance(prompt, str) for prompt in prompts]
    if any(plain) and tokenizer.eos_token_id is None:
        raise ValueError(
            "tokenizer must have an end-of-sequence token, by which a response ends, got none"
        )
    if not all(plain) and tokenizer.chat_template is None:
        raise ValueError(
            f"tokenizer must have a chat template, since row {plain.index(False)} is a "
            "conversation, got none; set tokenizer.chat_template or give strings"
        )


def _check_same_choices(rows: PreferenceRows, preferences: Preferences) -> None:
    """Refuses comparisons in another order than the rows: they would be others' contexts."""
    items = rows.item_texts()
    if list(preferences.item_names) != items:
        raise ValueError(
            "preferences must be made by rows.to_preferences, got items other than the rows' "
            "texts in their order"
        )
    place = {text: number for number, text in enumerate(items)}
    order = np.argsort(rows.user, kind="stable")
    chosen, rejected = (
        [place[_plain(rows.prompts[row], column[row])] for row in order]
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


def _check_prompts(lengths: np.ndarray, row: np.ndarray | None = None) -> None:
    """Refuses prompts of no tokens: nothing would predict a response's first."""
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        row = empty if row is None else row[empty]
        raise ValueError(
            f"prompts must have at least one token each, got none at row {row[0]}: the tokenizer "
            "adds no beginning of its own"
        )


def _read_row(
    prompt: Any, chosen: Any, rejected: Any, row: int
) -> tuple[Conversation, Conversation, Conversation]:
    chosen, rejected = _read("chosen", chosen, row), _read("rejected", rejected, row)
    if prompt is None or (isinstance(prompt, float) and np.isnan(prompt)):
        prompt, chosen, rejected = _common_prompt(chosen, rejected, row)
    else:
        prompt = _read("prompt", prompt, row)
    _check_same_format(prompt, chosen, row)
    _check_same_format(prompt, rejected, row)
    for name, text in {"chosen": chosen, "rejected": rejected}.items():
        contents = [text] if isinstance(text, str) else [message["content"] for message in text]
        if not "".join(contents).strip():
            raise ValueError(f"{name} must not be empty, got {text!r} at row {row}")
    if chosen == rejected:
        raise ValueError(f"chosen and rejected must differ, got {chosen!r} twice at row {row}")
    if not isinstance(prompt, str) and prompt[-1:] and prompt[-1]["role"] == "assistant":
        raise ValueError(
            f"a prompt must end before the assistant's turn, got {prompt[-1]!r} at row {row}"
        )
    return prompt, chosen, rejected


def _read(name: str, value: Any, row: int) -> Conversation:
    """Returns a string, or a list of messages with nothing but role and content."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple | np.ndarray):
        raise TypeError(
            f"{name} must be a string or a list of messages, got {type(value).__name__} at row "
            f"{row}"
        )
    for message in value:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise TypeError(
                f"a message of {name} must have a 'role' and a 'content', both strings, got "
                f"{message!r} at row {row}"
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _common_prompt(
    chosen: Conversation, rejected: Conversation, row: int
) -> tuple[Conversation, Conversation, Conversation]:
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError(
            f"a row of strings must have a prompt, got none at row {row}; where both responses "
            "begin with it, split it off first"
        )
    length = _agreement(chosen, rejected)
    if not length:
        raise ValueError(
            f"a row must have a prompt, got two conversations without one at row {row}"
        )
    return chosen[:length], chosen[length:], rejected[length:]


def _agreement(first: Sequence, second: Sequence) -> int:
    """Returns the length of what both begin with."""
    same = [left == right for left, right in zip(first, second, strict=False)]
    return [*same, False].index(False)


def _check_same_format(prompt: Conversation, response: Conversation, row: int) -> None:
    if isinstance(prompt, str) != isinstance(response, str):
        raise ValueError(
            "prompt and responses must be all strings or all conversations, got "
            f"{type(prompt).__name__} and {type(response).__name__} at row {row}"
        )


def _positions(name: str, positions: np.ndarray, length: int) -> np.ndarray:
    if positions.ndim != 1 or (positions.size and not np.issubdtype(positions.dtype, np.integer)):
        raise ValueError(
            f"{name} must be positions with one dimension, got {positions.dtype} with shape "
            f"{positions.shape}"
        )
    if positions.size and not (positions.min() >= 0 and positions.max() < length):
        raise ValueError(
            f"{name} must lie in 0 … {length - 1}, got {positions.min()} … {positions.max()}"
        )
    return positions.astype(np.int64)


def _key(prompt: Conversation) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def _plain(prompt: Conversation, response: Conversation) -> str:
    if isinstance(prompt, str):
        return prompt + response
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt + response)
