"""The former path of names of :mod:`fssa_bayes.checks`."""

from fssa_bayes.checks import (
    LEVELS,
    CalibrationStudy,
    SimulatedPeople,
    ask,
    calibrate,
    check_study,
    draw_model,
    simulate_people,
)

__all__ = [
    "LEVELS",
    "CalibrationStudy",
    "SimulatedPeople",
    "ask",
    "calibrate",
    "check_study",
    "draw_model",
    "simulate_people",
]
