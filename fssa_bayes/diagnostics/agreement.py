"""How much choices taught, how many draws weights are worth, and the distance to a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fssa_bayes import _weights
from fssa_bayes.diagnostics._checks import as_tensor, normalised_weights, require

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["PARETO_K_THRESHOLD", "contraction", "effective_sample_size", "kl_to_grid"]

PARETO_K_THRESHOLD = _weights.MOST_PARETO_K
"""Pareto k-hat above which importance weights are not relied upon (Vehtari et al. 2024)."""


def contraction(prior_sd: ArrayLike, posterior_sd: ArrayLike) -> Tensor:
    r"""Computes posterior contraction, :math:`1 - \sigma_{post}^2 / \sigma_{prior}^2`.

    0 where the choices taught nothing, near 1 where they taught nearly everything; below 0 where
    the posterior is wider than the prior, after surprising choices.

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
    return _weights.effective_sample_size(normalised_weights(log_weights, *shape).log())


def kl_to_grid(log_p: ArrayLike, log_q: ArrayLike, volume: ArrayLike) -> Tensor:
    r"""Computes :math:`KL(p \| q) = \sum_g v_g\,p_g (\log p_g - \log q_g)` to a grid posterior.

    p is normalised over the grid; q is a density over *all* space and is not normalised over the
    grid, so that the divergence counts the mass that q puts elsewhere. It is log 2 to a q that is
    half of p on the grid and has half of its mass elsewhere.

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
    log_p = as_tensor("log_p", log_p, ("G", "U"), finite=False).cpu().double()
    require("log_p", log_p, log_p < torch.inf, "be below infinity and not NaN")
    log_q = as_tensor("log_q", log_q, tuple(log_p.shape), finite=False).cpu().double()
    require("log_q", log_q, log_q < torch.inf, "be below infinity and not NaN")
    shape = tuple(log_p.shape)[2 - min(np.ndim(volume), 2) :]
    volume = as_tensor("volume", volume, shape).cpu().double()
    require("volume", volume, volume > 0, "be positive")
    log_mass = log_p + volume.expand(log_p.shape).log()
    log_evidence = log_mass.logsumexp(0)
    require("the total of log_p", log_evidence, torch.isfinite(log_evidence), "be finite")
    mass, log_p = (log_mass - log_evidence).exp(), log_p - log_evidence
    # A point without mass under p adds nothing, even where the difference is not finite.
    return torch.where(mass > 0, mass * (log_p - log_q), 0.0).sum(0)
