"""The former path of names of :mod:`fssa_bayes.checks`."""

from fssa_bayes.checks import CHECKS, predictive_checks

__all__ = ["CHECKS", "predictive_checks"]
