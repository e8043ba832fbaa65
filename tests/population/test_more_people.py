"""The gain of more people is the excess loss that fits to fresh people have."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from fssa_bayes import HeterogeneousBTL, MaximumLikelihood, Preferences, fit
from fssa_bayes.inference import FitResult
from fssa_bayes.population import GainOfMorePeople, gain_of_more_people

ITEMS, SPREAD, ANSWERS = 5, 1.5, 9
UTILITY = np.array([0.1, -0.1, 0.6, 0.1, -0.5])


def simulate(people: int, seed: int) -> Preferences:
    """Draws people who differ, and whose answers to a pair, three each, go together."""
    rng = np.random.default_rng(seed)
    taste = UTILITY + SPREAD * rng.normal(size=(people, ITEMS))
    left = rng.integers(ITEMS, size=(people, 3))
    right = (left + rng.integers(1, ITEMS, size=(people, 3))) % ITEMS
    left, right = np.repeat(left, 3, 1), np.repeat(right, 3, 1)
    margin = np.take_along_axis(taste, left, 1) - np.take_along_axis(taste, right, 1)
    choice = rng.random(margin.shape) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(people + 1) * ANSWERS
    return Preferences(left.ravel(), right.ravel(), choice.ravel(), offsets, num_items=ITEMS)


def loss_of_new_people(utility: np.ndarray) -> float:
    """Returns the expected loss of a new person, in nats, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    margin = UTILITY[:, None] - UTILITY
    spread = SPREAD * np.sqrt(2)
    prob = (weights / (1 + np.exp(-(margin[..., None] + spread * points)))).sum(-1)
    prob /= weights.sum()
    margin = utility[:, None] - utility
    score = prob * margin - np.logaddexp(0, margin)
    return -ANSWERS * score[~np.eye(ITEMS, dtype=bool)].mean()


def fit_homogeneous(data: Preferences) -> FitResult:
    return fit(HeterogeneousBTL(data.num_features, 0, "linear"), None, data, progress_bar=False)


def test_the_gain_is_the_excess_loss_of_fits_to_fresh_people() -> None:
    """Answers that go together double the gain of four free parameters, 4 / 2n."""
    people = 200
    least = minimize(loss_of_new_people, UTILITY).fun
    excess, gains = [], []
    for seed in range(200):
        result = fit_homogeneous(simulate(people, seed))
        utility = result.model.utility.mean.detach().double().numpy()
        excess.append(loss_of_new_people(utility) - least)
        if seed < 30:
            gains.append(gain_of_more_people(result.model, result.data))
    found = np.array([gain.per_person for gain in gains])
    truth, error = np.mean(excess), np.std(excess) / np.sqrt(len(excess))
    assert error < 0.06 * truth
    assert truth > 1.8 * 4 / 2 / people
    # Terms in 1 / n² make the truth a few per cent larger.
    assert abs(found.mean() - truth) < 3 * error
    errors = ANSWERS * np.array([gain.standard_error for gain in gains])
    assert 0.6 * found.std() < errors.mean() < 1.6 * found.std()


@pytest.fixture(scope="module")
def mixed() -> FitResult:
    rng = np.random.default_rng(0)
    items, spread = rng.normal(size=(8, 2)), np.array([[1.0, 0.0], [0.5, 0.8]])
    taste = [0.5, -0.5] + rng.normal(size=(500, 2)) @ spread.T
    left = rng.integers(8, size=(500, 12))
    right = (left + rng.integers(1, 8, size=left.shape)) % 8
    margin = np.einsum("und,ud->un", items[left] - items[right], taste)
    choice = rng.random(margin.shape) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(501) * 12
    data = Preferences(left.ravel(), right.ravel(), choice.ravel(), offsets, items=items)
    model = HeterogeneousBTL(2, 2, "linear")
    return fit(model, None, data, objective=MaximumLikelihood(64), progress_bar=False)


def test_of_a_right_model_the_parameters_are_counted(mixed: FitResult) -> None:
    gain = gain_of_more_people(mixed.model, mixed.data, 1000, num_samples=128)
    error = gain.effective_parameters * gain.standard_error / gain.per_comparison
    assert abs(gain.effective_parameters - 5) < 3 * error
    assert error < 1
    assert gain.per_person == pytest.approx(gain.effective_parameters / 2 * (1 / 500 - 1 / 1000))
    assert gain.per_comparison == pytest.approx(gain.per_person / 12)


def test_the_gain_of_everybody_is_nothing() -> None:
    gain = gain_of_more_people(*_fitted(simulate(60, 0)), 60)
    assert gain.per_person == gain.standard_error == 0
    assert str(gain).endswith(
        "in the log score of new people: more people would change next to nothing"
    )


def test_the_unit_of_weights_does_not_matter() -> None:
    data = simulate(60, 0)
    weights = np.random.default_rng(0).uniform(0.5, 2, size=60)
    one, other = (
        gain_of_more_people(*_fitted(data.with_weights(scale * weights))) for scale in (1.0, 10.0)
    )
    for name in ("per_person", "standard_error", "effective_parameters"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4)
    plain = gain_of_more_people(*_fitted(data))
    equal = gain_of_more_people(*_fitted(data.with_weights(np.full(60, 3.0))))
    assert equal.per_person == pytest.approx(plain.per_person, rel=1e-4)


def _fitted(data: Preferences) -> tuple[HeterogeneousBTL, Preferences]:
    return fit_homogeneous(data).model, data


def test_people_without_comparisons_do_not_count() -> None:
    data = simulate(40, 0)
    model, _ = _fitted(data)
    context, _ = data.split_context(3, seed=0)
    more = Preferences(
        *(getattr(context, name) for name in ("left", "right", "choice")),
        np.append(context.offsets, [context.offsets[-1]] * 2),
        num_items=ITEMS,
    )
    assert gain_of_more_people(model, more) == gain_of_more_people(model, context)


def test_data_of_another_population_are_refused(mixed: FitResult) -> None:
    """Other people of the same population are not told apart from those of the fit."""
    model, data = _fitted(simulate(300, 0))
    gain_of_more_people(model, simulate(300, 1))
    match = "data must be the comparisons that the model was fitted to"
    turned = data.with_choices(1 - data.choice, ties="half")
    with pytest.raises(ValueError, match=match):
        gain_of_more_people(model, turned)
    turned = turned.with_weights(np.random.default_rng(0).uniform(0.5, 2, size=300))
    with pytest.raises(ValueError, match=match):
        gain_of_more_people(model, turned)
    turned = mixed.data.with_choices(1 - mixed.data.choice, ties="half")
    with (
        pytest.warns(UserWarning, match="information on the population is not positive"),
        pytest.raises(ValueError, match=match),
    ):
        gain_of_more_people(mixed.model, turned, num_samples=128)


def test_a_penalty_is_part_of_the_score() -> None:
    """The likelihood alone is not at its maximum where a prior draws estimates together."""
    data = simulate(600, 0)
    model = HeterogeneousBTL(ITEMS, 0, "linear", position_bias=True, penalty=1e4)
    fit(model, None, data, progress_bar=False)
    assert gain_of_more_people(model, data).per_person > 0
    model.penalty = 0.0
    with pytest.raises(ValueError, match="the score at the estimates is so far from 0"):
        gain_of_more_people(model, data)


def test_what_is_said() -> None:
    gain = GainOfMorePeople(2000, 10**6, 0.025, 0.0025, 0.0003, 100.0)
    assert str(gain) == (
        "a fit to 1,000,000 people, in place of 2,000, would gain 0.0025 ± 0.0003 nats a "
        "comparison (0.025 a person) in the log score of new people"
    )


def test_what_has_no_gain_is_refused() -> None:
    model, data = _fitted(simulate(40, 0))
    for among in (39, 50.0, True):
        with pytest.raises(ValueError, match="among must be None or an integer of at least the 40"):
            gain_of_more_people(model, data, among)
    with pytest.raises(ValueError, match="needs 10 people with comparisons, got 9"):
        gain_of_more_people(model, data.subset(range(9)))
    with pytest.raises(ValueError, match="utility"):
        gain_of_more_people(HeterogeneousBTL(ITEMS, 2, "bilinear"), data)
    always = Preferences([0] * 20, [1] * 20, [1] * 20, range(21), num_items=2)
    with (
        pytest.warns(UserWarning, match="separated"),
        pytest.raises(ValueError, match="needs finite estimates, and some are infinite"),
    ):
        gain_of_more_people(*_fitted(always))
