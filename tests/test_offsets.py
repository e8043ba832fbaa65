"""Columns that vary by little around a large number: times, years, identifiers taken for sizes.

Choices depend on differences of features alone, so that a feature and the same feature less a
constant give the same model. Both tables hold the same numbers, exactly.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    fit,
    load,
    save,
)
from fssa_bayes.baselines import HomogeneousBTL

START = 1.7e9  # Seconds since 1970.
SLOPE = 0.0157  # Nats a second.


def draw_times(num_items: int = 80) -> np.ndarray:
    """Draws moments within two minutes, in steps of 2⁻¹⁰ s, which double precision holds."""
    steps = np.random.default_rng(0).integers(-60 * 1024, 60 * 1024, num_items)
    return steps / 1024


def choices_between(features: np.ndarray, beta: np.ndarray, count: int, seed: int = 0):
    """Draws choices of 30 people between items with utilities x·β."""
    rng = np.random.default_rng(seed)
    left = rng.integers(len(features), size=count)
    right = (left + rng.integers(1, len(features), size=count)) % len(features)
    margin = (features[left] - features[right]) @ beta
    choice = rng.random(count) < 1 / (1 + np.exp(-margin))
    return pd.DataFrame({"u": np.arange(count) % 30, "l": left, "r": right, "c": choice})


def read(df: pd.DataFrame, items: pd.DataFrame, **options) -> Preferences:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ (rows repeat|items are never)")
        return Preferences.from_dataframe(
            df, user="u", left="l", right="r", choice="c", items=items, **options
        )


def estimates(data: Preferences) -> tuple[pd.DataFrame, float]:
    fitted = HomogeneousBTL().fit(data, progress_bar=False)
    return fitted.coefficients(), fitted.log_evidence(data).sum().item()


def test_a_time_has_the_coefficient_of_the_time_less_a_constant() -> None:
    times = draw_times()
    df = choices_between(times[:, None], np.array([SLOPE]), 3000)
    (table, value), (centred, expected) = (
        estimates(read(df, pd.DataFrame({"time": offset + times}))) for offset in (START, 0.0)
    )
    error = centred["se_hessian"].item()
    assert table["estimate"].item() == pytest.approx(SLOPE, abs=3 * error)
    assert table["estimate"].item() == pytest.approx(centred["estimate"].item(), rel=1e-6)
    assert table["se_hessian"].item() == pytest.approx(error, rel=1e-4)
    assert value == pytest.approx(expected, abs=1e-6)


def test_an_offset_of_a_hundred_million_hides_no_feature() -> None:
    """Nor does it bias the coefficient of a feature that is correlated with the one that has it."""
    rng = np.random.default_rng(1)
    first = rng.integers(-2048, 2048, 60) / 1024
    second = (first + rng.integers(-1024, 1024, 60) / 1024) / 2
    df = choices_between(np.stack([first, second], 1), np.array([1.0, -2.0]), 3000)
    (table, value), (centred, expected) = (
        estimates(read(df, pd.DataFrame({"a": offset + first, "b": second})))
        for offset in (1e8, 0.0)
    )
    np.testing.assert_allclose(table["estimate"], centred["estimate"], rtol=1e-6)
    error = centred["se_hessian"].to_numpy()
    assert (abs(table["estimate"] - [1, -2]) < 3 * error).all()
    assert value == pytest.approx(expected, abs=1e-6)


def test_a_posterior_does_not_depend_on_where_the_clock_starts(tmp_path) -> None:
    times = draw_times(20)
    df = choices_between(times[:, None], np.array([SLOPE]), 300)
    ages = pd.DataFrame({"born": np.arange(30) / 4.0})
    probabilities = []
    for offset in (START, 0.0):
        data = read(df, pd.DataFrame({"time": offset + times}), users=offset + ages)
        torch.manual_seed(0)
        model = HeterogeneousBTL(1, 1, hidden_dim=8, num_factors=4, num_covariates=1)
        guide = NeuralProcessGuide(model, "normal", hidden_dim=8)
        stages = [ImportanceWeightedELBO(4, steps=3)]
        fit(model, guide, data, objective=stages, validation=None, progress_bar=False)
        save(tmp_path / f"{offset:g}", model, guide)
        for pair in ((model, guide), load(tmp_path / f"{offset:g}")):
            posterior = Posterior(*pair, data, num_samples=100)
            probabilities.append(posterior.choice_prob(data).mean)
    for other in probabilities[1:]:
        torch.testing.assert_close(other, probabilities[0], equal_nan=True, rtol=0, atol=1e-5)
    assert torch.equal(probabilities[0].nan_to_num(), probabilities[1].nan_to_num())


# Nobody differs but by the covariate: the information on Λ and B together is close to singular.
@pytest.mark.filterwarnings("ignore:the information on the population is not positive")
def test_effects_of_a_time_of_birth_are_those_of_the_time_less_a_constant() -> None:
    size = draw_times(20)[:, None] / 60
    born = np.random.default_rng(3).integers(-60, 60, 30)
    df = pd.concat(
        choices_between(size, np.array([1.0 + born[person] / 40]), 40, seed=person).assign(u=person)
        for person in range(30)
    )
    tables = []
    for offset in (START, 0.0):
        users = pd.DataFrame({"born": offset + born})
        data = read(df.reset_index(drop=True), pd.DataFrame(size), users=users)
        torch.manual_seed(0)
        model = HeterogeneousBTL(1, 1, utility="linear", num_covariates=1)
        guide = NeuralProcessGuide(model, "normal", hidden_dim=4)
        stages = [MaximumLikelihood()]
        result = fit(model, guide, data, objective=stages, progress_bar=False)
        tables.append(result.population(seed=0)["estimate"])
    effect = tables[0].loc["effect"].item()
    assert effect == pytest.approx(1 / 40, rel=0.3)
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("column", "match"),
    [
        ((START + 40 * draw_times()).astype(np.float32), "varies by .* around 1.7e.09, .* single"),
        ((START + draw_times() / 2).astype(np.float32), "same for all items in single precision"),
        (1e9 + draw_times() * 2.0**-15, "varies by .* around 1e.09, of which double precision"),
        (np.full(80, 1e9), "feature 'time' is the same for all items"),
    ],
)
def test_a_column_with_few_digits_left_is_named(column: np.ndarray, match: str) -> None:
    df = choices_between(draw_times()[:, None], np.array([SLOPE]), 100)
    size = np.random.default_rng(2).random(80)
    data = read(df, pd.DataFrame({"size": size.astype(column.dtype), "time": column}))
    with pytest.warns(UserWarning, match=match) as caught:
        HomogeneousBTL().fit(data, progress_bar=False)
    # Named once, whatever else a fit says of a feature that tells nothing.
    assert (
        sum("same for all" in str(w.message) or "varies by" in str(w.message) for w in caught) == 1
    )


def test_means_and_scales_stay_double_when_a_model_is_converted() -> None:
    model = HeterogeneousBTL(1, 1, "linear", num_covariates=1)
    items = torch.tensor([[START], [START + 1]], dtype=torch.float64)
    model.set_standardisation(items)
    model.set_covariate_standardisation(items)
    for converted in (model.double(), model.float(), model.to(torch.float64), model.float()):
        assert converted.feature_mean.tolist() == [START + 0.5]
        assert converted.covariate_mean.tolist() == [START + 0.5]
        assert converted.standardise(items).dtype == converted.dtype == converted.utility.mean.dtype
        assert converted.standardise(items).flatten().tolist() == [-1, 1]
