"""How much was learned, how good the draws are, and how far they are from a gold standard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.diagnostics._checks import as_tensor, normalised_weights, require

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["PARETO_K_THRESHOLD", "contraction", "effective_sample_size", "kl_to_grid"]

PARETO_K_THRESHOLD = 0.7
"""Pareto k-hat above which importance weights are not to be relied upon (Vehtari et al. 2024)."""


# ---------------------------------------------------------------------- learning


def contraction(prior_sd: ArrayLike, posterior_sd: ArrayLike) -> Tensor:
    r"""Computes posterior contraction, :math:`1 - \sigma_{post}^2 / \sigma_{prior}^2`.

    0 where nothing was learned, near 1 where nearly everything was; below 0 where the choices were
    a surprise.

    Args:
        prior_sd: Standard deviation under the prior, positive, with shape (Q,) or (U, Q).
        posterior_sd: Standard deviation under the posterior, with shape (U, Q).

    Returns:
        Contraction with shape (U, Q).

    Raises:
        ValueError: If a shape does not fit or a value is out of range.

    References:
        Schad, Betancourt & Vasishth (2021), Toward a principled Bayesian workflow in cognitive
        science, Psychological Methods 26(1).
    """
    posterior_sd = as_tensor("posterior_sd", posterior_sd, ("U", "Q")).double()
    shape = posterior_sd.shape if np.ndim(prior_sd) == 2 else posterior_sd.shape[1:]
    prior_sd = as_tensor("prior_sd", prior_sd, tuple(shape)).double()
    require("prior_sd", prior_sd, prior_sd > 0, "be positive")
    require("posterior_sd", posterior_sd, posterior_sd >= 0, "not be negative")
    return 1 - (posterior_sd / prior_sd) ** 2


# ---------------------------------------------------------------------- importance weights


def effective_sample_size(log_weights: ArrayLike) -> Tensor:
    r"""Computes Kish's effective number of draws, :math:`(\sum w)^2 / \sum w^2`.

    Args:
        log_weights: Log-weights with shape (S, U), normalised or not.

    Returns:
        Between 1 and S, in float64 with shape (U,).

    Raises:
        ValueError: If the shape does not fit or a weight is infinite or NaN.

    References:
        Kong (1992), A note on importance sampling using standardized weights.
    """
    shape = as_tensor("log_weights", log_weights, ("S", "U"), finite=False).shape
    return 1 / (normalised_weights(log_weights, *shape) ** 2).sum(0)


# ---------------------------------------------------------------------- grid posterior


def kl_to_grid(log_p: ArrayLike, log_q: ArrayLike, volume: ArrayLike) -> Tensor:
    r"""Computes :math:`KL(p \| q) = \sum_g v_g\,p_g (\log p_g - \log q_g)` to a grid posterior.

    p is normalised over the grid; q is the density over *all* space that it claims to be, and is
    not normalised over the grid: what it puts elsewhere is missing where p is, and costs. A q that
    is p on the grid with half of its mass elsewhere is log 2 away.

    Args:
        log_p: Log-density of the exact posterior at every point up to a constant a user, (G, U).
        log_q: Log-density of the approximation at the same points, normalised over all space.
        volume: Volume that a point stands for: a number, or with shape (U,) or (G, U). For a grid
            given by weights, exp(log-weight − log-density).

    Returns:
        Divergence in nats with shape (U,), in float64; infinite where q is 0 and p is not.

    Raises:
        ValueError: If a shape does not fit, a value is infinite or NaN, or a volume is not
            positive.
    """
    log_p, log_q, volume = _grids(log_p, log_q, volume)
    mass, log_p = _grid_posterior(log_p, volume)
    # A point without mass under p counts nothing, even where the difference is not finite.
    return torch.where(mass > 0, mass * (log_p - log_q), 0.0).sum(0)


def _grids(log_p: ArrayLike, log_q: ArrayLike, volume: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    log_p = _grid_density("log_p", log_p, ("G", "U"))
    log_q = _grid_density("log_q", log_q, tuple(log_p.shape))
    return log_p, log_q, _grid_volume(volume, log_p)


def _grid_density(name: str, values: ArrayLike, shape: tuple[int | str, ...]) -> Tensor:
    values = as_tensor(name, values, shape, finite=False).cpu().double()
    require(name, values, values < torch.inf, "be below infinity and not NaN")
    return values


def _grid_volume(volume: ArrayLike, density: Tensor) -> Tensor:
    shape = tuple(density.shape)[2 - min(np.ndim(volume), 2) :]
    volume = as_tensor("volume", volume, shape).cpu().double()
    require("volume", volume, volume > 0, "be positive")
    return volume.expand(density.shape)


def _grid_posterior(log_p: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mass of every point and the normalised log-density."""
    log_mass = log_p + volume.log()
    log_evidence = log_mass.logsumexp(0)
    require("the total of log_p", log_evidence, torch.isfinite(log_evidence), "be finite")
    return (log_mass - log_evidence).exp(), log_p - log_evidence
