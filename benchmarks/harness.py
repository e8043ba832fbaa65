"""What the benchmarks share: rows, spread, the environment they were measured in, seeds."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

__all__ = ["Row", "digits", "environment", "seeded", "slope", "spread"]


@dataclass(frozen=True)
class Row:
    """Holds one figure with its spread over seeds or repetitions."""

    benchmark: str
    case: str
    implementation: str
    metric: str
    unit: str
    median: float
    low: float
    high: float
    ratio_to: str | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"   {self.ratio:.2f} x {self.ratio_to}"
        median, low, high = (digits(value) for value in (self.median, self.low, self.high))
        return (
            f"{self.benchmark:<14}{self.case:<26}{self.implementation:<24}{self.metric:<34}"
            f"{median:>11} [{low}, {high}] {self.unit}{ratio}"
        )


def digits(value: float) -> str:
    """Writes five digits, and of log-likelihoods, which are compared by differences, three more."""
    return f"{value:.3f}" if 1_000 <= -value < 1e6 else f"{value:.5g}"


def spread(
    benchmark: str,
    case: str,
    implementation: str,
    metric: str,
    unit: str,
    values: Iterable[float],
    ratio_to: str | None = None,
    ratio: float | None = None,
) -> Row:
    """Summarises repeated values by their median, minimum and maximum."""
    values = np.asarray(list(values), dtype=float)
    return Row(
        benchmark,
        case,
        implementation,
        metric,
        unit,
        float(np.median(values)),
        float(values.min()),
        float(values.max()),
        ratio_to,
        ratio,
    )


def slope(
    benchmark: str, case: str, implementation: str, metric: str, curve: dict[int, float]
) -> Row:
    """Fits log y against log x: 1 is linear; least and largest are between neighbouring sizes."""
    x, y = np.log(list(curve)), np.log(list(curve.values()))
    steps = np.diff(y) / np.diff(x)
    fitted = float(np.polyfit(x, y, 1)[0])
    low, high = float(steps.min()), float(steps.max())
    return Row(benchmark, case, implementation, metric, "", fitted, low, high)


def environment(args: argparse.Namespace) -> dict:
    """Describes machine, versions, seeds and date."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        processor = names[0] if names else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("fssa_bayes", "torch", "pyro-ppl", "numpy", "scipy", "arviz")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "gpu": gpu,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "seeds": list(args.seeds),
        "quick": args.quick,
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Returns the commit that is measured, with a + where files differ; None without git."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch inside the block and restores its state afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
