"""A model fitted to some items, features and covariates reads them by name, in any table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    exact,
    fit,
    load,
    save,
)
from fssa_bayes.baselines import DeterministicNeuralProcess, HomogeneousBTL, MixtureBTL
from fssa_bayes.checks import (
    calibrate,
    predict_held_out,
    predictive_checks,
    score_tests,
    simulate_people,
)
from fssa_bayes.comparison import compare, leave_comparisons_out, score_users
from fssa_bayes.inference import FitResult
from fssa_bayes.population import covariate_effects, population_table, ranking_table

DRINKS = ["tea", "cola", "milk", "water", "juice"]
COLUMNS = {"user": "u", "left": "l", "right": "r", "choice": "c"}


def simulate(num_users: int = 24, num_comparisons: int = 6) -> pd.DataFrame:
    """Draws choices of people among five drinks, whose two tastes an age goes with."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(num_users), num_comparisons)
    pairs = np.array([(a, b) for a in range(5) for b in range(a)])
    asked = [rng.permutation(len(pairs))[:num_comparisons] for _ in range(num_users)]
    left, right = rng.permuted(pairs[np.concatenate(asked)], axis=1).T
    taste = np.where(person % 2, 1.0, -1.0)
    wins = rng.random(len(person)) < 1 / (1 + np.exp(-taste * (left - right)))
    names = np.array(DRINKS, dtype=object)
    user = [f"p{number}" for number in person]
    return pd.DataFrame({"u": user, "l": names[left], "r": names[right], "c": wins.astype(int)})


FEATURES = pd.DataFrame(
    {"sugar": [0.0, 10, 5, 0, 9], "price": [2.0, 3, 2.5, 1, 4], "heat": [1.0, 0, 0.5, 0, 0]},
    index=DRINKS,
)
PEOPLE = pd.DataFrame(
    {"age": 30.0 + 10 * (np.arange(24) % 2) + np.arange(24) / 7, "rural": np.arange(24) // 3 % 2},
    index=[f"p{number}" for number in range(24)],
)


def read(table: pd.DataFrame, featured: bool = False, turned: bool = False) -> Preferences:
    """Reads choices; `turned` has columns in another order, and more of them."""
    if not featured:
        data = Preferences.from_dataframe(table, **COLUMNS)
        return data.select_items(["juice", *DRINKS[:-1]]) if turned else data
    items, users = FEATURES, PEOPLE.loc[table["u"].unique()]
    if turned:
        items = items[["heat", "sugar", "price"]].assign(colour=[1, 2, 3, 4, 5])
        users = users[["rural", "age"]].assign(shoe=42.0)
    return Preferences.from_dataframe(table, **COLUMNS, items=items, users=users)


def build(data: Preferences, latent_dim: int = 1) -> FitResult:
    torch.manual_seed(0)
    utility = "linear"
    model = HeterogeneousBTL(
        data.num_features, latent_dim, utility, num_covariates=data.num_covariates
    )
    guide = NeuralProcessGuide(model, hidden_dim=8)
    options = {"objective": ELBO(steps=3), "validation": None, "progress_bar": False}
    return fit(model, guide, data, **options)


@pytest.fixture(scope="module")
def plain() -> FitResult:
    """A model of drinks without features."""
    return build(read(simulate()))


@pytest.fixture(scope="module")
def described() -> FitResult:
    """A model of drinks with features, and of people with covariates."""
    return build(read(simulate(), featured=True))


# A new person, the same file shuffled, an interview: items without features.


def test_two_votes_on_three_of_five_items(plain: FitResult) -> None:
    """The posterior is that of Bayes' rule on a grid, with the coefficients of these names."""
    model = plain.model
    new = pd.DataFrame({"u": "new", "l": ["milk", "juice"], "r": ["juice", "tea"], "c": [1, 0]})
    context = Preferences.from_dataframe(new, **COLUMNS)
    assert context.num_items == 3
    found = exact.grid(model, context, num=201)
    mean = dict(zip(model.feature_names, model.utility.mean.tolist(), strict=True))
    slope = dict(zip(model.feature_names, model.utility.loading[:, 0].tolist(), strict=True))
    z = np.linspace(-9, 9, 4001)

    def utility(name: str) -> np.ndarray:
        return mean[name] + slope[name] * z

    likelihood = 1 / (1 + np.exp(utility("juice") - utility("milk")))
    likelihood *= 1 / (1 + np.exp(utility("juice") - utility("tea")))
    density = likelihood * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    evidence = density.sum() * (z[1] - z[0])
    assert found.log_evidence.item() == pytest.approx(np.log(evidence), abs=1e-5)

    posterior = Posterior.from_draws(model, context, found)
    share = density / density.sum()
    names = list(model.feature_names)
    expected = np.array([(share * utility(name)).sum() for name in names])
    drawn = Posterior(model, plain.guide, context, 4000).utility().mean(0)
    assert drawn.shape == (1, 5)
    np.testing.assert_allclose(drawn[0], expected - expected.mean(), atol=0.05)
    weights = posterior.proposals[1].exp()
    z_mean = (weights * posterior.proposals[0][..., 0]).sum()
    assert z_mean.item() == pytest.approx((share * z).sum(), abs=1e-4)
    assert posterior.rank_prob(["juice", "water"]).shape == (1, 2, 2)
    assert posterior.context.item_names.tolist() == names


def test_two_strangers_on_different_items_have_utilities_of_all(plain: FitResult) -> None:
    new = pd.DataFrame({"u": ["x", "y"], "l": ["milk", "cola"], "r": ["tea", "water"], "c": [1, 0]})
    with pytest.warns(UserWarning, match="2 connected components"):
        context = Preferences.from_dataframe(new, **COLUMNS)
    both = Posterior(plain.model, plain.guide, context, 100)
    assert both.utility().shape == (100, 2, 5)
    assert both.rank_prob().shape == (2, 5, 5)
    exported = both.to_inference_data(context)
    names = plain.model.feature_names.tolist()
    assert exported.posterior["utility"].sizes["item"] == 5
    assert sorted(exported.posterior["item"].values.tolist()) == sorted(names)


def test_the_same_file_shuffled(plain: FitResult) -> None:
    table = simulate()
    data = read(table)
    by_person = exact.grid(plain.model, data, num=41)
    # People in another order, each person's answers in theirs: the items come in another order.
    turned = read(table.iloc[np.argsort(-np.arange(len(table)) // 6, kind="stable")])
    assert not turned.item_names.equals(data.item_names)
    other = exact.grid(plain.model, turned, num=41)
    people = turned.user_names.get_indexer(data.user_names)
    assert torch.equal(other.z[:, people], by_person.z)
    torch.testing.assert_close(other.log_weights[:, people], by_person.log_weights)
    # Everything in another order: sums are rounded otherwise.
    shuffled = read(table.sample(frac=1, random_state=1))
    other = exact.grid(plain.model, shuffled, num=41)
    people = shuffled.user_names.get_indexer(data.user_names)
    torch.testing.assert_close(other.log_evidence[people], by_person.log_evidence)
    batches = (some.for_model(plain.model).batch() for some in (data, shuffled))
    before, after = (plain.guide.location(batch) for batch in batches)
    torch.testing.assert_close(after[people], before)


def test_an_interview_from_nothing(plain: FitResult) -> None:
    """Nothing known gives the prior; answers one by one give what a table of them gives."""
    model, guide = plain.model, plain.guide
    context = Preferences.empty(["new"], model.feature_names)
    posterior = Posterior(model, guide, context, 2000)
    assert posterior.pareto_k.item() == 0
    assert posterior.relative_ess.item() == pytest.approx(1)
    prior = exact.grid(model, context, num=101)
    assert prior.log_evidence.item() == pytest.approx(0, abs=1e-5)
    assert posterior.z.mean().item() == pytest.approx(0, abs=0.1)
    assert posterior.z.std().item() == pytest.approx(1, abs=0.06)
    assert posterior.utility().shape == (2000, 1, 5)
    rows = simulate(1)
    for row in rows.itertuples():
        context = context.append("new", row.l, row.r, row.c)
    at_once = read(rows.assign(u="new"))
    one, other = (Posterior(model, guide, data, 100) for data in (context, at_once))
    assert torch.equal(one.z, other.z)
    assert torch.equal(one.utility(), other.utility())


# Everything that takes a model and data.

OF_MODEL_AND_DATA: dict[str, Callable[[FitResult, Preferences], Any]] = {
    "utility": lambda r, d: Posterior(r.model, r.guide, d, 50).utility(DRINKS),
    "choice_prob": lambda r, d: Posterior(r.model, r.guide, r.data, 50).choice_prob(d).mean,
    "log_score": lambda r, d: Posterior(r.model, r.guide, d, 50).log_score(d),
    "surprise": lambda r, d: Posterior(r.model, r.guide, d, 50).context_surprise(50, num_samples=5)[
        "expected"
    ],
    "simulate": lambda r, d: r.model.simulate(d)[0].choice,
    "log_marginal_likelihood": lambda r, d: r.log_marginal_likelihood(d, 50, target_error=9).value,
    "grid": lambda r, d: exact.grid(r.model, d, num=21).log_weights,
    "from_draws": lambda r, d: Posterior.from_draws(
        r.model, d, exact.grid(r.model, d, num=21)
    ).log_score(d),
    "nuts": lambda r, d: (
        exact.nuts(
            *(r.model, d.subset([0])),
            num_samples=10,
            warmup_steps=5,
            num_chains=2,
            target_r_hat=9.0,
            max_attempts=1,
        ).log_joint
    ),
    "calibrate": lambda r, d: (
        calibrate(r.model, r.guide, d, sizes=[2], num_users=100, num_samples=100).pareto_k
    ),
    "predict_held_out": lambda r, d: (
        predict_held_out(r.model, r.guide, d, sizes=[2], num_samples=50)[0].log_score
    ),
    "score_tests": lambda r, d: score_tests(r.model, r.guide, d, num_samples=50)["score"],
    "predictive_checks": lambda r, d: predictive_checks(r.model, d, 20)["replicated"],
    "score_users": lambda r, d: score_users(r.model, r.guide, d, 50).values,
    "leave_comparisons_out": lambda r, d: leave_comparisons_out(r.model, r.guide, d, 50).values,
    "population_table": lambda r, d: population_table(r.model, r.guide, d, num_samples=20)[
        "estimate"
    ],
}


@pytest.mark.filterwarnings("ignore:.*(chains|converge|Pareto|parameter|directions|largest)")
@pytest.mark.parametrize("featured", [False, True])
@pytest.mark.parametrize("name", OF_MODEL_AND_DATA)
def test_another_order_changes_nothing(
    name: str, featured: bool, plain: FitResult, described: FitResult
) -> None:
    result = described if featured else plain
    table = simulate()
    ask = OF_MODEL_AND_DATA[name]
    np.testing.assert_array_equal(
        np.asarray(ask(result, read(table, featured, turned=True))),
        np.asarray(ask(result, read(table, featured))),
    )


def test_models_that_number_items_differently_are_compared(plain: FitResult) -> None:
    data = read(simulate(), turned=True)
    other = build(data)
    assert not other.model.feature_names.equals(plain.model.feature_names)
    scores = {
        "one": score_users(plain.model, plain.guide, data, 50),
        "two": score_users(other.model, other.guide, data, 50),
    }
    assert len(compare(scores)) == 2


def test_simulated_people_are_asked_in_the_order_of_one_model(plain: FitResult) -> None:
    data, turned = read(simulate()), read(simulate(), turned=True)
    one, other = (simulate_people(plain.model, some, 2, 20) for some in (data, turned))
    assert one.context.digest() == other.context.digest()
    assert one.target.digest() == other.target.digest()
    source = build(turned).model
    with pytest.raises(ValueError, match="source must have the items, .* in the same order"):
        calibrate(plain.model, plain.guide, data, sizes=[1], num_users=100, source=source)


def test_a_fit_goes_on_with_another_file(described: FitResult) -> None:
    results = []
    for turned in (False, True):
        model, guide = copy.deepcopy((described.model, described.guide))
        options = {"objective": ELBO(steps=2), "validation": None, "progress_bar": False}
        results.append(fit(model, guide, read(simulate(), True, turned), **options))
    first, second = (result.model.state_dict() for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert results[1].data.feature_names.tolist() == FEATURES.columns.tolist()
    assert results[1].model.feature_names.tolist() == FEATURES.columns.tolist()
    assert results[1].model.covariate_names.tolist() == PEOPLE.columns.tolist()


def test_effects_of_covariates_in_another_order(described: FitResult) -> None:
    effects = [
        covariate_effects(described.model, read(simulate(), True, turned), DRINKS, num_draws=50)
        for turned in (False, True)
    ]
    pd.testing.assert_frame_equal(*effects)
    assert effects[0].index.get_level_values("covariate").unique().tolist() == ["age", "rural"]


@pytest.mark.parametrize("featured", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        HomogeneousBTL,
        lambda: MixtureBTL(2, num_restarts=1, max_iterations=3),
        lambda: DeterministicNeuralProcess(1, "linear", 8, steps=2),
    ],
    ids=["homogeneous", "mixture", "published"],
)
@pytest.mark.filterwarnings("ignore:.*(EM|separat|iterations|use the covariates)")
def test_baselines_read_another_order(make: Callable, featured: bool) -> None:
    table = simulate()
    data, turned = read(table, featured), read(table, featured, turned=True)
    baseline = make().fit(data, progress_bar=False)
    context, target = data.split_context(3)
    others = turned.split_context(3)
    expected = baseline.predict(context).log_score(target)
    assert torch.equal(baseline.predict(others[0]).log_score(others[1]), expected)
    if hasattr(baseline, "log_evidence"):
        assert torch.equal(baseline.log_evidence(turned), baseline.log_evidence(data))


def test_a_ranking_keeps_its_names() -> None:
    data = read(simulate())
    average = HomogeneousBTL().fit(data, progress_bar=False)
    expected = average.result.ranking()
    turned = ranking_table(average.model, read(simulate(), turned=True))
    pd.testing.assert_frame_equal(turned, expected)


# What cannot be read, and what is read after a reload.


def test_unknown_items_are_refused_with_the_remedy(plain: FitResult) -> None:
    table = simulate()
    table.loc[0, "l"] = "beer"
    data = read(table)
    with pytest.raises(ValueError, match=r"\['beer'\] in 1 of 144 comparisons: fit again"):
        Posterior(plain.model, plain.guide, data)
    known = Posterior(plain.model, plain.guide, data.select_items(plain.model.feature_names), 50)
    assert known.context.num_comparisons == 143


def test_items_without_the_features_of_the_fit_are_refused(
    described: FitResult, plain: FitResult
) -> None:
    with pytest.raises(ValueError, match=r"the model was fitted to, \['sugar', .* read the data"):
        Posterior(described.model, described.guide, read(simulate()))
    with pytest.raises(ValueError, match=r"have the features .* without \['.*'tea'.*\]"):
        Posterior(plain.model, plain.guide, read(simulate(), featured=True))


def test_features_of_new_items_are_taken_by_name(described: FitResult) -> None:
    posterior = Posterior(described.model, described.guide, described.data, 50)
    expected = posterior.utility(FEATURES.to_numpy())
    assert torch.equal(posterior.utility(FEATURES[["price", "heat", "sugar"]]), expected)
    assert torch.equal(posterior.utility(pd.DataFrame(FEATURES.to_numpy())), expected)
    with pytest.raises(ValueError, match=r"items must have the features .* without \['heat'\]"):
        posterior.utility(FEATURES[["price", "sugar"]])


@pytest.mark.parametrize("featured", [False, True])
def test_a_saved_model_reads_by_name(
    featured: bool, plain: FitResult, described: FitResult, tmp_path
) -> None:
    result = described if featured else plain
    save(tmp_path / "run", result.model, result.guide)
    data = read(simulate(), featured, turned=True)
    found = Posterior(*load(tmp_path / "run"), data, 50)
    assert torch.equal(found.z, Posterior(result.model, result.guide, result.data, 50).z)
