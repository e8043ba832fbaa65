"""Reference log-probabilities: those of the live policy, kept by model and by sequence."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from fssa_bayes.policy import ResponseBatch, SteerablePolicy
from fssa_bayes.policy.reference import LengthBuckets, ReferenceCache, fingerprint
from fssa_bayes.policy.shared_prompt import pair_log_prob

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning"
)  # Of peft.

V = 61


def base_model(seed: int = 0, hidden_size: int = 32) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=V,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config)


def new_policy(hidden_size: int = 32) -> SteerablePolicy:
    model = base_model(hidden_size=hidden_size)
    return SteerablePolicy.from_model(model, None, latent_dim=3, lora_rank=2)


def sequences(lengths: list[tuple[int, int]], seed: int = 0) -> ResponseBatch:
    """Draws sequences of given lengths of prompt and response."""
    rng = np.random.default_rng(seed)
    width = max(map(sum, lengths))
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    present, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(lengths):
        total = prompt + response
        ids[row, :total] = torch.from_numpy(rng.integers(V, size=total))
        present[row, :total] = 1
        scored[row, prompt:total] = True
    return ResponseBatch(ids, present, scored)


def pairs(count: int, seed: int = 0) -> ResponseBatch:
    """Draws prompts with two responses each, the first ones first."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, size=(count, 3))
    batch = sequences([(p, r) for r_column in (1, 2) for p, r in sizes[:, [0, r_column]]], seed)
    for p in range(count):
        batch.input_ids[count + p, : sizes[p, 0]] = batch.input_ids[p, : sizes[p, 0]]
    return batch


def counted(compute: Callable[[ResponseBatch], Tensor]) -> tuple[Callable, list[int]]:
    """Wraps a function so that the sizes of the batches that it computes are listed."""
    calls: list[int] = []

    def call(batch: ResponseBatch) -> Tensor:
        calls.append(len(batch.input_ids))
        return compute(batch)

    return call, calls


def scores(batch: ResponseBatch) -> Tensor:
    """Scores without a model: any function of the tokens does where only keeping is tested."""
    return -(batch.input_ids * batch.response_mask).sum(-1).float() / 7


# At initialisation.


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("draws", [None, 3])
def test_log_ratio_is_exactly_zero_at_the_start(
    tmp_path: Path, shared: bool, draws: int | None
) -> None:
    """Of values that are computed in the same batch; those of other batches are off by rounding.

    The width is one at which batches of other sizes do not give the same bits.
    """
    policy = new_policy(hidden_size=256).train()
    score = pair_log_prob if shared else SteerablePolicy.sequence_log_prob

    def reference(batch: ResponseBatch) -> Tensor:
        with policy.reference():
            return score(policy, batch)

    cache = ReferenceCache(tmp_path, fingerprint(policy))
    for seed, count in enumerate((1, 2, 3, 5, 8)):
        batch = pairs(count, seed)
        rows = len(batch.input_ids) // (2 if shared else 1)
        z = torch.randn(*(() if draws is None else (draws,)), rows, 3)
        live = score(policy, batch, z)
        assert live.requires_grad
        for _ in range(2):
            ratio = live - cache.log_prob(batch, reference)
            assert torch.equal(ratio, torch.zeros_like(ratio))


def test_values_of_other_batches_differ_by_rounding(tmp_path: Path) -> None:
    """Alone, each response scores the same to 1e-6 of its size."""
    policy, batch = new_policy(hidden_size=256), pairs(8)
    with ReferenceCache(tmp_path, fingerprint(policy)) as cache:
        cache.fill([batch], policy.sequence_log_prob, progress_bar=False)
    cache = ReferenceCache(tmp_path, fingerprint(policy))
    rows = [batch.select(slice(row, row + 1)) for row in range(16)]
    kept = torch.cat([cache.log_prob(row, lambda _: pytest.fail("not cached")) for row in rows])
    with torch.no_grad():
        alone = torch.cat([policy.sequence_log_prob(row) for row in rows])
    torch.testing.assert_close(kept, alone, rtol=1e-6, atol=1e-6)


def test_log_ratio_is_not_zero_after_a_step(tmp_path: Path) -> None:
    """What is 0 at the start is a comparison of two policies: it sees a change of one weight."""
    policy, batch = new_policy(), pairs(4)
    with policy.reference():
        reference = policy.sequence_log_prob(batch)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(1e-3)
    ratio = policy.sequence_log_prob(batch, torch.randn(8, 3)) - reference
    assert (ratio != 0).all()


# Which model.


def test_fingerprint_is_the_base_models() -> None:
    plain = base_model()
    expected = fingerprint(plain)
    policy = SteerablePolicy.from_model(copy.deepcopy(plain), None, latent_dim=3)
    assert fingerprint(policy) == fingerprint(policy.model) == expected
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(1.0)
    assert fingerprint(policy) == expected
    saved = get_peft_model(
        copy.deepcopy(plain), LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"])
    )
    assert fingerprint(saved) == expected


def test_fingerprint_tells_weights_precision_and_configuration_apart() -> None:
    model = base_model()
    found = {fingerprint(model), fingerprint(base_model(1)), fingerprint(base_model().double())}
    other = base_model()
    other.config.rms_norm_eps *= 2
    eager = base_model()
    eager.set_attn_implementation("eager")
    found |= {fingerprint(other), fingerprint(eager)}
    assert len(found) == 5
    assert fingerprint(base_model()) in found
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    assert fingerprint(model) not in found


def test_cache_of_another_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    with ReferenceCache(tmp_path, "a" * 64) as cache:
        cache.log_prob(pairs(2), scores)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="fingerprint bbbbbbbbbbbb, got .* model aaaaaaaaaaaa"):
        ReferenceCache(tmp_path, "b" * 64)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(ReferenceCache(tmp_path, "a" * 64)) == 4


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="folder must be new, empty or a cache"):
        ReferenceCache(tmp_path, "a" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    ReferenceCache(tmp_path, "a" * 64)
    document = json.loads((tmp_path / "cache.json").read_text()) | {"format_version": 99}
    (tmp_path / "cache.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="format_version of .* must be 2, got 99"):
        ReferenceCache(tmp_path, "a" * 64)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(ValueError, match=r"cache.json' is damaged"):
        ReferenceCache(tmp_path, "a" * 64)


# What is kept.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_return_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    batches = [pairs(3, seed) for seed in range(4)]
    truth = [torch.randn(6, dtype=dtype) for _ in batches]
    values = iter(truth)
    ReferenceCache(tmp_path, "a" * 64).fill(batches, lambda _: next(values), progress_bar=False)
    cache, (compute, calls) = ReferenceCache(tmp_path, "a" * 64), counted(scores)
    for batch, expected in zip(batches, truth, strict=True):
        found = cache.log_prob(batch, compute)
        assert found.dtype == dtype
        assert torch.equal(found, expected)
        found.zero_()  # The caller's own.
        assert torch.equal(cache.log_prob(batch, compute), expected)
    assert calls == []


@pytest.mark.parametrize("change", ["order", "subset", "padding", "mask", "token"])
def test_a_value_belongs_to_its_sequence(tmp_path: Path, change: str) -> None:
    """To the same tokens of which the same are scored, in whatever batch."""
    batch = sequences([(3, 4), (2, 2), (5, 1), (1, 6)])
    cache, (compute, calls) = ReferenceCache(tmp_path, "a"), counted(scores)
    cache.log_prob(batch, compute)
    cache.log_prob(copy.deepcopy(batch), compute)
    assert calls == [4]
    order = torch.tensor({"order": [1, 0, 2, 3], "subset": [0, 2]}.get(change, [0, 1, 2, 3]))
    fields = [getattr(batch, n)[order] for n in ("input_ids", "attention_mask", "response_mask")]
    if change == "padding":
        fields = [torch.cat([field, torch.zeros_like(field[:, :3])], 1) for field in fields]
    elif change == "mask":
        fields[2][0, 3] = False
    elif change == "token":
        fields[0][1, 0] += 1
    other = ResponseBatch(*fields)
    assert torch.equal(cache.log_prob(other, compute), scores(other))
    assert calls == ([4, 4] if change in ("mask", "token") else [4])


def test_rows_of_equal_length_keep_their_own_values(tmp_path: Path) -> None:
    batch, cache = sequences([(3, 4), (3, 4)]), ReferenceCache(tmp_path, "a")
    cache.log_prob(batch, scores)
    swapped = batch.select(torch.tensor([1, 0]))
    assert torch.equal(cache.log_prob(swapped, scores), scores(batch).flip(0))


def test_what_lies_under_the_padding_is_not_data(tmp_path: Path) -> None:
    batch = sequences([(3, 4), (2, 2)])
    cache, (compute, calls) = ReferenceCache(tmp_path, "a"), counted(scores)
    cache.log_prob(batch, compute)
    soiled = batch.input_ids.masked_fill(batch.attention_mask == 0, 17)
    cache.log_prob(ResponseBatch(soiled, batch.attention_mask, batch.response_mask), compute)
    assert calls == [2]


def test_autocast_is_another_way(tmp_path: Path) -> None:
    cache, (compute, calls) = ReferenceCache(tmp_path, "a"), counted(scores)
    cache.log_prob(pairs(1), compute)
    with torch.autocast("cpu", torch.bfloat16):
        cache.log_prob(pairs(1), compute)
    assert calls == [2, 2]


def test_references_carry_no_gradient(tmp_path: Path) -> None:
    weight = torch.ones((), requires_grad=True)
    found = ReferenceCache(tmp_path, "a").log_prob(pairs(1), lambda b: scores(b) * weight)
    assert not found.requires_grad


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    cache, batch = ReferenceCache(tmp_path, "a"), pairs(2)

    def broken(batch: ResponseBatch) -> Tensor:
        return scores(batch).index_fill(0, torch.tensor(2), value)

    with pytest.raises(ValueError, match="must be finite, got .* at row 2"):
        cache.log_prob(batch, broken)
    cache.flush()
    assert len(ReferenceCache(tmp_path, "a")) == 0
    with pytest.raises(ValueError, match=r"a value for each of 4 rows, got shape \(\)"):
        cache.log_prob(batch, lambda batch: scores(batch).sum())


# On disk.


def test_a_run_that_fails_goes_on_where_it_was(tmp_path: Path) -> None:
    batches = [pairs(3, seed) for seed in range(5)]
    compute, calls = counted(lambda b: scores(b) if len(calls) < 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ReferenceCache(tmp_path, "a").fill(batches, compute, progress_bar=False)
    compute, calls = counted(scores)
    cache = ReferenceCache(tmp_path, "a")
    cache.fill(batches, compute, progress_bar=False)
    assert calls == [6, 6]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files(tmp_path: Path) -> None:
    """Killed while writing: what was written before is there, the torn file is not read."""
    code = f"""
import os, torch
from fssa_bayes.policy import ResponseBatch, reference
cache = reference.ReferenceCache({str(tmp_path)!r}, "a")
ids = torch.arange(6).view(2, 3)
batch = ResponseBatch(ids, torch.ones_like(ids), ids > 1)
cache.log_prob(batch, lambda b: torch.tensor([-1.0, -2.0]))
cache.flush()
other = ResponseBatch(ids + 1, torch.ones_like(ids), ids > 1)
cache.log_prob(other, lambda b: torch.tensor([-3.0, -4.0]))
os.fsync = lambda handle: os._exit(9)
cache.flush()
"""
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == 9
    assert len(list(tmp_path.glob(".reference-*.part"))) == 1
    assert len(ReferenceCache(tmp_path, "a")) == 2


def test_processes_share_a_folder(tmp_path: Path) -> None:
    first, second = ReferenceCache(tmp_path, "a"), ReferenceCache(tmp_path, "a")
    for cache, seed in ((first, 0), (second, 1), (second, 0)):
        cache.log_prob(pairs(2, seed), scores)
    first.flush()
    second.flush()
    cache, (compute, calls) = ReferenceCache(tmp_path, "a"), counted(scores)
    assert torch.equal(cache.log_prob(pairs(2, 1), compute), scores(pairs(2, 1)))
    assert torch.equal(cache.log_prob(pairs(2, 0), compute), scores(pairs(2, 0)))
    assert calls == []


def test_long_runs_write_as_they_go(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "a")
    for seed in range(110):
        cache.log_prob(pairs(10, seed), scores)
    assert len(ReferenceCache(tmp_path, "a")) >= 2 * 1024
    cache.flush()
    assert len(ReferenceCache(tmp_path, "a")) == len(cache) == 2200


def test_a_damaged_file_is_never_believed(tmp_path: Path) -> None:
    """Flipped bits all over a file, and other lengths: values are computed again, and written."""
    with ReferenceCache(tmp_path, "a") as cache:
        cache.log_prob(pairs(1), scores)
    (path,) = tmp_path.glob("reference-*")
    whole = path.read_bytes()
    flips = [
        whole[:byte] + bytes([whole[byte] ^ (1 << byte % 8)]) + whole[byte + 1 :]
        for byte in range(0, len(whole), 5)
    ]
    for damaged in (*flips, whole[:-9], b"", whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"{path.name}' is damaged .* delete it"):
            cache = ReferenceCache(tmp_path, "a")
        assert len(cache) == 0
    compute, calls = counted(scores)
    with cache:
        assert torch.equal(cache.log_prob(pairs(1), compute), scores(pairs(1)))
    assert calls == [2]
    assert len(ReferenceCache(tmp_path, "a")) == 2  # The same values have the same name.


def test_a_file_under_another_name_is_not_believed(tmp_path: Path) -> None:
    with ReferenceCache(tmp_path, "a") as cache:
        cache.log_prob(pairs(1), scores)
    (path,) = tmp_path.glob("reference-*")
    path.rename(path.with_name("reference-0123456789abcdef.safetensors"))
    with pytest.warns(UserWarning, match="not those of its name"):
        assert len(ReferenceCache(tmp_path, "a")) == 0


# Length buckets.


LENGTHS = np.random.default_rng(3).integers(1, 50, size=103)


@pytest.mark.parametrize("drop_last", [False, True])
def test_buckets_hold_every_row_once_and_neighbours_in_length(drop_last: bool) -> None:
    sampler = LengthBuckets(LENGTHS, 10, seed=1, drop_last=drop_last)
    rows = list(sampler)
    assert len(rows) == len(sampler) == len(set(rows)) == (100 if drop_last else 103)
    spans = sorted((LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in sampler.batches())
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))


def test_buckets_stay_while_their_order_changes() -> None:
    sampler, seen, orders = LengthBuckets(LENGTHS, 10), [], []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        loader = DataLoader(np.arange(103), batch_size=10, sampler=sampler, collate_fn=tuple)
        batches = list(loader)
        assert len(batches[-1]) == 3
        assert max(LENGTHS[list(batches[-1])]) <= min(LENGTHS[list(batches[0])])
        seen.append(Counter(batches))
        orders.append(tuple(batches))
    assert all(batches == seen[0] for batches in seen)
    assert len(set(orders)) == 4
    assert max(LENGTHS[list(orders[0][0])]) == LENGTHS.max()
    assert list(LengthBuckets(LENGTHS, 10)) == [row for batch in orders[0] for row in batch]
    assert list(LengthBuckets(LENGTHS, 10, seed=5)) != list(LengthBuckets(LENGTHS, 10))


def test_order_of_buckets_is_uniform() -> None:
    """After the first epoch every full batch stands everywhere equally often."""
    sampler = LengthBuckets(np.arange(25), 5)
    counts = np.zeros((5, 5))
    for epoch in range(1, 1001):
        sampler.set_epoch(epoch)
        for place, batch in enumerate(sampler.batches()):
            counts[place, batch.min() // 5] += 1
    # Rows and columns add up, hence 4 / 5; 39.3 is the .999 quantile with 16 degrees of freedom.
    assert 4 / 5 * ((counts - 200) ** 2 / 200).sum() < 39.3


@pytest.mark.parametrize(
    ("lengths", "size", "drop", "message"),
    [
        ([], 2, False, "R of at least 1"),
        ([[1, 2]], 2, False, r"shape \(R,\)"),
        ([1, 2], 0, False, "batch_size must be at least 1"),
        ([1, 2], 3, True, "fill a batch of 3, got 2 rows"),
    ],
)
def test_bad_buckets(lengths: list, size: int, drop: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LengthBuckets(lengths, size, drop_last=drop)


def test_a_file_that_another_process_is_writing_is_no_content(tmp_path: Path) -> None:
    (tmp_path / ".cache.json-0123abcd.part").write_text("{")
    assert len(ReferenceCache(tmp_path, "a" * 64)) == 0
    assert (tmp_path / "cache.json").exists()
