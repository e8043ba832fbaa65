"""Are choice probabilities calibrated? CORP reliability, the Brier score in parts, and the ECE.

Tables, lists, padding and choices of ½ are taken as in :mod:`fssa_bayes.diagnostics.scores`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from fssa_bayes.diagnostics._checks import Comparisons, as_array, check_level, check_number
from fssa_bayes.diagnostics._checks import comparisons as check_comparisons
from fssa_bayes.diagnostics.scores import Score, block_bootstrap, brier, resample_counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "BrierDecomposition",
    "CalibrationError",
    "Isotonic",
    "Reliability",
    "brier_decomposition",
    "equal_bins",
    "expected_calibration_error",
    "reliability",
    "simulator",
]

_LEAST_USERS = 10  # Bands and intervals resample people.
_LEAST_IN_BIN = 20  # Comparisons: a bin's gap is taken to be normal.
_GRID = 201  # Points at which bands are evaluated.
_SURE = 3.0  # Standard errors from which on the sign of a bin's gap is beyond doubt.


@dataclass(frozen=True)
class BrierDecomposition:
    """Holds the parts of a Brier score: brier = miscalibration − discrimination + uncertainty.

    The parts sum exactly. Standard errors come from resampling people.

    Attributes:
        brier: The mean Brier score.
        miscalibration: MCB, what recalibrating the probabilities would gain; about 0 if calibrated
            (in the sample always at least 0, and above it by chance).
        discrimination: DSC, the refinement: what the recalibrated probabilities gain over always
            forecasting the base rate.
        uncertainty: UNC, the score of the base rate.
    """

    brier: Score
    miscalibration: Score
    discrimination: Score
    uncertainty: Score


@dataclass(frozen=True)
class Reliability:
    """Holds a CORP reliability curve with two bands.

    Attributes:
        prob: The distinct forecast probabilities, increasing, with shape (n,).
        recalibrated: Isotonic estimate of P(choice = 1 | prob) at each, (n,).
        weight: Share of the comparisons at each, summing to 1, (n,).
        grid: Points at which the bands are evaluated, between the extremes of `prob`, (G,).
        consistency_lower: Where the curve would lie at `grid` if the forecasts were calibrated,
            pointwise, (G,).
        consistency_upper: Upper end, (G,).
        confidence_lower: Where P(choice = 1 | prob) may lie at `grid`, pointwise, from resampling
            people, (G,).
        confidence_upper: Upper end, (G,).
        level: Probability of both bands.
        miscalibration: MCB of the curve, in units of the Brier score.
        p_value: Share of calibrated resamples whose MCB is at least as large.
    """

    prob: np.ndarray
    recalibrated: np.ndarray
    weight: np.ndarray
    grid: np.ndarray
    consistency_lower: np.ndarray
    consistency_upper: np.ndarray
    confidence_lower: np.ndarray
    confidence_upper: np.ndarray
    level: float
    miscalibration: float
    p_value: float


@dataclass(frozen=True)
class CalibrationError:
    """Holds an expected calibration error with a confidence interval.

    Attributes:
        value: Mean over the bins of `|mean choice − mean probability|`.
        lower: Lower end of the interval; above 0 the forecasts are miscalibrated.
        upper: Upper end.
        if_calibrated: What the value would be on average if the forecasts were calibrated: it is
            biased upwards by chance.
        level: Probability of the interval.
        bins: One row a bin: `prob`, `choice` (weighted means), `weight`, `gap`, `standard_error`.
    """

    value: float
    lower: float
    upper: float
    if_calibrated: float
    level: float
    bins: pd.DataFrame


def brier_decomposition(
    prob: ArrayLike,
    choice: ArrayLike,
    user: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    average: str = "user",
    num_resamples: int = 500,
    seed: int = 0,
) -> BrierDecomposition:
    r"""Splits the Brier score into miscalibration, discrimination and uncertainty (CORP).

    With the isotonic recalibration :math:`\hat p` and the base rate :math:`\bar y`:
    :math:`MCB = S(p) - S(\hat p)`, :math:`DSC = S(\bar y) - S(\hat p)`, :math:`UNC = S(\bar y)`,
    which needs no bins.

    Args:
        prob: Probability that left is preferred, with shape (U, N) or (n,).
        choice: 1, ½ or 0, same shape.
        user: The person of every comparison of a list, with shape (n,).
        mask: True where a comparison is real.
        average: `"user"` gives every person the same weight, `"comparison"` every comparison.
        num_resamples: Number of resamples of people for the standard errors.
        seed: Seed of the resamples.

    Returns:
        Four scores that sum exactly.

    Raises:
        ValueError: If shapes differ, a value is out of range or there are fewer than 10 people.

    References:
        Dimitriadis, Gneiting & Jordan (2021), Stable reliability diagrams for probabilistic
        classifiers, PNAS 118(8).
    """
    data = check_comparisons(prob, choice, user, mask, average, _LEAST_USERS)
    curve = Isotonic(data)
    result = block_bootstrap(
        lambda count: curve.parts(data.weight * count), data.user, num_resamples, seed=seed
    )
    pairs = zip(result.value, result.standard_error, strict=True)
    return BrierDecomposition(*(Score(float(v), float(e), data.num_users) for v, e in pairs))


def reliability(
    prob: ArrayLike,
    choice: ArrayLike,
    user: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    average: str = "user",
    simulate: Callable[[int], ArrayLike] | None = None,
    num_resamples: int = 500,
    level: float = 0.9,
    seed: int = 0,
) -> Reliability:
    """Estimates P(choice = 1 | forecast) by isotonic regression, with bands.

    The *consistency* band shows where the curve of calibrated forecasts falls, with which the curve
    is to be compared. A person's choices share that person's z and so are dependent given the
    probabilities; `simulate` should draw them together. Without `simulate` choices are drawn
    independently, which is right for one comparison a person and otherwise makes the band too
    narrow, by as much as a person's residuals agree. (The interval of
    :func:`expected_calibration_error` allows for the dependence without `simulate`.) The
    *confidence* band resamples people and allows for the dependence, but the bootstrap of an
    isotonic regression is approximate (a band of 90 % held the truth 77 to 96 times in 100, least
    often near 0 and 1).

    Args:
        prob: Probability that left is preferred, with shape (U, N) or (n,).
        choice: 1, ½ or 0, same shape.
        user: The person of every comparison of a list, with shape (n,).
        mask: True where a comparison is real.
        average: `"user"` gives every person the same weight, `"comparison"` every comparison.
        simulate: Takes a seed and returns choices drawn from the forecaster, with the shape of
            `prob`: for a posterior, one z of each person and all their choices given it.
        num_resamples: Number of resamples for each band.
        level: Pointwise probability of the bands.
        seed: Seed of the resamples.

    Returns:
        The curve and both bands.

    Raises:
        ValueError: If shapes differ, a value is out of range or there are fewer than 10 people.

    References:
        Dimitriadis, Gneiting & Jordan (2021), Stable reliability diagrams for probabilistic
        classifiers, PNAS 118(8).
        Sen, Banerjee & Woodroofe (2010), Inconsistency of bootstrap: the Grenander estimator.
    """
    check_level("level", level)
    data = check_comparisons(prob, choice, user, mask, average, _LEAST_USERS)
    check_number("num_resamples", num_resamples, 100)
    curve = Isotonic(data)
    value, recalibrated, weight = curve.fit(data.choice, data.weight)
    some = np.linspace(0, len(value) - 1, min(len(value), _GRID)).round().astype(int)
    grid = value[some]
    counts = resample_counts(data.num_users, num_resamples, seed)
    refits = [curve.fit(data.choice, data.weight * row[data.user]) for row in counts]
    confidence = [np.interp(grid, x, y) for x, y, _ in refits]
    draw = simulator(data, prob, mask, simulate, seed)
    calibrated = [draw(resample) for resample in range(num_resamples)]
    fits = [curve.fit(choice, data.weight) for choice in calibrated]
    consistency = [np.interp(grid, x, y) for x, y, _ in fits]
    observed = curve.parts(data.weight)[1]
    by_chance = [
        curve.parts(data.weight, choice, fit)[1]
        for choice, fit in zip(calibrated, fits, strict=True)
    ]
    tails = ((1 - level) / 2, (1 + level) / 2)
    return Reliability(
        value,
        recalibrated,
        weight,
        grid,
        *np.quantile(consistency, tails, axis=0),
        *np.quantile(confidence, tails, axis=0),
        level,
        float(observed),
        float((1 + np.sum(np.array(by_chance) >= observed)) / (1 + num_resamples)),
    )


def simulator(
    data: Comparisons,
    prob: ArrayLike,
    mask: ArrayLike | None,
    simulate: Callable[[int], ArrayLike] | None,
    seed: int,
) -> Callable[[int], np.ndarray]:
    """Returns a function that draws the choices of calibrated forecasts, without padding."""
    if simulate is None:
        rng = np.random.default_rng((seed, 1))
        return lambda resample: (rng.random(len(data.prob)) < data.prob).astype(float)
    shape = as_array("prob", prob).shape
    seeds = np.random.default_rng((seed, 1)).integers(2**31, size=2**16)
    # Padding is where it is in the forecasts.
    kept = ~np.isnan(as_array("prob", prob)) if mask is None else np.asarray(mask)

    def draw(resample: int) -> np.ndarray:
        choice = as_array("simulate(seed)", simulate(int(seeds[resample % len(seeds)])))
        if choice.shape != shape:
            raise ValueError(f"simulate must return shape {shape}, got {choice.shape}")
        return choice[kept]

    return draw


class Isotonic:
    """Fits isotonic regressions of choices on the same forecasts, for many choices or weights."""

    def __init__(self, data: Comparisons) -> None:
        self.data = data
        # Equal forecasts are one point of the regression.
        self.prob, self.point = np.unique(data.prob, return_inverse=True)

    def fit(
        self, choice: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns forecasts of positive weight, their recalibrated values and their shares."""
        total = np.bincount(self.point, weight, minlength=len(self.prob))
        wins = np.bincount(self.point, weight * choice, minlength=len(self.prob))
        seen = total > 0
        total, wins = total[seen], wins[seen]
        curve = isotonic_regression(wins / total, weights=total).x
        return self.prob[seen], np.clip(curve, 0, 1), total / total.sum()

    def parts(
        self,
        weight: np.ndarray,
        choice: np.ndarray | None = None,
        fit: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Returns the Brier score, miscalibration, discrimination and uncertainty."""
        choice = self.data.choice if choice is None else choice
        weight = weight / weight.sum()
        _, curve, share = self.fit(choice, weight) if fit is None else fit
        base = np.clip(weight @ choice, 0, 1)
        score = weight @ brier(self.data.prob, choice)
        # E[(y − c)²] = E[y] − 2 E[c y] + E[c²], and an isotonic fit has E[c y] = E[c²].
        recalibrated = base - share @ curve**2
        uncertainty = base * (1 - base)
        discrimination = uncertainty - recalibrated
        return np.array([score, score - recalibrated, discrimination, uncertainty])


def expected_calibration_error(
    prob: ArrayLike,
    choice: ArrayLike,
    user: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    average: str = "user",
    num_bins: int = 10,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> CalibrationError:
    r"""Estimates the expected calibration error over bins of equal weight, with an interval.

    :math:`\sum_b |A_b|` with :math:`A_b` the mean of :math:`w (y - p)` in bin b. The estimate is
    biased upwards, so the interval is not made of its quantiles. With the deviations
    :math:`\delta_b` of resampled from observed :math:`A_b`, it uses
    :math:`\hat E - E \le \sum_b |\delta_b|`, with :math:`\operatorname{sign}(A_b)\,\delta_b` in
    place of :math:`|\delta_b|` where the sign is beyond doubt (3 standard errors), and, by
    convexity, :math:`E - \hat E \le -\sum_b \operatorname{sign}(A_b)\,\delta_b`. The interval of
    calibrated forecasts begins at 0 with at least its nominal probability. Errors that cancel
    within a bin are not counted: the error of the bins is a lower bound of that of the
    probabilities.

    Args:
        prob: Probability that left is preferred, with shape (U, N) or (n,).
        choice: 1, ½ or 0, same shape.
        user: The person of every comparison of a list, with shape (n,).
        mask: True where a comparison is real.
        average: `"user"` gives every person the same weight, `"comparison"` every comparison.
        num_bins: Number of bins; equal probabilities share a bin, so there may be fewer.
        num_resamples: Number of resamples of people.
        level: Probability of the interval.
        seed: Seed of the resamples.

    Returns:
        The error with its interval, and the bins.

    Raises:
        ValueError: If shapes differ, a value is out of range, there are fewer than 10 people or
            fewer than 20 comparisons a bin.

    References:
        Naeini, Cooper & Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian
        binning, AAAI.
        Andrews & Soares (2010), Inference for parameters defined by moment inequalities using
        generalized moment selection, Econometrica 78(1).
    """
    check_level("level", level)
    check_number("num_bins", num_bins, 1)
    check_number("num_resamples", num_resamples, 100)
    data = check_comparisons(prob, choice, user, mask, average, _LEAST_USERS)
    least = _LEAST_IN_BIN * num_bins
    of_what = f" for num_bins={num_bins}"
    check_number("the number of comparisons", len(data.prob), least, of_what)
    bins = equal_bins(data, num_bins)
    count = int(bins.max()) + 1
    gap = data.weight * (data.choice - data.prob)
    cells = np.bincount(data.user * count + bins, gap, minlength=data.num_users * count)
    gaps = cells.reshape(-1, count)
    weights = np.bincount(data.user, data.weight, minlength=data.num_users)
    counts = resample_counts(data.num_users, num_resamples, seed)
    observed = gaps.sum(0)
    deviation = counts @ gaps / (counts @ weights)[:, None] - observed
    error = deviation.std(0, ddof=1)
    sure = np.abs(observed) > _SURE * error
    signed = np.sign(observed) * deviation
    tail = (1 - level) / 2
    above = np.quantile(np.where(sure, signed, np.abs(deviation)).sum(1), 1 - tail)
    below = np.quantile(-signed.sum(1), 1 - tail)
    value = float(np.abs(observed).sum())
    weight = np.bincount(bins, data.weight)
    columns = {
        "prob": np.bincount(bins, data.weight * data.prob) / weight,
        "choice": np.bincount(bins, data.weight * data.choice) / weight,
        "weight": weight,
        "gap": observed / weight,
        "standard_error": error / weight,
    }
    return CalibrationError(
        value,
        float(max(value - above, 0)),
        float(min(value + max(below, 0), 1)),
        float(np.abs(deviation).sum(1).mean()),
        level,
        pd.DataFrame(columns).rename_axis("bin"),
    )


def equal_bins(data: Comparisons, num_bins: int) -> np.ndarray:
    """Numbers the bin of each comparison, bins having about equal weight."""
    _, point = np.unique(data.prob, return_inverse=True)
    total = np.bincount(point, data.weight)
    middle = total.cumsum() - total / 2
    bins = np.minimum((middle * num_bins).astype(int), num_bins - 1)
    return np.unique(bins, return_inverse=True)[1][point]
