"""What the heterogeneous model is compared with."""

from fssa_bayes.baselines.base import (
    Baseline,
    DeterministicNeuralProcess,
    DistributionalBTL,
    HomogeneousBTL,
    MixtureBTL,
    OneModelPerLabel,
    Predictions,
    choose_num_classes,
)

__all__ = [
    "Baseline",
    "DeterministicNeuralProcess",
    "DistributionalBTL",
    "HomogeneousBTL",
    "MixtureBTL",
    "OneModelPerLabel",
    "Predictions",
    "choose_num_classes",
]
