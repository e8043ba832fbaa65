"""What the heterogeneous model is compared with."""

from fssa_bayes.baselines.base import Baseline, Predictions
from fssa_bayes.baselines.distributional import DistributionalBTL
from fssa_bayes.baselines.few_shot import few_shot_fitters, predict_at_modes
from fssa_bayes.baselines.homogeneous import HomogeneousBTL
from fssa_bayes.baselines.labels import OneModelPerLabel
from fssa_bayes.baselines.mixture import MixtureBTL, choose_num_classes
from fssa_bayes.baselines.published import DeterministicNeuralProcess

__all__ = [
    "Baseline",
    "DeterministicNeuralProcess",
    "DistributionalBTL",
    "HomogeneousBTL",
    "MixtureBTL",
    "OneModelPerLabel",
    "Predictions",
    "choose_num_classes",
    "few_shot_fitters",
    "predict_at_modes",
]
