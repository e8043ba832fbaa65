"""The former path of `fssa_bayes.checks.held_out`."""

from fssa_bayes.checks import (
    HeldOut,
    compare_by_context,
    predict_held_out,
    score_by_context,
    score_folds,
    score_tests,
)
from fssa_bayes.posterior import Predictor

__all__ = [
    "HeldOut",
    "Predictor",
    "compare_by_context",
    "predict_held_out",
    "score_by_context",
    "score_folds",
    "score_tests",
]
