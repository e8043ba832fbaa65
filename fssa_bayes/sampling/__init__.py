"""Draws of z given a context: importance weights, grids, chains."""

from fssa_bayes._random import Streams
from fssa_bayes._weights import MOST_PARETO_K, effective_sample_size, pareto_smooth
from fssa_bayes.sampling.adaptive import Points, draw_adapted, draw_around_modes, draw_points
from fssa_bayes.sampling.draws import Draws, Proposals, check_draws
from fssa_bayes.sampling.evidence import (
    Estimate,
    estimate_log_marginal_likelihood,
    person_log_marginal_likelihood,
)
from fssa_bayes.sampling.exact import ExactPosterior
from fssa_bayes.sampling.fallback import FALLBACKS, draw_corrected
from fssa_bayes.sampling.importance import (
    GUIDE_SHARE,
    draw_guide,
    draw_posterior,
    judge_guide,
    log_joint,
    name_mixture,
    propose,
    score_draws,
)
from fssa_bayes.sampling.mcmc import nuts
from fssa_bayes.sampling.modes import Modes, find_all_modes, find_modes
from fssa_bayes.sampling.points import normal_points
from fssa_bayes.sampling.quadrature import grid
from fssa_bayes.sampling.steady import (
    map_people,
    pad_draws,
    pad_items,
    padded_draws,
    steady_backend,
)

__all__ = [
    "FALLBACKS",
    "GUIDE_SHARE",
    "MOST_PARETO_K",
    "Draws",
    "Estimate",
    "ExactPosterior",
    "Modes",
    "Points",
    "Proposals",
    "Streams",
    "check_draws",
    "draw_adapted",
    "draw_around_modes",
    "draw_corrected",
    "draw_guide",
    "draw_points",
    "draw_posterior",
    "effective_sample_size",
    "estimate_log_marginal_likelihood",
    "find_all_modes",
    "find_modes",
    "grid",
    "judge_guide",
    "log_joint",
    "map_people",
    "name_mixture",
    "normal_points",
    "nuts",
    "pad_draws",
    "pad_items",
    "padded_draws",
    "pareto_smooth",
    "person_log_marginal_likelihood",
    "propose",
    "score_draws",
    "steady_backend",
]
