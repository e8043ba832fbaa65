"""Corrections for few people against the formulas in the space of the observations."""

from __future__ import annotations

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
    with pytest.warns(UserWarning, match="known of 5 - 0 rests on a single person's comparisons"):
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


def test_heterogeneous_models_take_people_for_degrees_of_freedom() -> None:
    """Intervals are those of t with G − 1 degrees, and p-values too."""
    data = simulate(people=30)
    table = FitResult(*known(data), data, pd.DataFrame()).population(300, level=0.9, p_values=True)
    assert (table["df"] == 29).all()
    width = (table["upper"] - table["estimate"]) / table["se_sandwich"]
    np.testing.assert_allclose(width, 1.6991270265334972)  # 95 % quantile of t(29).
    np.testing.assert_allclose(table["statistic"], table["estimate"] / table["se_sandwich"])
    np.testing.assert_allclose(table["p_value"], 2 * stats.t.sf(table["statistic"].abs(), 29))
