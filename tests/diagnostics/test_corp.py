"""Reliability and calibration errors: by hand, and the direction of faults."""

from __future__ import annotations

import numpy as np
import pytest
from forecasts import alike, choices
from scipy.special import expit, logit

from fssa_bayes import diagnostics as dg


def test_corp_by_hand() -> None:
    # Pooling the violators .2 and .3 gives 0, ½, ½, 1; each forecast is given to three people.
    prob = np.array([0.1, 0.2, 0.3, 0.4]).repeat(3)
    choice = np.array([0.0, 1.0, 0.0, 1.0]).repeat(3)
    curve = dg.reliability(prob, choice, np.arange(12))
    assert curve.prob == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert curve.recalibrated == pytest.approx([0, 0.5, 0.5, 1])
    assert curve.weight == pytest.approx([0.25] * 4)
    parts = dg.brier_decomposition(prob, choice, np.arange(12))
    assert parts.brier.value == pytest.approx((0.01 + 0.64 + 0.09 + 0.36) / 4)
    assert parts.miscalibration.value == pytest.approx(0.275 - 0.125)
    assert parts.discrimination.value == pytest.approx(0.25 - 0.125)
    assert parts.uncertainty.value == pytest.approx(0.25)
    assert curve.miscalibration == pytest.approx(0.15)


def test_the_curve_is_the_isotonic_regression() -> None:
    # By its max-min formula, with ties of the forecasts, weights and half wins.
    rng = np.random.default_rng(5)
    prob = rng.integers(1, 20, size=(30, 3)) / 20
    choice = rng.integers(3, size=prob.shape) / 2
    mask = rng.random(prob.shape) < 0.8
    mask[:, 0] = True
    weight = np.where(mask, 1 / mask.sum(1, keepdims=True), 0)[mask]
    value = np.unique(prob[mask])
    total = np.array([weight[prob[mask] == v].sum() for v in value])
    wins = np.array([(weight * choice[mask])[prob[mask] == v].sum() for v in value])
    expected = [
        max(
            min(wins[a : b + 1].sum() / total[a : b + 1].sum() for b in range(i, len(value)))
            for a in range(i + 1)
        )
        for i in range(len(value))
    ]
    curve = dg.reliability(prob, choice, mask=mask)
    assert curve.prob == pytest.approx(value)
    assert curve.recalibrated == pytest.approx(expected)
    assert curve.weight == pytest.approx(total / total.sum())


@pytest.mark.parametrize("average", ["user", "comparison"])
def test_the_parts_sum_exactly(average: str) -> None:
    prob, choice = choices(50, 6, scale=0.7)
    mask = np.random.default_rng(6).random(prob.shape) < 0.7
    parts = dg.brier_decomposition(prob, choice, mask=mask, average=average)
    brier = dg.brier_score(prob, choice, mask=mask, average=average)
    assert parts.brier.value == pytest.approx(brier.value, abs=1e-14)
    assert parts.brier.standard_error == pytest.approx(brier.standard_error, rel=0.15)
    total = parts.miscalibration.value - parts.discrimination.value + parts.uncertainty.value
    assert total == pytest.approx(brier.value, abs=1e-14)
    assert parts.miscalibration.value >= 0
    assert parts.discrimination.value >= 0


def test_forecasts_without_information_discriminate_nothing() -> None:
    _, choice = choices(100)
    constant = dg.brier_decomposition(np.full(choice.shape, 0.3), choice)
    assert constant.discrimination.value == pytest.approx(0)
    assert constant.miscalibration.value == pytest.approx((choice.mean() - 0.3) ** 2)
    oracle = dg.brier_decomposition(choice, choice)
    assert oracle.miscalibration.value == pytest.approx(0)
    assert oracle.discrimination.value == pytest.approx(oracle.uncertainty.value)


def test_an_exact_forecaster_passes() -> None:
    prob, choice = choices()
    assert dg.expected_calibration_error(prob, choice).lower == 0
    gap = dg.confidence_gap(prob, choice)
    assert abs(gap.value) < 3 * gap.standard_error
    curve = dg.reliability(prob, choice)
    assert curve.p_value > 0.05
    at = np.interp(curve.grid, curve.prob, curve.recalibrated)
    inside = (at >= curve.consistency_lower) & (at <= curve.consistency_upper)
    assert inside.mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "low", "high"),
    [
        ({"scale": 0.7}, 1, -1),  # Too narrow: the curve is flatter than the diagonal.
        ({"scale": 1.4}, -1, 1),
        ({"shift": 0.3}, -1, -1),  # Too fond of left: below the diagonal throughout.
    ],
)
def test_faults_have_their_direction(fault: dict, low: int, high: int) -> None:
    prob, choice = choices(2000, **fault)
    exact, _ = choices(2000)
    assert dg.log_score(prob, choice).value < dg.log_score(exact, choice).value
    assert dg.brier_score(prob, choice).value > dg.brier_score(exact, choice).value
    error = dg.expected_calibration_error(prob, choice)
    assert error.lower > error.if_calibrated > 0
    gap = error.bins["gap"].to_numpy()
    assert (np.sign(gap[1:4]) == low).all()
    assert (np.sign(gap[6:9]) == high).all()
    curve = dg.reliability(prob, choice, num_resamples=200)
    assert curve.p_value < 0.01
    for point, sign in ((0.2, low), (0.8, high)):
        at = np.interp(point, curve.prob, curve.recalibrated)
        assert np.sign(at - point) == sign
        ends = (curve.consistency_lower, curve.consistency_upper)
        assert sign * (at - np.interp(point, curve.grid, ends[sign > 0])) > 0
    truth = expit((logit(curve.grid) - fault.get("shift", 0)) * fault.get("scale", 1))
    inside = (truth > curve.confidence_lower) & (truth < curve.confidence_upper)
    assert inside.mean() > 0.75
    confidence = dg.confidence_gap(prob, choice)
    if "scale" in fault:
        assert np.sign(confidence.value) == low
        assert abs(confidence.value) > 4 * confidence.standard_error
    parts, right = (
        dg.brier_decomposition(forecast, choice, num_resamples=100) for forecast in (prob, exact)
    )
    assert parts.miscalibration.value > 3 * right.miscalibration.value
    # Recalibration undoes a monotone fault, so the refinement is the same.
    assert parts.discrimination.value == pytest.approx(right.discrimination.value, abs=1e-12)


@pytest.mark.parametrize("truth", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("dependent", [False, True])
def test_the_interval_of_the_calibration_error_covers_it(truth: float, dependent: bool) -> None:
    # Choices are won with the forecast probability pulled to ½ by `truth` in every bin, by each
    # comparison on its own or by all of a person's at once.
    rng = np.random.default_rng(7)
    repetitions, covered, above = 100, 0, 0
    for repetition in range(repetitions):
        prob = rng.choice([0.2, 0.3, 0.7, 0.8], size=(200, 1 if dependent else 4))
        won = rng.random(prob.shape) < prob - np.sign(prob - 0.5) * truth
        prob, won = np.broadcast_to(prob, (200, 4)), np.broadcast_to(won, (200, 4))
        error = dg.expected_calibration_error(
            prob, won.astype(float), num_bins=4, num_resamples=200, seed=repetition
        )
        assert error.lower <= error.value <= error.upper
        covered += error.lower <= truth <= error.upper
        above += error.lower > truth
    # 95 % are to be covered, 2.5 % above; 100 repetitions miss 13, or 7, with a probability of
    # .001, .002.
    assert covered > 87
    assert above < 8


def test_bins_have_equal_weight_and_sum_to_the_error() -> None:
    prob, choice = choices(300, 6, scale=0.7)
    error = dg.expected_calibration_error(prob, choice, num_bins=12)
    bins = error.bins
    assert len(bins) == 12
    assert bins["weight"].sum() == pytest.approx(1)
    assert bins["weight"].to_numpy() == pytest.approx(1 / 12, abs=2e-3)
    assert bins["prob"].is_monotonic_increasing
    np.testing.assert_allclose(bins["gap"], bins["choice"] - bins["prob"])
    assert error.value == pytest.approx((bins["weight"] * bins["gap"].abs()).sum())
    # Equal forecasts share a bin.
    rounded = dg.expected_calibration_error(np.round(prob), choice, num_bins=12)
    assert len(rounded.bins) == 2


def test_if_calibrated_is_what_chance_gives() -> None:
    values, chance = [], []
    for seed in range(40):
        error = dg.expected_calibration_error(*choices(150, 4, seed=seed), num_resamples=100)
        values.append(error.value)
        chance.append(error.if_calibrated)
    assert np.mean(chance) == pytest.approx(np.mean(values), rel=0.12)


@pytest.mark.slow
def test_dependent_choices_need_to_be_simulated_together() -> None:
    rng = np.random.default_rng(8)
    together, apart = [], []
    for repetition in range(50):
        prob, choice = alike(40, 8, rng)

        def simulate(seed: int, prob: np.ndarray = prob) -> np.ndarray:
            draw = np.random.default_rng(seed).random((len(prob), 1))
            return (draw < prob).astype(float)

        arguments = {"num_resamples": 100, "seed": repetition}
        together.append(dg.reliability(prob, choice, simulate=simulate, **arguments).p_value)
        apart.append(dg.reliability(prob, choice, **arguments).p_value)
    # At most one in ten below .1, up to chance: 12 of 50 have a probability of .002.
    assert (np.array(together) <= 0.1).sum() < 12
    assert (np.array(apart) <= 0.1).sum() > 25
