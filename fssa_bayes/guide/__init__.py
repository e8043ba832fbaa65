"""The guide q(z | context), a neural-process encoder."""

from fssa_bayes.guide.couplings import BentCoupling, HeavyNoise, Whitening
from fssa_bayes.guide.neural_process import NeuralProcessGuide, check_guide
from fssa_bayes.guide.pairs import Pairs

__all__ = ["BentCoupling", "HeavyNoise", "NeuralProcessGuide", "Pairs", "Whitening", "check_guide"]
