"""Prompts and responses: strings, or conversations that a chat template renders.

The formats are those that TRL reads: strings, which are joined as they are, or conversations,
lists of messages with `role`, `content` and whatever else the chat template knows, such as `name`
and `tool_calls`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Conversation",
    "Message",
    "check_encodable",
    "check_same_format",
    "check_tokenizer",
    "plain_content",
    "plain_text",
    "read_conversation",
    "read_tools",
    "render",
    "split_implicit",
    "to_plain",
    "without_prompt",
]

Message = Mapping[str, Any]

_NO_TEXT = {"role", "content", "name", "tool_call_id"}
Conversation = str | list[Message]


def read_conversation(name: str, value: Any, row: int) -> Conversation:
    """Returns a string, or a list of messages with all they hold except what is None.

    Tables fill what a message lacks with None, and some of them hold arrays in place of lists.

    Raises:
        TypeError: If the value is neither, or a message lacks a part.
        ValueError: If a message holds something else than text, or half a pair of surrogates.
    """
    check_encodable(name, value, row)
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple | np.ndarray):
        raise TypeError(
            f"{name} must be a string or a list of messages, got {type(value).__name__} at row "
            f"{row}"
        )
    return [_read_message(name, message, row) for message in value]


def check_encodable(name: str, value: Any, row: int) -> None:
    """Checks that UTF-8 can hold all texts of a value; lists and mappings are looked into.

    Raises:
        ValueError: If a text holds half a pair of surrogates, which no file and no tokenizer takes.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            raise ValueError(
                f"{name} must be text that UTF-8 can hold, got {half!r} at row {row}"
            ) from error
    elif isinstance(value, Mapping):
        for key, part in value.items():
            check_encodable(name, key, row)
            check_encodable(name, part, row)
    elif isinstance(value, list | tuple | np.ndarray):
        for part in value:
            check_encodable(name, part, row)


def _read_message(name: str, message: Any, row: int) -> dict[str, Any]:
    if isinstance(message, Mapping):
        found = {key: to_plain(part) for key, part in message.items() if part is not None}
        content = found.get("content", "" if found.get("tool_calls") else None)
        if isinstance(found.get("role"), str) and isinstance(content, str | list):
            if isinstance(content, list):
                for part in content:
                    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                        raise ValueError(
                            f"the content of a message of {name} must be text, got a part of type "
                            f"{kind!r} at row {row}: the policy reads text alone"
                        )
            return {**found, "content": content}
    raise TypeError(
        f"a message of {name} must have a 'role' and a 'content', both strings, got "
        f"{message!r} at row {row}"
    )


def to_plain(value: Any) -> Any:
    """Returns lists and dictionaries for arrays and mappings, without entries that are None."""
    if isinstance(value, Mapping):
        return {key: to_plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def read_tools(value: Any, row: int) -> list[Any] | None:
    """Returns the tools of a row: a list, JSON of a list as tables hold it, or None.

    Raises:
        ValueError: If the value is something else.
    """
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"tools must be JSON where they are text, at row {row}") from error
    else:
        value = to_plain(value)
    check_encodable("tools", value, row)
    if value is not None and not isinstance(value, list):
        raise ValueError(
            f"tools must be a list of schemas, got {type(value).__name__} at row {row}"
        )
    return value or None


def split_implicit(
    chosen: Conversation, rejected: Conversation
) -> tuple[Conversation, Conversation, Conversation] | None:
    """Splits off the prompt that both responses begin with, as TRL does; None if there is none.

    Of strings a space before the place where they part belongs to the responses; of two of which
    one begins with the other, the last letter, or message, of the shorter one is a response.
    """
    shorter = min(len(chosen), len(rejected))
    same = [left == right for left, right in zip(chosen, rejected, strict=False)]
    length = min([*same, False].index(False), shorter - 1)
    if isinstance(chosen, str) and length > 0 and not all(same) and chosen[length - 1] == " ":
        length -= 1
    if length < 1:
        return None
    return chosen[:length], chosen[length:], rejected[length:]


def without_prompt(prompt: Conversation, response: Conversation) -> Conversation | None:
    """Returns a response without the prompt that it repeats; None if it repeats none."""
    begins = len(response) > len(prompt) and response[: len(prompt)] == prompt
    if not begins or not (prompt.strip() if isinstance(prompt, str) else prompt):
        return None
    return response[len(prompt) :]


def check_same_format(prompt: Conversation, response: Conversation, row: int) -> None:
    """Checks that prompt and response are both strings or both conversations.

    Raises:
        ValueError: If one is a string and the other a conversation.
    """
    if isinstance(prompt, str) != isinstance(response, str):
        hint = (
            ": leave the prompt out where the responses begin with it, or make it a conversation"
            if isinstance(prompt, str)
            else ""
        )
        raise ValueError(
            "prompt and responses must be all strings or all conversations, got "
            f"{type(prompt).__name__} and {type(response).__name__} at row {row}{hint}"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation]) -> None:
    """Checks that a tokenizer has what these prompts and the responses to them need.

    Raises:
        ValueError: If there is neither a padding nor an end-of-sequence token, which strings need
            in any case, or no chat template (for conversations).
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            "tokenizer must have a padding token, or an end-of-sequence token in its place, got "
            "neither: set tokenizer.pad_token"
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


def plain_text(prompt: Conversation, response: Conversation) -> str:
    """Joins prompt and response; a conversation becomes lines of `role: content`.

    The calls of tools follow the content of their message, as JSON.
    """
    if isinstance(prompt, str):
        return prompt + response
    return "\n".join(f"{m['role']}: {plain_content(m)}" for m in prompt + response)


def plain_content(message: Message) -> str:
    """Returns the text of a message, with its calls of tools and whatever else it says."""
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    said = [value for key, value in message.items() if key not in _NO_TEXT and value]
    if not said:
        return text
    return " ".join([text, *(json.dumps(value, ensure_ascii=False) for value in said)]).strip()


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    asks: bool = False,
    tools: list[Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Renders a conversation by the chat template.

    Args:
        tokenizer: Tokenizer with a chat template.
        messages: The conversation.
        asks: Whether the template's request for an answer follows.
        tools: Schemas of the tools that may be called.
        options: What else the template knows, such as `enable_thinking`.

    Raises:
        ValueError: If the template refuses the conversation.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asks, tools=tools,
            **(options or {}),
        )  # fmt: skip
    except Exception as error:  # Templates raise what their authors chose.
        roles = [message.get("role") for message in messages]
        raise ValueError(
            f"the chat template must render the conversation, of roles {roles}, got: {error}"
        ) from error
