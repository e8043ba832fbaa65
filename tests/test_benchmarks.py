"""What the benchmarks measure is what they say: rows, memory, slopes and the published step."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fssa_bayes import Preferences

ROOT = Path(__file__).parents[1]


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
