"""Errors that two sets of draws agree on, and those that are not shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from two_feature_people import known, simulate

from fssa_bayes import HeterogeneousBTL
from fssa_bayes.inference import FitResult
from fssa_bayes.population import Estimates, Uncertainty
from fssa_bayes.population.parameters import estimate_parameters
from fssa_bayes.population.settled import Settled

EYE = torch.eye(3, dtype=torch.float64)


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def estimates(one: Tensor, two: Tensor) -> Estimates:
    """Three quantities, of whose information two sets of draws say different things."""
    sets = ((EYE, one), (EYE, two))
    mean = 0.5 * (one + two)
    uncertainty = Uncertainty(mean, EYE, 300, None, None, "", sets=sets)
    index = pd.MultiIndex.from_tuples([("mean", "a"), ("mean", "b"), ("sd", "b")])
    return Estimates(index, torch.ones(3).double(), EYE, uncertainty)


def test_errors_that_sets_of_draws_disagree_on_are_nan_by_name() -> None:
    """Information of 4 and 5.3 differs by 14 % as an error, 15 % of 28 % as a sandwich."""
    found = estimates(diagonal(4.0, 4.0, 9.0), diagonal(4.1, 5.3, 9.2))
    expected = np.array([4.05, 4.65, 9.1]) ** -0.5
    np.testing.assert_allclose(found.standard_errors("hessian"), expected)
    with pytest.warns(UserWarning, match="^se_sandwich of b: NaN, as two sets .* more than 15 %"):
        error = found.standard_errors("sandwich")
    np.testing.assert_allclose(error, [1 / 4.05, np.nan, 1 / 9.1])
    with pytest.warns(UserWarning, match="^se_sandwich of b: NaN"):
        covariance = found.vcov("sandwich").to_numpy()
    assert np.isnan(covariance[1]).all()
    assert np.isfinite(covariance[np.ix_([0, 2], [0, 2])]).all()
    with pytest.warns(UserWarning, match="^se_sandwich of b: NaN"):
        columns = found.three_errors()
    assert np.isnan(columns["se_sandwich"]).tolist() == [False, True, False]
    assert np.isfinite(columns["se_hessian"]).all()


def test_a_direction_that_one_set_lacks_is_not_confirmed() -> None:
    found = estimates(diagonal(4.0, 4.0, 9.0), diagonal(4.0, -1.0, 9.0))
    with pytest.warns(UserWarning, match="^se_hessian of b: NaN"):
        error = found.standard_errors("hessian")
    np.testing.assert_allclose(error, [0.5, np.nan, 1 / 3])


def test_directions_of_noise_are_left_out_and_negative_information_is_kept() -> None:
    one, two = diagonal(4.0, 1.0, -2.0), diagonal(4.2, 0.3, -2.1)
    settled = Settled.of([(EYE, one), (EYE, two)])
    torch.testing.assert_close(settled.information, diagonal(4.1, 0.0, -2.05))
    assert settled.lacking.shape == (3, 2)
    torch.testing.assert_close(settled.lacking[0], torch.zeros(2).double())
    tolerance = torch.full((3,), 0.05, dtype=torch.float64)
    # The sandwich differs by 4.9 %, twice the error by the information.
    assert settled.gap(EYE, tolerance) == pytest.approx(0.2 / 4.1 / 0.05, rel=1e-2)


def test_without_draws_nothing_is_unsettled() -> None:
    uncertainty = Uncertainty(EYE, EYE, 300, None, None, "")
    assert uncertainty.settled(EYE, "sandwich").all()


@pytest.mark.slow
def test_draws_are_doubled_until_errors_agree() -> None:
    """Few draws to begin with, and errors that agree with those of many."""
    data = simulate(80, 10)
    model, guide = known(data)
    few, many = (FitResult(model, guide, data, pd.DataFrame()).population(n) for n in (64, 2000))
    rows = [row for row in few.index if row[0] in ("mean", "sd")]
    columns = ["se_hessian", "se_sandwich"]
    ratio = few.loc[rows, columns] / many.loc[rows, columns]
    assert ratio.stack().between(0.93, 1.07).all()


@pytest.mark.slow
def test_errors_of_log_normal_people_agree_between_seeds() -> None:
    """Where scores by the margins have tails as heavy as exp(η), which is told most of the time."""
    data = simulate(80, 10)
    model = HeterogeneousBTL(2, 2, utility="linear", coefficients=["lognormal", "-lognormal"])
    model.take_units(data)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([-0.2, 0.2]))
        model.utility.loading.copy_(torch.tensor([[1.2, 0.0], [0.4, 1.4]]))
    truth, _ = model.simulate(data, seed=0)
    found = [
        torch.linalg.inv(
            estimate_parameters(model, truth, 1024, seed, "the test").uncertainty.information
        )
        for seed in range(3)
    ]
    errors = torch.stack([covariance.diagonal().sqrt() for covariance in found])
    assert (errors.std(0) / errors.mean(0)).max() < 0.05
