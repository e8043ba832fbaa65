"""What the benchmarks measure is what they say: rows, memory, slopes and the published step."""

from __future__ import annotations

import importlib
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fssa_bayes import Preferences

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of the benchmarks, which are not installed."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.{name}")

    return load


@pytest.fixture
def data() -> Preferences:
    rng = np.random.default_rng(0)
    return Preferences(
        np.arange(0, 24, 2),
        np.arange(1, 24, 2),
        rng.integers(2, size=12),
        np.arange(0, 13, 4),
        items=rng.normal(size=(24, 3)).astype(np.float32),
    )


def test_published_rows_are_the_batch(load, data: Preferences) -> None:
    pairs, choices = load("published").Table(data).batch(np.array([2, 0]))
    batch = data.batch([2, 0])
    assert torch.equal(pairs, batch.items[torch.stack([batch.left, batch.right], -1)])
    assert torch.equal(choices, batch.choice)


def test_published_encoder_sees_who_was_chosen(load, data: Preferences) -> None:
    """Turning a pair round together with its choice changes nothing; the choice alone does."""
    torch.manual_seed(0)
    model = load("published").PublishedModel(3, 8)
    pairs, choices = load("published").Table(data).batch(np.arange(3))
    turned = model.encode(pairs.flip(2), 1 - choices)
    torch.testing.assert_close(turned.loc, model.encode(pairs, choices).loc)
    assert not torch.allclose(model.encode(pairs, 1 - choices).loc, turned.loc, atol=1e-3)


def test_published_loss_by_hand(load, data: Preferences, monkeypatch: pytest.MonkeyPatch) -> None:
    """With z at its mean the loss is that of the targets, item by item, and a known divergence."""
    torch.manual_seed(0)
    model = load("published").PublishedModel(3, 8).eval()  # Batch statistics are 0 and 1.
    with torch.no_grad():
        model.summary[-1].weight.mul_(30)
    pairs, choices = load("published").Table(data).batch(np.arange(3))
    context = pairs[:, :2], choices[:, :2]
    monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda self: self.loc)
    first, second = model.encode(*context), model.encode(pairs, choices)
    utility = torch.empty(3, 4, 2)
    for index in np.ndindex(3, 4, 2):
        both = torch.cat([model.item(pairs[index]), first.loc[index[0]]])
        utility[index] = model.decoder(both.unsqueeze(0)).squeeze()
    margin = (2 * choices - 1) * (utility[..., 0] - utility[..., 1])
    loss = -torch.nn.functional.logsigmoid(margin).mean(-1)
    ratio = (first.scale / second.scale).square()
    distance = ((first.loc - second.loc) / second.scale).square()
    divergence = 0.5 * (ratio - ratio.log() - 1 + distance).sum(-1)
    assert divergence.mean() > 1e-2
    expected = (loss + divergence).mean()
    torch.testing.assert_close(model(context, (pairs, choices)), expected, rtol=1e-5, atol=0)


def hold(megabytes: int) -> tuple[float, float]:
    """Returns the peak memory before and after holding some; a new process imports it by name."""
    from benchmarks.memory import peak_gigabytes

    before = peak_gigabytes()
    np.ones(megabytes * 2**20, dtype=np.uint8)
    return before, peak_gigabytes()


@pytest.mark.slow
def test_peak_is_that_of_the_process(load) -> None:
    _, here = hold(1024)
    before, after = load("memory").in_fresh_process(hold, 1, 200)
    assert after - before == pytest.approx(200 / 1024, abs=0.02)
    assert after < here - 0.5


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_slope_is_the_power(load, power: float) -> None:
    curve = {n: 3 * n**power for n in (10, 1000, 20_000)}
    row = load("harness").slope("scale", "slope", "x", "y", curve)
    assert (row.low, row.median, row.high) == pytest.approx((power,) * 3)


def test_every_way_of_a_policys_step_has_the_published_gradient(load, tmp_path: Path) -> None:
    policy = load("policy")
    problem = policy.Problem(policy.QUICK, "cpu", str(tmp_path))
    loss = problem.step(policy.WAYS["published"])
    gradient = problem.gradient()
    assert gradient.norm() > 1e-3
    for name, way in policy.WAYS.items():
        for _ in range(2):  # The second finds its references in the cache.
            assert problem.step(way) == pytest.approx(loss, rel=1e-5), name
            assert (problem.gradient() - gradient).norm() < 1e-4 * gradient.norm(), name
    assert len(problem.cache) == 2 * policy.QUICK.pairs


def test_the_published_step_is_what_it_says(load, tmp_path: Path) -> None:
    """A second model with the base weights, sequences padded to the maximum, plain log-softmax."""
    policy = load("policy")
    problem, way = policy.Problem(policy.QUICK, "cpu", str(tmp_path)), policy.Way()
    batch = problem.batch(way, np.array([1, 0]))
    assert batch.input_ids.shape == (4, policy.QUICK.maximum)
    with torch.no_grad():
        reference = problem.reference(way, batch)
        with problem.policy.reference():
            logits = problem.policy(batch.input_ids, batch.attention_mask)
        live = problem.score(way, batch, problem.z[[1, 0]])
    assert (live - reference).abs().min() > 1e-4
    for row, (pair, side) in enumerate([(1, 0), (0, 0), (1, 1), (0, 1)]):
        prompt, response = problem.rows[pair][side]
        place = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        by_hand = sum(
            logits[row, at].double().softmax(-1)[token].log().item()
            for at, token in zip(place, response, strict=True)
        )
        assert reference[row].item() == pytest.approx(by_hand, rel=1e-5)


def test_a_policy_on_a_device_that_is_too_small_for_the_published_way(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is measured in bfloat16 with recomputation, and the other's failure is reported."""
    policy = load("policy")
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    case = replace(policy.QUICK, dtype=torch.bfloat16, checkpointing=True)
    problem = policy.Problem(case, "cpu", str(tmp_path))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(policy, "published_log_prob", fail)
    rows = list(policy.on_device(problem, Namespace(device="cuda", threads=1, quick=True)))
    found = {(row.implementation, row.metric): row for row in rows}
    assert found["ours", "peak memory"].median == 3
    tokens = sum(len(p) + len(r) for pair in problem.rows for p, r in pair)
    step, rate = found["ours", "step"], found["ours", "tokens a second"]
    assert rate.high == pytest.approx(tokens / step.low)
    assert np.isnan(found["published", "step: out of memory"].median)
    assert ("published", "step") not in found


def test_memory_held_is_at_most_the_peak(load) -> None:
    memory = load("memory")
    assert 0 < memory.held_gigabytes() <= memory.peak_gigabytes()
