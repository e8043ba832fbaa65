"""Kills the command at random moments until each run has ended, and prints how they ended.

    python tests/shared/killed_runs.py FILE FOLDER KILLS

Run by cli/test_analyse.py in a process of its own: the library is imported once and every attempt
is a fork of it. Prints, as JSON, the number of kills and the SHA-256 of the results of each run
beside that of a run that was left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from fssa_bayes.cli import main as run_command
from fssa_bayes.report import analyse  # noqa: F401  Imported before the forks.

OPTIONS = (
    *("--user", "rater no.", "--left", "A", "--right", "B", "--choice", "verdict"),
    *("--choice-labels", "a1=left,a2=right,equal=tie", "--ties", "half", "--quiet"),
    *("--steps", "150", "--draws", "50", "--bootstraps", "0"),
)
COMPARED = ("model/model.safetensors", "people.csv", "ranking.csv", "summary.md")


def analyse_file(votes: Path, out: Path) -> None:
    """Runs the command and ends this process."""
    try:
        run_command(["analyse", str(votes), *OPTIONS, "--out", str(out)])
    except SystemExit as ended:
        os._exit(ended.code or 0)
    os._exit(1)


def attempt(votes: Path, out: Path, delay: float) -> bool:
    """Forks a run and kills it after a delay; tells whether it was still running."""
    child = os.fork()
    if child == 0:
        analyse_file(votes, out)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def digest(out: Path) -> str:
    """Returns the SHA-256 of the results, but for the line with their time."""
    whole = hashlib.sha256()
    for name in COMPARED:
        lines = (out / name).read_bytes().splitlines()
        whole.update(b"\n".join(line for line in lines if not line.startswith(b"fssa_bayes ")))
    return whole.hexdigest()


def main(votes: Path, folder: Path, kills: int) -> None:
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        analyse_file(votes, folder / "whole")
    os.waitpid(child, 0)
    seconds = time.perf_counter() - start
    killed, ends = 0, []
    while killed < kills:
        out = folder / f"run-{len(ends)}"
        while not out.exists():
            killed += attempt(votes, out, rng.uniform(0.1, 0.8) * seconds)
        ends.append(digest(out))
    print(json.dumps({"killed": killed, "expected": digest(folder / "whole"), "ends": ends}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
