"""Gold standards of a posterior, from :mod:`fssa_bayes.sampling`."""

from fssa_bayes.sampling import ExactPosterior, grid, nuts

__all__ = ["ExactPosterior", "grid", "nuts"]
