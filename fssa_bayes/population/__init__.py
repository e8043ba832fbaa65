"""What is said of everybody: standard errors, tables, rankings, effects of covariates, draws."""

from fssa_bayes.data import covariate_rank, identified_covariates
from fssa_bayes.population.cautious import cautious_population
from fssa_bayes.population.divergence import Divergence
from fssa_bayes.population.effects import covariate_effects
from fssa_bayes.population.estimates import Estimates
from fssa_bayes.population.events import Answers, list_answers
from fssa_bayes.population.few import describe_few_people, people_per_parameter
from fssa_bayes.population.identification import find_null
from fssa_bayes.population.information import (
    batch_information,
    feature_differences,
    population_information,
)
from fssa_bayes.population.moments import Moments
from fssa_bayes.population.more_people import GainOfMorePeople, gain_of_more_people
from fssa_bayes.population.newton import climb, solve_well_posed
from fssa_bayes.population.parameters import (
    answer_estimates,
    check_num_parameters,
    describe_divergence,
    has_population_estimates,
    label_parameters,
)
from fssa_bayes.population.pooled import pooled_likelihood
from fssa_bayes.population.ranking import item_estimates, ranking_table
from fssa_bayes.population.sampled import population_draws
from fssa_bayes.population.separation import Separation, find_separation
from fssa_bayes.population.standard_errors import Uncertainty
from fssa_bayes.population.stationarity import NewtonStep, find_newton_step
from fssa_bayes.population.table import population_estimates, population_table
from fssa_bayes.population.vanished import describe_vanished
from fssa_bayes.population.willingness import willingness_to_pay
from fssa_bayes.posterior import PopulationDraws, PopulationMixture

__all__ = [
    "Answers",
    "Divergence",
    "Estimates",
    "GainOfMorePeople",
    "Moments",
    "NewtonStep",
    "PopulationDraws",
    "PopulationMixture",
    "Separation",
    "Uncertainty",
    "answer_estimates",
    "batch_information",
    "cautious_population",
    "check_num_parameters",
    "climb",
    "covariate_effects",
    "covariate_rank",
    "describe_divergence",
    "describe_few_people",
    "describe_vanished",
    "feature_differences",
    "find_newton_step",
    "find_null",
    "find_separation",
    "gain_of_more_people",
    "has_population_estimates",
    "identified_covariates",
    "item_estimates",
    "label_parameters",
    "list_answers",
    "people_per_parameter",
    "pooled_likelihood",
    "population_draws",
    "population_estimates",
    "population_information",
    "population_table",
    "ranking_table",
    "solve_well_posed",
    "willingness_to_pay",
]
