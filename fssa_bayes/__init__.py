"""Bayesian preference models for few-shot steerable alignment."""

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import (
    ELBO,
    FitResult,
    ImportanceWeightedELBO,
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
