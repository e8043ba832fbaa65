"""The README's page of public names: complete, and each name in the example it points to."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import fssa_bayes
from fssa_bayes import (
    baselines,
    checks,
    comparison,
    diagnostics,
    exact,
    kernels,
    plots,
    questions,
    report,
)
from fssa_bayes.data import texts
from fssa_bayes.datasets import table, ultrafeedback

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8").split("## API")[1].split("\n## ")[0]
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]


def row_of(name: str) -> str:
    rows = [row for row in ROWS if f"`{name}`" in row]
    assert len(rows) == 1, f"{name} must stand in one row of the README's API page"
    return rows[0]


@pytest.mark.parametrize("name", fssa_bayes.__all__)
def test_every_public_name_is_listed_with_an_example_that_uses_it(name: str) -> None:
    links = re.findall(r"\]\((examples/\w+\.py)\)", row_of(name))
    assert links
    for link in links:
        assert re.search(rf"\b{name}\b", (ROOT / link).read_text(encoding="utf-8")), (name, link)


MODULES = [
    *(plots, kernels, table, ultrafeedback, texts, diagnostics, exact, comparison, baselines),
    *(checks, report, questions),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_functions_of_a_listed_module_are_named(module) -> None:
    row = row_of(module.__name__)
    for name in module.__all__:
        if inspect.isfunction(getattr(module, name)):
            assert f"`{name}`" in row


@pytest.mark.parametrize("name", fssa_bayes.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    summary = getattr(fssa_bayes, name).__doc__.strip().splitlines()[0]
    assert summary.endswith((".", ",", ":"))
    assert len(summary) > 20


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / link).exists(), link


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
    "calibration": [
        "CalibrationStudy",
        "LEVELS",
        "SimulatedPeople",
        "ask",
        "calibrate",
        "check_study",
        "draw_model",
        "simulate_people",
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
    "effects": ["covariate_effects"],
    "embedding": ["embed_texts", "fingerprint", "load_encoder", "pool"],
    "exact": ["ExactPosterior", "grid", "nuts"],
    "guide": ["NeuralProcessGuide"],
    "held_out": [
        "HeldOut",
        "Predictor",
        "compare_by_context",
        "predict_held_out",
        "score_by_context",
        "score_folds",
        "score_tests",
    ],
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
    "predictive_checks": ["CHECKS", "predictive_checks"],
    "report": ["Check", "Report", "diagnose"],
}


@pytest.mark.parametrize("module", FORMER)
def test_former_paths_lead_to_the_same_names(module: str) -> None:
    offered = importlib.import_module(f"fssa_bayes.{module}")
    assert [name for name in FORMER[module] if not hasattr(offered, name)] == []
