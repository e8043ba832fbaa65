"""Preference rows of text: prompt, chosen, rejected, user."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, factorise_names
from fssa_bayes.policy.checks import check_positions
from fssa_bayes.policy.conversations import Conversation, check_encodable, plain_text
from fssa_bayes.policy.records import Record, read_records
from fssa_bayes.policy.tokens import TokenisedPairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PreferenceRows"]


class PreferenceRows:
    """Stores rows of (prompt, chosen, rejected, user); most people start from `from_records`.

    Rows that hold no choice between two answers are left out and counted: a response is None,
    empty, the same as the other one, or begins with somebody else than the assistant, or there is
    no prompt. A response that repeats the conversation that is its prompt is cut after it, and so
    are strings where both responses of every row repeat the prompt.

    Args:
        prompts: R strings or conversations; None where the prompt is what both responses of the
            row begin with.
        chosen: The preferred responses, in the format of the prompts.
        rejected: The other responses.
        users: Name of the person of every row.
        tools: Schemas of the tools of every row, as a list or as JSON; None for none.
        chat_template_kwargs: What else the chat template knows of every row; None for nothing.

    Attributes:
        prompts: The prompts of the R rows that are left.
        chosen: The preferred responses.
        rejected: The other responses.
        tools: The tools of each row, None for none.
        chat_template_kwargs: Options of the chat template of each row.
        user_names: Names of the U people, in order of first appearance.
        user: Position in `user_names` of each row's person, int64 with shape (R,).
        prompt: Number of each row's prompt among the distinct prompts, int64 with shape (R,).
        record: Position of each row among the rows given, int64 with shape (R,).
        dropped: Number of rows left out, by reason.

    Raises:
        ValueError: If there are no rows, or none is left, lengths differ, a user is missing or
            '', a row mixes strings and conversations, or a text holds half a pair of surrogates.
        TypeError: If a text is neither a string nor a list of messages.

    Warns:
        UserWarning: If rows are left out or responses repeat their prompt, with their number.
    """

    def __init__(
        self,
        prompts: Sequence[Conversation | None],
        chosen: Sequence[Conversation | None],
        rejected: Sequence[Conversation | None],
        users: Sequence,
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        sizes = {len(prompts), len(chosen), len(rejected), len(users)}
        if len(sizes) > 1 or sizes == {0}:
            raise ValueError(
                "prompts, chosen, rejected and users must be of one length of at least 1, got "
                f"{len(prompts)}, {len(chosen)}, {len(rejected)} and {len(users)}"
            )
        total = len(prompts)
        options = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
        for name, column in options.items():
            if column is not None and len(column) != total:
                raise ValueError(f"{name} must be {total}, one a row, got {len(column)}")
        missing = np.flatnonzero(pd.isna(pd.Series(list(users), dtype=object)))
        if len(missing):
            raise ValueError(f"users must have no missing values, got one at row {missing[0]}")
        for row, user in enumerate(users):
            if isinstance(user, str):
                if not user:
                    raise ValueError(f"users must be named, got '' at row {row}")
                check_encodable("users", user, row)
        columns = [[None] * total if column is None else column for column in options.values()]
        rows, self.dropped, repeats = read_records(prompts, chosen, rejected, *columns)
        self._tell(total, repeats)
        self._fill(rows)
        names = pd.Series([users[row] for row in self.record], dtype=object)
        self.user, self.user_names = factorise_names("users", names)
        keys = [p if isinstance(p, str) else json.dumps(p) for p in self.prompts]
        self.prompt = pd.factorize(np.array(keys, object))[0]

    def _fill(self, rows: Sequence[Record]) -> None:
        columns = list(zip(*rows, strict=True))
        self.prompts, self.chosen, self.rejected = map(list, columns[:3])
        self.tools, self.chat_template_kwargs = map(list, columns[3:5])
        self.record = np.array(columns[5], dtype=np.int64)

    def _tell(self, total: int, repeats: Mapping[str, int]) -> None:
        """Warns of rows left out and of prompts repeated, or refuses rows of which none is left."""
        gone = sum(self.dropped.values())
        reasons = ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count)
        if gone == total:
            raise ValueError(f"rows must hold choices between two answers, got {total}: {reasons}")
        if gone:
            warnings.warn(f"{gone} of {total} rows left out: {reasons}", stacklevel=4)
        for what, count in repeats.items():
            if count:
                warnings.warn(f"{count} of {total} rows {what}", stacklevel=4)

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
            records: One mapping a row. The prompt may be left out: it is then what both responses
                begin with. A row may also hold `tools` and `chat_template_kwargs`, as TRL's do.
            prompt: Key of the prompt.
            chosen: Key of the preferred response.
            rejected: Key of the other response.
            user: Key of the person's name.

        Raises:
            ValueError: If a key is missing, and where the class raises it.
        """
        columns: tuple[list, ...] = ([], [], [], [], [], [])
        for row, record in enumerate(records):
            for key in (chosen, rejected, user):
                if key not in record:
                    raise ValueError(
                        f"every row must have {key!r}, got {list(record)} at row {row}"
                    )
            values = [record.get(prompt), *(record[key] for key in (chosen, rejected, user))]
            values += [record.get("tools"), record.get("chat_template_kwargs")]
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        *texts, tools, options = columns
        return cls(*texts, tools=tools, chat_template_kwargs=options)

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
        rows = check_positions("rows", rows, len(self))
        if not len(rows):
            raise ValueError("rows must name at least one row, got none")
        derived = object.__new__(PreferenceRows)
        derived.prompts = [self.prompts[row] for row in rows]
        derived.chosen = [self.chosen[row] for row in rows]
        derived.rejected = [self.rejected[row] for row in rows]
        derived.tools = [self.tools[row] for row in rows]
        derived.chat_template_kwargs = [self.chat_template_kwargs[row] for row in rows]
        derived.record, derived.dropped = self.record[rows], self.dropped
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

    def item_texts(self) -> list[str]:
        """Lists the distinct (prompt, response) texts in order of first appearance.

        A conversation becomes lines of `role: content`.
        """
        return list(self._items())

    def _items(self) -> dict[str, int]:
        items: dict[str, int] = {}
        for prompt, *responses in zip(self.prompts, self.chosen, self.rejected, strict=True):
            for response in responses:
                items.setdefault(plain_text(prompt, response), len(items))
        return items

    def to_preferences(
        self, embed: Callable[[list[str]], Tensor] | Tensor, *, seed: int = 0
    ) -> Preferences:
        """Describes the same choices by features, for a reward model and its guide.

        The items are the distinct (prompt, response) texts. Rows do not tell which response was
        shown on which side, so sides are drawn at random: rows cannot teach a position bias.

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
        features = torch.as_tensor(features).detach().cpu()
        pairs = np.array(
            [
                (items[plain_text(prompt, chosen)], items[plain_text(prompt, rejected)])
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
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        *,
        after_end: bool = True,
    ) -> TokenisedPairs:
        """Tokenises all rows, to the tokens of TRL's `DPOTrainer`.

        Strings: the tokenizer's own beginning, prompt, response, end-of-sequence token.
        Conversations: what the chat template makes of them; the prompt ends with the template's
        request for an answer, the response with what the template puts after it. Prompt and
        response are encoded as one text: the response begins at the first token that is not the
        prompt's in both of a row's texts.

        Args:
            tokenizer: Tokenizer, with a chat template where rows are conversations.
            max_length: Largest number of tokens of prompt and longer response, None for any.
            after_end: Whether the white space that many templates put after a conversation's last
                end-of-sequence token is part of the response, as it is in TRL. It is never
                generated; without it averages over tokens (`sft`, `sigmoid_norm`, `ipo`) are of
                what is.

        Raises:
            ValueError: If the tokenizer lacks an end-of-sequence token (for strings) or a chat
                template (for conversations), if a prompt has no tokens, or if
                no row is left.

        Warns:
            UserWarning: If rows are left out, with their number; if the prompts trained on are
                not those that generation uses; if the template never ends a response.
        """
        return TokenisedPairs(self, tokenizer, max_length, after_end=after_end)
