"""The guide q(z | context), a neural-process encoder."""

from fssa_bayes.guide.density import NoiseDensity, push, squared_norm, standard_normal_log_prob
from fssa_bayes.guide.neural_process import NeuralProcessGuide, check_guide

__all__ = [
    "NeuralProcessGuide",
    "NoiseDensity",
    "check_guide",
    "push",
    "squared_norm",
    "standard_normal_log_prob",
]
