"""Weights of people: a weight of n counts as n equal people, and the sandwich has its formula."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessELBO,
    NeuralProcessGuide,
    Posterior,
    PredictiveLikelihood,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.baselines import MixtureBTL
from fssa_bayes.checks import predict_held_out, predictive_checks, score_by_context, score_tests
from fssa_bayes.comparison import (
    heterogeneity_test,
    leave_comparisons_out,
    leave_users_out,
    score_users,
)
from fssa_bayes.comparison.people import hold_users_out
from fssa_bayes.data.weights import check_unweighted, total_weight
from fssa_bayes.inference.marginal import MarginalLikelihood
from fssa_bayes.population.information import batch_information, population_information
from fssa_bayes.report import analyse, diagnose, rank

PEOPLE, EACH, ITEMS = 40, 6, 5


def simulate(
    *, features: bool = True, ties: bool = False, num_users: int = PEOPLE, seed: int = 0
) -> Preferences:
    """Simulates people whose first coefficient differs, with 6 comparisons each."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(ITEMS, 2))
    total = num_users * EACH
    left = rng.integers(ITEMS, size=total)
    right = (left + rng.integers(1, ITEMS, size=total)) % ITEMS
    difference = items[left] - items[right]
    margin = (
        difference @ [1.0, -0.5] + np.repeat(rng.normal(size=num_users), EACH) * difference[:, 0]
    )
    choice = (rng.random(total) < 1 / (1 + np.exp(-margin))).astype(float)
    if ties:
        choice[rng.random(total) < 0.2] = 0.5
    return Preferences(
        left,
        right,
        choice,
        np.arange(0, total + 1, EACH),
        items=items if features else None,
        num_items=ITEMS,
        ties="keep" if ties else "half",
    )


def rank_sets(*, num_users: int = PEOPLE, seed: int = 0) -> Preferences:
    """Simulates three choices from sets of three items a person, without features."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        for situation in range(3):
            offered = rng.choice(ITEMS, 3, replace=False)
            chosen = rng.choice(3)
            rows += [(user, situation, item, place == chosen) for place, item in enumerate(offered)]
    table = pd.DataFrame(rows, columns=["user", "situation", "item", "chosen"])
    return Preferences.from_choices(
        table, user="user", situation="situation", item="item", chosen="chosen"
    )


def repeat(data: Preferences, times: np.ndarray) -> Preferences:
    """Returns data in which person u stands `times[u]` times, under a name each."""
    people = np.repeat(np.arange(len(data)), times)
    return Preferences(
        *(
            np.concatenate([table[data.offsets[u] : data.offsets[u + 1]] for u in people])
            for table in (data.left, data.right, data.choice)
        ),
        np.concatenate([[0], np.cumsum(data.counts[people])]),
        items=data.items,
        num_items=data.num_items,
        ties=data.ties,
        ranking=None if data.ranking is None else _repeat_rankings(data, people),
    )


def _repeat_rankings(data: Preferences, people: np.ndarray) -> np.ndarray:
    parts = [data.ranking[data.offsets[u] : data.offsets[u + 1]] for u in people]
    size = int(data.ranking.max()) + 1
    return np.concatenate([part + number * size for number, part in enumerate(parts)])


@pytest.fixture(scope="module")
def times() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 4, size=PEOPLE)


# Data


def test_copies_keep_the_weights() -> None:
    data = simulate(num_users=4).with_weights([1, 2, 3, 4.5])
    assert data.subset([3, 1]).weights.tolist() == [4.5, 2]
    assert data.subset(np.array([True, False, True, True])).weights.tolist() == [1, 3, 4.5]
    training, test = data.split_users(0.5, seed=0)
    position = np.concatenate([training.user_names, test.user_names])
    weights = np.concatenate([training.weights, test.weights])
    assert np.array_equal(weights, data.weights[position])
    copies = [*data.split_context(2), data.swap(), data.with_choices(1 - data.choice)]
    copies += [data.as_pairs(), data.select_items([0, 1, 2]), data.for_model(_model())]
    for one in copies:
        assert one.weights.tolist() == [1, 2, 3, 4.5]


def _model() -> HeterogeneousBTL:
    return HeterogeneousBTL(2, 0, "linear")


def test_pairs_of_rankings_keep_the_weights() -> None:
    data = rank_sets(num_users=2).with_weights([3, 2])
    assert data.as_pairs().weights.tolist() == [3, 2]


def test_new_people_have_weight_one() -> None:
    data = Preferences(
        *([0], [1], [1], [0, 1]),
        item_names=["x", "y"],
        num_items=2,
        weights=[3],
        user_names=["ann"],
    )
    table = pd.DataFrame(
        {"user": ["bob", "ann"], "left": ["x", "x"], "right": ["y", "y"], "choice": [1, 0]}
    )
    grown = data
    for row in table.itertuples():
        grown = grown.append(row.user, row.left, row.right, row.choice)
    assert dict(zip(grown.user_names, grown.weights, strict=True)) == {"ann": 3, "bob": 1}


def test_imagined_people_have_no_weights() -> None:
    data = simulate(num_users=3).with_weights([2, 3, 4])
    assert data.imagine(np.zeros((2, 2), dtype=int)).weights is None
    assert data.pooled().weights is None


@pytest.mark.parametrize("num_users", [3, PEOPLE])
def test_merged_comparisons_count_the_weights(num_users: int) -> None:
    weights = np.arange(1.0, num_users + 1)
    data = simulate(num_users=num_users).with_weights(weights)
    merged, count = data.merged()
    found, expected = {}, {}
    for pairs, source, number in (
        (found, merged, count),
        (expected, data, weights[data.person]),
    ):
        for key in zip(source.left, source.right, source.choice, number, strict=True):
            pairs[key[:3]] = pairs.get(key[:3], 0) + key[3]
    assert found == expected


def test_weights_of_one_are_no_weights() -> None:
    data = simulate(num_users=4)
    same = data.with_weights(np.ones(4))
    assert same.weights is None
    assert same.digest() == data.digest()
    assert data.with_weights([1, 1, 2, 1]).subset([0, 1]).weights is None
    assert data.with_weights([1, 1, 2, 1]).digest() != data.digest()
    assert total_weight(data) == 4
    assert total_weight(data.with_weights([1, 1, 2, 1])) == 5


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_weights_must_be_positive_and_finite(wrong: float) -> None:
    data = simulate(num_users=3)
    with pytest.raises(ValueError, match=r"weights must be positive and finite, got .* for user 2"):
        data.with_weights([1, 1, wrong])
    with pytest.raises(ValueError, match=r"one number a person, with shape \(3,\), got shape \(2,"):
        data.with_weights([1, 1])


@pytest.fixture
def trips() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "who": ["ann", "ann", "ann", "bob", "bob"],
            "mode": ["bus", "car", "train", "bus", "train"],
            "taken": [0, 0, 1, 1, 0],
            "weight": [2.0, 2, 2, 0.5, 0.5],
        }
    )


def test_choices_are_read_with_weights(trips: pd.DataFrame) -> None:
    columns = {"user": "who", "item": "mode", "chosen": "taken", "weight": "weight"}
    assert Preferences.from_choices(trips, **columns).weights.tolist() == [2, 0.5]
    for wrong, message in (
        ([2, 2, 1, 0.5, 0.5], "one value for all rows of a person, got 2 and 1 for user 'ann'"),
        ([2, 2, 2, 0.5, 0], "positive and finite numbers, got 0.0 for user 'bob' at row 4"),
        ([2, 2, 2, 0.5, "x"], "positive and finite numbers, got 'x' for user 'bob' at row 4"),
    ):
        with pytest.raises(ValueError, match=message):
            Preferences.from_choices(trips.assign(weight=wrong), **columns)


def test_wide_choices_and_pairs_are_read_with_weights() -> None:
    wide = pd.DataFrame(
        {"who": ["ann", "ann", "bob"], "taken": ["bus", "car", "car"], "w": [3, 3, 2]}
    )
    data = Preferences.from_wide_choices(
        wide, user="who", chosen="taken", alternatives=["bus", "car"], weight="w"
    )
    assert data.weights.tolist() == [3, 2]
    pairs = pd.DataFrame(
        {
            "u": list("abab"),
            "l": list("xyxx"),
            "r": list("yxyy"),
            "c": [1, 0, 0, 1],
            "w": [5, 2, 5, 2],
        }
    )
    columns = {"left": "l", "right": "r", "choice": "c", "weight": "w"}
    assert Preferences.from_dataframe(pairs, user="u", **columns).weights.tolist() == [5, 2]
    with pytest.warns(UserWarning, match="have only ties"):
        tied = Preferences.from_dataframe(pairs.assign(c=[1, 0.5, 0, 0.5]), user="u", **columns)
    assert tied.weights.tolist() == [5]
    many = pairs.assign(n=[2, 1, 0, 1])
    assert Preferences.from_dataframe(many, count="n", **columns).weights.tolist() == [5, 5, 2, 2]


# Estimates: a weight of n is n equal people


@pytest.mark.parametrize("penalty", [0.0, 2.0])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("features", {}),
        ("items", {}),
        ("features", {"lapses": True}),
        ("items", {"ties": "davidson"}),
        ("rankings", {}),
    ],
)
def test_homogeneous_fits(
    kind: str, options: dict[str, object], penalty: float, times: np.ndarray
) -> None:
    data = simulate(features=kind == "features", ties="ties" in options)
    data = rank_sets() if kind == "rankings" else data
    results = []
    for people in (data.with_weights(times), repeat(data, times)):
        model = HeterogeneousBTL(people.num_features, 0, "linear", penalty=penalty, **options)
        results.append(fit(model, None, people, progress_bar=False))
    weighted, repeated = results
    assert np.isclose(weighted.history.loss.iloc[-1], repeated.history.loss.iloc[-1], rtol=1e-9)
    values = [result.log_marginal_likelihood().value for result in results]
    assert np.isclose(*values, rtol=1e-6)
    tables = [result.estimates() for result in results]
    assert np.allclose(*(table.values for table in tables), atol=1e-5 if options else 1e-6)
    assert np.allclose(*(table.vcov("hessian") for table in tables), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["features", "rankings"])
def test_gradient_search_and_newton_agree_with_weights(
    kind: str, times: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = simulate() if kind == "features" else rank_sets()
    data, estimates = data.with_weights(0.7 * times), []
    for _ in range(2):
        model = HeterogeneousBTL(data.num_features, 0, "linear")
        result = fit(model, None, data, progress_bar=False)
        estimates.append(result.estimates().values)
        monkeypatch.setattr("fssa_bayes.inference.maximum.find_answers", lambda *_: None)
    assert torch.allclose(*estimates, atol=1e-5)


def test_the_unit_of_weights_does_not_matter(times: np.ndarray) -> None:
    estimates = []
    for unit in (1.0, 1e6, 1e-4):
        model = HeterogeneousBTL(ITEMS, 0, "linear")
        result = fit(
            model, None, simulate(features=False).with_weights(times * unit), progress_bar=False
        )
        estimates.append((result.estimates().values, result.vcov("sandwich").to_numpy()))
    for values, covariance in estimates[1:]:
        assert np.allclose(values, estimates[0][0], atol=1e-6)
        assert np.allclose(covariance, estimates[0][1], atol=1e-6)


@pytest.fixture(scope="module")
def mixed() -> HeterogeneousBTL:
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, "linear")
    model.take_units(simulate())
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.8, -0.4]))
    return model


def test_marginal_likelihood_and_gradient(mixed: HeterogeneousBTL, times: np.ndarray) -> None:
    model, data = copy.deepcopy(mixed).double(), simulate()
    value, gradient = _value_and_gradient(model, data.with_weights(times))
    all_value, all_gradient = _value_and_gradient(model, data)
    mixture = _value_and_gradient(model, data.with_weights(0.3 * times + 0.5))
    assert np.isclose(mixture[0], 0.3 * value + 0.5 * all_value, rtol=1e-9)
    assert torch.allclose(mixture[1], 0.3 * gradient + 0.5 * all_gradient, rtol=1e-7)
    # Person by person, modes are found to another last digit.
    each = [_value_and_gradient(model, data.subset([user])) for user in range(len(data))]
    expected = sum(w * v for w, (v, _) in zip(times, each, strict=True))
    assert np.isclose(value, expected, rtol=1e-5)
    expected = sum(w * g for w, (_, g) in zip(times, each, strict=True))
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-2)


def _value_and_gradient(model: HeterogeneousBTL, data: Preferences) -> tuple[float, Tensor]:
    model.zero_grad()
    value = MarginalLikelihood(model, data, 64, 0).evaluate().log_likelihood
    parameters = [p for p in model.parameters() if p.grad is not None]
    return value, torch.cat([p.grad.flatten() for p in parameters])


def test_heterogeneous_fit(times: np.ndarray) -> None:
    """Draws of a person follow from the name, so that equal people differ by simulation alone."""
    data, results = simulate(num_users=PEOPLE), []
    for people in (data.with_weights(times), repeat(data, times)):
        torch.manual_seed(0)
        model = HeterogeneousBTL(2, 1, "linear")
        results.append(fit(model, None, people, objective=MaximumLikelihood(), progress_bar=False))
    weighted, repeated = (result.population() for result in results)
    assert np.allclose(weighted["estimate"], repeated["estimate"], atol=0.02)
    errors = weighted["se_hessian"], repeated["se_hessian"]
    assert np.allclose(*errors, rtol=0.03, atol=1e-3, equal_nan=True)
    assert weighted["se_outer_product"].isna().all()
    values = [result.log_marginal_likelihood(data.with_weights(times)) for result in results]
    assert np.isclose(values[0].value, values[1].value, atol=0.3)


@pytest.mark.parametrize("latent_dim", [0, 2])
def test_information_and_outer_products(latent_dim: int, times: np.ndarray) -> None:
    data = simulate()
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, latent_dim, "linear")
    model.take_units(data)
    rotation = torch.eye(latent_dim, dtype=torch.float64)
    found = population_information(model, data.with_weights(times), rotation, 64, 0)
    outer, information = 0.0, 0.0
    for user, weight in enumerate(times):
        one = population_information(model, data.subset([user]), rotation, 64, 0)
        outer, information = outer + weight**2 * one[0], information + weight * one[1]
    # Modes around which z is drawn are found to single precision.
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if latent_dim == 0 else {"rtol": 1e-3, "atol": 0.05}
    assert torch.allclose(found[0], outer, **tolerance)
    assert torch.allclose(found[1], information, **tolerance)


def test_information_of_covariates(times: np.ndarray) -> None:
    data = simulate()
    covariates = np.random.default_rng(2).normal(size=(len(data), 1))
    data = Preferences(
        data.left, data.right, data.choice, data.offsets, items=data.items, covariates=covariates
    )
    model = HeterogeneousBTL(2, 1, "linear", num_covariates=1)
    model.take_units(data)
    z = torch.randn(8, len(data), 1)
    draws = torch.full((8, len(data)), 1 / 8, dtype=torch.float64)
    rotation, batch = torch.eye(1, dtype=torch.float64), data.batch()
    found = batch_information(model, data.with_weights(times).batch(), z, draws, rotation)
    scores, _ = batch_information(model, batch, z, draws, rotation)
    expected = 0.0
    for user, weight in enumerate(times):
        part = data.batch([user])
        own = batch_information(model, part, z[:, [user]], draws[:, [user]], rotation)
        expected = expected + weight * own[1]
    assert torch.allclose(found[0], torch.tensor(times)[:, None] * scores, rtol=1e-5)
    assert torch.allclose(found[1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_users", [PEOPLE, 120])
def test_sandwich_of_a_logit(num_users: int) -> None:
    """Against (Σ w I)⁻¹ Σ w² s sᵀ (Σ w I)⁻¹ from the features, times G / (G − 1) below 100."""
    data = simulate(num_users=num_users)
    weights = np.random.default_rng(3).uniform(0.2, 3, size=num_users)
    result = fit(_model(), None, data.with_weights(weights), progress_bar=False)
    estimates = result.estimates()
    beta = estimates.values.numpy()[:2]
    difference = (data.items[data.left] - data.items[data.right]).numpy()
    prob = 1 / (1 + np.exp(-difference @ beta))
    residual = (data.choice - prob)[:, None] * difference
    score = np.add.reduceat(residual, data.offsets[:-1]) * weights[:, None]
    assert np.abs(score.sum(0)).max() < 1e-3  # The weighted score vanishes at the maximum.
    curvature = (weights[data.person] * prob * (1 - prob))[:, None] * difference
    inverse = np.linalg.inv(difference.T @ curvature)
    expected = inverse @ score.T @ score @ inverse
    if num_users < 100:
        expected *= num_users / (num_users - 1)
    assert np.allclose(result.vcov("sandwich"), expected, rtol=1e-4)
    assert np.allclose(result.vcov("hessian"), inverse, rtol=1e-4)
    assert result.vcov("outer_product").isna().all(axis=None)
    freedom = estimates.degrees_of_freedom("sandwich")
    assert (freedom == (num_users - 1 if num_users < 100 else np.inf)).all()


def test_classical_error_in_place_of_the_sandwich_has_no_unit() -> None:
    """Everybody answers alike, so that scores do not vary and the classical error is taken."""
    people = 8
    data = Preferences(
        [0, 0, 0] * people,
        [1] * 3 * people,
        [1, 1, 0] * people,
        np.arange(0, 3 * people + 1, 3),
        num_items=2,
    )
    errors = []
    for unit in (1e-4, 1.0, 1e4):
        weights = unit * np.arange(1, people + 1)
        result = fit(
            HeterogeneousBTL(2, 0, "linear"), None, data.with_weights(weights), progress_bar=False
        )
        with pytest.warns(UserWarning, match="varies too little"):
            errors.append(result.contrast((0, 1), kind="sandwich")["standard_error"].iloc[0])
    # The variance of one choice is 9/2 nats², of people with weights 1 … 8 by Kish's formula.
    kish = np.sum(np.arange(1, 9) ** 2) / np.sum(np.arange(1, 9)) ** 2
    assert np.allclose(errors, np.sqrt(4.5 / 3 * kish), rtol=1e-5)


@pytest.mark.parametrize("objective", [ImportanceWeightedELBO(8), ELBO()])
def test_weighted_elbo(objective: ImportanceWeightedELBO, times: np.ndarray) -> None:
    data = simulate()
    model = HeterogeneousBTL(2, 1, "bilinear")
    guide = NeuralProcessGuide(model)
    weights = torch.tensor(times, dtype=torch.float64)
    batch = data.with_weights(times).batch()

    def loss(which: Tensor) -> Tensor:
        torch.manual_seed(5)
        return objective.loss(model, guide, batch.replace(weights=which))

    each = torch.stack(
        [loss(torch.eye(PEOPLE).double()[u] * PEOPLE) for u in range(PEOPLE)]
    ).double()
    assert torch.allclose(loss(weights / weights.mean()).double(), weights @ each / weights.sum())
    assert torch.allclose(loss(torch.ones(PEOPLE).double()), loss(None))


def test_batches_of_a_fit_have_weights_of_mean_one(times: np.ndarray) -> None:
    objective = ImportanceWeightedELBO(2, batch_size=PEOPLE)
    model = HeterogeneousBTL(2, 1, "bilinear")
    data = simulate().with_weights(1000 * times)
    batch = objective.draw_batch(model, data, np.random.default_rng(0))
    assert np.isclose(batch.weights.mean().item(), 1)
    assert np.allclose(batch.weights.numpy(), times[batch.people] / times.mean())


def test_networks_are_fitted_with_weights(times: np.ndarray) -> None:
    model = HeterogeneousBTL(2, 1, "bilinear")
    guide = NeuralProcessGuide(model)
    data = simulate().with_weights(times)
    result = fit(model, guide, data, steps=4, validation=0.2, refit=True, progress_bar=False)
    assert result.history.loss.notna().all()


def test_posteriors_do_not_depend_on_weights(mixed: HeterogeneousBTL, times: np.ndarray) -> None:
    data = simulate()
    guide = NeuralProcessGuide(mixed)
    draws = [
        Posterior(mixed, guide, people, 64, seed=0).z for people in (data, data.with_weights(times))
    ]
    assert torch.equal(*draws)


def test_few_people_with_weights_are_told_what_to_do(times: np.ndarray) -> None:
    data = simulate().with_weights(times)
    model = HeterogeneousBTL(2, 2, "linear")
    guide = NeuralProcessGuide(model)
    objective = [MaximumLikelihood(), Sleep(steps=3)]
    with pytest.warns(UserWarning, match="posteriors of individuals"):
        result = fit(model, guide, data, objective=objective, progress_bar=False)
    with pytest.raises(ValueError, match=r"or else population='fixed'.* weights of people"):
        result.posterior(data)
    draws = result.population_draws(4, seed=0)
    for population in ("fixed", draws):
        assert result.posterior(data, 64, population=population).z.isfinite().all()


# What ignores weights refuses them


def test_the_refusal_names_weights_and_their_range() -> None:
    data = simulate(num_users=3)
    check_unweighted(data, "it")
    with pytest.raises(ValueError, match=r"it does not take weights .* from 0.5 to 3"):
        check_unweighted(data.with_weights([1, 0.5, 3]), "it")


@pytest.mark.parametrize(
    "use",
    [
        lambda data, model, guide: fit(model, guide, data, objective=NeuralProcessELBO()),
        lambda data, model, guide: fit(
            model, guide, data, objective=[PredictiveLikelihood(), Sleep()]
        ),
        lambda data, model, guide: MixtureBTL(2).fit(data),
        lambda data, model, guide: heterogeneity_test(lambda: (model, guide), data),
        lambda data, model, guide: leave_users_out(lambda: (model, guide), data),
        lambda data, model, guide: hold_users_out(lambda: (model, guide), data),
        lambda data, model, guide: score_users(model, guide, data),
        lambda data, model, guide: leave_comparisons_out(model, guide, data),
        lambda data, model, guide: predictive_checks(model, data),
        lambda data, model, guide: predict_held_out(model, guide, data),
        lambda data, model, guide: score_tests(model, guide, data),
        lambda data, model, guide: score_by_context({"a": lambda context: None}, data, [1]),
        lambda data, model, guide: analyse(data),
        lambda data, model, guide: rank(data),
        lambda data, model, guide: diagnose(model, guide, data),
    ],
)
def test_weights_are_refused_where_they_would_be_ignored(
    use: Callable[..., object], times: np.ndarray
) -> None:
    model = HeterogeneousBTL(2, 1, "linear")
    with pytest.raises(ValueError, match="does not take weights of people into account"):
        use(simulate().with_weights(times), model, NeuralProcessGuide(model))


def test_weights_by_name_go_to_the_people_named() -> None:
    data = Preferences(
        [0, 0, 0], [1, 1, 1], [1, 0, 1], [0, 1, 2, 3], num_items=2, user_names=["a", "b", "c"]
    )
    expected = [1.0, 9.0, 2.0]
    by_name = {"b": 9, "c": 2, "a": 1, "z": 7}
    for weights in (by_name, pd.Series(by_name), np.array(expected), pd.Series(expected)):
        assert data.with_weights(weights).weights.tolist() == expected
    with pytest.raises(ValueError, match="every person in its index, got none of 'c'"):
        data.with_weights({"b": 9, "a": 1})
    with pytest.raises(ValueError, match="must name a person once, got 'a' again"):
        data.with_weights(pd.Series([1, 2, 3, 4], index=["a", "b", "c", "a"]))
    with pytest.raises(ValueError, match="weights must be numbers, one a person"):
        data.with_weights(["one", "two", "three"])
