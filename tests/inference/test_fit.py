"""fit(): known maxima, reproducibility, stages, and what it refuses."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pyro
import pytest
import torch
from linear_people import simulate, with_features

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessELBO,
    NeuralProcessGuide,
    Posterior,
    PredictiveLikelihood,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.datasets import two_mode


def fresh(data: Preferences, **options) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(0)
    model = HeterogeneousBTL(data.num_features, 2, **options)
    return model, NeuralProcessGuide(model)


@pytest.mark.slow
def test_heterogeneous_fit_recovers_mean_and_spread_within_its_standard_errors() -> None:
    data = simulate(people=1000)
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=16)
    stages = [ImportanceWeightedELBO(16, steps=250), Sleep(steps=100)] * 2
    result = fit(model, guide, data, objective=stages, learning_rate=6e-3, progress_bar=False)
    table = result.population(num_samples=500)
    truth = [1.0, -0.5, 1.0, 0.5, 0.0]
    error = (table["estimate"] - truth) / table["se_sandwich"]
    assert error.abs().max() < 3.5, table
    assert (table["se_sandwich"] < 0.15).all()


def test_log_marginal_likelihood_matches_quadrature_and_its_own_error() -> None:
    data = simulate(people=40, comparisons=6)
    model = HeterogeneousBTL(2, 1, utility="linear")
    guide = NeuralProcessGuide(model)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.9, -0.4]))
        model.utility.loading.copy_(torch.tensor([[0.8], [0.3]]))
    result = fit(model, guide, data, objective=Sleep(), steps=1, learning_rate=1e-8,
                 progress_bar=False)  # fmt: skip
    batch = data.batch()
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    z = torch.tensor(nodes, dtype=torch.float32).reshape(-1, 1, 1).expand(-1, 40, 1)
    with torch.no_grad():
        log_prob = model.choice(batch, z).log_prob(batch.choice).double()
    exact = (log_prob + torch.tensor(weights / weights.sum()).log()[:, None]).logsumexp(0).sum()
    estimates = [result.log_marginal_likelihood(seed=seed, num_samples=400) for seed in range(8)]
    error = [(e.value - exact.item()) / e.standard_error for e in estimates]
    assert np.abs(error).max() < 4
    assert np.std(error) > 0.2
    precise = result.log_marginal_likelihood(target_error=0.05)
    assert precise.standard_error <= 0.05
    assert precise.value == pytest.approx(exact.item(), abs=0.2)


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeightedELBO(4),
        ImportanceWeightedELBO(4, subset=True),
        ELBO(),
        NeuralProcessELBO(),
        PredictiveLikelihood(4),
        PredictiveLikelihood(deterministic=True),
        Sleep(),
    ],
    ids=lambda objective: objective.name,
)
@pytest.mark.parametrize("posterior", ["normal", "multivariate_normal", "flow"])
def test_every_objective_lowers_its_loss_and_repeats_bitwise(objective, posterior) -> None:
    data = two_mode.simulate(200, 8, seed=0).data
    states, losses = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = HeterogeneousBTL(1, 2, hidden_dim=16)
        guide = NeuralProcessGuide(model, posterior, hidden_dim=16)
        before = torch.get_rng_state()
        result = fit(model, guide, data, objective=objective, steps=60, learning_rate=1e-2,
                     validation=None, seed=7, progress_bar=False)  # fmt: skip
        assert torch.equal(before, torch.get_rng_state())
        states.append({**model.state_dict(), **guide.state_dict(prefix="guide.")})
        losses.append(result.history["loss"].to_numpy())
    assert np.array_equal(*losses)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert losses[0][-15:].mean() < losses[0][:15].mean()
    assert not list(pyro.get_param_store().keys())


def test_sleep_leaves_the_model_bitwise_as_it_was() -> None:
    data = two_mode.simulate(100, 8, seed=0).data
    torch.manual_seed(0)
    model = HeterogeneousBTL(1, 2, hidden_dim=16, prior="flow")
    guide = NeuralProcessGuide(model, hidden_dim=16)
    fit(model, guide, data, steps=3, validation=None, progress_bar=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    guide_before = guide.potential[0].weight.clone()
    fit(model, guide, data, objective=Sleep(steps=5), progress_bar=False, validation=None)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(guide_before, guide.potential[0].weight)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_validation_stops_early_and_refit_uses_everybody() -> None:
    data = two_mode.simulate(150, 8, seed=0).data
    model, guide = fresh(data, hidden_dim=16)
    result = fit(model, guide, data, steps=30, validation=0.2, progress_bar=False)
    stages = result.history.groupby("stage", sort=False)["step"].max()
    assert list(stages.index) == [
        "ImportanceWeightedELBO", "Sleep", "ImportanceWeightedELBO (refit)", "Sleep (refit)",
    ]  # fmt: skip
    scores = result.history.query("stage == 'ImportanceWeightedELBO'").dropna()
    best = scores.loc[scores["validation_log_score"].idxmax(), "step"]
    assert stages["ImportanceWeightedELBO (refit)"] == best
    assert set(result.held_out["posterior"]) == {"raw", "corrected"}
    assert (result.held_out["log_loss"] > 0).all()


def test_a_fit_continues_from_the_parameters_and_standardises_once() -> None:
    data = simulate(people=20)
    model, guide = fresh(data, utility="linear")
    fit(model, guide, data, steps=2, progress_bar=False)
    scale = model.feature_scale.clone()
    torch.testing.assert_close(scale, data.items.std(0, unbiased=False))
    other = with_features(data, 9 * data.items, ["size", "price"])
    fit(model, guide, other, steps=2, progress_bar=False)
    assert torch.equal(model.feature_scale, scale)


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_non_finite_loss_names_step_and_people_and_keeps_the_parameters() -> None:
    data = simulate(people=5)
    model, guide = fresh(data, utility="linear")
    with torch.no_grad():
        model.utility.mean[0] = math.inf
    before = guide.potential[0].weight.clone()
    with pytest.raises(FloatingPointError, match=r"step 1 of ImportanceWeightedELBO.*users .*3"):
        fit(model, guide, data, progress_bar=False)
    assert torch.equal(before, guide.potential[0].weight)


def test_a_broken_progress_bar_does_not_end_the_fit(monkeypatch) -> None:
    data = simulate(people=5)
    model, guide = fresh(data, utility="linear")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("fssa_bayes.inference.progress.tqdm.update", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="progress bar failed and is switched off"):
        result = fit(model, guide, data, steps=2)
    assert len(result.history) == 8


def test_separated_choices_are_named() -> None:
    data = Preferences([0, 0, 1], [1, 2, 2], [1, 1, 1], [0, 3], num_items=3)
    with pytest.warns(UserWarning, match="separated"):
        fit(HeterogeneousBTL(3, 0, utility="linear"), None, data, progress_bar=False)


def test_bad_input_is_refused_before_work() -> None:
    data = simulate(people=12)
    model, guide = fresh(data, utility="linear")
    before = model.utility.loading.clone()
    other_guide = NeuralProcessGuide(HeterogeneousBTL(2, 2))
    homogeneous = HeterogeneousBTL(2, 0)
    wide = HeterogeneousBTL(3, 2)
    nobody = Preferences([0], [1], [1], [0, 1, 1], items=np.eye(2), user_names=["ann", "bob"])
    ties = Preferences([0], [1], [0.5], [0, 1], items=np.eye(2), ties="keep")
    two = fresh(data)
    for call, error, match in [
        (lambda: fit(model, None, data), ValueError, "guide must be given"),
        (lambda: fit(model, other_guide, data), ValueError, "guide of this model"),
        (lambda: fit(homogeneous, guide, data), ValueError, "guide must be"),
        (lambda: fit(wide, NeuralProcessGuide(wide), data), ValueError, "num_features=3.* got 2"),
        (lambda: fit(model, guide, nobody), ValueError, "none for user 'bob'"),
        (lambda: fit(model, guide, ties), ValueError, "keeps ties"),
        (lambda: fit(model, guide, data.subset([0])), ValueError, "at least 2 people"),
        (lambda: fit(model, guide, data, validation=1.5), ValueError, "validation .* got 1.5"),
        (lambda: fit(*two, data.subset(range(5))), ValueError, "at least 10 people, got 5"),
        (lambda: fit(model, guide, data, steps=0), ValueError, "steps .* got 0"),
        (lambda: fit(model, guide, data, objective="elbo"), TypeError, "objective must be"),
        (lambda: fit(homogeneous, None, data, objective=ELBO()), ValueError, "latent_dim=0"),
        (lambda: fit(model, guide, data, learning_rate=0), ValueError, "learning_rate .* got 0"),
        (lambda: fit(model, guide, "data"), TypeError, "data must be Preferences, got str"),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert torch.equal(before, model.utility.loading)
    with pytest.raises(ValueError, match="utility='linear'"):
        fit(*two, data, steps=1, validation=None, progress_bar=False).population()


def test_unused_covariates_are_named() -> None:
    data = simulate(people=3)
    data.covariates = torch.ones(3, 1)
    model, guide = fresh(data, utility="linear")
    with pytest.warns(UserWarning, match="does not use the covariates"):
        fit(model, guide, data, steps=1, progress_bar=False)


def test_items_without_features_are_fitted_by_look_up() -> None:
    """Two kinds of people who rank three items in opposite orders."""
    order = np.array([[0, 1], [1, 2], [0, 2]])
    left, right = np.tile(order, (40, 1)).T
    choice = np.repeat(np.arange(40) % 2, 3).astype(float)
    data = Preferences(
        left, right, choice, np.arange(0, 121, 3), num_items=3, item_names=list("abc")
    )
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 1, utility="linear")
    guide = NeuralProcessGuide(model, hidden_dim=16)
    fit(model, guide, data, steps=150, learning_rate=1e-2, progress_bar=False)
    posterior = Posterior(model, guide, data.subset([0, 1]), num_samples=400)
    utility = posterior.utility().mean(0)
    assert utility[0].argsort().tolist() == [0, 1, 2]
    assert utility[1].argsort().tolist() == [2, 1, 0]


def test_data_of_other_items_or_features_are_refused() -> None:
    """Positions and columns have a meaning that the width alone does not check."""
    data = simulate(people=12)
    model, guide = fresh(data, utility="linear")
    fit(model, guide, data, steps=1, progress_bar=False)
    swapped = with_features(data, data.items.flip(-1), ["price", "size"])
    with pytest.raises(ValueError, match=r"features .* \['size', 'price'\], got \['price', 'size'"):
        Posterior(model, guide, swapped)
    far = with_features(data, 1000 * data.items, ["size", "price"])
    with pytest.warns(UserWarning, match="'price' lies .* standard deviations"):
        Posterior(model, guide, far, num_samples=50)


def test_one_person_with_very_many_comparisons_does_not_pad_the_others() -> None:
    """20,000 x 20,000 padded margins would need 3 GB; the maximum is that of the pooled choices."""
    rng = np.random.default_rng(0)
    counts = np.append(np.ones(20_000, dtype=int), 20_000)
    choice = rng.random(40_000) < 0.7
    left = np.zeros(40_000, dtype=int)
    data = Preferences(left, left + 1, choice, np.append(0, np.cumsum(counts)), num_items=2)
    model = HeterogeneousBTL(2, 0, utility="linear")
    fit(model, None, data, progress_bar=False)
    margin = (model.utility.mean[0] - model.utility.mean[1]).item()
    assert margin == pytest.approx(np.log(choice.mean() / (1 - choice.mean())), abs=1e-5)
