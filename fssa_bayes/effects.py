"""The former path of `fssa_bayes.population.effects`."""

from fssa_bayes.population import covariate_effects

__all__ = [
    "covariate_effects",
]
