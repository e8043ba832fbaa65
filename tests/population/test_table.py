"""Tables of the population: estimates, three standard errors, and what is not identified."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize
from two_feature_people import simulate, with_features

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.population import population_estimates, population_table


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
    with pytest.warns(UserWarning, match="do not tell 3 of 4 .*'size', 'double' are") as said:
        table = result.population()
    assert len(said) == 1
    assert "NaN: 'one' is the same for the two items of every comparison;" in str(said[0].message)
    assert table.loc["mean"].isna().all(axis=1).tolist() == [True, False, True, True]
    error = table["se_hessian"]["mean"]
    assert error.isna().to_dict() == {"size": True, "price": False, "one": True, "double": True}
    alone = fit(HeterogeneousBTL(2, 0, utility="linear"), None, data, progress_bar=False)
    assert error["price"] == pytest.approx(alone.population()["se_hessian"]["mean", "price"], 1e-3)


@pytest.mark.parametrize(
    ("people", "said"), [(2, "is NaN: 2 people"), (3, "is rough .*: 3 people")]
)
def test_outer_products_of_few_people_are_missing_or_doubted(people: int, said: str) -> None:
    """Scores of U people sum to zero: for U parameters their covariance is singular."""
    data = simulate(people=people, comparisons=40)
    model = HeterogeneousBTL(2, 0, utility="linear")
    result = fit(model, None, data, validation=None, progress_bar=False)
    with pytest.warns(UserWarning, match=f"{said} with comparisons for 2 parameters"):
        table = result.population()
    assert table["se_outer_product"].isna().all() == (people == 2)
    assert table[["se_hessian", "se_sandwich"]].notna().all(axis=None)


def test_integer_items_stay_integers() -> None:
    """And columns relative to an item are those of the differences."""
    data = Preferences([0, 1, 2, 0, 1, 2, 0], [1, 2, 0, 2, 0, 1, 1], [1, 1, 0, 0, 1, 1, 0],
                       [0, 2, 5, 7], num_items=3)  # fmt: skip
    baseline = HomogeneousBTL().fit(data, progress_bar=False)
    with pytest.warns(UserWarning, match="se_outer_product"):
        table = baseline.coefficients(reference=2, level=0.5, p_values=True, kind="hessian")
    assert table.index.tolist() == [0, 1, 2]
    contrast = baseline.contrast([(0, 2), (1, 2)], kind="hessian", level=0.5)
    shown = table.loc[[0, 1], ["estimate", "se_hessian", "lower", "upper", "p_value"]]
    columns = ["estimate", "standard_error", "lower", "upper", "p_value"]
    np.testing.assert_allclose(shown, contrast[columns], rtol=1e-6)
    assert table.loc[2, ["estimate", "se_hessian", "se_sandwich"]].tolist() == [0, 0, 0]


def test_a_reference_of_people_who_differ() -> None:
    """Standard deviations of differences; the reference has none, nor correlations."""
    data = Preferences([0, 1, 2, 0] * 30, [1, 2, 0, 2] * 30, [1, 0, 1, 1] * 30,
                       np.arange(0, 121, 4), num_items=3)  # fmt: skip
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 1, "linear")
    loading = torch.tensor([[1.0], [0.5], [-0.7]])
    with torch.no_grad():
        model.utility.loading.copy_(loading)
    data, _ = model.simulate(data)
    table = population_table(model, data, reference=1, num_samples=300)
    assert table.loc["sd", "estimate"].tolist() == pytest.approx([0.5, 0.0, 1.2], abs=1e-6)
    assert table.loc["correlation", "estimate"].isna().tolist() == [True, False, True]
    assert table.loc[("mean", 1)].tolist() == [0, 0, 0, 0]
    assert table.loc["sd"].drop(1).notna().all(axis=None)
    names = population_estimates(model, data, reference=1, num_samples=300).names
    assert names.get_level_values("term").tolist() == [0, 1, 2, 0, 1, 2]
    row = table.loc["correlation"].iloc[1]  # Of rank one: −1, of which nothing is uncertain.
    assert row["estimate"] == pytest.approx(-1)
    assert row.drop("estimate").isna().all()
    with pytest.raises(ValueError, match="reference must be known names, got 9"):
        population_table(model, data, reference=9)


def test_coefficients_of_features_have_no_reference() -> None:
    data = simulate(people=5)
    model = HeterogeneousBTL(2, 0, "linear")
    with pytest.raises(ValueError, match="reference must be None where items have .*of='items'"):
        population_table(model, data, reference=3)
    with pytest.raises(ValueError, match="weights must name .*, got 7; of='items' compares items"):
        population_estimates(model, data).contrast((7, 3))


@pytest.mark.filterwarnings("ignore:standard errors of the population differ:UserWarning")
@pytest.mark.filterwarnings("ignore:maximum likelihood did not converge in")
def test_people_who_differ_have_no_spread_of_a_constant_feature() -> None:
    """Nor a correlation with it; what is known of the others stays."""
    data = simulate(people=60)
    items = torch.cat([data.items, torch.ones(40, 1)], -1)
    wide = with_features(data, items, ["size", "price", "one"])
    model = HeterogeneousBTL.for_data(wide, 2, utility="linear")
    with pytest.warns(UserWarning, match="'one' is the same for all items"):
        fit(model, None, wide, steps=3, progress_bar=False)
    with pytest.warns(UserWarning, match="do not tell 1 of 3 coefficients.*'one' is the same"):
        table = population_table(model, wide, num_samples=50)
    unknown = [("mean", "one"), ("sd", "one"), ("correlation", "one, size"),
               ("correlation", "one, price"), ("share positive", "one")]  # fmt: skip
    assert set(table.index[table["estimate"].isna()]) == set(unknown)


def test_a_standard_deviation_of_zero_has_no_sandwich_error() -> None:
    """Everybody's score of it is 0 there, so that the sandwich would be, too."""
    data = simulate(people=60, comparisons=8)
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, utility="linear", correlation="none")
    model.take_units(data)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([1.0, -1.5]))
        model.utility.loading.copy_(torch.diag(torch.tensor([1e-4, 1.5])))
    data, _ = model.simulate(data, seed=5)
    with pytest.warns(UserWarning, match="se_outer_product of sd of size are NaN.*boundary"):
        table = population_table(model, data, level=0.9)
    of_size = table.loc[("sd", "size")]
    assert of_size[["se_outer_product", "se_sandwich", "lower", "upper"]].isna().all()
    assert of_size["se_hessian"] > 100 * of_size["estimate"]
    assert table.loc[("sd", "price"), ["se_sandwich", "lower", "upper"]].notna().all()
    share = table.loc[("share positive", "size")]
    assert share["estimate"] == 1.0
    assert share.drop("estimate").isna().all()
