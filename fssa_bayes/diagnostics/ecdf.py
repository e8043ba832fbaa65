"""The simultaneous band of empirical distribution functions of uniform values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.special import bdtr

from fssa_bayes.diagnostics._checks import LEAST_USERS, check_level, check_number

__all__ = [
    "EcdfBand",
    "binomial_interval",
    "ecdf_band",
    "evaluation_points",
    "probability_inside",
    "simultaneous_level",
    "uniformity_p_value",
]

_POINTS = 100  # Evaluation points of an empirical distribution function.


@dataclass(frozen=True)
class EcdfBand:
    """Holds a simultaneous band for ECDF(z) − z of uniform values.

    Attributes:
        points: Where the ECDF is evaluated, inside (0, 1), with shape (K,).
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
    convolutions. `num_tests` tests share 1 − `prob` equally (Bonferroni), which is valid whatever
    the dependence among quantities of the same people.

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
    check_number("num_values", num_values, LEAST_USERS)
    check_number("num_tests", num_tests, 1)
    check_level("prob", prob)
    level = simultaneous_level(num_values, (1 - prob) / num_tests)
    points = evaluation_points(num_values)
    low, high = binomial_interval(num_values, level)
    lower, upper = low / num_values - points, high / num_values - points
    return EcdfBand(points, lower, upper, level, prob, num_values, num_tests)


def evaluation_points(num_values: int) -> np.ndarray:
    """Returns the points inside (0, 1) at which the ECDF of so many values is evaluated, (K,)."""
    count = min(num_values, _POINTS)
    return np.arange(1, count) / count


def binomial_interval(num_values: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and largest count at each point with a two-sided p-value above level."""
    points = evaluation_points(num_values)
    # By bisection on the distribution function, because SciPy's quantiles fail below 1e-10.
    low, high = np.full(len(points), -1.0), np.full(len(points), float(num_values))
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = bdtr(middle, num_values, points) > level / 2
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    low = high.astype(int)
    return low, num_values - low[::-1]


def probability_inside(num_values: int, level: float) -> float:
    """Computes the probability that the counts below all points lie in their intervals."""
    low, high = binomial_interval(num_values, level)
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
def simultaneous_level(num_values: int, alpha: float) -> float:
    """Finds the largest pointwise level whose band has a probability of at least 1 − alpha."""
    # The band's level is at most the sum of the points' levels, and at least that of one point.
    low, high = np.log(alpha / (2 * _POINTS)), np.log(min(4 * alpha, 1.0))
    while high - low > 1e-4:
        middle = (low + high) / 2
        inside = probability_inside(num_values, float(np.exp(middle))) >= 1 - alpha
        low, high = (middle, high) if inside else (low, middle)
    return float(np.exp(low))


def uniformity_p_value(values: np.ndarray) -> float:
    """Computes the exact p-value of the ECDF's most extreme point, for independent values."""
    num_values, points = len(values), evaluation_points(len(values))
    count = np.searchsorted(np.sort(values), points, side="right")
    at_most = stats.binom.cdf(count, num_values, points)
    at_least = stats.binom.sf(count - 1, num_values, points)
    extreme = min(1.0, 2 * np.minimum(at_most, at_least).min())
    if extreme == 0:
        return 0.0
    # Counts of a level above the observed one are inside; the factor keeps rounding from counting
    # the observed one as inside.
    return float(np.clip(1 - probability_inside(num_values, extreme * (1 + 1e-9)), 0, 1))
