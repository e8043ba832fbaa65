"""What is said of the draws: choices, utilities, ranks, export."""

from fssa_bayes.posterior.posterior import (
    ChoiceProbability,
    Posterior,
    describe_choices,
    score_choices,
)

__all__ = [
    "ChoiceProbability",
    "Posterior",
    "describe_choices",
    "score_choices",
]
