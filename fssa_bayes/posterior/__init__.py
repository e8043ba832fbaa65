"""Predictions from draws of z: choices, utilities, ranks, export."""

from fssa_bayes.posterior.alternatives import describe_alternatives, tabulate_alternatives
from fssa_bayes.posterior.choices import (
    ChoiceProbability,
    Likelihoods,
    Predictor,
    describe_choices,
    describe_part,
    score_choices,
    weighted_mean,
    weighted_quantiles,
)
from fssa_bayes.posterior.corrected import CorrectedPosterior, corrected
from fssa_bayes.posterior.export import export_draws
from fssa_bayes.posterior.populations import PopulationDraws, PopulationMixture
from fssa_bayes.posterior.posterior import Posterior
from fssa_bayes.posterior.willingness import find_price, payments

__all__ = [
    "ChoiceProbability",
    "CorrectedPosterior",
    "Likelihoods",
    "PopulationDraws",
    "PopulationMixture",
    "Posterior",
    "Predictor",
    "corrected",
    "describe_alternatives",
    "describe_choices",
    "describe_part",
    "export_draws",
    "find_price",
    "payments",
    "score_choices",
    "tabulate_alternatives",
    "weighted_mean",
    "weighted_quantiles",
]
