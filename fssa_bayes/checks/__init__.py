"""Can a posterior be believed? Simulated people, real people, predictive checks."""

from fssa_bayes.checks.by_context import compare_by_context, score_by_context, score_folds
from fssa_bayes.checks.calibration import LEVELS, CalibrationStudy, calibrate, check_study
from fssa_bayes.checks.enough import LEAST_PEOPLE, NotEnoughDataError
from fssa_bayes.checks.held_out import HeldOut, predict_held_out
from fssa_bayes.checks.predictive import predictive_checks
from fssa_bayes.checks.score_tests import score_tests
from fssa_bayes.checks.simulation import SimulatedPeople, ask, draw_model, simulate_people
from fssa_bayes.checks.statistics import CHECKS
from fssa_bayes.posterior import Predictor

__all__ = [
    "CHECKS",
    "LEAST_PEOPLE",
    "LEVELS",
    "CalibrationStudy",
    "HeldOut",
    "NotEnoughDataError",
    "Predictor",
    "SimulatedPeople",
    "ask",
    "calibrate",
    "check_study",
    "compare_by_context",
    "draw_model",
    "predict_held_out",
    "predictive_checks",
    "score_by_context",
    "score_folds",
    "score_tests",
    "simulate_people",
]
