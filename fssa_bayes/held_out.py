"""The former path of names of :mod:`fssa_bayes.checks`."""

from fssa_bayes.checks import (
    HeldOut,
    Predictor,
    compare_by_context,
    predict_held_out,
    score_by_context,
    score_folds,
    score_tests,
)

__all__ = [
    "HeldOut",
    "Predictor",
    "compare_by_context",
    "predict_held_out",
    "score_by_context",
    "score_folds",
    "score_tests",
]
