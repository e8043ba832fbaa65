"""How are model and guide fitted? Objectives, the loop of a fit, its result."""

from fssa_bayes.inference.fit import FitResult, fit
from fssa_bayes.inference.objectives import (
    ELBO,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessELBO,
    Objective,
    PredictiveLikelihood,
    Sleep,
    split_batch,
)

__all__ = [
    "ELBO",
    "FitResult",
    "ImportanceWeightedELBO",
    "MaximumLikelihood",
    "NeuralProcessELBO",
    "Objective",
    "PredictiveLikelihood",
    "Sleep",
    "fit",
    "split_batch",
]
