"""Scores of choice probabilities: by hand, clustered errors, resamples, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from forecasts import alike, choices

from fssa_bayes import diagnostics as dg


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
