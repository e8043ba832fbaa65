"""Text that a policy writes: its draws, its end, prompts and options."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from steered_policies import PROMPTS, factors

from fssa_bayes.policy import (
    SteerablePolicy,
)
from fssa_bayes.policy.generation import InverseTransform, encode_prompts, end_tokens


def test_text_depends_on_its_seed_and_place_alone(policy: Callable) -> None:
    moved, z = policy(), factors(3)
    options = {"max_new_tokens": 6}
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    texts = [moved.generate(PROMPTS, z, batch_size=size, **options) for size in (1, 2, 16)]
    assert texts[0] == texts[1] == texts[2]
    assert moved.generate(PROMPTS[:1], z[:1], **options) == texts[0][:1]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert random.getstate() == state[2]
    assert moved.generate(PROMPTS, z, seed=1, **options) != texts[0]
    assert moved.generate(PROMPTS, -z, **options) != texts[0]
    assert moved.tokenizer.padding_side == word_side(moved)
    assert all(isinstance(text, str) for text in texts[0])


def word_side(policy: SteerablePolicy) -> str:
    return type(policy.tokenizer)(tokenizer_object=policy.tokenizer.backend_tokenizer).padding_side


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2", "phi"])
def test_greedy_text_is_the_likeliest_token_each_time(name: str, policy: Callable) -> None:
    moved, z = policy(name), factors(3)
    found = moved.generate(PROMPTS, z, max_new_tokens=6, temperature=0)
    for prompt, factor, text in zip(PROMPTS, z, found, strict=True):
        tokens = moved.tokenizer(prompt, return_tensors="pt")["input_ids"]
        written: list[int] = []
        while len(written) < 6:
            token = moved(tokens, z=factor)[0, -1].argmax()
            if token == moved.tokenizer.eos_token_id:
                break
            written.append(int(token))
            tokens = torch.cat([tokens, token.reshape(1, 1)], -1)
        assert text == moved.tokenizer.decode(written, skip_special_tokens=True)


def test_tokens_are_drawn_from_the_policy(policy: Callable) -> None:
    moved, z, temperature = policy(), factors(), 2.0
    draws = z[:1].expand(4000, 1, 2)
    texts = moved.generate(
        PROMPTS[:1], draws, max_new_tokens=1, temperature=temperature, batch_size=1000
    )
    assert len(texts) == 4000
    assert {len(text) for text in texts} == {1}
    logits = moved(moved.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"], z=z[0])[0, -1]
    probability = (logits / temperature).softmax(-1).detach().double().numpy()
    words = moved.tokenizer.get_vocab()
    count = np.zeros(40)
    for (text,) in texts:
        count[words.get(text, 0)] += 1
    special = [0, 1, 2]  # Not shown: together they are the empty texts.
    expected = np.append(np.delete(probability, special), probability[special].sum())
    found = np.append(np.delete(count, special), count[special].sum())
    assert stats.chisquare(found, 4000 * expected / expected.sum()).pvalue > 0.001


def test_inverse_transform() -> None:
    scores = torch.tensor([0.0, 0.2, 0.5, 0.0, 0.3, 0.0]).log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.1999, 0.2001, 0.75, 0.999999], dtype=torch.float64)[:, None]
    drawn = InverseTransform(uniform, 1.0, 3)(torch.zeros(5, 3, dtype=torch.long), scores)
    assert drawn.argmax(-1).tolist() == [1, 1, 2, 4, 4]
    assert torch.equal(drawn.exp().sum(-1), torch.ones(5))


def test_the_models_own_generation_settings_bend_nothing(policy: Callable) -> None:
    plain, bent = policy(), policy()
    settings = bent.base.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size = 9.0, 2
    settings.top_k, settings.temperature, settings.do_sample, settings.num_beams = 1, 0.1, True, 2
    settings.num_return_sequences = 2
    options = {"max_new_tokens": 8, "temperature": 0.7}
    assert bent.generate(PROMPTS, **options) == plain.generate(PROMPTS, **options)


def test_draws_are_written_independently(policy: Callable) -> None:
    moved, z = policy(), factors(3)
    texts = moved.generate(PROMPTS, z.expand(5, -1, -1), max_new_tokens=8)
    assert [len(draw) for draw in texts] == [3] * 5
    assert all(len({draw[row] for draw in texts}) == 5 for row in range(3))
    shared = moved.generate(PROMPTS, z[0], max_new_tokens=4)
    assert shared == moved.generate(PROMPTS, z[:1].expand(3, -1), max_new_tokens=4)
    assert moved.generate([], z[0]) == []


def test_generation_leaves_training_mode_as_it_was(policy: Callable) -> None:
    moved = policy().train()
    moved.enable_gradient_checkpointing()
    moved.conditioning.eval()
    texts = moved.generate(PROMPTS, factors(3), max_new_tokens=5)
    assert moved.base.training
    assert not moved.conditioning.training
    assert texts == moved.eval().generate(PROMPTS, factors(3), max_new_tokens=5)
    with moved.reference():
        base = moved.generate(PROMPTS, factors(3), max_new_tokens=5)
    assert base == policy(new=True).generate(PROMPTS, max_new_tokens=5)


def test_conversations_go_through_the_chat_template(policy: Callable) -> None:
    moved = policy()
    talk = [{"role": "user", "content": "w5 w6"}]
    with pytest.raises(ValueError, match="tokenizer has no chat template"):
        moved.generate([talk])
    moved.tokenizer.chat_template = (
        "w3 {% for m in messages %}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w4{% endif %}"
    )
    found = moved.generate([talk, "w3 w5 w6 w4"], factors(1)[0], max_new_tokens=5, temperature=0)
    assert found[0] == found[1] != ""


def test_tokenizers_without_padding(policy: Callable) -> None:
    moved = policy()
    expected = moved.generate(PROMPTS, factors(3), max_new_tokens=5)
    moved.tokenizer.pad_token = None
    assert moved.generate(PROMPTS, factors(3), max_new_tokens=5) == expected
    assert moved.tokenizer.pad_token is None
    moved.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="padding or an end-of-text token, got neither"):
        moved.generate(PROMPTS)
    moved.tokenizer = None
    with pytest.raises(ValueError, match="tokenizer must be given"):
        moved.generate(PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ("w3 w4", {}, TypeError, "sequence of prompts, got a single string"),
        (["w3", ""], {}, ValueError, "at least one token each, got none in 1"),
        (["w3"], {"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        (["w3"], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (["w3"], {"temperature": -1.0}, ValueError, "temperature must be at least 0, got -1.0"),
        (["w3"], {"temperature": float("nan")}, ValueError, "temperature must be at least 0"),
        (["w3"], {"top_p": 0.0}, ValueError, "top_p must lie above 0 and not above 1, got 0.0"),
        (["w3"], {"stop": ["a", ""]}, ValueError, "stop must be texts that are not empty"),
        (["w3 w4"], {"max_new_tokens": 95}, ValueError, "=95 in the model's 96 positions.*of 2"),
        (["w3"], {"z": torch.tensor([0.0, torch.nan])}, ValueError, "z must be finite"),
    ],
)
def test_prompts_and_options_are_checked(
    prompts, options: dict, error: type[Exception], message: str, policy: Callable
) -> None:
    with pytest.raises(error, match=message):
        policy().generate(prompts, **options)


def test_prompts_go_on_where_a_tokenizer_ends_every_text(word_tokenizer) -> None:
    from tokenizers import processors

    assert encode_prompts(word_tokenizer, ["w3 w4"]) == [[3, 4]]
    word_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    assert word_tokenizer("w3 w4")["input_ids"] == [3, 4, 1]
    assert encode_prompts(word_tokenizer, ["w3 w4"]) == [[3, 4]]


def test_text_ends_by_the_models_token_or_the_tokenizers(policy: Callable) -> None:
    moved = policy()
    moved.base.generation_config.eos_token_id = [7, 9]
    assert sorted(end_tokens(moved.base, moved.tokenizer)) == [1, 7, 9]
    moved.base.generation_config.eos_token_id = 7
    moved.tokenizer.eos_token = None
    assert end_tokens(moved.base, moved.tokenizer) == [7]


def test_a_message_is_no_conversation(policy: Callable) -> None:
    for prompt in ({"role": "user", "content": "w3"}, 3):
        with pytest.raises(TypeError, match="strings or conversations, lists of messages, got"):
            policy(new=True).generate([prompt])


def test_draws_are_of_the_likeliest_tokens_that_have_the_probability() -> None:
    scores = torch.tensor([0.1, 0.3, 0.2, 0.0, 0.4]).log().expand(4, -1)
    uniform = torch.tensor([0.0, 0.4285, 0.4287, 0.9999], dtype=torch.float64)[:, None]
    length = torch.zeros(4, 3, dtype=torch.long)
    drawn = InverseTransform(uniform, 1.0, 3, top_p=0.6)(length, scores)
    assert drawn.argmax(-1).tolist() == [1, 1, 4, 4]  # 3/7 of what is left.
    assert InverseTransform(uniform, 1.0, 3, 1e-9)(length, scores).argmax(-1).unique() == 4
    assert InverseTransform(uniform, 1.0, 3, 0.95)(length, scores).argmax(-1).tolist()[0] == 0


def test_text_ends_before_a_stop_text(policy: Callable) -> None:
    moved, z, options = policy(), factors(3), {"max_new_tokens": 12}
    whole = moved.generate(PROMPTS, z, **options)
    stop = [text.split()[5] for text in whole[:2]]
    cut = moved.generate(PROMPTS, z, stop=stop, **options)
    expected = [min((text.split(each)[0] for each in stop), key=len) for text in whole]
    assert cut == expected
    assert cut[0] != whole[0]
    assert moved.generate(PROMPTS, z, stop="w", **options) == ["", "", ""]


def test_the_output_layer_reads_contiguous_hidden_states(policy: Callable) -> None:
    moved, read = policy(), []
    layer = moved.base.get_output_embeddings()
    layer.register_forward_hook(lambda _, args, output: read.append(args[0].is_contiguous()))
    moved.generate(PROMPTS, max_new_tokens=2)
    assert len(PROMPTS) > 1
    assert read == [True, True]
