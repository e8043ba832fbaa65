"""A fit by one and by two processes, as `torchrun` starts them: seconds, speed-up, equal results.

Twenty thousand people with ten comparisons each, two features and two latent dimensions: a mixed
logit by `MaximumLikelihood(128)` to convergence, and a bilinear utility by `ImportanceWeightedELBO`
for 150 steps of 1,024 people. One and two processes take turns; seconds are those of `fit` in the
first process, without the start of Python. The machine should have a free core a process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Row, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessGuide,
    Preferences,
    fit,
)

PEOPLE, COMPARISONS, ITEMS, STEPS = 20_000, 10, 20, 150
CASES = ("linear, MaximumLikelihood", "bilinear, IW-ELBO")


def run(args: argparse.Namespace) -> Iterator[Row]:
    people, repetitions = (300, 1) if args.quick else (PEOPLE, len(args.seeds))
    found = {(case, number): [] for case in CASES for number in (1, 2)}
    for _ in range(repetitions):
        for case, number in found:
            found[case, number].append(_start(case, number, people))
    for case in CASES:
        one, two = found[case, 1], found[case, 2]
        for number, own in ((1, one), (2, two)):
            name = f"{number} process{'es' * (number > 1)}"
            for metric, unit in (("wall", "s"), ("CPU of the first process", "s")):
                yield spread("processes", case, name, metric, unit, [r[metric] for r in own])
        ratios = [a["wall"] / b["wall"] for a, b in zip(one, two, strict=True)]
        yield spread("processes", case, "2 processes", "times as fast", "", ratios)
        apart = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(one, two, strict=True)]
        yield spread("processes", case, "2 processes", "last loss, relative difference", "", apart)


def _start(case: str, processes: int, people: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "benchmarks.processes"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, case, str(people), str(path)], env=environment, check=True,
            capture_output=True,
        )  # fmt: skip
        return json.loads(path.read_text())


def _fit(case: str, people: int, path: Path) -> None:
    """Fits simulated people in a process of torchrun; the first one writes its figures."""
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    beta = rng.normal([0.5, -0.5], 1.0, size=(people, 1, 2))
    x = rng.normal(size=(ITEMS, 2))
    left = (rng.integers(ITEMS, size=(people, 1)) + np.arange(COMPARISONS)) % ITEMS
    right = (left + 1 + np.arange(COMPARISONS)) % ITEMS
    margin = ((x[left] - x[right]) * beta).sum(-1)
    choice = rng.random(margin.shape) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(people + 1) * COMPARISONS
    data = Preferences(left.ravel(), right.ravel(), choice.ravel().astype(float), offsets, items=x)
    torch.manual_seed(0)
    linear = case == CASES[0]
    utility = "linear" if linear else "bilinear"
    model = HeterogeneousBTL.for_data(data, latent_dim=2, utility=utility)
    guide = None if linear else NeuralProcessGuide(model)
    objective = (
        MaximumLikelihood(128)
        if linear
        else ImportanceWeightedELBO(16, steps=STEPS, batch_size=1024)
    )
    wall, cpu = time.perf_counter(), time.process_time()
    result = fit(
        model, guide, data, objective=objective, validation=None, progress_bar=False, seed=0
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if int(os.environ.get("RANK", "0")) == 0:
        figures = {
            "wall": wall,
            "CPU of the first process": cpu,
            "loss": float(result.history["loss"].iloc[-1]),
        }
        path.write_text(json.dumps(figures))


if __name__ == "__main__":
    _fit(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
