"""Can this posterior be believed? Tensors and callables in, numbers out, whatever made them.

Scores and reliability are of the probability that left is preferred, a choice of ½ being half of
each. Under a model in which ties are answers, forecast the expected choice, `p.mean + p.tie / 2` of
:class:`fssa_bayes.posterior.ChoiceProbability`, and take the log score of all three answers from
`Posterior.log_score`.
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
from fssa_bayes.diagnostics.ranks import (
    EcdfBand,
    SbcResult,
    TarpResult,
    coverage,
    ecdf_band,
    interval_coverage,
    sbc_test,
    tarp,
    weighted_pit,
)
from fssa_bayes.diagnostics.scores import (
    Bootstrap,
    Score,
    block_bootstrap,
    brier_score,
    clustered_mean,
    confidence_gap,
    log_score,
)

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
