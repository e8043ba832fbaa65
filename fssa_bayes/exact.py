"""Gold standards of a posterior: the names of `fssa_bayes.sampling`."""

from fssa_bayes.sampling import ExactPosterior, grid, nuts

__all__ = [
    "ExactPosterior",
    "grid",
    "nuts",
]
