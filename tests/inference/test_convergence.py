"""What fresh draws say of fits that ended at their maximum, before it, or at none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from linear_people import linear, people
from two_feature_people import simulate, with_features

from fssa_bayes import HeterogeneousBTL, MaximumLikelihood, NeuralProcessGuide, fit
from fssa_bayes.inference import FitResult


def fitted(num_draws: int = 512, seed: int = 0, **options) -> FitResult:
    torch.manual_seed(0)
    model, _ = linear(1)
    data = people(150, 12, 1, spread=1.5)
    objective = MaximumLikelihood(num_draws)
    return fit(model, None, data, objective=objective, seed=seed, progress_bar=False, **options)


def test_a_fit_at_its_maximum_is_called_converged() -> None:
    result = fitted()
    report = result.convergence(num_samples=256)
    assert report.converged
    assert "converged after" in str(report)
    assert report.gain < 0.05
    assert report.iterations == len(result.history)
    expected = result.log_marginal_likelihood(target_error=0.2)
    assert report.log_likelihood == pytest.approx(expected.value, abs=0.3)
    assert report.flat == ()
    assert report.person in result.data.user_names
    expected = result.population(256, seed=1)["se_sandwich"]
    np.testing.assert_array_equal(report.table["standard_error"], expected)


@pytest.mark.slow
def test_monte_carlo_errors_are_the_spread_of_estimates_over_seeds() -> None:
    """Five fits with few draws that differ in their draws alone."""
    found = [fitted(64, seed) for seed in range(5)]
    estimates = pd.concat([result.population(256)["estimate"] for result in found], axis=1)
    rows = [("mean", 0), ("sd", 0)]
    told = found[0].convergence(num_draws=64).table["monte_carlo_error"].loc[rows]
    ratio = estimates.std(axis=1).loc[rows] / told
    # With four degrees of freedom the ratio lies within these bounds in 99 % of the cases.
    assert ratio.between(0.22, 2.2).all(), ratio


@pytest.mark.slow
def test_a_step_leads_back_to_the_maximum() -> None:
    result = fitted()
    table = result.population(256)
    at_maximum, error = table["estimate"], table["se_sandwich"]
    with torch.no_grad():
        half = 0.5 * error.loc[("mean", 0)] * result.model.feature_scale
        result.model.utility.mean.add_(half)
    report = result.convergence(num_samples=256)
    assert not report.converged
    assert ("mean", 0) in report.table.index[report.far]
    assert "further from the maximum than noise: mean of 0" in str(report)
    moved = result.population(256)["estimate"] + report.table["newton_step"]
    assert ((moved - at_maximum).abs() < 0.1 * error).all()


def test_a_direction_without_information_is_named() -> None:
    data = simulate(60, 8)
    items = np.c_[data.items.numpy(), data.items.numpy()[:, 0] * 2]
    data = with_features(data, items, ["size", "price", "twice the size"])
    model = HeterogeneousBTL(3, 1, utility="linear")
    result = fit(model, None, data, steps=20, progress_bar=False)
    with pytest.warns(UserWarning, match="do not tell 2 of 3 coefficients"):
        report = result.convergence(num_samples=256)
    assert report.flat == ("'size', 'twice the size' are collinear",)
    assert "without information: 'size', 'twice the size' are collinear" in str(report)


def test_iterations_that_end_too_early_are_said() -> None:
    model, _ = linear(4, features=4)
    data = people(100, 12, 1, spread=1.5, features=4)
    with pytest.warns(UserWarning, match="did not converge in 5 iterations: the last one gained"):
        fit(model, None, data, steps=5, progress_bar=False)


def test_what_has_no_maximum_of_this_kind_is_refused() -> None:
    model = HeterogeneousBTL(1, 0, utility="linear")
    result = fit(model, None, people(20, 6, 0, spread=0.1), progress_bar=False)
    with pytest.raises(ValueError, match="needs utility='linear', .* latent_dim=0"):
        result.convergence()
    model = HeterogeneousBTL(1, 1, utility="bilinear")
    data = people(20, 6, 0, spread=0.1)
    with pytest.raises(ValueError, match="got utility='bilinear'"):
        FitResult(model, NeuralProcessGuide(model), data, pd.DataFrame()).convergence()
