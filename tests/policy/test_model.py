"""The steerable policy: reference, log-probabilities, gradients."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from steered_policies import factors, move, responses
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

FILM = {"conditioning": "film"}
HEADS = ["llama", "gpt2", "gemma", "gemma2", "phi", "granite", "cohere"]


def log_prob_from_logits(logits: Tensor, batch: ResponseBatch) -> Tensor:
    """Sums log-probabilities token by token."""
    rows = []
    for row, mask in enumerate(batch.response_mask):
        scores = logits[row].double().log_softmax(-1)
        places = mask.nonzero()[:, 0].tolist()
        rows.append(sum(scores[t - 1, batch.input_ids[row, t]] for t in places))
    return torch.stack(rows)


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
    with pytest.raises(ValueError, match="must not be merged"):
        moved(responses().input_ids, z=factors())


@pytest.mark.parametrize("conditioning", ["gated", "film"])
def test_only_adapter_and_conditioning_are_trained(conditioning: str, policy: Callable) -> None:
    new = policy(conditioning=conditioning)
    new.sequence_log_prob(responses(), factors()).sum().backward()
    trained = {id(parameter) for parameter in new.trainable_parameters()}
    conditioned = {id(parameter) for parameter in new.conditioning.parameters()}
    lora = {id(p) for name, p in new.model.named_parameters() if "lora_" in name}
    assert trained == conditioned | lora
    for parameter in new.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


def test_options(tiny_model: Callable, policy: Callable) -> None:
    some = policy(conditioning="film", film_layers=[2, 0], film_dim=5, target_modules=["q_proj"])
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
        ({"conditioning": "gate"}, r"conditioning must be one of \('gated', 'film'\), got 'gate'"),
        ({"film_layers": [1]}, r"film_layers must be None for conditioning='gated', got \[1\]"),
        (FILM | {"film_layers": []}, "film_layers must be distinct positions from 0 to 2"),
        (FILM | {"film_layers": [1, 1]}, r"distinct positions from 0 to 2, got \[1, 1\]"),
        (FILM | {"film_layers": [3]}, r"from 0 to 2, got \[3\]"),
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
@pytest.mark.parametrize("conditioning", ["gated", "film"])
def test_log_ratio_starts_at_exactly_0(
    conditioning: str, name: str, dtype: torch.dtype, draws: int | None, policy: Callable
) -> None:
    new = policy(name, new=True, dtype=dtype, conditioning=conditioning).train()
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


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # For the reference.
@pytest.mark.parametrize(
    ("conditioning", "use_reentrant"), [("film", True), ("film", False), ("gated", False)]
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_checkpointing_gives_the_same_gradients(
    name: str, conditioning: str, use_reentrant: bool, policy: Callable
) -> None:
    moved, batch = policy(name, conditioning=conditioning).train(), responses()
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


def test_gates_are_not_recomputed_by_reentrant_checkpointing(policy: Callable) -> None:
    with pytest.raises(ValueError, match="use_reentrant must be False for conditioning='gated'"):
        policy().enable_gradient_checkpointing(use_reentrant=True)


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
@pytest.mark.parametrize("conditioning", ["gated", "film"])
def test_a_compiled_policy_breaks_once_to_read_its_context(
    conditioning: str, policy: Callable
) -> None:
    moved = policy(conditioning=conditioning, target_modules=["q_proj"])
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


def test_modules_are_ordinary(policy: Callable) -> None:
    moved = policy()
    names = set(moved.state_dict())
    assert any(name.startswith("conditioning.") for name in names)
    assert isinstance(moved.output_layer, nn.Linear)
    assert moved.device == torch.device("cpu")


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
    path = tmp_path / "policy" / "policy.json"
    document = json.loads(path.read_text())
    document["policy"]["lora_rank"] = 3
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="size mismatch"):
        SteerablePolicy.load(tmp_path / "policy", base_model=model)
    assert list(model.state_dict()) == names
    made = SteerablePolicy.from_model(model, word_tokenizer, latent_dim=2)
    assert torch.equal(made(responses().input_ids), tiny_model()(responses().input_ids).logits)
