"""The former path of `fssa_bayes.checks.predictive`."""

from fssa_bayes.checks import CHECKS, predictive_checks

__all__ = [
    "CHECKS",
    "predictive_checks",
]
