"""Corrections for few people against the formulas in the space of the observations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from cluster_robust import bell_mccaffrey, satterthwaite
from scipy import stats
from two_feature_people import known, simulate

from fssa_bayes import FitResult, HeterogeneousBTL, Preferences, fit
from fssa_bayes.baselines import HomogeneousBTL

SIZES = {
    "balanced": [30, 30, 30],
    "unbalanced": [40, 9, 3, 14],
    "many": [3] * 40,
}


def votes(sizes: list[int], seed: int = 0, num_items: int = 5) -> Preferences:
    """People of different tastes compare random pairs."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    left = rng.integers(num_items, size=total)
    right = (left + rng.integers(1, num_items, size=total)) % num_items
    taste = rng.normal(size=(len(sizes), num_items))
    person = np.repeat(np.arange(len(sizes)), sizes)
    margin = 0.7 * (taste[person, left] - taste[person, right])
    choice = rng.random(total) < 1 / (1 + np.exp(-margin))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Preferences(left, right, choice, offsets, num_items=num_items)


def homogeneous(data: Preferences, **options: bool) -> FitResult:
    return fit(
        HeterogeneousBTL(data.num_features, 0, "linear", **options), None, data, progress_bar=False
    )


def observations(result: FitResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Design, variances and residuals of the comparisons, with a column for a position bias."""
    data, model = result.data, result.model
    eye = np.eye(data.num_items)
    design = eye[data.left] - eye[data.right]
    theta = model.utility.mean.detach().double().numpy()
    if model.bias is not None:
        design = np.column_stack([design, np.ones(len(design))])
        theta = np.append(theta, model.bias.item())
    prob = 1 / (1 + np.exp(-design @ theta))
    return design, prob * (1 - prob), data.choice - prob


@pytest.mark.parametrize("position_bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_scores_are_adjusted_as_residuals_are(sizes: str, position_bias: bool) -> None:
    data = votes(SIZES[sizes])
    result = homogeneous(data, position_bias=position_bias)
    design, weights, residuals = observations(result)
    covariance, adjusted = bell_mccaffrey(design, weights, residuals, data.offsets)
    contrasts = np.zeros((3, design.shape[1]))
    contrasts[0, :2] = 1, -1
    contrasts[1, :5] = np.eye(5)[2] - 0.2
    contrasts[2, -1 if position_bias else 3] = 1
    contrasts[2, 4 - position_bias] -= not position_bias
    pairs = [(0, 1), {2: 1}, {"position bias": 1} if position_bias else (3, 4)]
    table = result.contrast(pairs)
    expected = np.sqrt(np.einsum("qp,pr,qr->q", contrasts, covariance, contrasts))
    np.testing.assert_allclose(table["standard_error"], expected, rtol=1e-4)
    df = [satterthwaite(design, weights, adjusted, data.offsets, c) for c in contrasts]
    np.testing.assert_allclose(table["df"], df, rtol=1e-4)


def test_one_person_has_the_classical_error_and_is_named() -> None:
    data = votes([80])
    baseline = HomogeneousBTL().fit(data, progress_bar=False)
    with pytest.warns(UserWarning, match="all comparisons are of one person: .* classical"):
        table = baseline.result.ranking(p_values=True)
    design, weights, _ = observations(baseline.result)
    inverse = np.linalg.pinv(design.T @ (design * weights[:, None]))
    expected = np.sqrt(np.diag(inverse))[table.index]
    np.testing.assert_allclose(table["standard_error"], expected, rtol=1e-4)
    assert np.isinf(table["df"]).all()
    with (
        pytest.warns(UserWarning, match="1 people with comparisons for 4 parameters"),
        pytest.warns(UserWarning, match="all comparisons are of one person"),
    ):
        errors = baseline.coefficients()
    np.testing.assert_allclose(errors["se_sandwich"], errors["se_hessian"])


@pytest.mark.parametrize("others", [6, 130])
def test_an_item_of_one_person_has_the_classical_error(others: int) -> None:
    """Among few people and among many; without it, its error would be that of the others."""
    data = votes([10] * others)
    left, right = np.append(data.left, [5] * 12), np.append(data.right, [0, 1] * 6)
    choice = np.append(data.choice, [1, 0, 0, 1, 1, 1] * 2)
    offsets = np.append(data.offsets, len(left))
    data = Preferences(left, right, choice, offsets, num_items=6)
    result = homogeneous(data)
    with pytest.warns(UserWarning, match="known of 5 - 0 rests for the most part on a single"):
        robust = result.contrast([(5, 0), (1, 2)])
    classical = result.contrast([(5, 0), (1, 2)], kind="hessian")
    errors = robust["standard_error"].to_numpy(), classical["standard_error"].to_numpy()
    # The classical part alone is a bound from below, the item's own 12 comparisons.
    prob = 1 / (1 + np.exp(-result.contrast([(5, 0), (5, 1)], kind="hessian")["estimate"]))
    own = 1 / (6 * prob * (1 - prob)).sum()
    assert errors[0][0] > 0.99 * np.sqrt(own)
    assert errors[0][0] == pytest.approx(errors[1][0], rel=0.25)
    assert robust["df"].iloc[0] > 3 * min(others, 100) / 2


def test_many_people_are_not_corrected() -> None:
    """From 100 people an item on: the sandwich without a factor, and the normal distribution."""
    data = votes([8] * 150, num_items=3)
    result = homogeneous(data)
    design, weights, residuals = observations(result)
    score = np.add.reduceat(design * residuals[:, None], data.offsets[:-1])
    inverse = np.linalg.pinv(design.T @ (design * weights[:, None]))
    covariance = inverse @ (score.T @ score) @ inverse
    np.testing.assert_allclose(result.vcov(), covariance, rtol=1e-4, atol=1e-7)
    assert np.isinf(result.contrast((0, 1))["df"]).all()


def test_an_item_of_few_among_many_people_is_corrected() -> None:
    """Degrees of freedom of 40 people who know an item, in a crowd of 140."""
    everybody, few = votes([8] * 100, num_items=3), votes([6] * 40, num_items=4)
    data = Preferences(
        np.append(everybody.left, few.left),
        np.append(everybody.right, few.right),
        np.append(everybody.choice, few.choice),
        np.append(everybody.offsets, everybody.offsets[-1] + few.offsets[1:]),
        num_items=4,
    )
    result = homogeneous(data)
    design, weights, residuals = observations(result)
    covariance, adjusted = bell_mccaffrey(design, weights, residuals, data.offsets)
    contrasts = np.array([[-1.0, 0, 0, 1], [1, -1, 0, 0]])
    table = result.contrast([(3, 0), (0, 1)])
    expected = np.sqrt(np.einsum("qp,pr,qr->q", contrasts, covariance, contrasts))
    errors = table["standard_error"].to_numpy()
    assert errors[0] == pytest.approx(expected[0], rel=1e-3)
    assert errors[1] == pytest.approx(expected[1], rel=6e-3)  # Everybody knows both.
    df = satterthwaite(design, weights, adjusted, data.offsets, contrasts[0])
    assert table["df"].iloc[0] == pytest.approx(df, rel=0.05)
    assert 25 < df < 45


@pytest.mark.parametrize("people", [20, 1])
def test_choices_with_lapses_have_the_factor_of_people(people: int) -> None:
    """The likelihood is not concave, so that no leverage is defined; one person is classical."""
    rng = np.random.default_rng(2)
    left = rng.integers(4, size=1200)
    right = (left + rng.integers(1, 4, size=1200)) % 4
    prob = 0.1 + 0.8 / (1 + np.exp(left - right))
    choice = rng.random(1200) < prob
    offsets = np.linspace(0, 1200, people + 1).astype(int)
    data = Preferences(left, right, choice, offsets, num_items=4)
    result = homogeneous(data, lapses=True)
    theta = result.model.utility.mean.detach().double().numpy()
    lapse = 1 / (1 + np.exp(-result.model.lapse_logit.item()))
    plain = 1 / (1 + np.exp(theta[right] - theta[left]))
    prob = lapse / 2 + (1 - lapse) * plain
    # Derivatives of the log-probability, by hand; the information by central differences.
    slope = (data.choice - prob) / (prob * (1 - prob))
    by_margin = slope * (1 - lapse) * plain * (1 - plain)
    eye = np.eye(4)
    scores = (eye[left] - eye[right]) * by_margin[:, None]
    scores = np.column_stack([scores, slope * (0.5 - plain) * lapse * (1 - lapse)])
    outer = np.zeros((5, 5))
    for start, stop in pairwise(offsets):
        outer += np.outer(scores[start:stop].sum(0), scores[start:stop].sum(0))
    inverse = result.estimates().uncertainty.inverse.numpy()
    contrast = np.array([0, 0, -1, 1, 0])
    classical = contrast @ inverse @ contrast
    robust = contrast @ inverse @ outer @ inverse @ contrast * people / max(people - 1, 1)
    if people == 1:
        with pytest.warns(UserWarning, match="all comparisons are of one person"):
            table = result.contrast((3, 2))
    else:
        table = result.contrast((3, 2))
    variance = robust if people > 1 else classical
    assert table["standard_error"].item() == pytest.approx(np.sqrt(variance), rel=1e-5)
    assert table["df"].item() == (people - 1 if people > 1 else np.inf)


def test_people_whose_answers_cancel_have_classical_errors() -> None:
    """Left is always chosen, in both orders of each pair: no score differs from 0."""
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    left, right = np.array(pairs * 20).T
    data = Preferences(left, right, np.ones(120), np.arange(0, 121, 6), num_items=3)
    result = homogeneous(data)
    with pytest.warns(UserWarning, match="known of 0, 1, 2 varies too little between people"):
        table = result.ranking(p_values=True)
    # 40 comparisons of each pair with curvature ¼: information 10 (3 I − 1 1ᵀ).
    np.testing.assert_allclose(table["standard_error"], np.sqrt((1 - 1 / 3) / 30), rtol=1e-6)
    assert np.isinf(table["df"]).all()
    assert table["rank"].tolist() == [1, 1, 1]
    assert table["rank_lower"].tolist() == [1, 1, 1]
    assert table["rank_upper"].tolist() == [3, 3, 3]
    with pytest.warns(UserWarning, match="varies too little"):
        covariance = result.vcov()
    np.testing.assert_allclose(covariance, (np.eye(3) - 1 / 3) / 30, atol=1e-8)
    with (
        pytest.warns(UserWarning, match="varies too little"),
        pytest.warns(UserWarning, match="se_outer_product of 0, 1, 2 is NaN"),
    ):
        assert result.population()["se_outer_product"].isna().all()


def test_two_people_who_agree_have_classical_errors() -> None:
    one = votes([30], num_items=4)
    columns = (np.tile(column, 2) for column in (one.left, one.right, one.choice))
    result = homogeneous(Preferences(*columns, [0, 30, 60], num_items=4))
    with pytest.warns(UserWarning, match="known of .* varies too little between people"):
        table = result.ranking()
    expected = result.ranking(kind="hessian")
    pd.testing.assert_frame_equal(table, expected, check_exact=False, rtol=1e-6)


def test_scores_of_an_item_of_one_person_have_no_outer_product() -> None:
    """At the maximum the item's score is 0, so that its outer product says nothing of it."""
    data = votes([10] * 10, num_items=3)
    left = np.concatenate([[3, 3, 3], data.left])
    right = np.concatenate([[0, 1, 2], data.right])
    choice = np.concatenate([[1, 0, 1], data.choice])
    offsets = np.append(0, data.offsets[1:] + 3)
    result = homogeneous(Preferences(left, right, choice, offsets, num_items=4))
    with (
        pytest.warns(UserWarning, match="known of 3 rests for the most part .*through which"),
        pytest.warns(UserWarning, match="se_outer_product of 0, 1, 2, 3 is NaN"),
    ):
        table = result.population()
    assert table["se_outer_product"].isna().all()
    assert table[["se_hessian", "se_sandwich"]].notna().all(axis=None)
    with pytest.warns(UserWarning, match="known of 3 - 0 rests"):
        table = result.contrast([(3, 0), (0, 1)])
    assert table["df"].iloc[0] == np.inf
    assert 1 <= table["df"].iloc[1] <= 10


def test_heterogeneous_models_take_people_for_degrees_of_freedom() -> None:
    """Intervals are those of t with G − 1 degrees, and p-values too."""
    data = simulate(people=30)
    result = FitResult(*known(data), data, pd.DataFrame())
    table = result.population(2000, level=0.9, p_values=True)
    assert (table["df"] == 29).all()
    width = (table["upper"] - table["estimate"]) / table["se_sandwich"]
    np.testing.assert_allclose(width, 1.6991270265334972)  # 95 % quantile of t(29).
    np.testing.assert_allclose(table["statistic"], table["estimate"] / table["se_sandwich"])
    np.testing.assert_allclose(table["p_value"], 2 * stats.t.sf(table["statistic"].abs(), 29))
