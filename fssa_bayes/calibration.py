"""The former path of `fssa_bayes.checks.calibration`."""

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
