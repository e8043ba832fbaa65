"""How are model and guide fitted? Objectives, the loop of a fit, its result."""

from fssa_bayes.guide import check_guide
from fssa_bayes.inference.convergence import Convergence, describe_convergence
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
    "Convergence",
    "FitResult",
    "ImportanceWeightedELBO",
    "MaximumLikelihood",
    "NeuralProcessELBO",
    "Objective",
    "PredictiveLikelihood",
    "Sleep",
    "check_guide",
    "describe_convergence",
    "fit",
    "split_batch",
]
