"""The homogeneous model: standard errors by hand, by refits and where the model is true."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from class_people import CLASSES, OF_TINY_DATA, people, simulate
from scipy import optimize, special

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences, load, save
from fssa_bayes.baselines import (
    HomogeneousBTL,
)


def test_classical_and_sandwich_errors_by_hand() -> None:
    """Two items: the coefficient is logit(share), with the errors of a share of clusters."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 7, size=60)
    total = counts.sum()
    habit = np.repeat(rng.random(60), counts)  # People repeat themselves.
    choice = rng.random(total) < habit
    items = np.array([[0.0], [1.0]])
    offsets = np.concatenate([[0], counts.cumsum()])
    ones, zeros = np.ones(total, dtype=int), np.zeros(total, dtype=int)
    data = Preferences(ones, zeros, choice, offsets, items=items)
    table = HomogeneousBTL().fit(data, progress_bar=False).coefficients()
    share = choice.mean()
    information = total * share * (1 - share)
    score = np.add.reduceat(choice - share, offsets[:-1])
    leverage = counts / total  # A person's share of the information, for which CR2 corrects.
    row = table.iloc[0]
    assert row["estimate"] == pytest.approx(special.logit(share), rel=1e-5)
    assert row["se_hessian"] == pytest.approx(information**-0.5, rel=1e-5)
    meat = (score**2 / (1 - leverage)).sum()
    assert row["se_sandwich"] == pytest.approx(meat**0.5 / information, rel=1e-5)
    assert row["se_sandwich"] > 1.15 * row["se_hessian"]


def test_a_penalty_is_the_prior_of_pseudo_comparisons() -> None:
    """Half a win and half a loss against an item of utility 0, by a direct maximum."""
    wins = np.array([(0, 1)] * 6 + [(1, 2)] * 4 + [(2, 1)] * 2 + [(0, 2)] * 3)
    data = Preferences(*wins.T, np.ones(15), np.arange(16), num_items=3, item_names=list("abc"))

    def loss(utility: np.ndarray) -> float:
        margin = utility[wins[:, 0]] - utility[wins[:, 1]]
        pseudo = 0.5 * np.logaddexp(0, np.concatenate([utility, -utility]))
        return np.logaddexp(0, -margin).sum() + pseudo.sum()

    best = optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    result = HomogeneousBTL(penalty=0.5).fit(data, progress_bar=False).result
    np.testing.assert_allclose(result.model.utility.mean.detach(), best.x, atol=1e-5)
    # Errors by the curvature, central differences of second order.
    step, eye = 1e-3, np.eye(3)
    hessian = [
        [
            sum(
                i * j * loss(best.x + step * (i * eye[a] + j * eye[b]))
                for i in (1, -1)
                for j in (1, -1)
            )
            / (4 * step**2)
            for b in range(3)
        ]
        for a in range(3)
    ]
    contrast = eye - 1 / 3
    error = np.sqrt(np.diag(contrast @ np.linalg.inv(hessian) @ contrast.T))
    table = result.ranking().loc[list("abc")]
    np.testing.assert_allclose(table["standard_error"], error, rtol=1e-4)
    # People's scores on an item that never lost all but vanish, and are no error of it.
    assert np.isnan(result.ranking(kind="sandwich").loc["a", "standard_error"])


def test_a_penalty_keeps_coefficients_and_bias_finite() -> None:
    """log-F(2p, 2p) on one coefficient and on the bias, where the left always won."""
    items = np.array([[0.0], [2.0]])
    data = Preferences([1, 1, 0], [0, 0, 1], [1, 1, 0], np.arange(4), items=items)

    def loss(point: np.ndarray) -> float:
        margin = np.array([2 * point[0] + point[1]] * 2 + [2 * point[0] - point[1]])
        pseudo = 0.3 * np.logaddexp(0, np.concatenate([point, -point]))
        return np.logaddexp(0, -margin).sum() + pseudo.sum()

    best = optimize.minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    model = HomogeneousBTL(position_bias=True, penalty=0.3).fit(data, progress_bar=False).model
    found = [model.utility.mean.item(), model.bias.item()]  # The feature's deviation is 1.
    np.testing.assert_allclose(found, best.x, atol=1e-5)


def test_a_penalised_model_is_saved_with_its_penalty(tmp_path: Path) -> None:
    model = HeterogeneousBTL(2, 0, utility="linear", penalty=0.5)
    save(tmp_path / "model", model, None)
    assert load(tmp_path / "model")[0].penalty == 0.5
    assert "penalty" not in HeterogeneousBTL(2, 0, utility="linear").config


@pytest.mark.parametrize("penalty", [-1, np.inf, "much"])
def test_a_penalty_is_a_number(penalty: object) -> None:
    with pytest.raises(ValueError, match="penalty must be a number of at least 0"):
        HomogeneousBTL(penalty=penalty)


@pytest.mark.parametrize("options", [{"utility": "mlp"}, {"latent_dim": 1}])
def test_a_penalty_is_one_of_a_homogeneous_linear_model(options: dict) -> None:
    needs = r"penalty=0.5 needs utility='linear', latent_dim=0 and personal=\(\)"
    with pytest.raises(ValueError, match=needs):
        HeterogeneousBTL(2, **{"latent_dim": 0, "utility": "linear", "penalty": 0.5} | options)


@pytest.mark.slow
def test_sandwich_is_the_spread_of_refits_and_the_classical_error_is_not(
    two_classes: tuple[Preferences, np.ndarray],
) -> None:
    """People differ, which the homogeneous model does not know: resampling people tells."""
    data = two_classes[0].subset(range(200))
    table = HomogeneousBTL().fit(data, progress_bar=False).coefficients()
    rng = np.random.default_rng(0)
    refits = []
    for _ in range(120):
        sample = data.subset(rng.integers(200, size=200))
        refit = HomogeneousBTL().fit(sample, progress_bar=False)
        refits.append((refit.model.utility.mean / refit.model.feature_scale).detach().numpy())
    spread = np.std(refits, axis=0, ddof=1)
    # The relative standard error of a spread of 120 values is 6.5 %.
    np.testing.assert_allclose(table["se_sandwich"], spread, rtol=0.25)
    assert (spread > 1.4 * table["se_hessian"]).all()


def test_errors_agree_where_the_model_is_true() -> None:
    data, _ = simulate(CLASSES[:1], np.ones(1), 3000, 5, seed=4)
    table = HomogeneousBTL().fit(data, progress_bar=False).coefficients()
    np.testing.assert_allclose(table["se_sandwich"], table["se_hessian"], rtol=0.06)
    assert (np.abs(table["estimate"] - CLASSES[0]) < 3 * table["se_hessian"]).all()


@OF_TINY_DATA
def test_a_network_has_no_coefficients() -> None:
    baseline = HomogeneousBTL("mlp", 4).fit(people(), progress_bar=False)
    with pytest.raises(ValueError, match="utility='linear'"):
        baseline.coefficients()
    assert isinstance(baseline.predict(people()), Posterior)


def test_a_baseline_can_be_fitted_again() -> None:
    """A module of one's own is copied, so that a fit does not start from another's end."""
    first = HomogeneousBTL().fit(people(), progress_bar=False)
    before = copy.deepcopy(first.coefficients())
    first.fit(people().subset(range(7)), progress_bar=False)
    first.fit(people(), progress_bar=False)
    pd.testing.assert_frame_equal(first.coefficients(), before)
