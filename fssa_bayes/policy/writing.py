"""What a policy writes: responses to prompts, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fssa_bayes.policy.conversations import Message
from fssa_bayes.policy.generation import Sampling, encode_prompts, prepare, write_texts
from fssa_bayes.policy.streaming import TextStream

if TYPE_CHECKING:
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = ["Writing"]


class Writing:
    """Methods of a policy that write text."""

    def generate(
        self: SteerablePolicy,
        prompts: Sequence[str | Sequence[Message]],
        z: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        batch_size: int = 16,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str] | list[list[str]]:
        """Writes a response to each prompt.

        Each response has random numbers of its own, which depend on `seed` and on the position in
        the list, not on `batch_size` or z: two calls with one seed differ by the effect of z.

        Args:
            prompts: R strings, or conversations, lists of messages with `role` and `content`.
            z: Latent factor (K,) for all, (R, K) one a prompt, or draws (S, R, K) of the posterior,
                for S draws of the posterior predictive response to each prompt. None for those of
                the surrounding :func:`steered`, if any.
            max_new_tokens: Largest length of a response, in tokens.
            temperature: What logits are divided by; 0 takes the most probable tokens.
            top_p: Probability of the likeliest tokens, among which alone a token is drawn.
            stop: Texts before which a response ends.
            seed: Seed of the draws.
            batch_size: Number of responses written at a time.
            tools: Schemas of tools, for the chat template.
            chat_template_kwargs: What else the chat template knows.

        Returns:
            R responses, or S lists of them for draws.

        Raises:
            ValueError: If z has another shape, the tokenizer has no chat template for conversations
                or no token for padding, or an option is out of its range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        sampling = Sampling(max_new_tokens, temperature, top_p, stop, seed)
        asked = prepare(
            self, prompts, z, sampling, tools=tools, chat_template_kwargs=chat_template_kwargs
        )
        texts = write_texts(self, asked, sampling, batch_size)
        if asked.z is None or asked.z.ndim < 3:
            return texts
        size = len(asked.tokens)
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    def encode(
        self: SteerablePolicy,
        prompts: Sequence[str | Sequence[Message]],
        *,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[list[int]]:
        """Returns the tokens of prompts, as :meth:`generate` reads them."""
        return encode_prompts(self.tokenizer, prompts, tools, chat_template_kwargs)

    def stream(
        self: SteerablePolicy,
        prompt: str | Sequence[Message],
        z: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        within: AbstractContextManager | None = None,
    ) -> TextStream:
        """Writes one response, piece by piece; joined, the pieces are what `generate` returns.

        Arguments and errors are those of :meth:`generate`. z is that of the call, whatever steers
        where the pieces are read. Where the reading ends early, so does the writing. `within` is
        entered while the response is written: a semaphore limits how many are written at once.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, stop, seed)
        asked = prepare(
            self, [prompt], z, sampling, tools=tools, chat_template_kwargs=chat_template_kwargs
        )
        if asked.draws > 1:
            raise ValueError(f"z must be one point to stream, got {asked.draws} draws")
        return TextStream(self, asked, sampling, within)
