"""The guide q(z | context), a neural-process encoder."""

from fssa_bayes.guide.neural_process import NeuralProcessGuide, check_guide

__all__ = ["NeuralProcessGuide", "check_guide"]
