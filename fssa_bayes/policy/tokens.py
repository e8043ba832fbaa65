r"""Tokens of prompts and responses: pairs of sequences, and batches of them.

Nothing is ever cut short: a pair that is longer than `max_length` is dropped and counted.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.policy.checks import check_positions
from fssa_bayes.policy.conversations import (
    Conversation,
    check_same_format,
    check_tokenizer,
    read_conversation,
    render,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fssa_bayes.policy.rows import PreferenceRows

__all__ = ["Dropped", "ResponseBatch", "TokenTable", "TokenisedPairs", "open_ended"]


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

    def to(self, device: torch.device | str | None) -> ResponseBatch:
        """Moves every tensor to `device`."""
        return ResponseBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device)
        )

    def select(self, rows: Tensor | slice) -> ResponseBatch:
        """Returns some of the sequences, without the columns that are padding in all of them."""
        needed = self.attention_mask[rows].any(0)  # Padding may be on either side.
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
        check_tokenizer(tokenizer, prompts)
        texts = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            prompt = read_conversation("prompts", prompt, row)
            response = read_conversation("responses", response, row)
            check_same_format(prompt, response, row)
            texts.append(render(tokenizer, prompt, [response]))
        table = TokenTable(tokenizer)
        prompt_rows, response_rows = table.add(
            [head for head, _ in texts],
            [tail for _, (tail,) in texts],
            [isinstance(prompt, str) for prompt in prompts],
        )
        _check_prompts(table.lengths[prompt_rows])
        lengths = table.lengths[prompt_rows] + table.lengths[response_rows]
        for rule, wrong in {
            "have at least one token": table.lengths[response_rows] == 0,
            f"fit into max_length={max_length}": lengths
            > (np.inf if max_length is None else max_length),
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


class TokenisedPairs(torch.utils.data.Dataset):
    """Stores the tokens of preference rows, every distinct text once.

    Args:
        rows: The rows.
        tokenizer: See :meth:`PreferenceRows.tokenise`.
        max_length: See :meth:`PreferenceRows.tokenise`.

    Attributes:
        rows: All the rows, also those left out, which may still serve as context.
        row: Position in `rows` of every pair, int64 with shape (P,).
        dropped: Numbers of rows left out, by reason.
    """

    def __init__(
        self,
        rows: PreferenceRows,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
    ) -> None:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens or None, got {max_length}")
        check_tokenizer(tokenizer, rows.prompts)
        self.rows = rows
        triples = zip(rows.prompts, rows.chosen, rows.rejected, strict=True)
        texts = [render(tokenizer, prompt, responses) for prompt, *responses in triples]
        self._table = TokenTable(tokenizer)
        columns = self._table.add(
            2 * [head for head, _ in texts],
            [tails[side] for side in (0, 1) for _, tails in texts],
            2 * [isinstance(prompt, str) for prompt in rows.prompts],
        )
        # Row 0 is of the chosen sequences, row 1 of the rejected ones; the two prompts of a pair
        # differ where a token joins prompt and response.
        prompt, response = (column.reshape(2, -1) for column in columns)
        lengths = self._table.lengths
        longer = (lengths[prompt] + lengths[response]).max(0)
        empty = (lengths[response] == 0).any(0)
        identical = ~empty & (prompt[0] == prompt[1]) & (response[0] == response[1])
        too_long = ~empty & ~identical & (longer > (np.inf if max_length is None else max_length))
        self.dropped = Dropped(int(too_long.sum()), int(empty.sum()), int(identical.sum()))
        keep = ~(empty | identical | too_long)
        total, shortest = len(rows), int(longer.min())
        reasons = (
            f"{self.dropped.too_long} longer than max_length={max_length} tokens, "
            f"{self.dropped.empty} with an empty response, "
            f"{self.dropped.identical} whose responses are the same tokens"
        )
        if self.dropped.total == total:
            raise ValueError(
                f"no row is left of {total}: {reasons}; the shortest has {shortest} tokens"
            )
        if self.dropped.total:
            warnings.warn(f"{self.dropped.total} of {total} rows left out: {reasons}", stacklevel=3)
        self.row = np.flatnonzero(keep)
        self._prompt, self._response = prompt[:, keep], response[:, keep]
        _check_prompts(lengths[self._prompt].min(0), self.row)

    def __len__(self) -> int:
        """Returns the number of pairs P."""
        return len(self.row)

    def __getitem__(self, pair: int) -> tuple[TokenisedPairs, int]:
        """Returns these pairs and the number of one; :meth:`batch` gathers the tokens of many."""
        return self, int(pair)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of prompt and longer response of every pair, with shape (P,)."""
        lengths = self._table.lengths
        return (lengths[self._prompt] + lengths[self._response]).max(0)

    def select(self, pairs: np.ndarray | Sequence[int]) -> TokenisedPairs:
        """Returns some of the pairs, of the same rows, which share their tokens with these."""
        pairs = check_positions("pairs", np.asarray(pairs), len(self))
        some = copy.copy(self)
        some.row = self.row[pairs]
        some._prompt, some._response = self._prompt[:, pairs], self._response[:, pairs]
        return some

    def digest(self) -> str:
        """Returns a SHA-256 of the tokens of all pairs, to recognise the data by."""
        digest = hashlib.sha256()
        for column in (self.row, self._prompt, self._response, self._table.lengths):
            digest.update(column.tobytes())
        digest.update(np.concatenate(self._table.tokens).tobytes())
        return digest.hexdigest()

    def batch(self, pairs: np.ndarray | Sequence[int]) -> ResponseBatch:
        """Returns 2 P sequences: the chosen ones of P pairs, then the rejected ones."""
        pairs = check_positions("pairs", np.asarray(pairs), len(self))
        return self._table.batch(self._prompt[:, pairs].ravel(), self._response[:, pairs].ravel())


class TokenTable:
    """Holds the tokens of distinct texts, each text once, and pads some of them to a batch.

    Args:
        tokenizer: Tokenizer with a padding token.

    Attributes:
        tokens: Tokens of every text, int64.
    """

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
            plain: Whether the texts are strings, which get the tokenizer's beginning and end;
                other texts are what the chat template wrote.
        """
        where = np.empty((2, len(heads)), dtype=np.int64)
        plain = np.asarray(plain)
        for kind, encode in ((True, self.encode_strings), (False, self.encode_chats)):
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

    def encode_strings(
        self, heads: list[str], tails: list[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Encodes prompts after the tokenizer's beginning, and responses with one end token."""
        end = self._tokenizer.eos_token_id
        pairs = zip(self._encode(heads, special=True), self._encode(heads), strict=True)
        prompts = [open_ended(self._tokenizer, tokens, own) for tokens, own in pairs]
        responses = self._encode(tails)
        return prompts, [r if r and r[-1] == end else [*r, end] for r in responses]

    def encode_chats(
        self, heads: list[str], tails: list[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Encodes prompt and response as one text, as the model reads it, and splits the tokens.

        A token that spans the end of the prompt and the beginning of the response belongs to the
        response.
        """
        if not self._tokenizer.is_fast:  # A slow tokenizer has no offsets.
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


def open_ended(tokenizer: PreTrainedTokenizerBase, tokens: list[int], own: list[int]) -> list[int]:
    """Removes from a prompt the end-of-sequence token that some tokenizers put after every text.

    Args:
        tokenizer: The tokenizer.
        tokens: The prompt's tokens with the tokens that the tokenizer adds.
        own: The prompt's tokens alone; an end-of-sequence token among them stays.
    """
    end = tokenizer.eos_token_id
    if not own and tokenizer.bos_token_id == end:  # The token marks a beginning.
        return tokens
    added = _count_final(tokens, end) - _count_final(own, end)
    return tokens[: len(tokens) - added] if added > 0 else tokens


def _count_final(tokens: Sequence[int], end: int | None) -> int:
    """Counts the end-of-sequence tokens at the end."""
    return len(tokens) - next((n for n in range(len(tokens), 0, -1) if tokens[n - 1] != end), 0)


def _check_prompts(lengths: np.ndarray, row: np.ndarray | None = None) -> None:
    """Refuses prompts without tokens, after which nothing predicts the response's first token."""
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        row = empty if row is None else row[empty]
        raise ValueError(
            f"prompts must have at least one token each, got none at row {row[0]}: the tokenizer "
            "adds no beginning of its own"
        )
