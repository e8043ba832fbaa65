"""Prompts and responses as text: strings, or conversations that a chat template renders.

The formats are those that TRL reads: strings, which are joined as they are, or conversations,
lists of `{"role", "content"}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Conversation",
    "Message",
    "check_same_format",
    "check_tokenizer",
    "plain_text",
    "read_conversation",
    "read_row",
    "render",
]

Message = Mapping[str, str]
Conversation = str | list[Message]


def read_row(
    prompt: Any, chosen: Any, rejected: Any, row: int
) -> tuple[Conversation, Conversation, Conversation]:
    """Checks a prompt and two responses, and finds the prompt where there is none.

    Args:
        prompt: The prompt; None or NaN takes the messages that both responses begin with.
        chosen: The preferred response.
        rejected: The other response.
        row: Number of the row, for messages.

    Returns:
        Prompt, chosen and rejected response, all strings or all lists of messages.

    Raises:
        ValueError: If a response is empty, the responses are the same, there is no prompt, the
            prompt ends with an assistant's turn, or strings and conversations are mixed.
        TypeError: If a text is neither a string nor a list of messages.
    """
    chosen = read_conversation("chosen", chosen, row)
    rejected = read_conversation("rejected", rejected, row)
    if prompt is None or (isinstance(prompt, float) and np.isnan(prompt)):
        if isinstance(chosen, str) or isinstance(rejected, str):
            raise ValueError(
                f"a row of strings must have a prompt, got none at row {row}; where both responses "
                "begin with it, split it off first"
            )
        length = _common_length(chosen, rejected)
        if not length:
            raise ValueError(
                f"a row must have a prompt, got two conversations without one at row {row}"
            )
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    else:
        prompt = read_conversation("prompt", prompt, row)
    check_same_format(prompt, chosen, row)
    check_same_format(prompt, rejected, row)
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


def read_conversation(name: str, value: Any, row: int) -> Conversation:
    """Returns a string, or a list of messages with nothing but role and content.

    Raises:
        TypeError: If the value is neither, or a message lacks a part.
    """
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


def check_same_format(prompt: Conversation, response: Conversation, row: int) -> None:
    """Checks that prompt and response are both strings or both conversations.

    Raises:
        ValueError: If one is a string and the other a conversation.
    """
    if isinstance(prompt, str) != isinstance(response, str):
        raise ValueError(
            "prompt and responses must be all strings or all conversations, got "
            f"{type(prompt).__name__} and {type(response).__name__} at row {row}"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation]) -> None:
    """Checks that a tokenizer has what these prompts and the responses to them need.

    Raises:
        ValueError: If there is no padding token, no end-of-sequence token (for strings) or no chat
            template (for conversations).
    """
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


def plain_text(prompt: Conversation, response: Conversation) -> str:
    """Joins prompt and response; a conversation becomes lines of `role: content`."""
    if isinstance(prompt, str):
        return prompt + response
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt + response)


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, responses: Sequence[Conversation]
) -> tuple[str, list[str]]:
    """Returns the prompt's text and, for each response, the text that follows the prompt's.

    Where the chat template begins an answer otherwise than it asks for one (with thinking marks,
    say), the prompt's text ends where request and answers part, between two tokens.
    """
    if isinstance(prompt, str):
        return prompt, list(responses)
    head = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    texts = [tokenizer.apply_chat_template(prompt + r, tokenize=False) for r in responses]
    if not all(text.startswith(head) for text in texts):
        length = min(_common_length(head, text) for text in texts)
        if tokenizer.is_fast:
            encoded = tokenizer(head, add_special_tokens=False, return_offsets_mapping=True)
            stops = [stop for _, stop in encoded["offset_mapping"]]
            length = max((stop for stop in stops if stop <= length), default=0)
        head = head[:length]
    return head, [_strip_after_end(text[len(head) :], tokenizer.eos_token) for text in texts]


def _strip_after_end(text: str, end: str | None) -> str:
    """Removes the white space that a template puts after the last end-of-sequence token.

    The model never generates this white space. Where the token separates messages, the last
    message follows the token and stays.
    """
    head, mark, rest = text.rpartition(end) if end else ("", "", text)
    return head + mark if mark and not rest.strip() else text


def _common_length(first: Sequence, second: Sequence) -> int:
    """Returns the length of the longest common beginning."""
    same = [left == right for left, right in zip(first, second, strict=False)]
    return [*same, False].index(False)
