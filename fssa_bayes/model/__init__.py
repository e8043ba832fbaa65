"""The heterogeneous Bradley–Terry–Luce model as a Pyro program."""

from fssa_bayes.model.btl import (
    BilinearUtility,
    HeterogeneousBTL,
    LinearUtility,
    MLPUtility,
    ModuleUtility,
)

__all__ = [
    "BilinearUtility",
    "HeterogeneousBTL",
    "LinearUtility",
    "MLPUtility",
    "ModuleUtility",
]
