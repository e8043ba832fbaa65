r"""Simulation-based calibration: does a posterior hold the truth as often as it says?

People are simulated from the model, so that a person's true z and the draws of their posterior are
exchangeable given the context, whatever the quantity looked at. Quantities are gauge-free (utility
differences, choice probabilities, log-likelihoods), and every test is made at each context size on
its own: errors at small and at large contexts would hide each other.

Utility differences alone cannot see everything: the prior returned as posterior, and the posterior
of half the context, are calibrated for them. The log-likelihood of the *whole* context under the
truth and the draws tells them apart (Modrák et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.special import bdtr, ndtri
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.diagnostics._checks import (
    as_array,
    as_tensor,
    check_level,
    check_number,
    group_index,
    normalised_weights,
    require,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "EcdfBand",
    "SbcResult",
    "TarpResult",
    "coverage",
    "ecdf_band",
    "interval_coverage",
    "sbc_test",
    "tarp",
    "weighted_pit",
]

_LEAST_USERS = 20  # With fewer the band is so wide that next to nothing can be rejected.
_LEAST_DRAWS = 20
_POINTS = 100  # Evaluation points of an empirical distribution function.


# ---------------------------------------------------------------------- transforms


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

    with :math:`V \sim U(0, 1)`, the truth's own share w, and all weights together summing to 1. It
    is never a rank among resampled draws, whose duplicates are no ties of the posterior. A user's V
    is the same for all quantities.

    What is exactly uniform, at any number of draws and with any ties:

    - Equal weights: the truth is exchangeable with S draws, so its share is 1 / (S + 1).
    - `truth_log_weight` given, and draws that are independent of each other with importance weights
      proportional to posterior / proposal (neither smoothed nor truncated): of S + 1 values of
      which one comes from the posterior and S from the proposal, the i-th is the truth with
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
    values, truth = _draws_and_truth(values, truth)
    draws, users, _ = values.shape
    weights = normalised_weights(log_weights, draws, users)
    below, equal = _mass(values, weights, truth)
    own = _own_share(log_weights, weights, truth_log_weight).unsqueeze(-1)
    with seeded(seed):
        uniform = torch.rand(users, 1, dtype=torch.float64)
    return ((1 - own) * below + uniform * ((1 - own) * equal + own)).clamp(0, 1)


def _own_share(
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


def _draws_and_truth(values: ArrayLike, truth: ArrayLike) -> tuple[Tensor, Tensor]:
    values = as_tensor("values", values, ("S", "U", "Q")).cpu()
    truth = as_tensor("truth", truth, tuple(values.shape[1:])).cpu()
    check_number("the number of draws in values", len(values), _LEAST_DRAWS)
    # Ties are equalities of numbers that were computed in the same precision.
    dtype = torch.promote_types(values.dtype, truth.dtype)
    return values.to(dtype), truth.to(dtype)


def _mass(values: Tensor, weights: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the posterior mass below and at the truth, each (U, Q)."""
    below, equal = torch.zeros(2, *truth.shape, dtype=torch.float64)
    for quantity in range(truth.shape[-1]):  # Memory of one quantity at a time.
        x, t = values[..., quantity], truth[:, quantity]
        below[:, quantity] = (weights * (x < t)).sum(0)
        equal[:, quantity] = (weights * (x == t)).sum(0)
    return below, equal


# ---------------------------------------------------------------------- simultaneous band


@dataclass(frozen=True)
class EcdfBand:
    """Holds a simultaneous band for ECDF(z) − z of uniform values.

    Attributes:
        points: Where the ECDF is looked at, inside (0, 1), with shape (K,).
        lower: Lower end of the difference, (K,).
        upper: Upper end, (K,).
        level: Pointwise two-sided level γ at which all points hold together.
        prob: Probability that all tests stay inside, at least.
        num_values: Number of values of each test.
        num_tests: Number of tests that share `prob`.
    """

    points: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    level: float
    prob: float
    num_values: int
    num_tests: int


def ecdf_band(num_values: int, num_tests: int = 1, *, prob: float = 0.95) -> EcdfBand:
    r"""Computes the band in which the ECDFs of uniform values stay, all points and tests together.

    Pointwise the count below z is binomial; γ is the pointwise level at which the whole ECDF stays
    inside with the probability wanted. That probability is computed, not simulated: counts at
    successive points are those of a Poisson process given its total, so it is a sequence of
    convolutions. `num_tests` tests share 1 − `prob` equally (Bonferroni), which is valid however
    quantities of the same people depend on each other.

    Args:
        num_values: Number of values (people) of each test.
        num_tests: Number of tests that are to stay inside together: quantities × context sizes.
        prob: Probability that they do.

    Returns:
        The band, at 99 points or at one less than the number of values.

    Raises:
        ValueError: If there are fewer than 20 values or no test, or `prob` is no probability.

    References:
        Säilynoja, Bürkner & Vehtari (2022), Graphical test for discrete uniformity and its
        applications in goodness-of-fit evaluation and multiple sample comparison, Statistics and
        Computing 32(2).

    Example:
        >>> band = ecdf_band(2000, num_tests=36)
        >>> round(float(band.upper.max()), 2)
        0.05
    """
    check_number("num_values", num_values, _LEAST_USERS)
    check_number("num_tests", num_tests, 1)
    check_level("prob", prob)
    level = _simultaneous_level(num_values, (1 - prob) / num_tests)
    points = _points(num_values)
    low, high = _binomial_interval(num_values, level)
    lower, upper = low / num_values - points, high / num_values - points
    return EcdfBand(points, lower, upper, level, prob, num_values, num_tests)


def _points(num_values: int) -> np.ndarray:
    count = min(num_values, _POINTS)
    return np.arange(1, count) / count


def _binomial_interval(num_values: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and largest count at each point with a two-sided p-value above level."""
    points = _points(num_values)
    # By bisection on the distribution function: SciPy's quantiles fail at levels below 1e-10.
    low, high = np.full(len(points), -1.0), np.full(len(points), float(num_values))
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = bdtr(middle, num_values, points) > level / 2
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    low = high.astype(int)
    return low, num_values - low[::-1]


def _probability_inside(num_values: int, level: float) -> float:
    """Computes the probability that the counts below all points lie in their intervals."""
    low, high = _binomial_interval(num_values, level)
    rate = num_values / (len(low) + 1)
    step = stats.poisson.pmf(np.arange(num_values + 1), rate)
    mass, start = np.ones(1), 0
    for first, last in zip(low, high, strict=True):
        # mass[i] belongs to the count start + i; the new one to first … last.
        size = last - start + 1
        grown = np.convolve(mass, step[:size])[:size]
        mass, start = grown[first - start :], first
    rest = step[num_values - start - np.arange(len(mass))]
    return float(mass @ rest / stats.poisson.pmf(num_values, num_values))


@lru_cache(maxsize=256)
def _simultaneous_level(num_values: int, alpha: float) -> float:
    """Finds the largest pointwise level whose band has a probability of at least 1 − alpha."""
    # The sum of the points' levels bounds the band's from above, the level of one from below.
    low, high = np.log(alpha / (2 * _POINTS)), np.log(min(4 * alpha, 1.0))
    while high - low > 1e-4:
        middle = (low + high) / 2
        inside = _probability_inside(num_values, float(np.exp(middle))) >= 1 - alpha
        low, high = (middle, high) if inside else (low, middle)
    return float(np.exp(low))


def _uniformity_p_value(values: np.ndarray) -> float:
    """Computes the exact p-value of the ECDF's most extreme point, for independent values."""
    num_values, points = len(values), _points(len(values))
    count = np.searchsorted(np.sort(values), points, side="right")
    at_most = stats.binom.cdf(count, num_values, points)
    at_least = stats.binom.sf(count - 1, num_values, points)
    extreme = min(1.0, 2 * np.minimum(at_most, at_least).min())
    if extreme == 0:
        return 0.0
    # Counts whose level is above the observed one are inside; rounding must not let it in.
    return float(np.clip(1 - _probability_inside(num_values, extreme * (1 + 1e-9)), 0, 1))


# ---------------------------------------------------------------------- tests


@dataclass(frozen=True)
class SbcResult:
    """Holds the verdict on every quantity at every context size, and on all of them together.

    Attributes:
        table: One row a group and quantity. Columns: `group`, `quantity`, `users`; `mean` and
            `variance` of the transforms (½ and 1/12 if right); `shift`, by how many posterior
            standard deviations the truth lies above the posterior on average, and `scale`, the
            posterior's standard deviation as a share of what it should be, both read off normal
            scores and exact for normal posteriors; `p_value` of uniformity; `rejected`, at the
            level that all rows share; `direction`.
        p_value: Of all rows together (Bonferroni).
        rejected: Whether a row was rejected.
        prob: Probability with which an exact posterior is rejected nowhere, at least.
    """

    table: pd.DataFrame
    p_value: float
    rejected: bool
    prob: float


def sbc_test(
    pit: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    prob: float = 0.95,
) -> SbcResult:
    r"""Tests whether probability integral transforms are uniform, in each group and all together.

    The test is that of :func:`ecdf_band`: a row is rejected where its ECDF leaves the band that is
    simultaneous over all rows. Its direction is read from the mean and the variance, whichever is
    the more standard errors from ½ and 1/12:

    - `"biased"`: the mean is off; above ½ the truth lies above the posterior.
    - `"over-confident"`: the variance is too large, the posterior too narrow.
    - `"under-confident"`: the variance is too small, the posterior too wide.
    - `"misshapen"`: rejected, with both within two standard errors; `"none"`: not rejected.

    The direction is that of the quantity. A log-likelihood of the context comes out biased by most
    faults: below ½ where the posterior is too narrow and fits the choices better than the truth
    does, above ½ where it is too wide, is the prior, or has not seen all choices.

    Args:
        pit: Transforms with shape (U, Q), as from :func:`weighted_pit`.
        groups: The context size of every user, with shape (U,); all users are one group if None.
        names: Names of the quantities, with length Q; their numbers if None.
        prob: Probability that an exact posterior passes everywhere, at least.

    Returns:
        The table and the joint verdict.

    Raises:
        ValueError: If a shape does not fit, a value lies outside [0, 1] or a group has fewer than
            20 users.

    References:
        As for :func:`ecdf_band` and :func:`weighted_pit`.
    """
    pit = _check_pit(pit)
    check_level("prob", prob)
    names = _names(names, pit.shape[1])
    labels, index = group_index(groups, len(pit))
    _check_groups(labels, index)
    rows = [
        {"group": label, "quantity": name, **_describe(pit[index == number, column])}
        for number, label in enumerate(labels)
        for column, name in enumerate(names)
    ]
    table = pd.DataFrame(rows)
    level = (1 - prob) / len(table)
    table["rejected"] = table["p_value"] <= level
    table["direction"] = table["direction"].where(table["rejected"], "none")
    p_value = float(min(1.0, table["p_value"].min() * len(table)))
    return SbcResult(table, p_value, bool(table["rejected"].any()), prob)


def _check_pit(pit: ArrayLike) -> np.ndarray:
    pit = as_array("pit", pit)
    if pit.ndim != 2 or pit.size == 0:
        raise ValueError(f"pit must have shape (U, Q) and not be empty, got {pit.shape}")
    require("pit", pit, (pit >= 0) & (pit <= 1), "lie between 0 and 1")
    return pit


def _names(names: Sequence[str] | None, size: int) -> list:
    if names is None:
        return list(range(size))
    if isinstance(names, str) or len(names) != size:
        raise ValueError(f"names must have length {size}, one a quantity, got {names!r}")
    return list(names)


def _check_groups(labels: np.ndarray, index: np.ndarray) -> None:
    for label, count in zip(labels, np.bincount(index), strict=True):
        check_number(f"the number of users in group {label}", int(count), _LEAST_USERS)


def _describe(pit: np.ndarray) -> dict[str, object]:
    users = len(pit)
    mean, variance = pit.mean(), pit.var(ddof=1)
    # The variance of a uniform value's squared distance from ½ is 1/80 − 1/144 = 1/180.
    bias = (mean - 1 / 2) * np.sqrt(12 * users)
    spread = (variance - 1 / 12) * np.sqrt(180 * users)
    scores = ndtri(np.clip(pit, 1e-9, 1 - 1e-9))
    if max(abs(bias), abs(spread)) < 2:
        direction = "misshapen"
    elif abs(bias) >= abs(spread):
        direction = "biased"
    else:
        direction = "over-confident" if spread > 0 else "under-confident"
    width = scores.std(ddof=1)
    return {
        "users": users,
        "mean": float(mean),
        "variance": float(variance),
        "shift": float(scores.mean()),
        "scale": float(1 / width) if width > 0 else float("inf"),
        "p_value": _uniformity_p_value(pit),
        "direction": direction,
    }


# ---------------------------------------------------------------------- coverage


def coverage(
    pit: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Counts how often central intervals hold the truth: |PIT − ½| < level / 2.

    With transforms that are exactly uniform the coverage is exactly the level at any number of
    draws. :func:`interval_coverage` counts what a reader of the quantiles sees.

    Args:
        pit: Transforms with shape (U, Q), as from :func:`weighted_pit`.
        groups: The context size of every user, with shape (U,); all users are one group if None.
        levels: Probabilities of the intervals.
        names: Names of the quantities, with length Q; their numbers if None.

    Returns:
        One row a group, quantity and level. Columns: `group`, `quantity`, `level`, `users`,
        `covered`, the share; `standard_error`, binomial at the nominal level; `z`, the distance
        from nominal in standard errors.

    Raises:
        ValueError: As :func:`sbc_test`, or if a level is no probability.
    """
    pit = _check_pit(pit)
    distance = np.abs(pit - 0.5)
    levels = _check_levels(levels)
    inside = distance[..., None] < levels / 2
    return _coverage_table(inside, groups, levels, names)


def interval_coverage(
    values: ArrayLike,
    log_weights: ArrayLike | None,
    truth: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Counts how often the truth lies between the weighted quantiles of the draws.

    The intervals are closed and run from the (1 − level) / 2 to the (1 + level) / 2 quantile, as a
    reader sees them: at few draws they cover a little less than they say, by the order of 1 / S,
    and where draws tie with the truth more: the log-likelihood of an empty context always.

    Args:
        values: The quantities of every draw, with shape (S, U, Q).
        log_weights: Log-weights with shape (S, U); None for equal ones.
        truth: The quantities at the true z, with shape (U, Q).
        groups: The context size of every user, with shape (U,); all users are one group if None.
        levels: Probabilities of the intervals.
        names: Names of the quantities, with length Q; their numbers if None.

    Returns:
        The table of :func:`coverage`.

    Raises:
        ValueError: As :func:`weighted_pit` and :func:`coverage`.
    """
    values, truth = _draws_and_truth(values, truth)
    levels = _check_levels(levels)
    weights = normalised_weights(log_weights, *values.shape[:2])
    below, equal = (mass.numpy()[..., None] for mass in _mass(values, weights, truth))
    # The truth reaches the lower quantile where the mass up to it does, and likewise above. Sums
    # of weights are off by rounding.
    slack = 1e-9
    inside = (below + equal >= (1 - levels) / 2 - slack) & (below < (1 + levels) / 2 - slack)
    return _coverage_table(inside, groups, levels, names)


def _check_levels(levels: Sequence[float]) -> np.ndarray:
    levels = np.atleast_1d(as_array("levels", levels))
    require("levels", levels, (levels > 0) & (levels < 1), "lie between 0 and 1")
    return levels


def _coverage_table(
    inside: np.ndarray,
    groups: ArrayLike | None,
    levels: np.ndarray,
    names: Sequence[str] | None,
) -> pd.DataFrame:
    names = _names(names, inside.shape[1])
    labels, index = group_index(groups, len(inside))
    _check_groups(labels, index)
    rows = []
    for number, label in enumerate(labels):
        chosen = inside[index == number]
        error = np.sqrt(levels * (1 - levels) / len(chosen))
        for column, name in enumerate(names):
            share = chosen[:, column].mean(0)
            for level, covered, e in zip(levels, share, error, strict=True):
                rows.append((label, name, level, len(chosen), covered, e, (covered - level) / e))
    columns = ["group", "quantity", "level", "users", "covered", "standard_error", "z"]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------------- TARP


@dataclass(frozen=True)
class TarpResult:
    """Holds the expected coverage of regions around reference points.

    Attributes:
        level: Credibility levels, with shape (K,).
        coverage: Share of the users whose truth lies in the region of that level, (K,).
        lower: Lower end of the simultaneous band, (K,).
        upper: Upper end, (K,).
        pit: Posterior mass nearer to the reference than the truth, uniform if right, (U,).
        p_value: Of uniformity.
        rejected: Whether the coverage leaves the band.
    """

    level: np.ndarray
    coverage: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    pit: Tensor
    p_value: float
    rejected: bool


def tarp(
    draws: ArrayLike,
    log_weights: ArrayLike | None,
    truth: ArrayLike,
    references: ArrayLike | Callable[[int], ArrayLike],
    *,
    scale: ArrayLike | None = None,
    prob: float = 0.95,
    seed: int = 0,
) -> TarpResult:
    """Tests expected coverage with random points (TARP), for several dimensions at once.

    A user's region is the ball around a reference point that reaches to the truth; the posterior
    mass inside is uniform if the posterior is right. That holds for references that depend on the
    data, on nothing, or on randomness, but not on the truth or on these draws. With references
    that do not depend on the data the prior returned as posterior passes; so let them depend on
    it, as an estimate from the context does.

    By context size: `pit` is one more quantity for :func:`sbc_test`, whose band then holds for it
    and all others together, and for :func:`coverage`.

    Args:
        draws: Quantities of every draw, with shape (S, U, Q); in comparable units, or see `scale`.
        log_weights: Log-weights with shape (S, U); None for equal ones.
        truth: The quantities at the true z, with shape (U, Q).
        references: Points with shape (U, Q), or a function of a seed that returns them.
        scale: Units by which the quantities are divided, with shape (Q,).
        prob: Probability that the coverage of an exact posterior stays inside the band.
        seed: Seed of the references, if they are a function, and of randomised ties.

    Returns:
        Coverage by level with its band, and the test.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, a scale is not positive, or
            there are fewer than 20 users or draws.

    References:
        Lemos et al. (2023), Sampling-based accuracy testing of posterior estimators for general
        inference, ICML.
    """
    draws, truth = _draws_and_truth(draws, truth)
    users, size = truth.shape
    check_number("the number of users", users, _LEAST_USERS)
    check_level("prob", prob)
    points = references(seed) if callable(references) else references
    points = as_tensor("references", points, (users, size)).cpu().to(truth.dtype)
    if scale is not None:
        scale = as_tensor("scale", scale, (size,)).cpu().to(truth.dtype)
        require("scale", scale, scale > 0, "be positive")
        draws, truth, points = draws / scale, truth / scale, points / scale
    distance = torch.linalg.vector_norm(draws - points, dim=-1, keepdim=True)
    true_distance = torch.linalg.vector_norm(truth - points, dim=-1, keepdim=True)
    pit = weighted_pit(distance, log_weights, true_distance, seed=seed).squeeze(-1)
    band = ecdf_band(users, prob=prob)
    ecdf = np.searchsorted(np.sort(pit.numpy()), band.points, side="right") / users
    p_value = _uniformity_p_value(pit.numpy())
    lower, upper = band.points + band.lower, band.points + band.upper
    return TarpResult(band.points, ecdf, lower, upper, pit, p_value, p_value <= 1 - prob)
