"""The former path of names of :mod:`fssa_bayes.population`."""

from fssa_bayes.population import covariate_effects

__all__ = ["covariate_effects"]
