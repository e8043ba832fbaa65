"""Generation: prompts as tokens, padding without a change of the tokenizer, draws without state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fssa_bayes.policy.conditioning import steered
from fssa_bayes.policy.conversations import Message
from fssa_bayes.policy.tokens import open_ended

if TYPE_CHECKING:
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = [
    "InverseTransform",
    "encode_prompts",
    "end_tokens",
    "evaluating",
    "filler_token",
    "generate_tokens",
    "write_texts",
]


class InverseTransform(LogitsProcessor):
    """Draws each row's next token by the row's own uniform number, whatever the batch.

    Only the drawn token stays possible, so that greedy search takes it. Rows with the same
    uniform numbers are coupled: where distributions hardly differ, most tokens are the same.

    Args:
        uniform: Numbers in [0, 1), one for each row and new token, with shape (R, N).
        temperature: What logits are divided by.
        prompt_length: Number of tokens before the first that is new.
    """

    def __init__(self, uniform: Tensor, temperature: float, prompt_length: int) -> None:
        self.uniform = uniform
        self.temperature = temperature
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns 0 for the token drawn and −∞ for the others, with shape (R, V)."""
        uniform = self.uniform[:, input_ids.shape[1] - self.prompt_length, None]
        cumulative = (scores.float() / self.temperature).softmax(-1).cumsum(-1, dtype=uniform.dtype)
        # To the right of equal values: a token of probability 0 is never drawn.
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        drawn = torch.full_like(scores, -torch.inf)
        return drawn.scatter_(1, token.clamp(max=scores.shape[1] - 1), 0.0)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Sequence[Message]]
) -> list[list[int]]:
    """Encodes strings, or conversations by the chat template, as lists of tokens.

    Raises:
        ValueError: If there are conversations and no chat template, or a prompt without tokens.
        TypeError: If a prompt is neither a string nor a list of messages.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a sequence of prompts, got a single string")
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence | np.ndarray):
            raise TypeError(
                "prompts must be strings or conversations, lists of messages, got "
                f"{type(prompt).__name__} in {index}"
            )
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    for index, tokens in enumerate(encoded):
        if not tokens:
            raise ValueError(f"prompts must have at least one token each, got none in {index}")
    return encoded


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> list[int]:
    if isinstance(prompt, str):
        tokens, own = (
            tokenizer(prompt, add_special_tokens=special)["input_ids"] for special in (True, False)
        )
        return open_ended(tokenizer, tokens, own)
    if tokenizer.chat_template is None:
        raise ValueError(
            "prompts must be strings, because the tokenizer has no chat template; got a "
            "conversation: set tokenizer.chat_template"
        )
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # The template wrote the marks.


def filler_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token that pads batches: the padding token, or else the end-of-text token.

    Raises:
        ValueError: If the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(
        "tokenizer must have a padding or an end-of-text token, got neither: set "
        "tokenizer.pad_token"
    )


def write_texts(
    policy: SteerablePolicy,
    tokens: list[list[int]],
    z: Tensor | None,
    uniform: Tensor,
    temperature: float,
    batch_size: int,
) -> list[str]:
    """Writes responses to R prompts, in batches of prompts of similar length.

    Args:
        policy: The policy.
        tokens: Tokens of the prompts.
        z: Latent factors of the responses with R K numbers; None for none.
        uniform: Numbers that choose the tokens, with shape (R, number of new tokens).
        temperature: What logits are divided by; 0 takes the most probable token.
        batch_size: Number of responses written at a time.
    """
    filler = filler_token(policy.tokenizer)
    end = end_tokens(policy.base, policy.tokenizer)
    flat = None if z is None else z.reshape(-1, policy.latent_dim)
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    texts = [""] * len(tokens)
    with evaluating(policy), torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with steered(flat[rows]) if flat is not None else contextlib.nullcontext():
                responses = generate_tokens(
                    policy.base,
                    [tokens[row] for row in rows],
                    uniform[rows],
                    temperature=temperature,
                    filler=filler,
                    end=end,
                )
            for row, response in zip(rows, responses, strict=True):
                texts[row] = policy.tokenizer.decode(response, skip_special_tokens=True)
    return texts


def generate_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform: Tensor,
    *,
    temperature: float,
    filler: int,
    end: Sequence[int],
) -> list[list[int]]:
    """Continues prompts as one batch, each up to the token that ends it, without this token.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Tokens of the R prompts.
        uniform: Numbers that choose the tokens, with shape (R, number of new tokens).
        temperature: What logits are divided by; 0 takes the most probable token.
        filler: Token for padding.
        end: Tokens that end a text.
    """
    length = max(map(len, prompts))
    padding = [length - len(tokens) for tokens in prompts]
    rows = [[filler] * pad + list(tokens) for pad, tokens in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (length - pad) for pad in padding]
    draw = [InverseTransform(uniform, temperature, length)] if temperature > 0 else []
    output = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=GenerationConfig(
            max_new_tokens=uniform.shape[1],
            # Else the model's own settings would fill these in and change the draws.
            min_length=0,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=1.0,
            encoder_repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=filler,
            eos_token_id=list(end) or None,
            return_dict_in_generate=False,
        ),
        logits_processor=LogitsProcessorList(draw),
    )
    responses = []
    for tokens in output[:, length:].tolist():
        stops = (index for index, token in enumerate(tokens) if token in end)
        responses.append(tokens[: next(stops, len(tokens))])
    return responses


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Lists the tokens that end a text, of the model's generation settings and of the tokenizer.

    Training ends responses with the tokenizer's token; the base model may end them with others.
    """
    found = []
    for end in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        found += end if isinstance(end, list | tuple) else [end]
    return [end for end in dict.fromkeys(found) if end is not None]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts modules in evaluation mode inside the block; in training mode caches may be off."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
