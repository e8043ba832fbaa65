"""Estimates with their covariance: contrasts, their names, intervals and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from fssa_bayes.population import Estimates, Uncertainty

COVARIANCE = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, 0.5]]).double()
VALUES = torch.tensor([1.0, -0.5, 2.0]).double()


def estimates(people: int = 12, names: pd.Index | None = None) -> Estimates:
    """Three quantities of as many parameters, the sandwich twice the classical covariance."""
    information = torch.linalg.inv(COVARIANCE)
    known = Uncertainty(information, 2 * information, people, None, 0, "")
    index = pd.Index(["a", "b", "c"]) if names is None else names
    return Estimates(index, VALUES, torch.eye(3).double(), known)


def test_contrasts_by_hand() -> None:
    weights = np.array([[1.0, -1, 0], [-0.5, 0, 1], [0.5, 0.5, -1]])
    asked = [("a", "b"), {"a": -0.5, "c": 1}, {"a": 0.5, "b": 0.5, "c": -1}]
    table = estimates().contrast(asked, level=0.8)
    assert table.index.tolist() == ["a - b", "-0.5 a + c", "0.5 a + 0.5 b - c"]
    error = np.sqrt(np.diag(weights @ COVARIANCE.numpy() @ weights.T) * 2 * 12 / 11)
    value = weights @ VALUES.numpy()
    np.testing.assert_allclose(table["estimate"], value)
    np.testing.assert_allclose(table["standard_error"], error)
    assert (table["df"] == 11).all()
    np.testing.assert_allclose(table["upper"], value + stats.t.ppf(0.9, 11) * error)
    np.testing.assert_allclose(table["lower"], value - stats.t.ppf(0.9, 11) * error)
    np.testing.assert_allclose(table["p_value"], 2 * stats.t.cdf(-abs(value / error), 11))
    frame = pd.DataFrame(weights, columns=["a", "b", "c"], index=["one", "two", "three"])
    same = estimates().contrast(frame, level=0.8)
    assert same.index.tolist() == ["one", "two", "three"]
    np.testing.assert_allclose(same, table)
    classical = estimates().contrast(frame, kind="hessian")
    np.testing.assert_allclose(classical["standard_error"], error / np.sqrt(24 / 11))
    np.testing.assert_allclose(classical["upper"] - value, 1.6448536 * error / np.sqrt(24 / 11))


def test_covariances_are_named_and_those_of_contrasts() -> None:
    shown = estimates().vcov("hessian")
    assert shown.index.tolist() == shown.columns.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(shown, COVARIANCE)
    np.testing.assert_allclose(estimates().vcov(), 24 / 11 * COVARIANCE)
    np.testing.assert_allclose(estimates().vcov("outer_product"), COVARIANCE / 2)


def test_terms_of_a_population_name_its_means() -> None:
    names = pd.MultiIndex.from_tuples([("mean", 1), ("mean", 2), ("sd", 1)])
    table = estimates(names=names).contrast([(1, 2), {("sd", 1): 2.0, 2: 1}])
    assert table["estimate"].tolist() == [1.5, 3.5]
    assert table.index[1] == "2 ('sd', 1) + 2"


@pytest.mark.parametrize(
    ("people", "said"), [(3, "are NaN: 3 people"), (5, r"are rough .*: 5 people")]
)
def test_a_heterogeneous_model_of_few_people_has_the_classical_error(
    people: int, said: str
) -> None:
    few = estimates(people)
    with pytest.warns(UserWarning, match=f"se_sandwich and se_outer_product, .*{said}"):
        columns = few.three_errors()
    assert np.isnan(columns["se_sandwich"]).all() == (people == 3)
    row = few.contrast({"b": 1}).iloc[0]
    form, df = ("se_hessian", np.inf) if people == 3 else ("se_sandwich", 4)
    assert row["standard_error"] == columns[form][1]
    assert row["df"] == df


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        (("a", "z"), ValueError, "weights must name quantities such as 'a', 'b', 'c', got 'z'"),
        ({"a": np.inf}, ValueError, "weights must be finite, got inf for 'a'"),
        (("a", "a"), TypeError, r"pair of different names.* got \('a', 'a'\)"),
        ("a", TypeError, "pair of different names.* got 'a'"),
        ([], ValueError, "one combination at least, got none"),
    ],
)
def test_bad_weights_are_named(weights: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        estimates().contrast(weights)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 90"):
        estimates().contrast(("a", "b"), level=90)
    with pytest.raises(ValueError, match="kind must be one of .*, got 'HC3'"):
        estimates().vcov("HC3")
