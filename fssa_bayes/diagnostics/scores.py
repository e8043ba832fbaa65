"""Proper scores of choice probabilities, with standard errors clustered by person.

Every score takes tables (U, N), whose rows are people, or lists (n,) with the `user` of every
comparison. In a table padding is where `mask` is False or, without a mask, where the probability is
NaN. A choice of ½, half a win each, counts as two comparisons of half the weight, one won and one
lost: scores of ½ are the mean of the scores of both outcomes. (:func:`clustered_mean` averages the
log score of a model that gives ties a probability of their own.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlogy

from fssa_bayes.diagnostics._checks import (
    check_level,
    check_number,
    comparisons,
    flatten,
    require,
    user_weights,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "Bootstrap",
    "Score",
    "block_bootstrap",
    "brier",
    "brier_score",
    "clustered",
    "clustered_mean",
    "confidence_gap",
    "log_score",
    "resample_counts",
]

_LEAST_BLOCKS = 10  # Fewer people give a bootstrap distribution too coarse for an interval.


@dataclass(frozen=True)
class Score:
    """Holds an estimate with its standard error clustered by person.

    Attributes:
        value: The estimate.
        standard_error: Its standard error, people being the unit that was drawn.
        num_users: Number of people it rests on.
    """

    value: float
    standard_error: float
    num_users: int

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.4f} ({self.num_users} people)"


@dataclass(frozen=True)
class Bootstrap:
    """Holds a statistic and its bootstrap distribution.

    Attributes:
        value: The statistic of the data, with any shape.
        standard_error: Standard deviation over the resamples, same shape.
        lower: Lower end of the percentile interval, same shape.
        upper: Upper end.
        resamples: The statistic of every resample, with shape (num_resamples, *).
    """

    value: np.ndarray
    standard_error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    resamples: np.ndarray


def log_score(
    prob: ArrayLike,
    choice: ArrayLike,
    user: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    average: str = "user",
) -> Score:
    r"""Averages the log score :math:`y \log p + (1 - y) \log(1 - p)`; higher is better.

    Args:
        prob: Probability that left is preferred, with shape (U, N) or (n,).
        choice: 1 where left was preferred, 0 where right was, ½ for half a win each, same shape.
        user: The person of every comparison of a list, with shape (n,).
        mask: True where a comparison is real.
        average: `"user"` gives every person the same weight, `"comparison"` every comparison.

    Returns:
        The mean in nats a comparison. A choice that was given probability 0 makes it minus
        infinity, with a standard error of NaN.

    Raises:
        ValueError: If shapes differ, a value is out of range or there are fewer than 2 people.

    References:
        Gneiting & Raftery (2007), Strictly proper scoring rules, prediction, and estimation, JASA.
    """
    data = comparisons(prob, choice, user, mask, average, least_users=2)
    values = xlogy(data.choice, data.prob) + xlogy(1 - data.choice, 1 - data.prob)
    return clustered(values, data.user, data.weight, data.num_users)


def brier_score(
    prob: ArrayLike,
    choice: ArrayLike,
    user: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    average: str = "user",
) -> Score:
    r"""Averages the Brier score :math:`(y - p)^2`; lower is better.

    For half a win each it is :math:`\tfrac12 (1 - p)^2 + \tfrac12 p^2`.

    Args:
        prob: Probability that left is preferred, with shape (U, N) or (n,).
        choice: 1, ½ or 0, same shape.
        user: The person of every comparison of a list, with shape (n,).
        mask: True where a comparison is real.
        average: `"user"` gives every person the same weight, `"comparison"` every comparison.

    Returns:
        The mean, between 0 and 1; ¼ for a forecast of ½ throughout.

    Raises:
        ValueError: If shapes differ, a value is out of range or there are fewer than 2 people.

    References:
        Brier (1950), Verification of forecasts expressed in terms of probability.
    """
    data = comparisons(prob, choice, user, mask, average, least_users=2)
    values = brier(data.prob, data.choice)
    return clustered(values, data.user, data.weight, data.num_users)


def brier(prob: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Scores each comparison; ½ as the mean of a win's and a loss's score."""
    return (prob - choice) ** 2 + choice * (1 - choice)


def confidence_gap(
    prob: ArrayLike,
    choice: ArrayLike,
    user: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    average: str = "user",
) -> Score:
    r"""Averages confidence less accuracy: above 0 over-confident, below 0 under-confident.

    Confidence is :math:`\max(p, 1 - p)`, accuracy whether the more probable item was chosen; half a
    win is half right. The gap does not depend on which item is left, and does not detect a bias
    towards a side.

    Args:
        prob: Probability that left is preferred, with shape (U, N) or (n,).
        choice: 1, ½ or 0, same shape.
        user: The person of every comparison of a list, with shape (n,).
        mask: True where a comparison is real.
        average: `"user"` gives every person the same weight, `"comparison"` every comparison.

    Returns:
        The mean, between −½ and 1.

    Raises:
        ValueError: If shapes differ, a value is out of range or there are fewer than 2 people.
    """
    data = comparisons(prob, choice, user, mask, average, least_users=2)
    # At ½ either item is as probable, and confidence less accuracy is 0 on average.
    values = np.sign(data.prob - 0.5) * (data.prob - data.choice)
    return clustered(values, data.user, data.weight, data.num_users)


def clustered_mean(
    values: ArrayLike,
    user: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    average: str = "user",
    second: ArrayLike | None = None,
) -> Score:
    r"""Averages values of comparisons with a standard error clustered by person.

    For anything that has one value a comparison: a score computed elsewhere, or the difference of
    two forecasters' scores, whose standard error is that of the paired comparison. With weights
    :math:`w_{un}` that sum to 1 and their sums :math:`w_u`,

    .. math:: SE^2 = \frac{U}{U - 1} \sum_u \Bigl(\sum_n w_{un} (x_{un} - \bar x)\Bigr)^2.

    Where comparisons of different people share something else that was drawn, such as a prompt,
    `second` clusters both ways: squared errors by person and by prompt are added and that by person
    and prompt is subtracted; the result is at least the larger of the first two.

    Args:
        values: Any numbers, with shape (U, N) or (n,).
        user: The person of every comparison of a list, with shape (n,).
        mask: True where a comparison is real.
        average: `"user"` gives every person the same weight, `"comparison"` every comparison.
        second: Number of the second unit of every comparison, with the shape of `values`, or None.

    Returns:
        The mean in the units of the values.

    Raises:
        ValueError: If shapes differ, a value is NaN outside of padding or there are fewer than 2
            people, or fewer than 2 of the second unit.

    References:
        Liang & Zeger (1986), Longitudinal data analysis using generalized linear models.
        Cameron, Gelbach & Miller (2011), Robust inference with multiway clustering.
    """
    if second is None:
        values, user = flatten({"values": values}, user, mask)
        require("values", values, ~np.isnan(values), "not be NaN")
        return clustered(values, *user_weights(user, average, least_users=2))
    values, second, user = flatten({"values": values, "second": second}, user, mask)
    require("values", values, ~np.isnan(values), "not be NaN")
    require("second", second, ~np.isnan(second), "not be NaN")
    user, weight, num_users = user_weights(user, average, least_users=2)
    _, second = np.unique(second, return_inverse=True)
    if second.max() == 0:
        raise ValueError("second must hold at least 2 different units, got 1")
    score = clustered(values, user, weight, num_users)
    _, both = np.unique(user * (second.max() + 1) + second, return_inverse=True)
    by_second, by_both = (
        clustered(values, unit, weight, unit.max() + 1).standard_error ** 2
        for unit in (second, both)
    )
    by_user = score.standard_error**2
    variance = max(by_user + by_second - by_both, by_user, by_second)
    return Score(score.value, float(np.sqrt(variance)), num_users)


def clustered(values: np.ndarray, user: np.ndarray, weight: np.ndarray, num_users: int) -> Score:
    """Averages values (n,) of numbered people (n,) by weights (n,) that sum to 1."""
    mean = float(weight @ values)
    if not np.isfinite(mean):
        return Score(mean, float("nan"), num_users)
    total = np.bincount(user, weight * (values - mean), minlength=num_users)
    error = np.sqrt(num_users / (num_users - 1) * (total**2).sum())
    return Score(mean, float(error), num_users)


def block_bootstrap(
    statistic: Callable[[np.ndarray], ArrayLike],
    blocks: ArrayLike,
    num_resamples: int = 500,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Resamples people with all their rows, and computes a statistic of every resample.

    Args:
        statistic: Takes the number of times each row appears in a resample, a float array (n,) of
            whole numbers, and returns a number or an array. Weighted means, isotonic regressions
            and the like take it as weights; others can repeat their rows by it.
        blocks: The person, or other unit that was drawn, of every row, with shape (n,).
        num_resamples: Number of resamples.
        level: Probability of the percentile interval.
        seed: Seed of the resamples.

    Returns:
        The statistic with standard error and interval, which are not finite where a resample is
        not.

    Raises:
        ValueError: If there are fewer than 10 blocks or 100 resamples, or the level is no
            probability.

    References:
        Davison & Hinkley (1997), Bootstrap methods and their application, chapter 3.8.

    Example:
        >>> import numpy as np
        >>> user, value = np.repeat(np.arange(50), 4), np.arange(200.0)
        >>> result = block_bootstrap(lambda count: count @ value / count.sum(), user)
        >>> round(float(result.value), 1)
        99.5
    """
    blocks = np.asarray(blocks)
    if blocks.ndim != 1:
        raise ValueError(f"blocks must have shape (n,), got {blocks.shape}")
    _, index = np.unique(blocks, return_inverse=True)
    num_blocks = int(index.max(initial=-1)) + 1
    check_number("the number of blocks", num_blocks, _LEAST_BLOCKS)
    check_number("num_resamples", num_resamples, 100)
    check_level("level", level)
    value = np.asarray(statistic(np.ones(len(index))), dtype=float)
    counts = resample_counts(num_blocks, num_resamples, seed)
    resamples = np.stack([np.asarray(statistic(row[index]), dtype=float) for row in counts])
    tail = (1 - level) / 2
    lower, upper = np.quantile(resamples, (tail, 1 - tail), axis=0)
    return Bootstrap(value, resamples.std(0, ddof=1), lower, upper, resamples)


def resample_counts(num_blocks: int, num_resamples: int, seed: int) -> np.ndarray:
    """Draws how often each block appears in each resample, (num_resamples, num_blocks)."""
    rng = np.random.default_rng(seed)
    even = np.full(num_blocks, 1 / num_blocks)
    return rng.multinomial(num_blocks, even, size=num_resamples).astype(float)
