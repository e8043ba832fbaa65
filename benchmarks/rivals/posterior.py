"""This package's posterior, corrected and as the guide has it."""

from __future__ import annotations

from benchmarks.rivals.problem import Draws, Problem
from benchmarks.rivals.rival import Independent
from fssa_bayes import Posterior

__all__ = ["Corrected", "RawGuide"]


class Corrected(Independent):
    """`Posterior` with its defaults."""

    name = "Posterior"
    least = 25  # Of which a tail of weights can be fitted.

    def draw(self, problem: Problem, size: int, seed: int) -> Draws:
        """Draws from the proposals, weighted."""
        guide = problem.taught.guide
        posterior = Posterior(problem.model, guide, problem.context, size, seed=seed)
        return Draws(*posterior.proposals)


class RawGuide(Independent):
    """`Posterior(correct=None)`: the guide's own draws, whose error does not vanish."""

    name = "guide alone"

    def draw(self, problem: Problem, size: int, seed: int) -> Draws:
        """Draws from q(z|C)."""
        guide, options = problem.taught.guide, {"seed": seed, "correct": None}
        posterior = Posterior(problem.model, guide, problem.context, size, **options)
        return Draws(posterior.proposals[0])
