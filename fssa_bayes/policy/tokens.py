r"""Tokens of prompts and responses: pairs of sequences, and batches of them.

Nothing is ever cut short: a pair that is longer than `max_length` is dropped and counted.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        tools: Sequence[list[Any] | None] | None = None,
        chat_template_kwargs: Sequence[Mapping[str, Any]] | None = None,
        after_end: bool = True,
        joined: bool = True,
    ) -> ResponseBatch:
        """Tokenises prompts and a response to each, for scoring.

        Args:
            tokenizer: Tokenizer, with a chat template where prompts are conversations.
            prompts: R strings or conversations.
            responses: R strings or conversations, as the prompts are.
            max_length: Largest number of tokens of prompt and response together, None for any.
            tools: Schemas of the tools of each conversation, None for none.
            chat_template_kwargs: What else the chat template knows of each conversation.
            after_end: See :meth:`PreferenceRows.tokenise`.
            joined: Whether strings are encoded as one text, as :meth:`PreferenceRows.tokenise`
                does; what generation wrote begins a token of its own instead.

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
            texts.append((prompt, response))
        table = TokenTable(tokenizer, after_end=after_end, joined=joined)
        prompts, responses = zip(*texts, strict=True)
        where = table.add(
            prompts,
            [[response] for response in responses],
            tools or [None] * len(texts),
            chat_template_kwargs or [{}] * len(texts),
        )
        prompt_rows, response_rows = where.T
        _check_prompts(table.lengths[prompt_rows])
        lengths = table.lengths[prompt_rows] + table.lengths[response_rows]
        for rule, wrong in {
            "have at least one token": table.lengths[response_rows] == 0,
            f"fit into max_length={max_length}": lengths
            > (np.inf if max_length is None else max_length),
        }.items():
            if wrong.any():
                row = int(wrong.argmax())
                raise ValueError(f"responses must {rule}, got {texts[row][1]!r} at row {row}")
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
        after_end: See :meth:`PreferenceRows.tokenise`.

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
        *,
        after_end: bool = True,
    ) -> None:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens or None, got {max_length}")
        check_tokenizer(tokenizer, rows.prompts)
        self.rows = rows
        self._table = TokenTable(tokenizer, after_end=after_end)
        responses = list(zip(rows.chosen, rows.rejected, strict=True))
        where = self._table.add(rows.prompts, responses, rows.tools, rows.chat_template_kwargs)
        # Column 1 is of the chosen responses, column 2 of the rejected ones.
        first, *response = where.T
        prompt, response = np.stack([first, first]), np.stack(response)
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
        self._table.tell(total)

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

    @property
    def largest_token(self) -> int:
        """The largest token of all pairs, and of their padding."""
        return self._table.largest_token

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

    Prompt and response are encoded as one text, as the model reads it. The response begins where
    the tokens are no longer those of the prompt alone.

    Args:
        tokenizer: Tokenizer, whose end token pads if it has no padding token.
        after_end: Whether white space after a conversation's last end token is kept.
        joined: Whether a string and the response to it are encoded as one text.

    Attributes:
        tokens: Tokens of every text, int64.
        unlike: Prompts of which generation uses another one: their number and the end of one.
        endless: Number of conversations whose responses hold no end-of-sequence token.
        prefilled: Number of conversations whose prompt ends with the assistant's turn.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, after_end: bool = True, joined: bool = True
    ) -> None:
        self._tokenizer, self._after_end, self._joined = tokenizer, after_end, joined
        own = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        self._padding = next(token for token in own if token is not None)
        self.tokens: list[np.ndarray] = []
        self._known: dict[tuple[int, ...], int] = {}
        self.unlike: tuple[int, str] = (0, "")
        self.endless = self.prefilled = 0

    def add(
        self,
        prompts: Sequence[Conversation],
        responses: Sequence[Sequence[Conversation]],
        tools: Sequence[list[Any] | None],
        options: Sequence[Mapping[str, Any]],
    ) -> np.ndarray:
        """Adds prompts and their responses.

        Args:
            prompts: R strings or conversations.
            responses: One or more responses to each, in its format; as many to each.
            tools: Schemas of the tools of each conversation, None for none.
            options: What else the chat template knows of each conversation.

        Returns:
            Positions of every prompt and of the responses to it, with shape (R, 1 + responses).
        """
        where = np.empty((len(prompts), 1 + len(responses[0])), dtype=np.int64)
        plain = np.array([isinstance(prompt, str) for prompt in prompts])
        strings, chats = np.flatnonzero(plain), np.flatnonzero(~plain)
        texts = [list(responses[row]) for row in strings]
        encode = self.encode_strings if self._joined else self.encode_apart
        found = encode([prompts[row] for row in strings], texts)
        asked, texts = [], []
        for row in chats:
            kept = {"tools": tools[row], "options": options[row]}
            asked.append(render(self._tokenizer, prompts[row], asks=True, **kept))
            texts.append(
                [
                    self._cut(render(self._tokenizer, [*prompts[row], *response], **kept))
                    for response in responses[row]
                ]
            )
        pieces = dict(zip(strings, found, strict=True))
        pieces |= zip(chats, self.encode_chats(asked, texts), strict=True)
        for row, (own, whole) in pieces.items():
            size = min(_common(own, tokens) for tokens in whole)
            if size < len(own):
                self.unlike = (self.unlike[0] + 1, self._tokenizer.decode(own[size:]))
            if not plain[row]:
                self.prefilled += prompts[row][-1]["role"] == "assistant"
                end = self._tokenizer.eos_token_id
                self.endless += any(end not in tokens[size:] for tokens in whole)
            split = [own[:size], *(tokens[size:] for tokens in whole)]
            where[row] = [self._position(tokens) for tokens in split]
        return where

    def _cut(self, text: str) -> str:
        """Removes the white space after the last end-of-sequence token, unless it is kept.

        Where the token separates messages, the last message follows the token and stays.
        """
        end = None if self._after_end else self._tokenizer.eos_token
        head, mark, rest = text.rpartition(end) if end else ("", "", text)
        return head + mark if mark and not rest.strip() else text

    def encode_strings(
        self, prompts: list[str], texts: list[list[str]]
    ) -> list[tuple[list[int], list[list[int]]]]:
        """Encodes prompts, and prompts with the texts that follow them and one end token."""
        mark = self._tokenizer.eos_token
        flat = [
            prompt + (text if text.endswith(mark) else text + mark)
            for prompt, each in zip(prompts, texts, strict=True)
            for text in each
        ]
        every = [*prompts, *flat]
        pairs = zip(self._encode(every, special=True), self._encode(every), strict=True)
        open_ = [open_ended(self._tokenizer, tokens, own) for tokens, own in pairs]
        whole = map(self._ended, open_[len(prompts) :])  # Some tokenizers do not read their mark.
        each = zip(open_, texts, strict=False)
        return [(prompt, [next(whole) for _ in own]) for prompt, own in each]

    def encode_apart(
        self, prompts: list[str], texts: list[list[str]]
    ) -> list[tuple[list[int], list[list[int]]]]:
        """Encodes prompts, and the same tokens followed by those of texts and one end token."""
        pairs = zip(self._encode(prompts, special=True), self._encode(prompts), strict=True)
        heads = [open_ended(self._tokenizer, tokens, own) for tokens, own in pairs]
        tails = map(self._ended, self._encode([text for each in texts for text in each]))
        each = zip(heads, texts, strict=True)
        return [(head, [[*head, *next(tails)] for _ in own]) for head, own in each]

    def _ended(self, tokens: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return tokens if tokens[-1:] == [end] else [*tokens, end]

    def encode_chats(
        self, prompts: list[str], texts: list[list[str]]
    ) -> list[tuple[list[int], list[list[int]]]]:
        """Encodes what the chat template wrote, whose marks are all that there are."""
        every = self._encode([*prompts, *(text for each in texts for text in each)])
        whole = iter(every[len(prompts) :])
        return [
            (prompt, [next(whole) for _ in each])
            for prompt, each in zip(every, texts, strict=False)
        ]

    def _position(self, tokens: Sequence[int]) -> int:
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = len(self.tokens)
            self.tokens.append(np.asarray(key, dtype=np.int64))
        return self._known[key]

    def _encode(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return []
        encoded = self._tokenizer(distinct, add_special_tokens=special, verbose=False)["input_ids"]
        known = dict(zip(distinct, encoded, strict=True))
        return [known[text] for text in texts]

    def tell(self, total: int) -> None:
        """Warns of prompts that generation does not use, and of responses that never end."""
        count, tail = self.unlike
        told = []
        if count:
            told.append(
                f"{count} of {total} prompts are trained on without their end {tail!r}, which "
                "generation uses: the chat template, or tokens that join prompt and response, "
                "write another text there; end prompts at a word, or choose another template"
            )
        if self.endless:
            told.append(
                f"{self.endless} of {total} rows have a response without the end token "
                f"{self._tokenizer.eos_token!r}: the chat template writes none, and a policy that "
                "is trained on them does not learn to stop unless its template ends with another"
            )
        if self.prefilled:
            told.append(
                f"{self.prefilled} of {total} prompts end with the assistant's turn: the chat "
                "template begins another turn, as in generation, and does not go on with it"
            )
        for text in told:
            warnings.warn(text, stacklevel=5)

    @property
    def largest_token(self) -> int:
        """The largest token, padding included."""
        tokens = [int(tokens.max()) for tokens in self.tokens if len(tokens)]
        return max([*tokens, self._padding])

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
        ids = np.full(filled.shape, self._padding, dtype=np.int64)
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


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the length of the longest common beginning."""
    same = (left != right for left, right in zip(first, second, strict=False))
    return next((n for n, differs in enumerate(same) if differs), min(len(first), len(second)))


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
