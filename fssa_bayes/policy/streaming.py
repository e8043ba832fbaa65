"""Text while it is written: a thread that keeps its z, and a refusal where a thread has lost it."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import PreTrainedModel

from fssa_bayes.policy.conditioning import is_decided, steered
from fssa_bayes.policy.generation import (
    Asked,
    Sampling,
    cut_at_stop,
    end_tokens,
    evaluating,
    filler_token,
    generate_tokens,
)

if TYPE_CHECKING:
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = ["TextStream", "guard_threads"]


class TextStream(Iterator[str]):
    """Iterates over the pieces of a response while a thread writes it.

    A piece ends neither within a character nor where a stop text may have begun. Writing ends when
    the response does, or when :meth:`close` is called, also by the end of a `with` block.

    Args:
        policy: The policy.
        asked: One prompt.
        sampling: How tokens are chosen.
        within: What the thread enters while it writes, such as a semaphore; None for nothing.

    Attributes:
        tokens: Number of tokens written so far, with the one that ended the response.
        finish_reason: "stop" where the response has ended, "length" where it reached its largest
            length, None before.
    """

    def __init__(
        self,
        policy: SteerablePolicy,
        asked: Asked,
        sampling: Sampling,
        within: AbstractContextManager | None = None,
    ) -> None:
        self._policy, self._asked, self._sampling = policy, asked, sampling
        self._within = nullcontext() if within is None else within
        self._queue: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        self._closed, self._begun = threading.Event(), threading.Event()
        self._shown, self._last = "", None
        self.tokens, self.finish_reason = 0, None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._write,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the writing, after the token that is being computed."""
        self._closed.set()
        if self._begun.is_set():  # Else the thread waits, and ends when its turn comes.
            self._thread.join()

    def __next__(self) -> str:
        """Returns the next piece.

        Raises:
            StopIteration: If the response has ended.
        """
        while not self._closed.is_set():
            found = self._queue.get()
            if isinstance(found, BaseException):
                self._closed.set()
                raise found
            piece = self._end() if found is None else self._show(found)
            if piece:
                return piece
        raise StopIteration

    def _show(self, tokens: list[int]) -> str:
        """Returns what may be shown after some tokens and was not shown before."""
        self._last, self.tokens = tokens, len(tokens)
        text = self._decode(tokens)
        cut = cut_at_stop(text, self._sampling.stop)
        if cut == text:
            cut = cut.rstrip("\ufffd")  # Bytes of a character that is not whole yet.
            cut = cut[: len(cut) - _begun(cut, self._sampling.stop)]
        return self._add(cut)

    def _end(self) -> str:
        self._closed.set()
        tokens, ends = self._last or [], self._ends()
        text = self._decode(tokens)
        cut = cut_at_stop(text, self._sampling.stop)
        ended = cut != text or (tokens and tokens[-1] in ends)
        self.finish_reason = "stop" if ended else "length"
        return self._add(cut)

    def _add(self, text: str) -> str:
        if not text.startswith(self._shown):
            return ""
        piece, self._shown = text[len(self._shown) :], text
        return piece

    def _decode(self, tokens: list[int]) -> str:
        ends = self._ends()
        written = tokens[:-1] if tokens and tokens[-1] in ends else tokens
        return self._policy.tokenizer.decode(written, skip_special_tokens=True)

    def _ends(self) -> list[int]:
        return end_tokens(self._policy.base, self._policy.tokenizer)

    def _write(self) -> None:
        policy, asked, sampling = self._policy, self._asked, self._sampling
        z = None if asked.z is None else asked.z.reshape(-1, policy.latent_dim)
        try:
            with self._within, evaluating(policy), torch.no_grad(), steered(z):
                self._begun.set()
                if self._closed.is_set():
                    return
                generate_tokens(
                    policy.base,
                    asked.tokens,
                    asked.uniform,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    filler=filler_token(policy.tokenizer),
                    end=self._ends(),
                    stop=sampling.stop,
                    tokenizer=policy.tokenizer,
                    tell=self._tell,
                )
            self._queue.put(None)
        except BaseException as error:  # Raised again where the pieces are read.
            self._queue.put(error)

    def _tell(self, tokens: list[int]) -> bool:
        self._queue.put(tokens)
        return not self._closed.is_set()


def _begun(text: str, stop: tuple[str, ...]) -> int:
    """Returns the length of the longest end of a text that a stop text begins with."""
    lengths = [
        size
        for each in stop
        for size in range(1, min(len(each), len(text)) + 1)
        if text.endswith(each[:size])
    ]
    return max(lengths, default=0)


def guard_threads(model: PreTrainedModel) -> None:
    """Lets a base model's `generate` refuse to run in a thread that has lost z.

    A thread does not inherit :func:`steered` of the thread that starts it. The usual recipe, a
    `TextIteratorStreamer` and a thread inside the block, would write unsteered text.
    """
    model.generate = partial(_generate, model)


def _generate(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    if threading.current_thread() is not threading.main_thread() and not is_decided():
        if kwargs.get("streamer") is not None:
            kwargs["streamer"].end()  # Else its reader would wait for ever.
        raise RuntimeError(
            "generate must know what steers it, got a thread that steered() does not reach: use "
            "policy.stream, start the thread by contextvars.copy_context().run, or write "
            "steered(z) inside of it, steered(None) for no z"
        )
    return type(model).generate(model, *args, **kwargs)
