"""Which model predicts best, and do people differ at all?"""

from fssa_bayes.comparison.choice import LatentDimChoice, choose_latent_dim
from fssa_bayes.comparison.elpd import (
    Elpd,
    compare,
    leave_comparisons_out,
    leave_users_out,
    score_users,
)
from fssa_bayes.comparison.heterogeneity import HeterogeneityTest, heterogeneity_test

__all__ = [
    "Elpd",
    "HeterogeneityTest",
    "LatentDimChoice",
    "choose_latent_dim",
    "compare",
    "heterogeneity_test",
    "leave_comparisons_out",
    "leave_users_out",
    "score_users",
]
