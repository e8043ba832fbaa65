"""What importance weights are worth: Kish's effective number of draws and the limit of k-hat."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MOST_PARETO_K", "effective_sample_size", "log_moments", "size_from_moments"]

MOST_PARETO_K = 0.7
"""Pareto k-hat above which importance weights are not relied upon.

References:
    Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
"""


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Computes Kish's :math:`(\sum w)^2 / \sum w^2` over the draws of log-weights (S, U).

    References:
        Kong (1992), A note on importance sampling using standardized weights.
    """
    return size_from_moments(log_moments(log_weights))


def log_moments(log_weights: Tensor) -> Tensor:
    r"""Computes :math:`\log \sum w` and :math:`\log \sum w^2` of log-weights (S, U), (2, U)."""
    return torch.stack([log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)])


def size_from_moments(moments: Tensor) -> Tensor:
    """Computes the effective sample size from the moments of :func:`log_moments`, with shape (U,).

    The moments of several sets of draws add up, in logs, to those of all draws together.
    """
    return torch.exp(2 * moments[0] - moments[1])
