"""What is said of everybody: standard errors, tables, rankings, covariates."""

from fssa_bayes.population.table import (
    PopulationDraws,
    PopulationMixture,
    covariate_rank,
    feature_differences,
    identified_covariates,
    mixture_table,
    population_draws,
    population_table,
    ranking_table,
)

__all__ = [
    "PopulationDraws",
    "PopulationMixture",
    "covariate_rank",
    "feature_differences",
    "identified_covariates",
    "mixture_table",
    "population_draws",
    "population_table",
    "ranking_table",
]
