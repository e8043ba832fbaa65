"""Examples and benchmarks, run as a user runs them: in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def attempt(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with some arguments from the root of the project."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )


def run(*command: str) -> str:
    """Runs Python, which must succeed, and returns what it prints."""
    result = attempt(*command)
    assert result.returncode == 0, result.stderr
    return result.stdout
