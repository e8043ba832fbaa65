"""The homogeneous model: standard errors by hand, by refits and where the model is true."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
from class_people import CLASSES, OF_TINY_DATA, people, simulate
from scipy import special

from fssa_bayes import Posterior, Preferences
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
