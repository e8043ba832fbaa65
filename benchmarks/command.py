"""How long does the command take to answer? Start-up, beside a bare Python and beside PyTorch.

Every command is a process of its own; they are run in turn, after one warm-up each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.harness import Row, spread

COMMANDS = {
    "python alone": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import fssa_bayes": ("-c", "import fssa_bayes"),
    "--help": ("-m", "fssa_bayes", "--help"),
    "analyse --help": ("-m", "fssa_bayes", "analyse", "--help"),
    "unknown subcommand": ("-m", "fssa_bayes", "analyze"),
    "missing option": ("-m", "fssa_bayes", "rank", "votes.csv"),
    "missing file": (
        *("-m", "fssa_bayes", "rank", "no.csv"),
        *("--user", "u", "--left", "l", "--right", "r", "--choice", "c"),
    ),
}


def run(args: argparse.Namespace) -> Iterator[Row]:
    repeats = 2 if args.quick else 15
    wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name, command in COMMANDS.items():
            seconds, used = measure(command)
            if repeat:  # The first round fills the caches of the file system.
                wall[name].append(seconds)
                cpu[name].append(used)
    reference = sum(cpu["import torch"]) / repeats
    for name in COMMANDS:
        yield spread("command", name, "process", "wall-clock time", "s", wall[name])
        ratio = sum(cpu[name]) / repeats / reference
        yield spread("command", name, "process", "CPU time", "s", cpu[name], "import torch", ratio)


def measure(command: tuple[str, ...]) -> tuple[float, float]:
    """Runs Python with some arguments; returns wall-clock and CPU seconds."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], capture_output=True, check=False)
    after = os.times()
    used = after.children_user - before.children_user
    used += after.children_system - before.children_system
    return time.perf_counter() - start, used
