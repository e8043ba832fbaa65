"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fssa_bayes"

# Each module may import those to its left, and nothing to its right.
ORDER = [
    {"_rankings", "plackett_luce"},
    {"_random", "_folders", "kernels", "nn", "data", "inference_data", "_page", "embedding"},
    {"distributions", "datasets", "diagnostics", "couplings", "chunks"},
    {"model", "plots", "policy"},
    {"guide", "agreement"},
    {"importance", "io"},
    {"objectives", "population", "export"},
    {"training", "effects"},
    {"inference"},
    {"exact"},
    {"trust"},
    {"posterior"},
    {"comparison", "predictive_checks", "calibration", "held_out"},
    {"report", "baselines"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported(path: Path) -> set[str]:
    """Lists the package's modules that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            parts = node.names[0].name.split(".")
            names = parts[1:2]
        else:
            continue
        if parts[0] == "fssa_bayes":
            found.update(names)
        assert parts[0] not in ("examples", "benchmarks"), f"{path} imports {parts[0]}"
    return found


def module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path: Path) -> None:
    name = module(path)
    if name == "__init__":
        return
    assert name in RANK, f"{name} has no place in the import order: add it to ORDER"
    for other in imported(path) - {name}:
        assert RANK[other] < RANK[name], f"{name} imports {other}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, fssa_bayes; "
        "print([m for m in ('arviz', 'matplotlib', 'pandas.plotting._matplotlib', "
        "'transformers', 'triton', 'peft') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
