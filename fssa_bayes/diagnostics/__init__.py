"""Can a posterior be believed? Tensors and callables in, numbers out.

Scores and reliability are of the probability that left is preferred, and a choice of ½ is half a
win each. Under a model in which ties are answers, forecast the expected choice,
`p.mean + p.tie / 2` of :class:`fssa_bayes.posterior.ChoiceProbability`, and take the log score of
all three answers from `Posterior.log_score`.
"""

from fssa_bayes.diagnostics.agreement import (
    PARETO_K_THRESHOLD,
    contraction,
    effective_sample_size,
    kl_to_grid,
)
from fssa_bayes.diagnostics.corp import (
    BrierDecomposition,
    CalibrationError,
    Reliability,
    brier_decomposition,
    expected_calibration_error,
    reliability,
)
from fssa_bayes.diagnostics.ecdf import EcdfBand, ecdf_band
from fssa_bayes.diagnostics.intervals import coverage, interval_coverage
from fssa_bayes.diagnostics.ranks import SbcResult, sbc_test
from fssa_bayes.diagnostics.regions import TarpResult, tarp
from fssa_bayes.diagnostics.scores import (
    Bootstrap,
    Score,
    block_bootstrap,
    brier_score,
    clustered_mean,
    confidence_gap,
    log_score,
)
from fssa_bayes.diagnostics.transforms import weighted_pit

__all__ = [
    "PARETO_K_THRESHOLD",
    "Bootstrap",
    "BrierDecomposition",
    "CalibrationError",
    "EcdfBand",
    "Reliability",
    "SbcResult",
    "Score",
    "TarpResult",
    "block_bootstrap",
    "brier_decomposition",
    "brier_score",
    "clustered_mean",
    "confidence_gap",
    "contraction",
    "coverage",
    "ecdf_band",
    "effective_sample_size",
    "expected_calibration_error",
    "interval_coverage",
    "kl_to_grid",
    "log_score",
    "reliability",
    "sbc_test",
    "tarp",
    "weighted_pit",
]
