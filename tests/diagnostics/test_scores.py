"""Scores of choice probabilities: hand examples, clustered errors, and the direction of faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from fssa_bayes import diagnostics as dg


def choices(
    users: int = 500, number: int = 8, *, scale: float = 1.0, shift: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts (U, N) whose log-odds are `shift` off and 1 / `scale` times as large, and choices.

    A posterior too narrow (scale < 1) gives log-odds too large.
    """
    rng = np.random.default_rng(seed)
    prob = expit(2 * rng.normal(size=(users, number)))
    choice = (rng.random(prob.shape) < prob).astype(float)
    return expit(logit(prob) / scale + shift), choice


def alike(users: int, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated forecasts of people all of whose choices fall on the same side."""
    prob = rng.choice([0.2, 0.5, 0.8], size=(users, 1)).repeat(number, 1)
    return prob, (rng.random((users, 1)) < prob).astype(float)  # One draw for the whole row.


# ---------------------------------------------------------------------- scores


def test_scores_by_hand() -> None:
    # The first person's two comparisons count half each; the second's table is padded.
    prob = np.array([[0.8, 0.5], [0.3, np.nan]])
    choice = np.array([[1.0, 0.5], [0.0, 0.0]])
    log_score = dg.log_score(prob, choice)
    first = (math.log(0.8) + math.log(0.5)) / 2
    assert log_score.value == pytest.approx((first + math.log(0.7)) / 2)
    assert log_score.standard_error == pytest.approx(abs(first - math.log(0.7)) / 2)
    # Half a win each is the mean of a win's and a loss's score, ¼ at a probability of ½.
    assert dg.brier_score(prob, choice).value == pytest.approx(((0.04 + 0.25) / 2 + 0.09) / 2)
    pooled = dg.brier_score(prob, choice, average="comparison")
    assert pooled.value == pytest.approx((0.04 + 0.25 + 0.09) / 3)
    # Confidence .8 and .5 where one and a half were right, .7 where all were.
    assert dg.confidence_gap(prob, choice).value == pytest.approx((-0.2 / 2 - 0.3) / 2)
    assert str(dg.brier_score(prob, choice)) == "0.1175 ± 0.0275 (2 people)"


@pytest.mark.parametrize("average", ["user", "comparison"])
def test_tables_lists_and_masks_give_the_same(average: str) -> None:
    prob, choice = choices(40, 5)
    mask = np.random.default_rng(1).random(prob.shape) < 0.6
    user = np.arange(40)[:, None].repeat(5, 1)
    for function in (dg.log_score, dg.brier_score, dg.confidence_gap):
        table = function(np.where(mask, prob, np.nan), choice, average=average)
        flat = function(prob[mask], choice[mask], user[mask], average=average)
        soiled = function(
            torch.from_numpy(np.where(mask, prob, 7.0)),
            torch.from_numpy(np.where(mask, choice, np.nan)),
            mask=torch.from_numpy(mask),
            average=average,
        )
        expected = pytest.approx((flat.value, flat.standard_error))
        assert (table.value, table.standard_error) == expected
        assert (soiled.value, soiled.standard_error) == expected


def test_half_a_win_counts_as_two_comparisons_of_half_the_weight() -> None:
    prob, choice = choices(100, 4)
    half = np.random.default_rng(2).random(choice.shape) < 0.3
    doubled = np.concatenate([np.where(half, w, choice) for w in (0.0, 1.0)], 1)
    for function in (dg.log_score, dg.brier_score, dg.confidence_gap):
        one = function(prob, np.where(half, 0.5, choice))
        two = function(np.tile(prob, 2), doubled)
        assert (one.value, one.standard_error) == pytest.approx((two.value, two.standard_error))
    one = dg.brier_decomposition(prob, np.where(half, 0.5, choice))
    two = dg.brier_decomposition(np.tile(prob, 2), doubled)
    for part in ("brier", "miscalibration", "discrimination", "uncertainty"):
        assert getattr(one, part).value == pytest.approx(getattr(two, part).value)


@pytest.mark.parametrize("average", ["user", "comparison"])
def test_standard_errors_are_those_of_people_and_not_of_comparisons(average: str) -> None:
    rng = np.random.default_rng(3)
    values, errors = [], []
    for _ in range(300):
        prob, choice = alike(60, 6, rng)
        mask = rng.random(prob.shape) < 0.7
        mask[:, 0] = True
        score = dg.brier_score(prob, choice, mask=mask, average=average)
        values.append(score.value)
        errors.append(score.standard_error)
    # 300 repetitions know a standard deviation to within 4 %; comparisons pooled would be half.
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)


def test_a_certainty_that_failed_costs_everything() -> None:
    score = dg.log_score([1.0, 0.5], [0.0, 1.0], [0, 1])
    assert score.value == -math.inf
    assert math.isnan(score.standard_error)
    assert dg.log_score([1.0, 0.0], [1.0, 0.0], [0, 1]).value == 0


def test_errors_of_crossed_people_and_prompts_are_those_of_repeated_studies() -> None:
    """Values with effects of 12 people and 15 prompts, all crossed: the error that is seen."""
    rng = np.random.default_rng(0)
    prompt = np.broadcast_to(np.arange(15), (12, 15))
    means, errors, by_user = [], [], []
    for _ in range(800):
        values = rng.normal(size=(12, 1)) + rng.normal(size=15) + rng.normal(size=(12, 15))
        score = dg.clustered_mean(values, second=prompt)
        means.append(score.value)
        errors.append(score.standard_error)
        by_user.append(dg.clustered_mean(values).standard_error)
    truth = (1 / 12 + 1 / 15 + 1 / 180) ** 0.5
    assert np.std(means) == pytest.approx(truth, rel=0.08)
    assert np.mean(np.square(errors)) == pytest.approx(truth**2, rel=0.08)
    assert np.mean(np.square(by_user)) < 0.7 * truth**2


def test_a_second_unit_of_its_own_in_every_comparison_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(40, 1)) + rng.normal(size=(40, 5))
    alone = dg.clustered_mean(values)
    both = dg.clustered_mean(values, second=np.arange(200).reshape(40, 5))
    assert both.value == alone.value
    assert both.standard_error == pytest.approx(alone.standard_error)
    same = dg.clustered_mean(values, second=np.repeat(np.arange(40), 5).reshape(40, 5))
    assert same.standard_error == pytest.approx(alone.standard_error)
    with pytest.raises(ValueError, match="second must hold at least 2 different units"):
        dg.clustered_mean(values, second=np.zeros((40, 5)))


def test_clustered_mean_compares_two_forecasters() -> None:
    prob, choice = choices(1000)
    narrow, _ = choices(1000, scale=0.7)
    log_prob = [np.log(np.where(choice == 1, p, 1 - p)) for p in (prob, narrow)]
    gain = dg.clustered_mean(log_prob[0] - log_prob[1])
    assert gain.value == pytest.approx(
        dg.log_score(prob, choice).value - dg.log_score(narrow, choice).value
    )
    assert gain.value > 4 * gain.standard_error


# ---------------------------------------------------------------------- bootstrap


def test_bootstrap_of_a_mean_has_its_closed_form() -> None:
    rng = np.random.default_rng(4)
    user = np.arange(200).repeat(3)
    value = rng.normal(size=200).repeat(3)
    result = dg.block_bootstrap(
        lambda count: [count @ value / count.sum(), 2.0], user, 2000, level=0.9
    )
    error = value[::3].std() / math.sqrt(200)
    assert result.value == pytest.approx([value.mean(), 2.0])
    assert result.standard_error == pytest.approx([error, 0.0], rel=0.06)
    assert result.upper[0] - result.lower[0] == pytest.approx(2 * 1.645 * error, rel=0.08)
    assert result.resamples.shape == (2000, 2)


def test_bootstrap_resamples_whole_people_by_its_seed_alone() -> None:
    user = np.repeat([f"user {i}" for i in range(12)], np.arange(1, 13))
    seen = []

    def statistic(count: np.ndarray) -> float:
        seen.append(count)
        return 0.0

    state = np.random.get_state()[1].copy()
    for seed in (0, 0, 1):
        dg.block_bootstrap(statistic, user, 100, seed=seed)
    assert (np.random.get_state()[1] == state).all()
    first, again, other = np.array(seen).reshape(3, 101, -1)
    assert (first == again).all()
    assert not (first == other).all()
    for name in np.unique(user):
        assert (np.ptp(first[:, user == name], axis=1) == 0).all()
    starts = np.r_[0, np.cumsum(np.arange(1, 12))]
    assert (first[1:, starts].sum(1) == 12).all()


# ---------------------------------------------------------------------- CORP


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


# ---------------------------------------------------------------------- direction of faults


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


# ---------------------------------------------------------------------- calibration error


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


# ---------------------------------------------------------------------- consistency of dependents


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


# ---------------------------------------------------------------------- bad input

PROB, CHOICE = np.full((20, 20), 0.5), np.ones((20, 20))
BAD = [
    (dg.log_score, (PROB + 1, CHOICE), "prob must lie between 0 and 1, got 1.5 at 0"),
    (dg.log_score, (PROB, CHOICE * 2), "choice must be 0, 0.5 or 1, got 2.0 at 0"),
    (dg.log_score, (PROB, CHOICE[:3]), r"choice must have prob's shape \(20, 20\), got \(3, 20\)"),
    (dg.log_score, (PROB[0], CHOICE[0]), "user must name the person of every comparison"),
    (dg.log_score, (PROB, CHOICE, PROB), "user must be None for a table"),
    (dg.log_score, (PROB[0], CHOICE[0], [1, 2]), r"user must have prob's shape \(20,\)"),
    (dg.log_score, (PROB[:1], CHOICE[:1]), "users must be at least 2, got 1"),
    (dg.log_score, (PROB * np.nan, CHOICE), "prob must hold at least one comparison"),
    (dg.log_score, (PROB[None], CHOICE[None]), r"prob must have shape \(U, N\) or \(n,\)"),
    (dg.log_score, ([np.nan, 0.1], [1, 1], [0, 1]), "prob must lie between 0 and 1, got nan at 0"),
    (dg.log_score, (PROB, CHOICE * np.nan), "choice must be 0, 0.5 or 1, got nan at 0"),
    (dg.clustered_mean, ([np.nan, 0.1], [0, 1]), "values must not be NaN, got nan at 0"),
    (dg.brier_decomposition, (PROB[:9], CHOICE[:9]), "users must be at least 10, got 9"),
    (dg.reliability, (PROB[:9], CHOICE[:9]), "users must be at least 10, got 9"),
    (dg.expected_calibration_error, (PROB[:9], CHOICE[:9]), "users must be at least 10, got 9"),
    (
        dg.expected_calibration_error,
        (PROB[:, :9], CHOICE[:, :9]),
        "number of comparisons must be at least 200 for num_bins=10, got 180",
    ),
    (dg.block_bootstrap, (np.mean, np.arange(9)), "number of blocks must be at least 10, got 9"),
    (
        dg.block_bootstrap,
        (np.mean, np.arange(20), 99),
        "num_resamples must be at least 100, got 99",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "message"), BAD)
def test_bad_input_is_named(function, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="average must be 'user' or 'comparison', got 'pair'"):
        dg.log_score(PROB, CHOICE, average="pair")
    with pytest.raises(ValueError, match="mask must be Boolean with prob's shape"):
        dg.log_score(PROB, CHOICE, mask=CHOICE)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        dg.reliability(PROB, CHOICE, level=95)
    with pytest.raises(ValueError, match=r"simulate must return shape \(20, 20\), got \(3,\)"):
        dg.reliability(PROB, CHOICE, simulate=lambda seed: np.ones(3))
    with pytest.raises(TypeError, match="prob must be an array of numbers, got 'high'"):
        dg.log_score("high", CHOICE)
