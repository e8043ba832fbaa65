"""The steerable policy: reference, log-probabilities, text, folders."""

from __future__ import annotations

import copy
import json
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from scipy import stats
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaForCausalLM

from fssa_bayes.policy import (
    ResponseBatch,
    SteerablePolicy,
    implicit_reward,
    interpolate,
    pair_log_prob,
    steered,
)
from fssa_bayes.policy.generation import InverseTransform, encode_prompts, end_tokens

HEADS = ["llama", "gpt2", "gemma", "gemma2", "phi", "granite", "cohere"]
PROMPTS = ["w3 w4 w5 w6 w7", "w8", "w9 w10 w11"]


@pytest.fixture
def policy(tiny_model: Callable, word_tokenizer, randomise: Callable) -> Callable:
    """Returns a factory of policies, new or moved from where they start."""

    def build(name: str = "llama", *, new: bool = False, dtype=torch.float32, **options):
        made = SteerablePolicy.from_model(
            tiny_model(name, dtype=dtype), word_tokenizer, latent_dim=2, lora_rank=2, **options
        )
        if not new:
            move(made)
        return made

    return build


def move(policy: SteerablePolicy, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def factors(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*(shape or (4,)), 2, generator=torch.Generator().manual_seed(seed))


def responses(rows: int = 4, length: int = 9) -> ResponseBatch:
    """Draws sequences of different lengths, padded on the right; scores their ends."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.arange(length, length - rows, -1)[:, None]
    place = torch.arange(length)
    tokens = torch.randint(3, 40, (rows, length), generator=generator)
    mask = (place < ends).long()
    return ResponseBatch(tokens * mask, mask, (place < ends) & (place >= ends - 4))


def log_prob_from_logits(logits: Tensor, batch: ResponseBatch) -> Tensor:
    """Sums log-probabilities token by token."""
    rows = []
    for row, mask in enumerate(batch.response_mask):
        scores = logits[row].double().log_softmax(-1)
        places = mask.nonzero()[:, 0].tolist()
        rows.append(sum(scores[t - 1, batch.input_ids[row, t]] for t in places))
    return torch.stack(rows)


# ---------------------------------------------------------------------- identity


@pytest.mark.parametrize(("dtype", "training"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize("name", HEADS)
def test_new_and_reference_policies_are_the_base_model(
    name: str, dtype: torch.dtype, training: bool, tiny_model: Callable, policy: Callable
) -> None:
    batch, z = responses(), factors()
    expected = tiny_model(name, dtype=dtype)(batch.input_ids).logits
    new = policy(name, new=True, dtype=dtype).train(training)
    assert torch.equal(new(batch.input_ids, z=100 * z), expected)
    moved = policy(name, dtype=dtype).train(training)
    with moved.reference():
        assert torch.equal(moved(batch.input_ids, z=z), expected)
        with steered(z):
            assert torch.equal(moved(batch.input_ids), expected)
    adapted = moved(batch.input_ids)
    bent = moved(batch.input_ids, z=z)
    for one, other in ((adapted, expected), (bent, expected), (bent, adapted)):
        assert not torch.allclose(one.float(), other.float(), atol=0.05)


def test_reference_of_one_thread_leaves_the_others_alone(policy: Callable) -> None:
    moved, tokens = policy(), responses().input_ids
    bent = moved(tokens, z=factors()).detach()
    inside, done = threading.Event(), threading.Event()
    found = []

    def refer() -> None:
        with moved.reference():
            inside.set()
            done.wait(20)
            found.append(moved(tokens, z=factors()).detach())

    thread = threading.Thread(target=refer)
    thread.start()
    inside.wait(20)
    assert torch.equal(moved(tokens, z=factors()), bent)
    done.set()
    thread.join()
    with moved.reference():
        assert torch.equal(found[0], moved(tokens))
    assert not torch.allclose(found[0], bent, atol=0.05)


def test_merged_adapters_have_no_reference(policy: Callable) -> None:
    moved = policy()
    moved.model.merge_adapter()
    with pytest.raises(ValueError, match="must not be merged"), moved.reference():
        pytest.fail("the block was entered")


def test_only_adapter_and_modulation_are_trained(policy: Callable) -> None:
    new = policy()
    new.sequence_log_prob(responses(), factors()).sum().backward()
    trained = {id(parameter) for parameter in new.trainable_parameters()}
    film = {id(parameter) for parameter in new.film.parameters()}
    lora = {id(p) for name, p in new.model.named_parameters() if "lora_" in name}
    assert trained == film | lora
    for parameter in new.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


def test_options(tiny_model: Callable, policy: Callable) -> None:
    some = policy(film_layers=[2, 0], film_dim=5, target_modules=["q_proj"])
    assert some.config.film_layers == (0, 2)
    assert some.latent_dim == 2
    adapted = {
        name.split(".lora_")[0] for name, _ in some.model.named_parameters() if "lora_" in name
    }
    assert len(adapted) == 3
    assert all(name.endswith("q_proj") for name in adapted)
    hidden = []
    some.base.model.layers[1].register_forward_hook(lambda _, __, output: hidden.append(output))
    some.base.model.layers[2].register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    some(responses().input_ids, z=factors())
    assert torch.equal(*hidden)
    one, same, other = (policy(new=True, seed=seed) for seed in (0, 0, 1))
    pairs = zip(*(p.trainable_parameters() for p in (one, same, other)), strict=True)
    drawn = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(equal for equal, _ in drawn)
    assert not all(equal for _, equal in drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"film_layers": []}, "film_layers must be distinct positions from 0 to 2"),
        ({"film_layers": [1, 1]}, r"distinct positions from 0 to 2, got \[1, 1\]"),
        ({"film_layers": [3]}, r"from 0 to 2, got \[3\]"),
        ({"target_modules": ["q_proj", "lm_head"]}, "must not include the output layer"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict, message: str, tiny_model: Callable
) -> None:
    with pytest.raises(ValueError, match=message):
        SteerablePolicy.from_model(tiny_model(), None, **{"latent_dim": 2} | options)


def test_a_model_belongs_to_one_policy(policy: Callable) -> None:
    with pytest.raises(ValueError, match="must have no adapters"):
        SteerablePolicy.from_model(policy().base, None, latent_dim=2)
    with pytest.raises(TypeError, match="transformers model, got PeftModel"):
        SteerablePolicy.from_model(policy().model, None, latent_dim=2)


def test_a_copy_is_independent(policy: Callable) -> None:
    first = policy()
    before = first(responses().input_ids, z=factors()).detach()
    second = copy.deepcopy(first)
    move(second, seed=4)
    assert torch.equal(first(responses().input_ids, z=factors()), before)
    changed = second(responses().input_ids, z=factors())
    assert not torch.allclose(changed, before, atol=0.05)
    with second.reference(), first.reference():
        assert torch.equal(second(responses().input_ids), first(responses().input_ids))
    with second.reference():
        assert torch.equal(first(responses().input_ids, z=factors()), before)


# ---------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("name", HEADS)
def test_log_probabilities_are_those_of_the_logits(name: str, policy: Callable) -> None:
    moved, batch, z = policy(name), responses(), factors()
    expected = log_prob_from_logits(moved(batch.input_ids, batch.attention_mask, z=z), batch)
    found = moved.sequence_log_prob(batch, z)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    parameters = moved.trainable_parameters()
    exact = torch.autograd.grad(expected.sum(), parameters)
    for mine, theirs in zip(torch.autograd.grad(found.sum(), parameters), exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_one_z_for_all_one_each_and_draws(policy: Callable) -> None:
    moved, batch, draws = policy(), responses(), factors(3, 4)
    found = moved.sequence_log_prob(batch, draws)
    assert found.shape == (3, 4)
    for draw in range(3):
        for row in range(4):
            alone = batch.select(slice(row, row + 1))
            expected = moved.sequence_log_prob(alone, draws[draw, row])
            torch.testing.assert_close(found[draw, row], expected[0], rtol=1e-4, atol=1e-4)
    assert found.std(0).min() > 0.01


@pytest.mark.parametrize(("dtype", "draws"), [(torch.float32, 3), (torch.bfloat16, None)])
@pytest.mark.parametrize("name", HEADS)
def test_log_ratio_starts_at_exactly_0(
    name: str, dtype: torch.dtype, draws: int | None, policy: Callable
) -> None:
    new = policy(name, new=True, dtype=dtype).train()
    batch = responses()
    with new.reference(), torch.no_grad():
        reference = new.sequence_log_prob(batch)
    assert reference.abs().min() > 1
    z = factors(4) if draws is None else factors(draws, 4)
    assert torch.equal(new.sequence_log_prob(batch, z) - reference, torch.zeros(z.shape[:-1]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi"])
def test_padding_on_either_side_changes_nothing(name: str, policy: Callable) -> None:
    moved, batch, z = policy(name), responses(), factors()
    lengths = batch.attention_mask.sum(-1)
    right = moved.hidden_states(batch.input_ids, batch.attention_mask, z=z)
    shift = [9 - int(length) for length in lengths]
    rolled = [
        torch.stack([row.roll(s) for row, s in zip(t, shift, strict=True)])
        for t in (batch.input_ids, batch.attention_mask)
    ]
    left = moved.hidden_states(*rolled, z=z)
    logits = moved(*rolled, z=z)
    for row, length in enumerate(lengths.tolist()):
        tokens = batch.input_ids[row : row + 1, :length]
        alone = moved.hidden_states(tokens, z=z[row])[0]
        torch.testing.assert_close(right[row, :length], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(left[row, 9 - length :], alone, rtol=1e-4, atol=1e-4)
        expected = moved(tokens, z=z[row])[0]
        torch.testing.assert_close(logits[row, 9 - length :], expected, rtol=1e-4, atol=1e-4)


class Cubed(LlamaForCausalLM):
    """Does with its logits what no one expects."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits**3
        return output


def test_unknown_logits_are_refused(tiny_model: Callable) -> None:
    model = tiny_model()
    odd = Cubed(model.config).eval()
    policy = SteerablePolicy.from_model(odd, None, latent_dim=2)
    assert policy(responses().input_ids).shape == (4, 9, 40)
    with pytest.raises(ValueError, match="scaled or soft-capped at most, got Cubed"):
        policy.sequence_log_prob(responses())


@pytest.mark.parametrize(
    "z", [factors(3), torch.zeros(4, 3), torch.zeros(3), factors(2, 3), factors(1, 2, 4)]
)
def test_z_of_another_shape_is_refused(z: Tensor, policy: Callable) -> None:
    moved = policy()
    moved.base.forward = None  # Before any work.
    with pytest.raises(ValueError, match=r"z must have shape \(K,\).*K = 2 and R = 4, got"):
        moved.sequence_log_prob(responses(), z)
    with pytest.raises(ValueError, match=r"z must have shape"):
        moved.generate(["w3"] * 4, z)


# ---------------------------------------------------------------------- checkpointing


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # For the reference.
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_checkpointing_gives_the_same_gradients(
    name: str, use_reentrant: bool, policy: Callable
) -> None:
    moved, batch = policy(name).train(), responses()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            moved.enable_gradient_checkpointing(use_reentrant=use_reentrant)
        z = factors().requires_grad_()
        with moved.reference(), torch.no_grad():
            reference = moved.sequence_log_prob(batch)
        loss = (moved.sequence_log_prob(batch, z) - reference).square().sum()
        moved.zero_grad()
        with steered(-z.detach()):
            loss.backward()
        gradients.append([leaf.grad.clone() for leaf in (z, *moved.trainable_parameters())])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4)
        assert plain.abs().max() > 0


def test_backward_inside_reference(policy: Callable) -> None:
    moved, batch = policy().train(), responses()
    moved.enable_gradient_checkpointing()
    gradients = []
    for inside in (False, True):
        loss = moved.sequence_log_prob(batch, factors()).sum()
        if inside:
            with moved.reference():
                gradients.append(torch.autograd.grad(loss, moved.trainable_parameters()))
        else:
            gradients.append(torch.autograd.grad(loss, moved.trainable_parameters()))
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(again, plain)


def test_bf16_trains_in_float32(policy: Callable) -> None:
    exact = policy()
    half = policy(dtype=torch.bfloat16)
    batch, z = responses(), factors()
    directions = []
    for made, autocast in ((exact, False), (half, False), (exact, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total = made.sequence_log_prob(batch, z).sum()
        gradients = torch.autograd.grad(total, made.trainable_parameters())
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        directions.append(torch.cat([gradient.flatten() for gradient in gradients]))
    for rounded in directions[1:]:
        assert torch.cosine_similarity(directions[0], rounded, dim=0) > 0.98


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Of PyTorch's tracer, which would stop it.
def test_a_compiled_policy_breaks_once_to_read_its_context(policy: Callable) -> None:
    moved = policy(film_layers=[0, 1], target_modules=["q_proj"])
    tokens = responses().input_ids
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(moved, backend=counter)
    for z in (factors(), -factors(), None):
        expected = moved(tokens, z=z)
        found = compiled(tokens, z=z)
        torch.testing.assert_close(found, expected)
        parameters = moved.trainable_parameters()
        compared = [
            torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True)
            for logits in (found, expected)
        ]
        for mine, theirs in zip(*compared, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        if z is not None:
            assert counter.frame_count == 2
    with steered(factors()):
        torch.testing.assert_close(compiled(tokens), moved(tokens))
    with moved.reference():
        torch.testing.assert_close(compiled(tokens, z=factors()), moved(tokens))


# ---------------------------------------------------------------------- text


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
    moved.film.eval()
    texts = moved.generate(PROMPTS, factors(3), max_new_tokens=5)
    assert moved.base.training
    assert not moved.film.training
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
        (["w3 w4"], {"max_new_tokens": 95}, ValueError, "=95 in the model's 96 positions.*of 2"),
        (["w3"], {"z": torch.tensor([0.0, torch.nan])}, ValueError, "z must be finite"),
    ],
)
def test_prompts_and_options_are_checked(
    prompts, options: dict, error: type[Exception], message: str, policy: Callable
) -> None:
    with pytest.raises(error, match=message):
        policy().generate(prompts, **options)


def test_interpolation() -> None:
    path = interpolate(torch.tensor([0.0, 1.0]), torch.tensor([2.0, -1.0]), 5)
    expected = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.5, -0.5], [2.0, -1.0]])
    torch.testing.assert_close(path, expected)
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        interpolate(torch.zeros(2), torch.ones(2), 1)
    with pytest.raises(ValueError, match=r"one shape \(K,\), got \(2,\) and \(3,\)"):
        interpolate(torch.zeros(2), torch.ones(3), 4)


# ---------------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])  # The latter two tie embeddings.
def test_a_saved_policy_is_the_same(
    name: str, policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    moved = policy(name, film_layers=[0, 2])
    moved.save_pretrained(tmp_path / "policy")
    state = torch.get_rng_state()
    loaded = SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model(name))
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.config == moved.config
    batch, z = responses(), factors()
    assert torch.equal(loaded(batch.input_ids, z=z), moved(batch.input_ids, z=z))
    assert torch.equal(loaded.sequence_log_prob(batch, z), moved.sequence_log_prob(batch, z))
    options = {"max_new_tokens": 5}
    assert loaded.generate(PROMPTS, z[:3], **options) == moved.generate(PROMPTS, z[:3], **options)
    names = [p.requires_grad for p in loaded.parameters()]
    assert names == [p.requires_grad for p in moved.parameters()]
    files = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "film.safetensors"} <= files
    assert {path.suffix for path in (tmp_path / "policy").iterdir()} <= {
        ".json",
        ".safetensors",
        ".md",
        ".jinja",
    }


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_reads_the_adapter_alone(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    moved = policy()
    moved.save_pretrained(tmp_path / "policy")
    adapted = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "policy").eval()
    tokens = responses().input_ids
    assert torch.equal(adapted(input_ids=tokens).logits, moved(tokens))


def test_the_base_model_is_found_where_it_was(
    tiny_model: Callable, word_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    made = SteerablePolicy.from_pretrained(tmp_path / "base", latent_dim=2)
    move(made)
    made.save_pretrained(tmp_path / "policy")
    loaded = SteerablePolicy.load(tmp_path / "policy")
    options = {"max_new_tokens": 5}
    assert loaded.generate(PROMPTS, factors(3), **options) == made.generate(
        PROMPTS, factors(3), **options
    )
    assert made.base.dtype == loaded.base.dtype == torch.float32
    half = SteerablePolicy.from_pretrained(tmp_path / "base", latent_dim=2, dtype=torch.bfloat16)
    assert half.base.dtype == torch.bfloat16
    assert {p.dtype for p in half.trainable_parameters()} == {torch.float32}
    nowhere = SteerablePolicy.load(
        tmp_path / "policy", base_model=tiny_model("llama", dtype=torch.bfloat16)
    )
    assert nowhere.base.dtype == torch.bfloat16


def test_another_base_model_is_refused(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    policy().save_pretrained(tmp_path / "policy")
    for base, message in (
        (tiny_model("llama", seed=1), "same shape but other weights"),
        (tiny_model("llama", seed=1, dtype=torch.bfloat16), "same shape but other weights"),
        (tiny_model("phi"), "model_type must be 'llama', got 'phi'"),
        (policy().base, "must have no adapters"),
        (None, "base_model must be given"),
    ):
        with pytest.raises(ValueError, match=message):
            SteerablePolicy.load(tmp_path / "policy", base_model=base)


def test_damage_is_recognised(policy: Callable, tiny_model: Callable, tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        policy().save_pretrained(tmp_path / name)
        return tmp_path / name

    def load(folder: Path) -> None:
        SteerablePolicy.load(folder, base_model=tiny_model())

    folder = saved("version")
    document = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(ValueError, match="format_version must be 1, got 99"):
        load(folder)
    folder = saved("film")
    film = safetensors.torch.load_file(folder / "film.safetensors")
    film["trunk.0.bias"][0] += 1
    safetensors.torch.save_file(film, folder / "film.safetensors")
    with pytest.raises(ValueError, match=r"film.safetensors.*damaged or was changed"):
        load(folder)
    folder = saved("adapter")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="must hold adapter_model.safetensors"):
        load(folder)
    folder = saved("json")
    (folder / "policy.json").write_text("{")
    with pytest.raises(ValueError, match="policy.json.*damaged"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="must hold a saved policy"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("moment", ["tensors", "description", "rename"])
def test_an_interrupted_save_leaves_the_old_policy(
    moment: str,
    policy: Callable,
    tiny_model: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = policy()
    first.save_pretrained(tmp_path / "policy")
    second = policy(new=True)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        if moment == "tensors":
            patch.setattr(safetensors.torch, "save_file", fail)
        elif moment == "description":
            patch.setattr("fssa_bayes.policy.model.write_description", fail)
        else:
            rename = Path.rename
            patch.setattr(
                Path,
                "rename",
                lambda path, to: fail() if ".part" in path.name else rename(path, to),
            )
        with pytest.raises(OSError, match="no space left"):
            second.save_pretrained(tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    loaded = SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())
    tokens, z = responses().input_ids, factors()
    assert torch.equal(loaded(tokens, z=z), first(tokens, z=z))
    second.save_pretrained(tmp_path / "policy")
    loaded = SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())
    assert torch.equal(loaded(tokens, z=z), second(tokens, z=z))
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_nothing_else_is_overwritten(policy: Callable, tmp_path: Path) -> None:
    made = policy()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        made.save_pretrained(tmp_path / "other")
    with pytest.raises(FileExistsError, match="must not be a file"):
        made.save_pretrained(tmp_path / "other" / "thesis.tex")
    made.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "notes.txt").write_text("x")
    with pytest.raises(FileExistsError, match="notes.txt"):
        made.save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy" / "notes.txt").exists()


def test_modules_are_ordinary(policy: Callable) -> None:
    moved = policy()
    names = set(moved.state_dict())
    assert any(name.startswith("film.") for name in names)
    assert isinstance(moved.output_layer, nn.Linear)
    assert moved.device == torch.device("cpu")


def test_prompts_go_on_where_a_tokenizer_ends_every_text(word_tokenizer) -> None:
    from tokenizers import processors

    assert encode_prompts(word_tokenizer, ["w3 w4"]) == [[3, 4]]
    word_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    assert word_tokenizer("w3 w4")["input_ids"] == [3, 4, 1]
    assert encode_prompts(word_tokenizer, ["w3 w4"]) == [[3, 4]]


# ---------------------------------------------------------------------- what readers ran into


def test_a_surrounding_z_stays_with_its_sequence(policy: Callable) -> None:
    moved, z, batch = policy(), factors(), responses()
    prompts = ["w3 w4 w5 w6 w7", "w8", "w9 w10 w11", "w4 w4"]
    options = {"max_new_tokens": 6, "batch_size": 2}
    reward = implicit_reward(moved, batch, z)
    with steered(z):
        assert moved.generate(prompts, **options) == moved.generate(prompts, z, **options)
        torch.testing.assert_close(implicit_reward(moved, batch, batch_size=2), reward)
    with steered(z[:2]):  # One for each two neighbours.
        doubled = z[:2].repeat_interleave(2, 0)
        assert moved.generate(prompts, **options) == moved.generate(prompts, doubled, **options)
    with steered(z[:3]), pytest.raises(ValueError, match="z must have a row for each of 4"):
        moved.generate(prompts, **options)
    with steered(z[:2]):  # One for each prompt, whether or not prompts are encoded once.
        found = pair_log_prob(moved, batch)
    torch.testing.assert_close(found, pair_log_prob(moved, batch, z[:2]))
    torch.testing.assert_close(found, moved.sequence_log_prob(batch, z[:2].repeat(2, 1)))


def test_left_padded_sequences_are_scored_alike(policy: Callable) -> None:
    moved, z, batch = policy(), factors(), responses()
    length = batch.input_ids.shape[1]
    shift = [torch.roll(torch.arange(length), int(length - n)) for n in batch.attention_mask.sum(1)]
    order = torch.stack(shift)
    left = ResponseBatch(
        *(t.gather(1, order) for t in (batch.input_ids, batch.attention_mask, batch.response_mask))
    )
    assert not left.attention_mask[-1, 0]
    expected = implicit_reward(moved, batch, z)
    assert expected.abs().min() > 1e-3
    found = implicit_reward(moved, left, z, batch_size=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_text_ends_by_the_models_token_or_the_tokenizers(policy: Callable) -> None:
    moved = policy()
    moved.base.generation_config.eos_token_id = [7, 9]
    assert sorted(end_tokens(moved.base, moved.tokenizer)) == [1, 7, 9]
    moved.base.generation_config.eos_token_id = 7
    moved.tokenizer.eos_token = None
    assert end_tokens(moved.base, moved.tokenizer) == [7]


def test_a_save_that_is_broken_off_leaves_the_old_policy(
    policy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rename = policy(), Path.rename
    made.save_pretrained(tmp_path / "pol")
    before = (tmp_path / "pol" / "policy.json").read_bytes()

    def interrupt(path: Path, to: Path) -> Path:
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.save_pretrained(tmp_path / "pol")
    assert [path.name for path in tmp_path.iterdir()] == ["pol"]
    assert (tmp_path / "pol" / "policy.json").read_bytes() == before
    (tmp_path / "pol").rename(tmp_path / ".pol.previous")  # As a power cut would leave it.
    with pytest.raises(FileNotFoundError, match=r"is whole in '.*\.pol\.previous'"):
        SteerablePolicy.load(tmp_path / "pol", base_model=made.base)
    made.save_pretrained(tmp_path / "pol")
    assert [path.name for path in tmp_path.iterdir()] == ["pol"]


@pytest.mark.parametrize("z", [[0.0, 1.0], np.zeros(2), torch.zeros(2, dtype=torch.long)])
def test_z_of_another_type_is_refused(z, policy: Callable) -> None:
    made, batch = policy(new=True), responses()
    for use in (
        lambda: made(batch.input_ids, z=z),
        lambda: made.generate(["w3"], z),
        lambda: made.sequence_log_prob(batch, z),
        lambda: pair_log_prob(made, batch, z),
        lambda: implicit_reward(made, batch, z),
        lambda: interpolate(z, z, 3),
    ):
        with pytest.raises(TypeError, match="must be a floating-point tensor, got"):
            use()


def test_no_draws_at_all_are_refused(policy: Callable) -> None:
    made, batch = policy(new=True), responses()
    with pytest.raises(ValueError, match="at least 1 draw"):
        pair_log_prob(made, batch, torch.zeros(0, 2, 2))
    with pytest.raises(ValueError, match="z must have shape"):
        implicit_reward(made, batch, torch.zeros(0, 4, 2))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sequences_beyond_the_models_positions_are_refused(name: str, policy: Callable) -> None:
    made, tokens = policy(name, new=True), torch.full((2, 97), 5)
    present = torch.ones_like(tokens)
    scored = torch.arange(97).expand(2, -1) > 90
    batch = ResponseBatch(tokens, present, scored)
    for score in (made.sequence_log_prob, lambda batch: pair_log_prob(made, batch)):
        with pytest.raises(ValueError, match="must fit into the model's 96 positions, got one of"):
            score(batch)
    present = present.masked_fill(torch.arange(97) > 95, 0)  # Padding is no token.
    shorter = ResponseBatch(tokens, present, scored & present.bool())
    assert made.sequence_log_prob(shorter).isfinite().all()


def test_a_message_is_no_conversation(policy: Callable) -> None:
    for prompt in ({"role": "user", "content": "w3"}, 3):
        with pytest.raises(TypeError, match="strings or conversations, lists of messages, got"):
            policy(new=True).generate([prompt])


def test_a_failure_leaves_the_model_as_it_was(
    policy: Callable, tiny_model: Callable, word_tokenizer, tmp_path: Path
) -> None:
    model = tiny_model()
    names = list(model.state_dict())
    with pytest.raises(ValueError, match="must not include the output layer"):
        SteerablePolicy.from_model(model, None, latent_dim=2, target_modules=["lm_head"])
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    policy().save_pretrained(tmp_path / "policy")
    config = tmp_path / "policy" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3}))
    with pytest.raises((ValueError, RuntimeError), match="size mismatch"):
        SteerablePolicy.load(tmp_path / "policy", base_model=model)
    assert list(model.state_dict()) == names
    made = SteerablePolicy.from_model(model, word_tokenizer, latent_dim=2)
    assert torch.equal(made(responses().input_ids), tiny_model()(responses().input_ids).logits)


def test_descriptions_that_lack_a_part_are_damaged(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    policy().save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "policy.json"
    document = json.loads(path.read_text())
    less = {name: value for name, value in document.items() if name != "base"}
    for change, message in (
        (less, "policy.json .* is damaged: it lacks base"),
        (document | {"policy": {"latent_dim": 2}}, "policy.json .* is damaged, or of another"),
        (document | {"policy": document["policy"] | {"film_dim": 5}}, "does not fit policy.json"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(ValueError, match=message):
            SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())
    path.write_text("{")
    with pytest.raises(FileExistsError, match="hold a saved policy alone"):
        policy().save_pretrained(tmp_path / "policy")


def test_one_other_weight_is_another_base_model(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    policy().save_pretrained(tmp_path / "policy")
    other = tiny_model()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[5, 7] += 1e-3  # Not among those looked at.
    with pytest.raises(ValueError, match="other weights, by their SHA-256"):
        SteerablePolicy.load(tmp_path / "policy", base_model=other)
    path = tmp_path / "policy" / "policy.json"
    document = json.loads(path.read_text())
    del document["base"]["weights"]  # As older versions wrote it.
    path.write_text(json.dumps(document))
    SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())


def test_a_relative_base_model_is_found_from_elsewhere(
    tiny_model: Callable, word_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    made = SteerablePolicy.from_pretrained("base", latent_dim=2)
    made.save_pretrained("policy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = SteerablePolicy.load("../policy")
    assert loaded.config.base_model == str(tmp_path / "base")
