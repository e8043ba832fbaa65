"""What the README and the documentation list: every public package, every example, no dead link."""

from __future__ import annotations

import ast
import builtins
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fssa_bayes
from fssa_bayes import datasets

PACKAGES = [
    *("baselines", "checks", "comparison", "diagnostics", "exact", "kernels", "plots", "policy"),
    *("questions", "report", "scale", "serve", "steering"),
]
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
GALLERY = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").split()
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_the_reference_has_every_package_that_is_meant_for_use() -> None:
    """A package's page in the reference lists all that it offers."""
    data = [f"fssa_bayes.datasets.{m.name}" for m in pkgutil.iter_modules(datasets.__path__)]
    packages = {name for name in data if not name.rsplit(".", 1)[1].startswith("_")}
    packages |= {"fssa_bayes", "fssa_bayes.datasets", "fssa_bayes.data.texts"}
    packages |= {f"fssa_bayes.{name}" for name in PACKAGES}
    assert {name for name in REFERENCE if name.startswith("fssa_bayes")} == packages


@pytest.mark.parametrize("name", fssa_bayes.__all__)
def test_every_public_name_is_used_in_an_example(name: str) -> None:
    files = (ROOT / "examples").glob("*.py")
    assert any(re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")) for path in files)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "arguments.py"])
def test_every_example_is_in_the_gallery(name: str) -> None:
    """It has a line in the table, and a picture with a line below it."""
    assert GALLERY.count(f"| [{name}]({name}) | ") == 1
    picture = name.replace(".py", ".png")
    shown = rf"^## {re.escape(name)}\n\n!\[[^\]]+\]\({re.escape(picture)}\)\n\n\*[^*]+\*"
    assert re.search(shown, GALLERY, flags=re.M)
    assert (ROOT / "examples" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_readme_is_two_screens() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|^\|.*?$", "", text, flags=re.S | re.M)
    assert text.count("\n") <= 180
    assert len(prose.encode()) <= 10_000


@pytest.mark.parametrize("name", fssa_bayes.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    summary = getattr(fssa_bayes, name).__doc__.strip().splitlines()[0]
    assert summary.endswith((".", ",", ":"))
    assert len(summary) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_install_from_a_clone(page: Path) -> None:
    """The project is in no index."""
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"pip install[^\n]*\bfssa_bayes\b", text)


def test_blocks_for_users_of_other_software_stand_alone() -> None:
    """Every name that a block of the page reads is a built-in, or given by the block itself."""
    text = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) > 1
    for block in blocks:
        nodes = list(ast.walk(ast.parse(block)))
        given = {
            a.asname or a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names
        }
        names = [node for node in nodes if isinstance(node, ast.Name)]
        given |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        assert read <= given | set(dir(builtins)), block


def test_the_words_of_choice_modelling_lead_to_a_page() -> None:
    for page in ("README.md", "docs/index.md", "docs/classical.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert re.search(r"[Mm]ultinomial (logit )?\(conditional( logit)?\)", text), page
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(.+)\n: ", glossary, re.M)
    assert {"conditional logit", "multinomial logit", "willingness to pay"} <= set(terms)
    assert terms == sorted(terms, key=str.lower)


# What version 0.1.0 offered under these paths, but for what was deleted.
FORMER = {
    "baselines": [
        "Baseline",
        "DeterministicNeuralProcess",
        "DistributionalBTL",
        "HomogeneousBTL",
        "MixtureBTL",
        "OneModelPerLabel",
        "Predictions",
        "choose_num_classes",
    ],
    "comparison": [
        "Elpd",
        "HeterogeneityTest",
        "LatentDimChoice",
        "choose_latent_dim",
        "compare",
        "heterogeneity_test",
        "leave_comparisons_out",
        "leave_users_out",
        "score_users",
    ],
    "data": ["Batch", "Preferences", "Summary"],
    "exact": ["ExactPosterior", "grid", "nuts"],
    "guide": ["NeuralProcessGuide"],
    "inference": ["FitResult", "check_guide", "fit"],
    "model": [
        "BilinearUtility",
        "HeterogeneousBTL",
        "LinearUtility",
        "MLPUtility",
        "ModuleUtility",
    ],
    "population": [
        "PopulationDraws",
        "PopulationMixture",
        "covariate_rank",
        "feature_differences",
        "identified_covariates",
        "population_draws",
        "population_table",
        "ranking_table",
    ],
    "posterior": ["ChoiceProbability", "Posterior", "describe_choices", "score_choices"],
    "report": ["Check", "Report", "diagnose"],
}


@pytest.mark.parametrize("module", FORMER)
def test_former_paths_lead_to_the_same_names(module: str) -> None:
    offered = importlib.import_module(f"fssa_bayes.{module}")
    assert [name for name in FORMER[module] if not hasattr(offered, name)] == []
