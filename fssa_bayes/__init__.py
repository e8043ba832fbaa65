"""Bayesian preference models for few-shot steerable alignment.

A public name is imported from its stage when it is first used (PEP 562), so that what needs a part
of the package alone, such as the command's `--help`, does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fssa_bayes.data import Preferences
    from fssa_bayes.guide import NeuralProcessGuide
    from fssa_bayes.inference import (
        ELBO,
        FitResult,
        ImportanceWeightedELBO,
        MaximumLikelihood,
        NeuralProcessELBO,
        PredictiveLikelihood,
        Sleep,
        fit,
    )
    from fssa_bayes.io import load, save
    from fssa_bayes.model import HeterogeneousBTL
    from fssa_bayes.posterior import Posterior

__all__ = [
    "ELBO",
    "FitResult",
    "HeterogeneousBTL",
    "ImportanceWeightedELBO",
    "MaximumLikelihood",
    "NeuralProcessELBO",
    "NeuralProcessGuide",
    "Posterior",
    "PredictiveLikelihood",
    "Preferences",
    "Sleep",
    "fit",
    "load",
    "save",
]

_STAGES = {
    "data": ["Preferences"],
    "guide": ["NeuralProcessGuide"],
    "inference": [
        *("ELBO", "FitResult", "ImportanceWeightedELBO", "MaximumLikelihood"),
        *("NeuralProcessELBO", "PredictiveLikelihood", "Sleep", "fit"),
    ],
    "io": ["load", "save"],
    "model": ["HeterogeneousBTL"],
    "posterior": ["Posterior"],
}
_HOME = {name: stage for stage, names in _STAGES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fssa_bayes' has no attribute {name!r}")
    value = getattr(import_module(f"fssa_bayes.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
