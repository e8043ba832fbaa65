"""Figures: arrays and an optional `ax` in, Axes out, readable in black and white."""

from fssa_bayes.plots.calibration import (
    agreement,
    contraction,
    coverage_curve,
    pareto_k,
    reliability,
    sbc_ecdf_difference,
)
from fssa_bayes.plots.preferences import (
    choice_intervals,
    forest,
    rank_distribution,
    ranking,
    upon_population,
    utility_bands,
)

__all__ = [
    "agreement",
    "choice_intervals",
    "contraction",
    "coverage_curve",
    "forest",
    "pareto_k",
    "rank_distribution",
    "ranking",
    "reliability",
    "sbc_ecdf_difference",
    "upon_population",
    "utility_bands",
]
