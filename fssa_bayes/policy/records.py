"""Rows of preference data as people have them: read, mended by rule, or left out and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fssa_bayes.policy.conversations import (
    Conversation,
    check_encodable,
    check_same_format,
    plain_content,
    read_conversation,
    read_tools,
    split_implicit,
    to_plain,
    without_prompt,
)

__all__ = ["REASONS", "Record", "read_records"]

REASONS = (
    "without a response",
    "without a prompt",
    "with an empty response",
    "whose responses are the same",
    "whose responses begin with another role than the assistant's",
)
"""Why rows are left out."""

_CUT = "have responses that repeat their prompt, which was cut off"
_LEFT = (
    "have a response that repeats its prompt, as text: it is trained on as it stands, since other "
    "rows do not repeat theirs"
)


class Record(NamedTuple):
    """Holds one row: prompt, responses, tools, options of the template, position in the data."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    tools: list[Any] | None
    options: dict[str, Any]
    number: int


def read_records(
    prompts: Sequence[Any],
    chosen: Sequence[Any],
    rejected: Sequence[Any],
    tools: Sequence[Any],
    options: Sequence[Any],
) -> tuple[list[Record], dict[str, int], dict[str, int]]:
    """Reads rows.

    Returns:
        The rows that are left, the number of those left out by reason, and the number of those
        whose prompt was repeated by what was done with it.

    Raises:
        ValueError: If a row mixes strings and conversations, or tools or options are none.
        TypeError: If a text is neither a string nor a list of messages.
    """
    dropped = dict.fromkeys(REASONS, 0)
    repeats = {_CUT: 0, _LEFT: 0}
    found: list[Record] = []
    for number, row in enumerate(zip(prompts, chosen, rejected, tools, options, strict=True)):
        texts = _read_texts(*row[:3], number)
        if isinstance(texts, str):
            dropped[texts] += 1
            continue
        if not isinstance(texts[0], str):
            cut = _cut_conversations(*texts)
            repeats[_CUT] += cut != texts
            texts = cut
        own = _read_options(row[4], number)
        found.append(Record(*texts, read_tools(row[3], number), own, number))
    cut, repeats[_LEFT] = _cut_strings(found)
    repeats[_CUT] += len(found) if cut is not found else 0
    kept = []
    for record in cut:
        reason = _find_fault(record)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(record)
    return kept, dropped, repeats


def _read_texts(
    prompt: Any, chosen: Any, rejected: Any, row: int
) -> tuple[Conversation, Conversation, Conversation] | str:
    """Returns prompt and responses, or the reason why there are none."""
    if _is_missing(chosen) or _is_missing(rejected):
        return REASONS[0]
    responses = (
        read_conversation("chosen", chosen, row),
        read_conversation("rejected", rejected, row),
    )
    if _is_missing(prompt):
        check_same_format(*responses, row)
        if responses[0] == responses[1]:
            return REASONS[3]
        if not all(responses):
            return REASONS[2]
        return split_implicit(*responses) or REASONS[1]
    prompt = read_conversation("prompt", prompt, row)
    for response in responses:
        check_same_format(prompt, response, row)
    if not isinstance(prompt, str) and not prompt:
        return REASONS[1]
    return prompt, *responses


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and bool(np.isnan(value)))


def _read_options(value: Any, row: int) -> dict[str, Any]:
    if _is_missing(value):
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"chat_template_kwargs must be a mapping, got {type(value).__name__} at row {row}"
        )
    check_encodable("chat_template_kwargs", value, row)
    return to_plain(value)


def _cut_conversations(
    prompt: Conversation, *responses: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    """Cuts the prompt off responses that repeat it: no answer begins with its question."""
    return prompt, *(without_prompt(prompt, response) or response for response in responses)


def _cut_strings(found: list[Record]) -> tuple[list[Record], int]:
    """Cuts the prompt off strings where all repeat it, and else counts those that do.

    An answer may well begin with the words of the question; all answers of a table do not.
    """
    strings = [record for record in found if isinstance(record.prompt, str)]
    cuts = [[without_prompt(r.prompt, text) for text in (r.chosen, r.rejected)] for r in strings]
    if strings and len(strings) == len(found) and all(None not in pair for pair in cuts):
        pairs = zip(found, cuts, strict=True)
        return [record._replace(chosen=c, rejected=r) for record, (c, r) in pairs], 0
    return found, sum(pair != [None, None] for pair in cuts)


def _find_fault(record: Record) -> str | None:
    """Returns the reason why a row holds no choice between two answers; None if it does."""
    responses = (record.chosen, record.rejected)
    if not all(_has_words(response) for response in responses):
        return REASONS[2]
    if record.chosen == record.rejected:
        return REASONS[3]
    roles = {r[0]["role"] for r in responses if not isinstance(r, str)}
    return REASONS[4] if roles & {"user", "system", "developer"} else None


def _has_words(response: Iterable) -> bool:
    if isinstance(response, str):
        return bool(response.strip())
    return bool("".join(plain_content(message) for message in response).strip())
