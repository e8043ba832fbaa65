"""Do people differ? The test with a known limit and by bootstrap, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from linear_people import SHORT_FIT, linear, people

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide
from fssa_bayes.comparison import heterogeneity_test


@pytest.mark.parametrize(("spread", "differs"), [(0.0, False), (1.0, True)])
def test_heterogeneity_with_one_feature(spread: float, differs: bool) -> None:
    data = people(150, 8, 3, spread=spread)
    test = heterogeneity_test(lambda: linear(1), data, fit_options=SHORT_FIT)
    assert test.method == "mixture"
    assert (test.p_value < 0.05) is differs
    assert test.p_interval[0] <= test.p_value <= test.p_interval[1]
    assert ("the 150 people do differ" in str(test)) is differs
    assert "equal parts of chi-squares" in str(test)
    low, high = test.log_likelihood
    assert test.statistic == pytest.approx(2 * (high - low))
    unsettled = replace(test, p_value=0.05, p_interval=(0.001, 0.18))
    assert "the 150 people seem to differ" in str(unsettled)


@pytest.mark.slow
def test_heterogeneity_by_bootstrap_and_by_simulated_mixture() -> None:
    data = people(80, 6, 0, spread=1.0, features=2)
    options = {"fit_options": SHORT_FIT | {"steps": 40}, "num_samples": 200}
    bootstrap = heterogeneity_test(
        lambda: linear(1, 2), data, null="bootstrap", num_null=4, **options
    )
    assert bootstrap.method == "bootstrap"
    assert len(bootstrap.null) == 4
    assert bootstrap.p_value == pytest.approx(1 / 5)
    assert bootstrap.statistic > 4 * np.abs(bootstrap.null).max()
    assert "4 data sets simulated from the homogeneous model" in str(bootstrap)
    assert bootstrap.verdict.startswith("the statistic is larger than each of the 4 under the null")
    mixture = heterogeneity_test(lambda: linear(1, 2), data, num_null=200, **options)
    assert mixture.method == "simulated mixture"
    assert mixture.p_value == pytest.approx(1 / 201)
    assert mixture.statistic == bootstrap.statistic
    assert (mixture.null >= 0).all()


def test_heterogeneity_refuses_what_it_cannot_do() -> None:
    data = people(20, 4, 0, spread=1.0, features=3)
    with pytest.raises(ValueError, match="null must be 'auto', 'mixture' or 'bootstrap', got 'x'"):
        heterogeneity_test(lambda: linear(1, 3), data, null="x")
    with pytest.raises(ValueError, match="num_null must be an integer of at least 1, got 0"):
        heterogeneity_test(lambda: linear(1, 3), data, num_null=0)
    with pytest.raises(ValueError, match="5 people for each of the 6 variances .* got 20"):
        heterogeneity_test(lambda: linear(1, 3), data, null="mixture")
    with pytest.raises(ValueError, match="latent_dim of at least 1, got 0"):
        heterogeneity_test(lambda: linear(0, 3), data)

    def bilinear():
        model = HeterogeneousBTL(3, 1)
        return model, NeuralProcessGuide(model)

    with pytest.raises(ValueError, match="needs utility='linear'"):
        heterogeneity_test(bilinear, data, null="mixture")
