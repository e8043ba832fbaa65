"""Tables of the population: estimates, three standard errors, and what is not identified."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize
from two_feature_people import simulate, with_features

from fssa_bayes import HeterogeneousBTL, fit


def test_homogeneous_fit_is_maximum_likelihood_with_its_inverse_hessian() -> None:
    data = simulate()
    model = HeterogeneousBTL(2, 0, utility="linear")
    result = fit(model, None, data, progress_bar=False)
    difference = (data.items[data.left] - data.items[data.right]).double().numpy()

    def loss(beta: np.ndarray) -> float:
        margin = difference @ beta
        return np.logaddexp(0, np.where(data.choice == 1, -margin, margin)).sum()

    best = optimize.minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-6})
    table = result.population()
    np.testing.assert_allclose(table["estimate"], best.x, rtol=1e-3)
    prob = 1 / (1 + np.exp(-difference @ best.x))
    hessian = (difference * (prob * (1 - prob))[:, None]).T @ difference
    score = difference * (data.choice - prob)[:, None]
    cluster = score.reshape(len(data), -1, 2).sum(1)
    outer, inverse = cluster.T @ cluster, np.linalg.inv(hessian)
    for column, covariance in [
        ("se_hessian", inverse),
        ("se_outer_product", np.linalg.inv(outer)),
        ("se_sandwich", inverse @ outer @ inverse),
    ]:
        np.testing.assert_allclose(table[column], np.sqrt(np.diag(covariance)), rtol=1e-3)
    assert result.log_marginal_likelihood().value == pytest.approx(-best.fun, abs=1e-3)


def test_constant_and_collinear_features_have_no_standard_error() -> None:
    data = simulate(people=60)
    items = torch.cat([data.items, torch.ones(40, 1), 2 * data.items[:, :1]], -1)
    names = ["size", "price", "one", "double"]
    wide = with_features(data, items, names)
    with pytest.warns(UserWarning, match="'one' is the same for all items"):
        result = fit(HeterogeneousBTL(4, 0, utility="linear"), None, wide, progress_bar=False)
    with pytest.warns(UserWarning, match="not positive in 2 of 4 directions, as where features"):
        error = result.population()["se_hessian"]["mean"]
    assert error.isna().to_dict() == {"size": True, "price": False, "one": True, "double": True}
    alone = fit(HeterogeneousBTL(2, 0, utility="linear"), None, data, progress_bar=False)
    assert error["price"] == pytest.approx(alone.population()["se_hessian"]["mean", "price"], 1e-3)


@pytest.mark.parametrize(
    ("people", "said"), [(2, "are NaN: 2 people"), (3, "are rough .*: 3 people")]
)
def test_errors_clustered_by_few_people_are_missing_or_doubted(people: int, said: str) -> None:
    """Scores of U people sum to zero: for U parameters their covariance is singular."""
    data = simulate(people=people, comparisons=40)
    model = HeterogeneousBTL(2, 0, utility="linear")
    result = fit(model, None, data, validation=None, progress_bar=False)
    with pytest.warns(UserWarning, match=f"{said} with comparisons for 2 parameters"):
        table = result.population()
    assert table["se_hessian"].notna().all()
    for name in ("se_sandwich", "se_outer_product"):
        assert table[name].isna().all() == (people == 2)
