"""Prompts shared by responses: scores and every gradient as if each response were alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from fssa_bayes.policy import ResponseBatch, SteerablePolicy, shared_prompt
from fssa_bayes.policy.shared_prompt import (
    SharedPrompts,
    pack_if_worthwhile,
    pair_log_prob,
    shares_prompts,
)

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # GPT-2, by peft.

V = 53
COMMON = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
LAYERS = ["sliding_attention", "full_attention"]
CONFIGS = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 64},
    "Gemma": GROUPED,
    "Gemma2": GROUPED | {"sliding_window": 64, "layer_types": LAYERS},
    "Phi": COMMON,
    "GPTNeoX": COMMON,
    "GPT2": {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "OPT": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mamba": {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
# Bloom makes its biases of a mask of two dimensions, Mamba has a state instead of a mask.
UNABLE = {"Bloom", "Mamba"}


def new_policy(
    name: str, attention: str | None = None, dtype: torch.dtype = torch.float64
) -> SteerablePolicy:
    """Builds a policy that has left its start: adapter and modulation are not 0."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
    target = ["in_proj"] if name == "Mamba" else "all-linear"
    policy = SteerablePolicy.from_model(
        model, None, latent_dim=3, lora_rank=2, target_modules=target
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def groups(sizes: list[tuple[int, ...]], seed: int = 0) -> ResponseBatch:
    """Draws sequences of prompts and B responses; sizes are those of prompt and responses."""
    rng = np.random.default_rng(seed)
    width = max(size[0] + max(size[1:]) for size in sizes)
    prompts = [rng.integers(3, V, size=size[0]) for size in sizes]
    ids = np.zeros((len(sizes) * (len(sizes[0]) - 1), width), dtype=np.int64)
    present, scored = np.zeros_like(ids), np.zeros_like(ids, dtype=bool)
    row = 0
    for response in range(1, len(sizes[0])):
        for prompt, size in zip(prompts, sizes, strict=True):
            end = size[0] + size[response]
            ids[row, :end] = [*prompt, *rng.integers(3, V, size=size[response])]
            present[row, :end] = 1
            scored[row, size[0] : end] = True
            row += 1
    return ResponseBatch(*(torch.from_numpy(array) for array in (ids, present, scored)))


PAIRS = [(9, 4, 6), (14, 1, 3), (5, 7, 2), (1, 3, 3), (11, 5, 5)]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "eager") for name in CONFIGS if name not in UNABLE),
        *((name, "sdpa") for name in CONFIGS if name not in {*UNABLE, "Gemma2"}),
    ],
)
def test_values_and_gradients_are_those_of_separate_rows(name: str, attention: str) -> None:
    policy, batch = new_policy(name, attention), groups(PAIRS)
    assert shares_prompts(policy)
    assert pack_if_worthwhile(policy, batch) is not None
    z = torch.randn(2, 5, 3, dtype=torch.float64).requires_grad_()
    inputs = [z, *policy.trainable_parameters()]
    grad = torch.randn(2, 10, dtype=torch.float64)
    found = pair_log_prob(policy, batch, z, chunk_size=100)
    expected = policy.sequence_log_prob(batch, z.repeat(1, 2, 1))
    # Norms, rotations and softmax of these models are float32, whatever the weights.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for ours, true in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        assert (ours - true).norm() < 1e-5 * true.norm()


@pytest.mark.parametrize("name", sorted(UNABLE))
def test_models_that_cannot_share_are_found_out_and_still_right(name: str) -> None:
    policy, batch = new_policy(name), groups(PAIRS)
    assert not shares_prompts(policy)
    z = torch.randn(5, 3, dtype=torch.float64)
    found = pair_log_prob(policy, batch, z)
    expected = policy.sequence_log_prob(batch, z.repeat(2, 1))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Gemma"])
@pytest.mark.parametrize("blind", ["mask", "positions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_sees_what_a_model_ignores(
    name: str, blind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = new_policy(name, dtype=dtype)
    hidden_states = SteerablePolicy.hidden_states

    def ignore(self, input_ids, attention_mask=None, position_ids=None, *, z=None):
        if blind == "mask" and attention_mask.ndim == 4:
            attention_mask = torch.ones_like(input_ids)
        elif blind == "positions":
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return hidden_states(self, input_ids, attention_mask, position_ids, z=z)

    monkeypatch.setattr(SteerablePolicy, "hidden_states", ignore)
    assert not shares_prompts(policy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2", "Gemma"])
def test_the_probe_allows_for_rounding(name: str, dtype: torch.dtype) -> None:
    policy = new_policy(name, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert shares_prompts(policy)


def test_the_probe_is_tried_once_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, calls = new_policy("Llama"), []
    probe = shared_prompt.probe_sharing
    monkeypatch.setattr(shared_prompt, "probe_sharing", lambda p: calls.append(1) or probe(p))
    state = torch.get_rng_state()
    policy.train()
    assert shares_prompts(policy)
    assert shares_prompts(policy)
    assert calls == [1]
    assert policy.training
    assert torch.equal(torch.get_rng_state(), state)
    policy.base.set_attn_implementation("eager")
    assert shares_prompts(policy)
    assert calls == [1, 1]


@pytest.mark.parametrize("name", ["Mistral", "Gemma2"])
def test_beyond_a_sliding_window_rows_stay_separate(name: str) -> None:
    """A mask that is given as it is used would let these layers see too far."""
    policy, z = new_policy(name), torch.randn(1, 3, dtype=torch.float64)
    for size, packs in (((40, 4, 6), True), ((60, 4, 6), False)):
        batch = groups([size])
        assert (pack_if_worthwhile(policy, batch) is not None) == packs
        found = pair_log_prob(policy, batch, z)
        expected = policy.sequence_log_prob(batch, z.repeat(2, 1))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [[(9, 4, 6, 2), (3, 1, 5, 8)], [(12, 3), (4, 5)]])
def test_any_number_of_responses(sizes: list[tuple[int, ...]]) -> None:
    policy, batch = new_policy("Qwen2"), groups(sizes)
    count = len(sizes[0]) - 1
    z = torch.randn(2, 3, dtype=torch.float64)
    found = pair_log_prob(policy, batch, z, num_responses=count)
    expected = policy.sequence_log_prob(batch, z.repeat(count, 1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for point in (z[0], None):
        found = pair_log_prob(policy, batch, point, num_responses=count)
        expected = policy.sequence_log_prob(batch, point)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_prompts_that_differ_share_what_they_have_in_common() -> None:
    """Even where somebody pairs responses to different prompts, or to one that goes on."""
    policy, batch = new_policy("Llama"), groups([(12, 4, 6), (9, 5, 2)])
    batch.input_ids[2, 7] = batch.input_ids[0, 7] % (V - 4) + 3
    batch.response_mask[1, 5] = True  # A scored token inside the common part.
    packed = SharedPrompts.pack(batch)
    assert (packed.segment == 0).sum(-1).tolist() == [7, 4]
    z = torch.randn(2, 3, dtype=torch.float64)
    found = pair_log_prob(policy, batch, z)
    expected = policy.sequence_log_prob(batch, z.repeat(2, 1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_pack_by_hand() -> None:
    """Prompt 5 6 7 with responses 8 and 9 10: 5 6 once, then 7 8 and 7 9 10."""
    batch = ResponseBatch(
        torch.tensor([[5, 6, 7, 8, 0], [5, 6, 7, 9, 10]]),
        torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]).bool(),
    )
    packed = SharedPrompts.pack(batch)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 7, 9, 10]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert packed.segment.tolist() == [[0, 0, 1, 1, 2, 2, 2]]
    assert packed.response_mask.int().tolist() == [[0, 0, 0, 1, 0, 1, 1]]
    seen = packed.attention_mask()[0, 0].int().tolist()
    assert seen[3] == [1, 1, 1, 1, 0, 0, 0]
    assert seen[5] == [1, 1, 0, 0, 1, 1, 0]
    added = packed.attention_mask(torch.float32)
    assert torch.equal(added == 0, packed.attention_mask())
    assert added.min() == torch.finfo(torch.float32).min
    assert packed.sum(torch.tensor([[0.0, 0, 1, 0, 2, 4]])).tolist() == [1.0, 6.0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_packing_loses_no_scored_token(count: int) -> None:
    sizes = [(p, *r) for p, *r in np.random.default_rng(0).integers(1, 9, size=(20, count + 1))]
    batch = groups(sizes, seed=1)
    packed = SharedPrompts.pack(batch, count)
    mask = packed.response_mask[:, 1:]
    sums = packed.sum(mask.double(), count)
    assert torch.equal(sums, batch.response_mask.sum(-1).double())
    tokens = packed.sum((packed.input_ids[:, 1:] * mask).double(), count)
    assert torch.equal(tokens, (batch.input_ids * batch.response_mask).sum(-1).double())


def test_nan_under_the_padding_changes_nothing() -> None:
    """Every token of the padding sees at least itself, so that its softmax is a number."""
    packed = SharedPrompts.pack(groups(PAIRS))
    assert (packed.segment == -1).any()
    assert packed.attention_mask().any(-1).all()
    seen = packed.attention_mask()[:, 0]
    real = packed.segment >= 0
    assert not (seen & real[:, :, None] & ~real[:, None, :]).any()


def test_short_prompts_are_not_worth_it() -> None:
    policy = new_policy("Llama")
    assert pack_if_worthwhile(policy, groups([(2, 20, 20)])) is None
    assert pack_if_worthwhile(policy, groups([(20, 20, 20)])) is not None


def test_bad_input() -> None:
    policy, batch = new_policy("Llama"), groups(PAIRS)
    for z in (torch.zeros(10, 3), torch.zeros(5, 2), torch.zeros(2, 4, 3)):
        with pytest.raises(ValueError, match=r"z must have shape \(K,\), \(P, K\) or \(S, P, K\)"):
            pair_log_prob(policy, batch, z.double())
    with pytest.raises(ValueError, match="num_responses=3 sequences a prompt, got 10"):
        pair_log_prob(policy, batch, num_responses=3)
    left = replace(batch, attention_mask=batch.attention_mask.flip(-1))
    with pytest.raises(ValueError, match="padded on the right"):
        SharedPrompts.pack(left)


def test_a_mask_on_another_row_never_reaches_it() -> None:
    """Changing a token of one response changes neither its neighbour nor another pair."""
    policy, batch = new_policy("Qwen3"), groups(PAIRS)

    def score() -> Tensor:
        with torch.no_grad():
            return pair_log_prob(policy, batch, torch.zeros(3, dtype=torch.float64))

    before = score()
    batch.input_ids[1, 14] = batch.input_ids[1, 14] % (V - 4) + 3
    after = score()
    changed = before != after
    assert changed.nonzero().flatten().tolist() == [1]
