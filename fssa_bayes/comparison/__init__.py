"""Which model predicts best, and do people differ at all?

Expected log predictive densities are estimated by leaving out comparisons (importance sampling, no
refit) and by leaving out people (refits). A test compares the homogeneous model with the
heterogeneous one, and the number of latent dimensions is chosen on people left out.
"""

from fssa_bayes.comparison.choice import LatentDimChoice, choose_latent_dim
from fssa_bayes.comparison.comparisons import leave_comparisons_out
from fssa_bayes.comparison.elpd import Elpd, compare
from fssa_bayes.comparison.heterogeneity import (
    HeterogeneityTest,
    heterogeneity_test,
    reason_against_mixture,
)
from fssa_bayes.comparison.people import leave_users_out, score_users

__all__ = [
    "Elpd",
    "HeterogeneityTest",
    "LatentDimChoice",
    "choose_latent_dim",
    "compare",
    "heterogeneity_test",
    "leave_comparisons_out",
    "leave_users_out",
    "reason_against_mixture",
    "score_users",
]
