"""How does a person choose? The heterogeneous Bradley–Terry–Luce model as a Pyro program."""

from fssa_bayes.model.agreement import check_data, check_same_people, positions, some_names
from fssa_bayes.model.btl import HeterogeneousBTL
from fssa_bayes.model.distributions import BradleyTerry, Outcomes
from fssa_bayes.model.utilities import (
    BilinearUtility,
    LinearUtility,
    MLPUtility,
    ModuleUtility,
    PreparedItems,
)

__all__ = [
    "BilinearUtility",
    "BradleyTerry",
    "HeterogeneousBTL",
    "LinearUtility",
    "MLPUtility",
    "ModuleUtility",
    "Outcomes",
    "PreparedItems",
    "check_data",
    "check_same_people",
    "positions",
    "some_names",
]
