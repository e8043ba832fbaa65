"""How does a person choose? The heterogeneous Bradley–Terry–Luce model as a Pyro program."""

from fssa_bayes.model.agreement import (
    align,
    check_same_people,
    positions,
    require_linear,
    select_features,
)
from fssa_bayes.model.btl import HeterogeneousBTL
from fssa_bayes.model.coefficients import CoefficientMap
from fssa_bayes.model.distributions import (
    BradleyTerry,
    Derivatives,
    Outcomes,
    StageShares,
    log_prob_of_choices,
)
from fssa_bayes.model.utilities import (
    BilinearUtility,
    LinearUtility,
    MLPUtility,
    ModuleUtility,
    PreparedItems,
    Utility,
)

__all__ = [
    "BilinearUtility",
    "BradleyTerry",
    "CoefficientMap",
    "Derivatives",
    "HeterogeneousBTL",
    "LinearUtility",
    "MLPUtility",
    "ModuleUtility",
    "Outcomes",
    "PreparedItems",
    "StageShares",
    "Utility",
    "align",
    "check_same_people",
    "log_prob_of_choices",
    "positions",
    "require_linear",
    "select_features",
]
