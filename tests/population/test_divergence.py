"""Fits with lapses whose likelihood rises for ever, although no choices are separated."""

from __future__ import annotations

import numpy as np
import pytest

from fssa_bayes import Preferences
from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.population import find_separation


def three_of_four() -> Preferences:
    """Of each pair the item that is first in the alphabet wins 60 of 80 comparisons."""
    rows = [
        (i, j, k % 4 != 0)
        for i, j in ((0, 1), (2, 3), (0, 2), (1, 2), (0, 3), (1, 3))
        for k in range(80)
    ]
    left, right, choice = np.array(rows).T
    return Preferences(
        left, right, choice, np.arange(0, 481, 24), num_items=4, item_names=list("abcd")
    )


def test_answers_against_any_margin_are_lapses() -> None:
    """Every pair is won in 3 of 4: certain choices with a lapse rate of ½ are the best account."""
    data = three_of_four()
    with pytest.warns(UserWarning, match="no maximum here.*'a'.* at infinity"):
        fitted = HomogeneousBTL(lapses=True).fit(data, progress_bar=False)
    assert not find_separation(fitted.result.model, data)
    table = fitted.result.ranking()
    assert table.loc["a", ["utility", "upper"]].tolist() == [np.inf, np.inf]
    assert table.loc["d", ["utility", "lower"]].tolist() == [-np.inf, -np.inf]
    assert table["standard_error"].isna().all()
    assert table["rank"].to_dict() == {"a": 1, "b": 2, "c": 3, "d": 4}
    contrast = fitted.contrast([("a", "b"), ("d", "c")])
    assert contrast["estimate"].tolist() == [np.inf, -np.inf]
    # Uniform answers err in half: a share of ¼ wrong of 480 is a lapse rate of ½.
    with (
        pytest.warns(UserWarning, match="known of .*lapse rate varies too little between people"),
        pytest.warns(UserWarning, match="se_outer_product of .*lapse rate is NaN"),
    ):
        rate = fitted.coefficients().loc["lapse rate"]  # Everybody errs in 6 of 24.
    assert rate["estimate"] == pytest.approx(0.5, abs=1e-6)
    # The share s wrong is half the rate, with the binomial variance s (1 − s) / 480.
    assert rate["se_hessian"] == pytest.approx(2 * np.sqrt(0.25 * 0.75 / 480), rel=1e-4)


def test_a_penalty_keeps_them_finite() -> None:
    fitted = HomogeneousBTL(lapses=True, penalty=0.5).fit(three_of_four(), progress_bar=False)
    assert np.isfinite(fitted.result.ranking()[["utility", "standard_error"]]).all(axis=None)


def test_choices_without_lapses_have_a_lapse_rate_of_zero() -> None:
    """The logit goes to minus infinity; everything else is as without lapses."""
    rng = np.random.default_rng(0)
    left, right = np.tile([0, 1, 0], 80), np.tile([1, 2, 2], 80)
    # The third margin exceeds the sum of the others: lapses would shrink large margins.
    choice = np.concatenate([rng.permutation(80) < 80 * p for p in (0.7, 0.7, 0.95)])
    choice = choice.reshape(3, 80).T.ravel()
    data = Preferences(left, right, choice, np.arange(0, 241, 12), num_items=3)
    plain = HomogeneousBTL().fit(data, progress_bar=False).coefficients()
    table = HomogeneousBTL(lapses=True).fit(data, progress_bar=False).coefficients()
    assert table.loc["lapse logit", "estimate"] == -np.inf
    assert table.loc["lapse rate", "estimate"] == pytest.approx(0, abs=1e-6)
    assert table.loc[["lapse logit", "lapse rate"], "se_hessian"].isna().all()
    np.testing.assert_allclose(table.loc[plain.index], plain, rtol=1e-3, atol=1e-5)
