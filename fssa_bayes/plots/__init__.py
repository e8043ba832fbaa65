"""Figures: arrays and an optional `ax` in, Axes out, readable in black and white."""

from fssa_bayes.plots.preferences import (
    choice_intervals,
    forest,
    rank_distribution,
    ranking,
    utility_bands,
)

__all__ = ["choice_intervals", "forest", "rank_distribution", "ranking", "utility_bands"]
