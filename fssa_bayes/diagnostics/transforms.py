"""Probability integral transforms of the truth under weighted draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.diagnostics._checks import as_tensor, check_number, normalised_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["draws_and_truth", "mass_below_and_at", "own_share", "weighted_pit"]

_LEAST_DRAWS = 20


def weighted_pit(
    values: ArrayLike,
    log_weights: ArrayLike | None,
    truth: ArrayLike,
    *,
    truth_log_weight: ArrayLike | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Computes probability integral transforms of the truth under weighted draws.

    .. math:: PIT = \sum_{x_s < x} w_s + V \Bigl(\sum_{x_s = x} w_s + w\Bigr)

    with :math:`V \sim U(0, 1)`, the truth's own share w, and all weights together summing to 1. The
    draws are weighted and not resampled, because duplicates of a resampled draw are no ties of the
    posterior. A user's V is the same for all quantities.

    What is exactly uniform, at any number of draws and with any ties:

    - Equal weights: the truth is exchangeable with S draws, so its share is 1 / (S + 1).
    - `truth_log_weight` given, and draws that are independent of each other with importance weights
      proportional to posterior / proposal (neither smoothed nor truncated): where one of S + 1
      values comes from the posterior and S from the proposal, the i-th value is the truth with
      probability :math:`w_i / \sum w`.

    Otherwise the share is 1 / (1 + ESS) with the effective sample size 1 / Σ w² of the user's
    normalised weights: the mean, and to the order 1 / ESS the variance, are those of a uniform
    distribution; the bias of normalised weights, of the same order, remains. With 2,000 users the
    band is ± .03 wide, and 500 effective draws are enough.

    Args:
        values: The quantities of every draw, with shape (S, U, Q).
        log_weights: Log-weights with shape (S, U), normalised or not; None for equal ones.
        truth: The quantities at the z that was simulated from, with shape (U, Q).
        truth_log_weight: Log-weight of the true z, on the scale of `log_weights`, with shape (U,).
        seed: Seed of the randomised ties.

    Returns:
        Transforms between 0 and 1, uniform if the posterior is right, in float64 with shape (U, Q).

    Raises:
        ValueError: If a shape does not fit, a value is not finite, or there are fewer than 20
            draws.

    References:
        Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based
        calibration, arXiv 1804.06788.
        Modrák et al. (2023), Simulation-based calibration checking for Bayesian computation: the
        choice of test quantities shapes sensitivity, Bayesian Analysis.
    """
    values, truth = draws_and_truth(values, truth)
    draws, users, _ = values.shape
    weights = normalised_weights(log_weights, draws, users)
    below, equal = mass_below_and_at(values, weights, truth)
    own = own_share(log_weights, weights, truth_log_weight).unsqueeze(-1)
    with seeded(seed):
        uniform = torch.rand(users, 1, dtype=torch.float64)
    return ((1 - own) * below + uniform * ((1 - own) * equal + own)).clamp(0, 1)


def own_share(
    log_weights: ArrayLike | None, weights: Tensor, truth_log_weight: ArrayLike | None
) -> Tensor:
    """Returns the truth's share of the weight of draws and truth together, (U,)."""
    if truth_log_weight is None:
        return 1 / (1 + 1 / (weights**2).sum(0))
    own = as_tensor("truth_log_weight", truth_log_weight, (weights.shape[1],)).cpu().double()
    if log_weights is None:
        raise ValueError("truth_log_weight must be None where log_weights is None, got a tensor")
    total = as_tensor("log_weights", log_weights, tuple(weights.shape), finite=False)
    return torch.sigmoid(own - total.cpu().double().logsumexp(0))


def draws_and_truth(values: ArrayLike, truth: ArrayLike) -> tuple[Tensor, Tensor]:
    """Checks draws (S, U, Q) and the truth (U, Q), and converts both to one dtype."""
    values = as_tensor("values", values, ("S", "U", "Q")).cpu()
    truth = as_tensor("truth", truth, tuple(values.shape[1:])).cpu()
    check_number("the number of draws in values", len(values), _LEAST_DRAWS)
    # A tie is an equality of numbers, and both need the same precision.
    dtype = torch.promote_types(values.dtype, truth.dtype)
    return values.to(dtype), truth.to(dtype)


def mass_below_and_at(values: Tensor, weights: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the posterior mass below and at the truth, each (U, Q)."""
    below, equal = torch.zeros(2, *truth.shape, dtype=torch.float64)
    for quantity in range(truth.shape[-1]):  # One at a time, to save memory.
        x, t = values[..., quantity], truth[:, quantity]
        below[:, quantity] = (weights * (x < t)).sum(0)
        equal[:, quantity] = (weights * (x == t)).sum(0)
    return below, equal
