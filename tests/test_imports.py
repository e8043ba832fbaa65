"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fssa_bayes"

# What each stage may import directly; CONTRIBUTING.md shows the same table.
MAY_IMPORT = {
    "kernels": set(),
    "data": {"kernels"},
    "datasets": {"data"},
    "model": {"data", "kernels"},
    "guide": {"model", "data"},
    "sampling": {"guide", "model", "data"},
    "posterior": {"sampling", "guide", "model", "data"},
    "population": {"posterior", "sampling", "guide", "model", "data"},
    "questions": {"posterior", "sampling", "guide", "model", "data"},
    "io": {"guide", "model", "data"},
    "inference": {"population", "posterior", "sampling", "io", "guide", "model", "data"},
    "diagnostics": set(),
    "plots": set(),
    "checks": {"posterior", "sampling", "guide", "model", "data", "diagnostics"},
    "comparison": {"inference", "population", "sampling", "guide", "model", "data"},
    "baselines": {
        *("comparison", "inference", "population", "posterior", "sampling", "guide", "model"),
        *("data", "kernels"),
    },
    "report": {
        *("checks", "comparison", "inference", "population", "diagnostics", "plots"),
        *("posterior", "sampling", "guide", "model", "data"),
    },
    "scale": {"posterior", "sampling", "io", "data"},
    "policy": {"data", "diagnostics"},
    "steering": {"policy", "inference", "posterior", "io", "guide", "model", "data"},
    "serve": {"steering", "questions", "posterior", "guide", "model", "data"},
    "cli": {"scale", "serve", "steering", "questions", "report", "io", "datasets", "model", "data"},
}
BY_ALL = {"_random", "_arviz", "_files", "_threads", "_weights"}
# Short modules that hand on names under a shorter path.
FACES = {
    "exact": "sampling",
}
FILES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = sorted(
    path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)


def stage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields stage, module and name of what a file imports of the package, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        else:
            continue
        for module, name in found:
            top, *rest = module.split(".")
            assert top not in ("examples", "benchmarks", "tests"), f"{path} imports {top}"
            if top == "fssa_bayes":
                yield (rest or [name])[0], module, name


def by_path(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=by_path)
def test_stages_import_what_the_table_allows(path: Path) -> None:
    name = stage(path)
    if name in ("__init__", "__main__"):
        return
    allowed = BY_ALL | {name}
    if name in FACES:
        allowed |= {FACES[name]}
    elif name not in BY_ALL:
        assert name in MAY_IMPORT, f"{name} is no stage: add a row to MAY_IMPORT"
        allowed |= MAY_IMPORT[name]
    for other, module, _ in imports(path):
        assert other in allowed, f"{name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=by_path)
def test_private_names_stay_where_they_are_defined(path: Path) -> None:
    for other, module, name in imports(path):
        private = [part for part in [*module.split(".")[2:], name] if part.startswith("_")]
        assert other == stage(path) or other in BY_ALL or not private, f"{module}.{name}"
        defined_here = (PACKAGE.joinpath(*module.split(".")[1:]) / f"{name}.py").exists()
        assert not name.startswith("_") or defined_here, f"{module}.{name}"


@pytest.mark.parametrize("path", FILES, ids=by_path)
def test_modules_touch_no_private_attribute_of_another(path: Path) -> None:
    assert private_attributes(path) <= {"Block._fields"}  # A named tuple's list of fields.


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_outside_uses_private_names(path: Path) -> None:
    tree = ast.parse(path.read_text())
    tested = path.name.removeprefix("test")
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fssa_bayes"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [a.name for a in node.names if a.name.startswith("fssa_bayes")]
            names = [part for module in modules for part in module.split(".")]
        for name in names:
            assert not name.startswith("_") or f"{name}.py" == tested, ast.unparse(node)
    assert not private_attributes(path)


@pytest.mark.parametrize("path", FILES, ids=by_path)
def test_no_module_is_long_without_a_reason(path: Path) -> None:
    source = path.read_text()
    reason = "One module" in (ast.get_docstring(ast.parse(source)) or "")
    assert source.count("\n") <= 600 or reason, "say in the docstring: One module, because …"


@pytest.mark.parametrize("path", FILES, ids=by_path)
def test_no_module_keeps_a_state(path: Path) -> None:
    """An empty container at the top of a module is there to be filled while programs run."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            assert not is_empty_container(node.value), ast.unparse(node)


def is_empty_container(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        kind = ast.unparse(value.func).split(".")[-1]
        weak = {"WeakKeyDictionary", "WeakSet", "WeakValueDictionary"}
        empty = {"Counter", "OrderedDict", "deque", "dict", "list", "set"} | weak
        return kind == "defaultdict" or (kind in empty and not value.args and not value.keywords)
    if isinstance(value, ast.Dict):
        return not value.keys
    return isinstance(value, ast.List) and not value.elts


def private_attributes(path: Path) -> set[str]:
    """Finds attributes with an underscore of what a file imports of the package."""
    tree = ast.parse(path.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fssa_bayes"):
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.startswith("fssa_bayes")]
            imported |= {alias.asname or "fssa_bayes" for alias in names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            expression = ast.unparse(node)
            if expression.split(".")[0] in imported:
                found.add(expression)
    return found


def test_the_table_has_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(MAY_IMPORT):
        ready = {name for name, needs in MAY_IMPORT.items() if needs <= done} - done
        assert ready, f"a cycle among {sorted(set(MAY_IMPORT) - done)}"
        done |= ready


def test_every_edge_of_the_table_is_used() -> None:
    used = {(stage(path), other) for path in FILES for other, *_ in imports(path)}
    for name, others in MAY_IMPORT.items():
        for other in others:
            assert (name, other) in used, f"{name} no longer imports {other}"


def test_contributing_shows_the_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", text, re.MULTILINE))
    assert shown.keys() == MAY_IMPORT.keys()
    for name, others in shown.items():
        assert set(re.findall(r"`(\w+)`", others)) == MAY_IMPORT[name], name


def test_the_root_of_the_package_is_short() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    entries -= {"__init__.py", "__main__.py", "py.typed", *(f"{face}.py" for face in FACES)}
    assert len(entries) <= 28


@pytest.mark.slow
def test_the_package_loads_what_is_used() -> None:
    code = (
        "import sys, fssa_bayes, fssa_bayes.cli; print('torch' in sys.modules); "
        "fssa_bayes.Preferences; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys; from fssa_bayes import *; "
        "print([m for m in ('arviz', 'matplotlib', 'pandas.plotting._matplotlib', "
        "'transformers', 'triton', 'peft') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
