"""Text while it is written: its pieces, its z, its end, and threads that have lost their z."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

import pytest
import torch
from steered_policies import PROMPTS, factors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

from fssa_bayes.policy import SteerablePolicy, steered

OPTIONS = {"max_new_tokens": 12, "seed": 3}


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"top_p": 0.7}, {"stop": ["w1", "w23"]}])
def test_pieces_join_to_what_generate_returns(more: dict, policy: Callable) -> None:
    moved = policy()
    for prompt, z in zip(PROMPTS, factors(3), strict=True):
        expected = moved.generate([prompt], z, **OPTIONS, **more)[0]
        stream = moved.stream(prompt, z, **OPTIONS, **more)
        pieces = list(stream)
        assert "".join(pieces) == expected
        assert all(pieces)
        assert stream.finish_reason in ("stop", "length")
        assert (stream.finish_reason == "length") <= (stream.tokens == 12)
        if not more:
            assert len(pieces) > 3


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of single bytes, of which letters outside of ASCII have several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def test_pieces_end_between_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    policy = SteerablePolicy.from_model(LlamaForCausalLM(config), tokenizer, latent_dim=2)
    text = "añb→…STOP"
    tokens = tokenizer(text)["input_ids"]

    def write(*_: object, tell: Callable, **__: object) -> None:
        for size in range(1, len(tokens) + 1):
            tell(tokens[:size])

    monkeypatch.setattr("fssa_bayes.policy.streaming.generate_tokens", write)
    assert list(policy.stream("a")) == list(text)
    assert list(policy.stream("a", stop=["TOP", "Sx"])) == [*"añb→…", "S"]
    assert list(policy.stream("a", stop=["STOP"])) == list("añb→…")


def test_z_is_that_of_the_call(policy: Callable) -> None:
    moved, (one, other, *_) = policy(), factors(4)
    expected = [moved.generate(PROMPTS[:1], z, **OPTIONS)[0] for z in (one, other)]
    assert expected[0] != expected[1]
    with steered(one[None]):
        stream = moved.stream(PROMPTS[0], **OPTIONS)
    with steered(other[None]):
        assert "".join(stream) == expected[0]
    streams = [moved.stream(PROMPTS[0], z, **OPTIONS) for z in (one, other)]
    pieces: list[list[str]] = [[], []]
    for _ in range(12):  # Read in turn, written side by side.
        for each, stream in zip(pieces, streams, strict=True):
            each.append(next(stream, ""))
    assert ["".join(each) for each in pieces] == expected


def test_writing_ends_where_reading_does(policy: Callable) -> None:
    moved, count = policy(), threading.active_count()
    with moved.stream(PROMPTS[0], factors(1)[0], max_new_tokens=80) as stream:
        next(stream)
    assert list(stream) == []
    assert stream.tokens < 80
    assert threading.active_count() == count


def test_errors_arise_where_pieces_are_read(policy: Callable, monkeypatch) -> None:
    moved = policy()
    with pytest.raises(ValueError, match="z must be one point to stream, got 3 draws"):
        moved.stream(PROMPTS[0], factors(3)[:, None])

    def fail(*_: object, **__: object) -> None:
        raise FloatingPointError("no number")

    monkeypatch.setattr("fssa_bayes.policy.streaming.generate_tokens", fail)
    with pytest.raises(FloatingPointError, match="no number"):
        list(moved.stream(PROMPTS[0]))


def test_a_thread_that_has_lost_z_is_refused(policy: Callable, monkeypatch) -> None:
    moved, z = policy(), factors(1)
    inputs = moved.tokenizer(PROMPTS[0], return_tensors="pt")
    errors: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda given: errors.append(given.exc_value))

    def write(run: Callable = lambda f, **kwargs: f(**kwargs)) -> str:
        streamer = TextIteratorStreamer(moved.tokenizer, skip_prompt=True)
        options = {**inputs, "streamer": streamer, "max_new_tokens": 6, "do_sample": False}
        with steered(z):
            thread = threading.Thread(target=run, args=(moved.model.generate,), kwargs=options)
            thread.start()
        text = "".join(streamer)
        thread.join()
        return text

    assert write() == ""
    assert isinstance(errors[0], RuntimeError)
    assert "a thread that steered() does not reach: use policy.stream" in str(errors[0])
    with steered(z):
        context = contextvars.copy_context()
        expected = moved.base.generate(**inputs, max_new_tokens=6, do_sample=False)
    found = write(context.run)
    assert found.split() == moved.tokenizer.decode(expected[0, 5:]).split()

    def unsteered() -> None:  # What the policy itself generates is decided.
        texts.append(moved.generate(PROMPTS[:1], max_new_tokens=6, temperature=0))

    texts: list = []
    thread = threading.Thread(target=unsteered)
    thread.start()
    thread.join()
    assert texts == [moved.generate(PROMPTS[:1], max_new_tokens=6, temperature=0)]
    assert torch.is_grad_enabled()
