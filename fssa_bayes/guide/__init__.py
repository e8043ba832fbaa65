"""The guide q(z | context), a neural-process encoder."""

from fssa_bayes.guide.neural_process import NeuralProcessGuide, check_guide
from fssa_bayes.guide.pairs import Pairs

__all__ = ["NeuralProcessGuide", "Pairs", "check_guide"]
