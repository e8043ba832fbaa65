"""Can this posterior be believed? Tensors and callables in, numbers out, whatever made them."""

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
from fssa_bayes.diagnostics.corp import (
    BrierDecomposition,
    CalibrationError,
    Reliability,
    brier_decomposition,
    expected_calibration_error,
    reliability,
)
from fssa_bayes.diagnostics.scores import (
    Bootstrap,
    Score,
    block_bootstrap,
    brier_score,
    clustered_mean,
    log_score,
)

__all__ = [
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
    "coverage",
    "ecdf_band",
    "expected_calibration_error",
    "interval_coverage",
    "log_score",
    "reliability",
    "sbc_test",
    "tarp",
    "weighted_pit",
]
