"""A training step and its parts, against the same step written the published way.

64 people with 20 targets, hidden width 256; items of one feature, as in the two-mode problem, and
of 768, as an embedding has, no item in two pairs. Steps are taken in turn. The published way
(`published.py`) encodes 10 of the 20 as context, and all as targets, and scores all of them; ours,
`ELBO` or with 16 draws `ImportanceWeightedELBO`, encodes and scores all, with eight latent
dimensions. The guide is 64 wide, its default, or 256 too. The published code itself took 118 ms a
step, 66 of them for data, on one thread of another machine.

Then the steps of a fit, by utility and stage, with networks of the default width, two latent
dimensions and one feature: processor time, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Row, spread
from benchmarks.memory import in_fresh_process, peak_gigabytes
from benchmarks.published import PublishedModel, Table
from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Preferences,
    Sleep,
)
from fssa_bayes.inference.descent import without_gradients
from fssa_bayes.inference.flat import FlatParameters
from fssa_bayes.inference.objectives import Objective

PEOPLE, COMPARISONS, CONTEXTS = 64, 20, 10
HIDDEN_DIM, LATENT_DIM, LEARNING_RATE = 256, 8, 1e-4
PUBLISHED = "published way"
# Utility, draws of z, width of the guide.
STEPS = {
    "bilinear, 1 draw": ("bilinear", 1, 64),
    "mlp, 1 draw": ("mlp", 1, 64),
    "bilinear, guide 256": ("bilinear", 1, HIDDEN_DIM),
    "mlp, guide 256": ("mlp", 1, HIDDEN_DIM),
    "bilinear, 16 draws": ("bilinear", 16, 64),
    "mlp, 16 draws": ("mlp", 16, 64),
}
STAGES = {
    "ELBO": ELBO,
    "16 draws": ImportanceWeightedELBO,
    "Sleep": Sleep,
}
Step = Callable[[], dict[str, float]]


def run(args: argparse.Namespace) -> Iterator[Row]:
    repetitions = 2 if args.quick else 40
    for num_features in (1,) if args.quick else (1, 768):
        case = f"{PEOPLE} x {COMPARISONS}, H = {HIDDEN_DIM}, D = {num_features}"
        times = _in_turn(num_features, args.seeds[0], repetitions)
        reference = np.median(times[PUBLISHED, "step"])
        for (name, part), values in times.items():
            low, median, high = np.percentile(values, [5, 50, 95])
            compared = (PUBLISHED, reference / median) if part == "step" else (None, None)
            yield Row("training", case, name, part, "ms", median, low, high, *compared)
        for name in (PUBLISHED, *STEPS)[: 2 if args.quick else None]:
            peak = in_fresh_process(_peak, args.threads, name, num_features, args.seeds[0])
            yield spread("training", case, name, "memory added by steps", "GB", [peak])
    yield from _of_a_fit(args.seeds[0], 3 if args.quick else 200)


def _of_a_fit(seed: int, repetitions: int) -> Iterator[Row]:
    """Times the steps of a fit with networks of the default width, stages in turn."""
    data = _simulate(1, seed)
    steps = {}
    for utility in ("linear", "bilinear", "mlp"):
        for name, stage in STAGES.items():
            torch.manual_seed(seed)
            model = HeterogeneousBTL(1, 2, utility)
            guide = NeuralProcessGuide(model)
            rng = np.random.default_rng(seed)
            steps[utility, name] = _step(data, model, guide, stage(), rng, time.process_time)
    times = defaultdict(list)
    for repetition in range(repetitions + repetitions // 5):
        for name, step in steps.items():
            milliseconds = sum(step().values())
            if repetition >= repetitions // 5:
                times[name].append(milliseconds)
    for (utility, stage), values in times.items():
        low, median, high = np.percentile(values, [5, 50, 95])
        case = f"{PEOPLE} x {COMPARISONS}, H = 64, D = 1"
        yield Row("training", case, f"{utility}, {stage}", "CPU a step", "ms", median, low, high)


def _in_turn(num_features: int, seed: int, repetitions: int) -> dict[tuple[str, str], list]:
    data = _simulate(num_features, seed)
    steps = {name: build(name, data, seed) for name in (PUBLISHED, *STEPS)}
    times = defaultdict(list)
    for repetition in range(repetitions + repetitions // 5):
        for name, step in steps.items():
            parts = step()
            if repetition >= repetitions // 5:
                for part, milliseconds in (parts | {"step": sum(parts.values())}).items():
                    times[name, part].append(milliseconds)
    return times


def _peak(name: str, num_features: int, seed: int) -> float:
    """Returns the memory that five steps add to data, model and optimiser's first step."""
    step = build(name, _simulate(num_features, seed), seed)
    before = peak_gigabytes()
    for _ in range(5):
        step()
    return peak_gigabytes() - before


def _simulate(num_features: int, seed: int, people: int = 500) -> Preferences:
    """Draws people who compare new pairs of random items, and answer at random."""
    rng = np.random.default_rng(seed)
    total = people * COMPARISONS
    return Preferences(
        np.arange(0, 2 * total, 2),
        np.arange(1, 2 * total, 2),
        rng.integers(2, size=total),
        np.arange(0, total + 1, COMPARISONS),
        items=rng.normal(size=(2 * total, num_features)).astype(np.float32),
    )


def build(name: str, data: Preferences, seed: int) -> Step:
    """Builds a step that returns the milliseconds of its parts."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    if name == PUBLISHED:
        return _published_step(data, rng)
    utility, draws, guide_dim = STEPS[name]
    model = HeterogeneousBTL(data.num_features, LATENT_DIM, utility, hidden_dim=HIDDEN_DIM)
    guide = NeuralProcessGuide(model, hidden_dim=guide_dim)
    stage = ELBO() if draws == 1 else ImportanceWeightedELBO(draws)
    return _step(data, model, guide, stage, rng)


def _published_step(data: Preferences, rng: np.random.Generator) -> Step:
    table = Table(data)
    model = PublishedModel(data.num_features, HIDDEN_DIM)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)

    def step() -> dict[str, float]:
        clock = _Clock()
        people = rng.choice(len(data), PEOPLE, replace=False)
        target = table.batch(people)
        context = tuple(part[:, :CONTEXTS] for part in table.batch(people))
        clock("data")
        loss = model(context, target)
        clock("forward")
        optimiser.zero_grad()
        loss.backward()
        clock("backward")
        optimiser.step()
        return clock("update")

    return step


def _step(
    data: Preferences,
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    stage: Objective,
    rng: np.random.Generator,
    read: Callable[[], float] = time.perf_counter,
) -> Step:
    """Builds a step as a fit takes it, timed by `read`."""
    (flat,) = FlatParameters.of(stage.trained(model, guide))
    optimiser = torch.optim.Adam([flat.values], LEARNING_RATE, fused=True)
    frozen = [] if stage.learns_model else list(model.parameters())

    def step() -> dict[str, float]:
        with without_gradients(frozen), flat.shared():
            clock = _Clock(read)
            batch = stage.draw_batch(model, data, rng)
            clock("data")
            flat.clear()
            loss = stage.loss(model, guide, batch)
            clock("forward")
            loss.backward()
            clock("backward")
            nn.utils.clip_grad_norm_([flat.values], 5.0)
            optimiser.step()
            return clock("update")

    return step


class _Clock:
    """Notes the milliseconds between calls by name."""

    def __init__(self, read: Callable[[], float] = time.perf_counter) -> None:
        self.parts: dict[str, float] = {}
        self.read = read
        self.last = read()

    def __call__(self, part: str) -> dict[str, float]:
        now = self.read()
        self.parts[part] = 1e3 * (now - self.last)
        self.last = now
        return self.parts
