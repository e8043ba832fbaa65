"""Generation: prompts as tokens, padding without a change of the tokenizer, draws without state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fssa_bayes.policy.base import check_vocabulary
from fssa_bayes.policy.checks import check_reach, expand_factors
from fssa_bayes.policy.conditioning import steered, surrounding_z
from fssa_bayes.policy.conversations import Message, read_conversation, render
from fssa_bayes.policy.tokens import open_ended

if TYPE_CHECKING:
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = [
    "Asked",
    "InverseTransform",
    "Sampling",
    "cut_at_stop",
    "encode_prompts",
    "end_tokens",
    "evaluating",
    "filler_token",
    "generate_tokens",
    "prepare",
    "write_texts",
]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and where text ends.

    Args:
        max_new_tokens: Largest length of a response, in tokens.
        temperature: What logits are divided by; 0 takes the most probable tokens.
        top_p: Probability of the tokens that are drawn among: the likeliest ones that have it.
        stop: Texts before which a response ends.
        seed: Seed of the draws.

    Raises:
        ValueError: If an option is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and not above 1, got {self.top_p}")
        if isinstance(self.stop, str):  # A string is a sequence of letters.
            object.__setattr__(self, "stop", (self.stop,))
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop must be texts that are not empty, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True)
class Asked:
    """Holds prompts as tokens, latent factors, and the numbers that choose tokens.

    Attributes:
        tokens: Tokens of R prompts.
        z: Latent factors (R, K), or (S, R, K) for draws; None where nothing steers.
        uniform: Numbers in [0, 1), one for each response and new token.
    """

    tokens: list[list[int]]
    z: Tensor | None
    uniform: Tensor

    @property
    def draws(self) -> int:
        """Number S of responses to each prompt."""
        return len(self.z) if self.z is not None and self.z.ndim == 3 else 1


def prepare(
    policy: SteerablePolicy,
    prompts: Sequence[str | Sequence[Message]],
    z: Tensor | None,
    sampling: Sampling,
    *,
    tools: list[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Asked:
    """Checks and encodes what a policy is to answer; arguments as in `SteerablePolicy.generate`."""
    if policy.tokenizer is None:
        raise ValueError("tokenizer must be given to generate text, got None")
    tokens = encode_prompts(policy.tokenizer, prompts, tools, chat_template_kwargs)
    largest = max([filler_token(policy.tokenizer), *(max(own) for own in tokens)])
    check_vocabulary(policy.base, largest, "prompts and padding")
    if z is None:
        z = surrounding_z(len(tokens))
    if z is not None:
        z = expand_factors(z, len(tokens), policy.latent_dim)
        if not z.isfinite().all():
            raise ValueError("z must be finite, got NaN or an infinite number")
    longest = max(map(len, tokens), default=0)
    check_reach(policy.base, longest, "prompts", sampling.max_new_tokens)
    # Drawn on the CPU, so that every device has the same numbers.
    asked = Asked(tokens, z, torch.empty(0))
    generator = torch.Generator().manual_seed(sampling.seed)
    shape = (len(tokens) * asked.draws, sampling.max_new_tokens)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    kind = torch.float32 if policy.device.type == "mps" else torch.float64
    return Asked(tokens, z, uniform.to(policy.device, kind))


class InverseTransform(LogitsProcessor):
    """Draws each row's next token by the row's own uniform number, whatever the batch.

    Only the drawn token stays possible, so that greedy search takes it. Rows with the same
    uniform numbers are coupled: where distributions hardly differ, most tokens are the same.

    Args:
        uniform: Numbers in [0, 1), one for each row and new token, with shape (R, N).
        temperature: What logits are divided by.
        prompt_length: Number of tokens before the first that is new.
        top_p: Probability of the tokens that are drawn among.
    """

    def __init__(
        self, uniform: Tensor, temperature: float, prompt_length: int, top_p: float = 1.0
    ) -> None:
        self.uniform = uniform
        self.temperature = temperature
        self.prompt_length = prompt_length
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns 0 for the token drawn and −∞ for the others, with shape (R, V)."""
        uniform = self.uniform[:, input_ids.shape[1] - self.prompt_length, None]
        probability = (scores.float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, order = probability.sort(stable=True, dim=-1, descending=True)
            beyond = ordered.cumsum(-1, dtype=uniform.dtype) - ordered >= self.top_p
            beyond[:, 0] = False
            probability = probability.masked_fill(beyond.gather(1, order.argsort(-1)), 0.0)
        cumulative = probability.cumsum(-1, dtype=uniform.dtype)
        # To the right of equal values: a token of probability 0 is never drawn.
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        drawn = torch.full_like(scores, -torch.inf)
        return drawn.scatter_(1, token.clamp(max=scores.shape[1] - 1), 0.0)


class _Follow(StoppingCriteria):
    """Ends rows whose text holds a stop text, and all rows when the caller says so.

    Args:
        tokenizer: The tokenizer.
        stop: Texts before which a response ends.
        prompt_length: Number of tokens before the first that is new.
        tell: Function that gets the new tokens of the first row and says whether to go on.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str],
        prompt_length: int,
        tell: Callable[[list[int]], bool] | None,
    ) -> None:
        self.tokenizer, self.stop, self.tell = tokenizer, stop, tell
        self.prompt_length = prompt_length
        self.window = 8 + 4 * max(map(len, stop), default=0)  # A letter has at most four bytes.

    def __call__(self, input_ids: Tensor, scores: Tensor, **given: Any) -> Tensor:
        """Says of each row whether it has ended."""
        new = input_ids[:, self.prompt_length :]
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self.stop:
            tails = self.tokenizer.batch_decode(new[:, -self.window :], skip_special_tokens=True)
            found = [any(text in tail for text in self.stop) for tail in tails]
            ended |= torch.tensor(found, device=input_ids.device)
        if self.tell is not None and not self.tell(new[0].tolist()):
            ended[:] = True
        return ended


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Returns the text before the first of the stop texts."""
    places = [place for place in (text.find(each) for each in stop) if place >= 0]
    return text[: min(places)] if places else text


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    tools: list[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
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
    encoded = [
        _encode(tokenizer, read_conversation("prompts", prompt, row), tools, chat_template_kwargs)
        for row, prompt in enumerate(prompts)
    ]
    for index, tokens in enumerate(encoded):
        if not tokens:
            raise ValueError(f"prompts must have at least one token each, got none in {index}")
    return encoded


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    tools: list[Any] | None,
    options: Mapping[str, Any] | None,
) -> list[int]:
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
    text = render(tokenizer, prompt, asks=True, tools=tools, options=options)
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
    policy: SteerablePolicy, asked: Asked, sampling: Sampling, batch_size: int
) -> list[str]:
    """Writes S R responses, draw by draw, in batches of prompts of similar length."""
    tokens = asked.tokens * asked.draws
    flat = None if asked.z is None else asked.z.reshape(-1, policy.latent_dim)
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    texts = [""] * len(tokens)
    with evaluating(policy), torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with steered(None if flat is None else flat[rows]):
                responses = generate_tokens(
                    policy.base,
                    [tokens[row] for row in rows],
                    asked.uniform[rows],
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    filler=filler_token(policy.tokenizer),
                    end=end_tokens(policy.base, policy.tokenizer),
                    stop=sampling.stop,
                    tokenizer=policy.tokenizer,
                )
            for row, response in zip(rows, responses, strict=True):
                text = policy.tokenizer.decode(response, skip_special_tokens=True)
                texts[row] = cut_at_stop(text, sampling.stop)
    return texts


def generate_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform: Tensor,
    *,
    temperature: float,
    filler: int,
    end: Sequence[int],
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    tell: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Continues prompts as one batch, each up to the token that ends it, without this token.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Tokens of the R prompts.
        uniform: Numbers that choose the tokens, with shape (R, number of new tokens).
        temperature: What logits are divided by; 0 takes the most probable token.
        filler: Token for padding.
        end: Tokens that end a text.
        top_p: Probability of the tokens that are drawn among.
        stop: Texts that end a text, for which the tokenizer is needed.
        tokenizer: The tokenizer.
        tell: Function that gets the tokens of the first response so far, after each of them, and
            says whether to go on.
    """
    length = max(map(len, prompts))
    padding = [length - len(tokens) for tokens in prompts]
    rows = [[filler] * pad + list(tokens) for pad, tokens in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (length - pad) for pad in padding]
    draw = [InverseTransform(uniform, temperature, length, top_p)] if temperature > 0 else []
    follow = [_Follow(tokenizer, stop, length, tell)] if stop or tell else []
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
        stopping_criteria=StoppingCriteriaList(follow),
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
