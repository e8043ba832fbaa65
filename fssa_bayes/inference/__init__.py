"""Fitting a model and its guide to the comparisons of many people."""

from fssa_bayes.inference.fit import (
    FitResult,
    fit,
)

__all__ = [
    "FitResult",
    "fit",
]
