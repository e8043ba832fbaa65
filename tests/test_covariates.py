"""User covariates move the prior: exact posteriors, recovery, standard errors, and bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    comparison,
    exact,
    fit,
    load,
    save,
)
from fssa_bayes.checks import calibrate, predictive_checks, score_tests, simulate_people
from fssa_bayes.data import identified_covariates
from fssa_bayes.inference import FitResult
from fssa_bayes.population import covariate_effects, population_draws
from fssa_bayes.population.parameters import estimate_parameters

NAMES = ["age", "rural"]


def ask(
    num_users: int,
    num_comparisons: int,
    *,
    num_features: int = 3,
    num_items: int = 40,
    covariates: np.ndarray | None = None,
    seed: int = 0,
) -> Preferences:
    """Asks everybody about random pairs; covariates are an age and a yes or no."""
    rng = np.random.default_rng(seed)
    total = num_users * num_comparisons
    items = rng.normal(size=(num_items, num_features)) * np.linspace(0.5, 2, num_features)
    left = rng.integers(num_items, size=total)
    right = (left + rng.integers(1, num_items, size=total)) % num_items
    if covariates is None:
        ages = rng.normal(45, 15, num_users), rng.integers(0, 2, num_users)
        covariates = np.stack(ages, -1)
    return Preferences(
        left,
        right,
        rng.integers(2, size=total),
        np.arange(num_users + 1) * num_comparisons,
        items=items,
        covariates=covariates,
        covariate_names=NAMES[: covariates.shape[1]],
    )


def build(
    data: Preferences,
    latent_dim: int,
    utility: str = "linear",
    effect: list[list[float]] | None = None,
    **options: object,
) -> HeterogeneousBTL:
    """Builds a model standardised by the data, with the effect B (K, W) given, random if None."""
    width = data.covariates.shape[1]
    model = HeterogeneousBTL(
        data.num_features, latent_dim, utility, num_covariates=width, hidden_dim=8, **options
    )
    with torch.no_grad():
        model.set_standardisation(data.items)
        model.set_covariate_standardisation(data.covariates)
        if utility == "linear":
            model.utility.mean.normal_(0, 0.7)
            model.utility.loading.normal_(0, 0.7)
        model.covariate_effect.copy_(
            torch.randn(latent_dim, width) if effect is None else torch.tensor(effect)
        )
    return model


def effects_of(model: HeterogeneousBTL) -> np.ndarray:
    """Returns ΛB in original units, covariate after covariate."""
    effect = model.utility.loading @ model.covariate_effect
    effect = effect / model.feature_scale[:, None] / model.covariate_scale
    return effect.T.flatten().detach().double().numpy()


# The prior and the guide.


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_normal_prior_is_centred_by_covariates(latent_dim: int) -> None:
    data = ask(7, 2)
    model = build(data, latent_dim)
    table = data.covariates.double().numpy()
    standard = (table - table.mean(0)) / table.std(0)
    loc = torch.tensor(standard @ model.covariate_effect.detach().double().numpy().T)
    z = torch.randn(5, 7, latent_dim)
    expected = torch.distributions.Normal(loc.float(), 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(model.prior(7, data.covariates).log_prob(z), expected)
    assert model.location(data.covariates).mean(0).abs().max() < 1e-5  # w0 is the average person's


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_learned_prior_is_moved_as_a_whole(latent_dim: int, randomise: Callable) -> None:
    data = ask(7, 2)
    model = randomise(build(data, latent_dim, prior="flow"))
    prior, z = model.prior(7, data.covariates), torch.randn(5, 7, latent_dim)
    expected = model.average_prior(7).log_prob(z - model.location(data.covariates))
    torch.testing.assert_close(prior.log_prob(z), expected)
    drawn = prior.sample((4,))
    again = model.prior(7, data.covariates)  # It has not seen the draws, and inverts.
    torch.testing.assert_close(prior.log_prob(drawn), again.log_prob(drawn))


GUIDES = [
    (1, "normal", "affine"),
    (1, "flow", "affine"),
    (2, "normal", "affine"),
    (2, "multivariate_normal", "affine"),
    (2, "flow", "affine"),
    (3, "flow", "bent"),
]


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize(("latent_dim", "family", "coupling"), GUIDES)
@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
def test_posterior_of_an_empty_context_is_the_prior(
    latent_dim: int, family: str, coupling: str, utility: str, prior: str, randomise: Callable
) -> None:
    data = ask(6, 4)
    model = randomise(build(data, latent_dim, utility, prior=prior))
    guide = randomise(NeuralProcessGuide(model, family, hidden_dim=8, coupling=coupling))
    batch = data.batch()
    mask = batch.mask.clone()
    mask[::2] = False
    posterior = guide.posterior(batch.replace(mask=mask))
    prior_of = model.prior(6, data.covariates)
    z = prior_of.sample((200,))
    ours, theirs = posterior.log_prob(z), prior_of.log_prob(z)
    torch.testing.assert_close(ours[:, ::2], theirs[:, ::2], atol=2e-4, rtol=2e-5)
    assert ((ours - theirs)[:, 1::2].abs().amax(0) > 1e-2).all()  # The others do learn.


def test_posterior_depends_on_covariates_beyond_the_prior(randomise: Callable) -> None:
    data = ask(5, 4)
    model = build(data, 2)
    guide = randomise(NeuralProcessGuide(model, "multivariate_normal", hidden_dim=8))
    batch = data.batch()
    other = batch.replace(covariates=batch.covariates.flip(0))
    z = torch.randn(1, 5, 2)
    noise = [guide.posterior(b).log_prob(z + model.location(b.covariates)) for b in (batch, other)]
    assert ((noise[0] - noise[1]).abs() > 1e-4).any()


def test_sides_order_and_half_wins_do_not_matter(randomise: Callable) -> None:
    data = ask(5, 6)
    data = data.with_choices(np.where(np.arange(30) % 4 == 0, 0.5, data.choice))
    model = build(data, 2, "bilinear", position_bias=False)
    guide = randomise(NeuralProcessGuide(model, "flow", hidden_dim=8))
    z = torch.randn(20, 5, 2)
    expected = guide.posterior(data.batch()).log_prob(z)
    swapped = guide.posterior(data.swap().batch()).log_prob(z)
    order = (np.arange(5)[:, None] * 6 + np.random.default_rng(0).permutation(6)).ravel()
    columns = data.left[order], data.right[order], data.choice[order]
    shuffled = Preferences(*columns, data.offsets, items=data.items, covariates=data.covariates)
    torch.testing.assert_close(swapped, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        guide.posterior(shuffled.batch()).log_prob(z), expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_without_effect_all_is_as_without_covariates(
    utility: str, prior: str, randomise: Callable
) -> None:
    data = ask(6, 5)
    model = randomise(build(data, 3, utility, prior=prior))
    with torch.no_grad():
        model.covariate_effect.zero_()
    guide = randomise(NeuralProcessGuide(model, hidden_dim=8))
    plain = HeterogeneousBTL(3, 3, utility, prior, hidden_dim=8)
    plain.load_state_dict(model.state_dict(), strict=False)
    plain_guide = NeuralProcessGuide(plain, hidden_dim=8)
    plain_guide.load_state_dict(guide.state_dict(), strict=False)
    ours = Posterior(model, guide, data, 200, fallback=None)
    theirs = Posterior(plain, plain_guide, data, 200, fallback=None)
    torch.testing.assert_close(ours.z, theirs.z)
    torch.testing.assert_close(ours.pareto_k, theirs.pareto_k, atol=1e-3, rtol=1e-3)
    assert np.array_equal(model.simulate(data)[0].choice, plain.simulate(data)[0].choice)


# Exact posteriors.


def log_evidence(model: HeterogeneousBTL, batch, theta: list[Tensor], num: int = 161) -> Tensor:
    """Integrates ζ out by the trapezoidal rule in double precision, K = 1; log p(C | w), (U,)."""
    mean, loading, effect = theta
    items = model.standardise(batch.items).double()
    difference = items[batch.left] - items[batch.right]
    covariates = model.standardise_covariates(batch.covariates).double()
    noise = torch.linspace(-8, 8, num, dtype=torch.float64)
    z = noise[:, None] + covariates @ effect  # (G, U)
    margin = difference @ mean + z.unsqueeze(-1) * (difference @ loading)
    sign = 2 * batch.choice.double() - 1
    likelihood = torch.nn.functional.logsigmoid(sign * margin).sum(-1)
    density = -0.5 * noise.square() - 0.5 * np.log(2 * np.pi) + (noise[1] - noise[0]).log()
    return (likelihood + density[:, None]).logsumexp(0)


def parameters_of(model: HeterogeneousBTL) -> list[Tensor]:
    utility = model.utility
    parts = utility.mean, utility.loading[:, 0], model.covariate_effect[0]
    return [part.detach().double() for part in parts]


@pytest.mark.slow
def test_grid_and_importance_sampling_integrate_the_same_posterior() -> None:
    model = build(ask(40, 8, num_features=2), 1, effect=[[1.5, -0.8]])
    data, _ = model.simulate(ask(40, 8, num_features=2))
    guide = NeuralProcessGuide(model, "normal", hidden_dim=16)
    fit(model, guide, data, objective=Sleep(steps=300), progress_bar=False)
    data = data.subset(range(12))
    expected = log_evidence(model, data.batch(), parameters_of(model)).float()
    gold = exact.grid(model, data)
    torch.testing.assert_close(gold.log_evidence, expected, atol=1e-4, rtol=1e-4)
    result = FitResult(model, guide, data, pd.DataFrame())
    estimate = result.log_marginal_likelihood(num_samples=20_000, target_error=1.0)
    assert abs(estimate.value - expected.sum().item()) < 4 * estimate.standard_error + 1e-3
    ours = Posterior(model, guide, data, 20_000, fallback=None)
    assert ours.relative_ess.median() > 0.8
    theirs = Posterior.from_draws(model, data, gold).choice_prob(data).mean
    torch.testing.assert_close(ours.choice_prob(data).mean, theirs, atol=0.01, rtol=0)
    # Somebody else's covariates are another posterior, by far.
    other = copy.copy(data)
    other.covariates = data.covariates.flip(0)
    assert (exact.grid(model, other).log_evidence - expected).abs().max() > 0.1
    assert other.digest() != data.digest()


@pytest.mark.slow
def test_nuts_samples_the_posterior_of_the_grid() -> None:
    model = build(ask(2, 3, num_features=2), 1, effect=[[2.0, -1.5]])
    data, _ = model.simulate(ask(2, 3, num_features=2))
    chains = exact.nuts(model, data, num_samples=300, warmup_steps=100, num_chains=2)
    gold = exact.grid(model, data)
    mean = (gold.log_weights.exp().unsqueeze(-1) * gold.z).sum(0)[:, 0]
    error = chains.z[..., 0].std(0) / chains.ess_bulk.sqrt()
    assert ((chains.z.mean(0)[:, 0] - mean).abs() < 4 * error).all()
    assert (mean[0] - mean[1]).abs() > 10 * error.max()


def test_information_is_that_of_the_marginal_likelihood() -> None:
    """Louis' identity against automatic differentiation of the integrated likelihood."""
    data = ask(25, 6, num_features=2)
    model = build(data, 1, effect=[[0.8, -0.5]])
    estimate = estimate_parameters(model, data, 5_000, 0, "the test")
    sign = torch.sign(model.utility.loading[0, 0]).double()
    mean, loading, effect = parameters_of(model)
    theta = torch.cat([mean, sign * loading, sign * effect]).detach()
    torch.testing.assert_close(estimate.theta, theta, atol=1e-5, rtol=1e-5)
    batch = data.batch()

    def evidence(theta: Tensor) -> Tensor:
        return log_evidence(model, batch, list(theta.split([2, 2, 2])))

    score = torch.autograd.functional.jacobian(evidence, theta)
    hessian = torch.autograd.functional.hessian(lambda t: evidence(t).sum(), theta)
    known = estimate.uncertainty
    scale = known.outer.abs().max().item()
    torch.testing.assert_close(known.outer, score.T @ score, atol=0.03 * scale, rtol=0)
    scale = hessian.abs().max().item()
    torch.testing.assert_close(known.information, -hessian, atol=0.03 * scale, rtol=0)


@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_population_names_the_effects_in_original_units(latent_dim: int) -> None:
    model = build(ask(200, 12), latent_dim)
    with torch.no_grad():
        model.utility.loading.copy_(0.8 * torch.eye(3, latent_dim) + 0.2)
    data, _ = model.simulate(ask(200, 12))
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=8)
    result = FitResult(model, guide, data, pd.DataFrame())
    table = result.population(1000)
    effects = table.loc["effect"]
    assert list(effects.index) == [f"{name} on {d}" for name in NAMES for d in range(3)]
    np.testing.assert_allclose(effects["estimate"], effects_of(model), rtol=1e-4)
    # In other units of the covariate the effect is another number, the evidence is not.
    scaled = copy.copy(data)
    scaled.covariates = data.covariates * torch.tensor([12.0, 1.0])
    twin, twin_guide = copy.deepcopy((model, guide))
    twin.covariate_mean[0] *= 12
    twin.covariate_scale[0] *= 12
    months = FitResult(twin, twin_guide, scaled, pd.DataFrame()).population(1000).loc["effect"]
    for column in ("estimate", "se_sandwich"):
        np.testing.assert_allclose(months[column][:3] * 12, effects[column][:3], rtol=1e-2)
        np.testing.assert_allclose(months[column][3:], effects[column][3:], rtol=1e-2)


def test_population_draws_spread_as_the_standard_errors_say() -> None:
    truth = build(ask(300, 10), 2, effect=[[0.5, 0.2], [-0.4, 0.6]])
    data, _ = truth.simulate(ask(300, 10))
    guide = NeuralProcessGuide(truth, "multivariate_normal", hidden_dim=8)
    table = FitResult(truth, guide, data, pd.DataFrame()).population(500).loc["effect"]
    draws = population_draws(truth, guide, data, num=200, num_samples=500)
    effects = np.stack([effects_of(member) for member, _ in draws.members])
    np.testing.assert_allclose(effects.std(0), table["se_sandwich"], rtol=0.25)
    np.testing.assert_allclose(effects.mean(0), table["estimate"], atol=0.3 * effects.std(0).max())
    draws = population_draws(truth, guide, data, num=5, num_samples=100)
    drawn = Posterior(truth, guide, data.subset(range(3)), 100, population=draws)
    assert drawn.choice_prob(data.subset(range(3))).mean.isfinite().all()


# Fits.

SHORT = (
    ImportanceWeightedELBO(16, steps=350),
    Sleep(steps=100),
    ImportanceWeightedELBO(32, steps=150, batch_size=128),
)


@pytest.mark.slow
@pytest.mark.parametrize("latent_dim", [2, 3])
def test_effects_are_recovered(latent_dim: int) -> None:
    """Age has effects, the yes or no has none; with K < D the truth lies in the span of Λ."""
    shown = ask(1500, 12)
    truth = build(shown, latent_dim, effect=[[0.6, 0.0], [-0.4, 0.0], [0.3, 0.0]][:latent_dim])
    with torch.no_grad():
        truth.utility.mean.copy_(torch.tensor([-1.0, 0.5, 0.3]))
        loading = torch.tensor([[0.8, 0.2, 0.0], [-0.3, 0.7, 0.1], [0.2, 0.1, 0.5]])
        truth.utility.loading.copy_(loading[:, :latent_dim])
    data, _ = truth.simulate(shown, seed=2)
    model = HeterogeneousBTL(3, latent_dim, "linear", num_covariates=2)
    guide = NeuralProcessGuide(model, "multivariate_normal")
    result = fit(model, guide, data, objective=SHORT, progress_bar=False)
    table = result.population(500)
    effects, expected = table.loc["effect"], effects_of(truth)
    distance = (effects["estimate"] - expected) / effects["se_sandwich"]
    assert (distance.abs() < 3).all(), effects.assign(truth=expected)
    assert (np.abs(expected[:3]) > 4 * effects["se_sandwich"][:3]).sum() >= 2  # Age is seen.
    assert (effects["se_sandwich"] / effects["se_hessian"]).between(0.8, 1.25).all()
    # The mean is that of the average person.
    mean = (truth.utility.mean / truth.feature_scale).detach().numpy()
    means = table.loc["mean"]
    assert (((means["estimate"] - mean) / means["se_sandwich"]).abs() < 3).all()


@pytest.mark.slow
def test_standard_errors_are_the_spread_of_refits() -> None:
    """Fits to data drawn anew from one population: pulls are standard normal."""
    torch.manual_seed(3)
    shown = ask(250, 10, num_features=2)
    truth = build(shown, 1, effect=[[0.7, -0.4]])
    pulls = []
    for seed in range(10):
        data, _ = truth.simulate(shown, seed=seed)
        model = copy.deepcopy(truth)
        guide = NeuralProcessGuide(model, "normal", hidden_dim=16)
        stages = [ImportanceWeightedELBO(16, steps=120), Sleep(steps=50)]
        table = fit(model, guide, data, objective=stages, progress_bar=False).population(400)
        effects = table.loc["effect"]
        pulls.append((effects["estimate"] - effects_of(truth)) / effects["se_sandwich"])
    pulls = np.array(pulls)
    # Four effects of rank one: at least 20 independent pulls; their root mean square is near 1.
    assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.45
    assert np.abs(pulls.mean(0)).max() < 1.2


@pytest.mark.parametrize("stage", [Sleep(steps=3), NeuralProcessELBO(steps=3)])
def test_stages_change_what_they_may(stage: object) -> None:
    data = ask(30, 5)
    model = build(data, 2, "bilinear")
    before = model.covariate_effect.detach().clone()
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, objective=stage, validation=None, progress_bar=False)
    assert torch.equal(model.covariate_effect, before) == isinstance(stage, Sleep)


def test_sleep_takes_covariates_and_sizes_of_the_same_people() -> None:
    counts = np.where(np.arange(60) % 2 == 0, 1, 40)
    rng = np.random.default_rng(0)
    total = counts.sum()
    data = Preferences(
        np.zeros(total, dtype=int),
        np.ones(total, dtype=int),
        rng.integers(2, size=total),
        np.append(0, np.cumsum(counts)),
        num_items=2,
        covariates=counts[:, None].astype(float),
    )
    model = HeterogeneousBTL(2, 1, num_covariates=1)
    batch = Sleep(batch_size=400).draw_batch(model, data, np.random.default_rng(0))
    size, own = batch.num_comparisons, batch.covariates[:, 0]
    assert (size <= 2 * own).all()
    assert (size[own == 40] > 2).float().mean() > 0.5
    assert set(own.tolist()) == {1.0, 40.0}


def test_simulated_people_differ_as_their_covariates_say() -> None:
    data = ask(4000, 1, covariates=np.arange(4000)[:, None] % 2, num_features=2)
    model = build(data, 1, effect=[[1.5]])
    _, z = model.simulate(data)
    group = data.covariates[:, 0] == 1
    # Standardised, the two values are −1 and 1.
    for which, centre in ((group, 1.5), (~group, -1.5)):
        assert abs(z[which].mean() - centre) < 4 / 2000**0.5
        assert abs(z[which].std() - 1) < 0.1
    anybody = model.sample_population(4000, data)
    assert abs(anybody.mean()) < 0.12
    assert abs(anybody.var() - (1 + 1.5**2)) < 0.25


def test_pyro_draws_people_around_their_covariates() -> None:
    data = ask(4, 3)
    model = build(data, 2, effect=[[3.0, 0.0], [0.0, -3.0]])
    drawn = Predictive(model, num_samples=200, parallel=True)(data.batch(), observe=False)
    location = model.location(data.covariates)
    torch.testing.assert_close(drawn["z"].mean(0), location, atol=5 / 200**0.5, rtol=0)


# What follows the fit.


def test_people_of_a_study_bring_covariates_along() -> None:
    data = ask(50, 6)
    model = build(data, 2)
    people = simulate_people(model, data, 3, 200)
    assert torch.equal(people.context.covariates, people.target.covariates)
    residual = people.z - model.location(people.context.covariates)
    assert (residual.mean(0).abs() < 4 / 200**0.5).all()
    assert (residual.std(0) - 1).abs().max() < 0.2


@pytest.mark.slow
def test_calibration_sees_the_prior_of_the_wrong_person() -> None:
    data = ask(300, 8, num_features=2)
    model = build(data, 1, effect=[[1.2, -0.8]])
    guide = NeuralProcessGuide(model, "normal", hidden_dim=16)
    fit(model, guide, data, objective=Sleep(steps=400), progress_bar=False)
    options = {"sizes": (0, 3), "num_users": 600, "num_samples": 500}
    study = calibrate(model, guide, data, **options)
    assert not study.test().rejected
    assert not study.test("guide").rejected

    def blind(people, seed: int):
        context = copy.copy(people.context)
        context.covariates = context.covariates.flip(0)
        gold = exact.grid(model, context)
        return {"posterior": (gold.z, gold.log_weights)}

    assert calibrate(model, None, data, draw=blind, **options).test("posterior").rejected


@pytest.mark.slow
def test_checks_of_real_people_accept_the_truth_and_miss_absent_covariates() -> None:
    shown = ask(300, 12, num_features=2)
    model = build(shown, 1, effect=[[1.5, 0.0]])
    with torch.no_grad():
        model.utility.loading.copy_(torch.tensor([[1.0], [0.8]]))
    data, _ = model.simulate(shown)
    guide = NeuralProcessGuide(model, "normal", hidden_dim=16)
    fit(model, guide, data, objective=Sleep(steps=200), progress_bar=False)
    assert (score_tests(model, guide, data)["z"].abs() < 3.5).all()
    table = predictive_checks(model, data, num_replicates=100)
    judged = table[table["units"] > 0]
    assert (judged["verdict"] == "as the model says").all()
    surprise = Posterior(model, guide, data.subset(range(40)), 100).context_surprise(100)
    assert 0.3 < surprise["tail_probability"].mean() < 0.7
    # With the effect left out of the model people differ more than it says.
    plain = HeterogeneousBTL(2, 1, "linear")
    plain.load_state_dict(model.state_dict(), strict=False)
    blind = NeuralProcessGuide(plain, "normal", hidden_dim=16)
    with pytest.warns(UserWarning, match="does not use the covariates"):
        fit(plain, blind, data, objective=Sleep(steps=200), progress_bar=False)
    assert score_tests(plain, blind, data)["z"]["difference between people"] > 4


def test_export_holds_covariates_and_their_units() -> None:
    data = ask(5, 4)
    model = build(data, 2)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    exported = Posterior(model, guide, data, 400, fallback=None).to_inference_data(data)
    constant = exported["constant_data"]
    np.testing.assert_array_equal(constant["covariates"], data.covariates)
    np.testing.assert_allclose(constant["covariate_scale"], model.covariate_scale)
    assert list(constant["covariate"].values) == NAMES
    drawn = exported["prior"]["z"].values[0]
    location = model.location(data.covariates).detach().numpy()
    np.testing.assert_allclose(drawn.mean(0), location, atol=5 / 400**0.5)


def test_targets_need_no_covariates() -> None:
    data = ask(5, 4)
    model = build(data, 1)
    posterior = Posterior(model, NeuralProcessGuide(model, hidden_dim=8), data, 50, fallback=None)
    target = copy.copy(data)
    target.covariates = None
    expected = posterior.choice_prob(data).mean
    assert torch.equal(posterior.choice_prob(target).mean, expected)


# Effects on utilities.


def test_effects_on_linear_utilities_are_those_of_the_coefficients() -> None:
    data = ask(80, 4)
    model = build(data, 2)
    table = covariate_effects(model, data, [3, 5, 8, 9], num_draws=200)
    gamma = effects_of(model).reshape(2, 3)
    centred = (data.items[[3, 5, 8, 9]] - data.items[[3, 5, 8, 9]].mean(0)).double().numpy()
    for name, effect in zip(NAMES, gamma, strict=True):
        np.testing.assert_allclose(table.loc[name]["utility"], centred @ effect, atol=1e-4)
    assert table["utility_se"].isna().all()
    np.testing.assert_allclose(table["wins"].groupby(level=0, sort=False).sum(), 0, atol=1e-6)


class _Square(torch.nn.Module):
    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        return items[..., 0] * (1 + z[..., 0]).square()


@pytest.mark.parametrize("binary", [True, False])
def test_effects_on_other_utilities_are_averages_over_people(binary: bool) -> None:
    yes = np.arange(200) % 4 == 0
    values = yes if binary else np.random.default_rng(0).gamma(3, 2, 200)
    data = ask(200, 2, num_features=1, covariates=values[:, None])
    model = HeterogeneousBTL(1, 1, _Square(), num_covariates=1)
    with torch.no_grad():
        model.set_covariate_standardisation(data.covariates)
        model.covariate_effect.fill_(0.7)
    table = covariate_effects(model, data, [0, 1], num_draws=200_000)
    # E (1 + z)² = 1 + (1 + location)², utilities of two items are centred half their difference
    # apart, and a location is .7 in standard deviations.
    step = 0.7 / values.std()
    change = 2 * step
    if binary:
        change = (1 + (1 - yes.mean()) * step) ** 2 - (1 - yes.mean() * step) ** 2
    expected = change * (data.items[0, 0] - data.items[1, 0]).item() / 2
    np.testing.assert_allclose(table["utility"], [expected, -expected], rtol=0.02)


def test_errors_of_effects_are_the_spread_over_populations() -> None:
    model = build(ask(200, 12), 2)
    data, _ = model.simulate(ask(200, 12))
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=8)
    # By 500 draws of an untrained guide the information is not always positive.
    draws = population_draws(model, guide, data, num=30, num_samples=2000)
    result = FitResult(model, guide, data, pd.DataFrame())
    table = result.covariate_effects([0, 1, 2], population=draws, num_draws=100)
    centred = (data.items[:3] - data.items[:3].mean(0)).double().numpy()
    every = [centred @ effects_of(member).reshape(2, 3)[0] for member, _ in draws.members]
    np.testing.assert_allclose(table.loc["age"]["utility_se"], np.std(every, 0, ddof=1), rtol=1e-3)


def test_effects_of_a_linear_model_have_errors_without_being_asked() -> None:
    data = ask(40, 8)
    model = build(data, 1)
    data, _ = model.simulate(data)
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=8)
    result = FitResult(model, guide, data, pd.DataFrame())
    drawn = result.population_draws(seed=3)
    expected = result.covariate_effects([0, 1], population=drawn, num_draws=50, seed=3)
    shown = result.covariate_effects([0, 1], num_draws=50, seed=3)
    pd.testing.assert_frame_equal(shown, expected)
    assert (shown["utility_se"] > 0).all()
    bare = result.covariate_effects([0, 1], population=None, num_draws=50, seed=3)
    assert bare["utility_se"].isna().all()
    with pytest.raises(ValueError, match="population must be 'auto', draws or None, got 'all'"):
        result.covariate_effects([0, 1], population="all")


def test_effects_of_a_network_say_what_gives_errors() -> None:
    data = ask(10, 4)
    model = HeterogeneousBTL(3, 1, num_covariates=2, hidden_dim=8)
    result = FitResult(model, NeuralProcessGuide(model, hidden_dim=8), data, pd.DataFrame())
    with pytest.warns(UserWarning, match=r"pass population=result.bootstrap\(\) for errors"):
        table = result.covariate_effects([0, 1], num_draws=50)
    assert table["utility"].notna().all()
    assert table["utility_se"].isna().all()


# On disk.


def test_saved_model_knows_its_covariates(tmp_path) -> None:
    data = ask(30, 4)
    model = HeterogeneousBTL(3, 2, num_covariates=2, hidden_dim=8)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=2, validation=None, progress_bar=False)
    save(tmp_path / "run", model, guide)
    loaded, loaded_guide = load(tmp_path / "run")
    assert loaded.num_covariates == 2
    assert list(loaded.covariate_names) == NAMES
    mine, theirs = (Posterior(*pair, data, 50) for pair in ((model, guide), (loaded, loaded_guide)))
    assert torch.equal(mine.z, theirs.z)
    assert "num_covariates" not in HeterogeneousBTL(3, 2).config  # Older versions read those.


def test_checkpoint_tells_covariates_apart(tmp_path) -> None:
    data = ask(30, 4)
    options = {"steps": 2, "validation": None, "progress_bar": False, "checkpoint": tmp_path / "c"}
    model = HeterogeneousBTL(3, 1, num_covariates=2, hidden_dim=8)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fresh = copy.deepcopy((model, guide))
    fit(model, guide, data, **options)
    again = copy.deepcopy(fresh)
    fit(*again, data, **options)
    assert torch.equal(again[0].covariate_effect, model.covariate_effect)
    other = copy.copy(data)
    other.covariates = data.covariates.flip(0)
    with pytest.raises(ValueError, match="data differ"):
        fit(*fresh, other, **options)


# Bad input.


def test_homogeneous_model_takes_no_covariates() -> None:
    with pytest.raises(ValueError, match="latent_dim must be at least 1 with num_covariates=2"):
        HeterogeneousBTL(3, 0, num_covariates=2)
    with pytest.raises(ValueError, match="num_covariates must be an integer of at least 0, got -1"):
        HeterogeneousBTL(3, 1, num_covariates=-1)


def without(data: Preferences) -> Preferences:
    other = copy.copy(data)
    other.covariates = None
    return other


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without, "covariates must be given for a model with num_covariates=2, got none"),
        (
            lambda data: ask(10, 4, covariates=np.arange(10.0)[:, None]),
            "covariates must be the model's num_covariates=2, got 1",
        ),
    ],
)
def test_data_must_have_the_models_covariates(change: Callable, match: str) -> None:
    data = ask(10, 4)
    model = build(data, 1)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    wrong = change(data)
    for call in (
        lambda: fit(model, guide, wrong, progress_bar=False),
        lambda: Posterior(model, guide, wrong),
        lambda: exact.grid(model, wrong),
        lambda: calibrate(model, guide, wrong),
        lambda: model.simulate(wrong),
        lambda: model(wrong.batch()),
        lambda: guide.posterior(wrong.batch()),
        lambda: covariate_effects(model, wrong),
        lambda: predictive_checks(model, wrong),
        lambda: comparison.score_users(model, guide, wrong),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_covariates_keep_their_names_and_units() -> None:
    data = ask(30, 4)
    model = HeterogeneousBTL(3, 1, num_covariates=2, hidden_dim=8)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=1, validation=None, progress_bar=False)
    turned = copy.copy(data)
    turned.covariate_names, turned.covariates = data.covariate_names[::-1], data.covariates.flip(-1)
    one, other = (Posterior(model, guide, some, 50) for some in (data, turned))
    assert torch.equal(one.z, other.z)
    turned.covariate_names = pd.Index(["age", "sex"])
    with pytest.raises(
        ValueError, match=r"covariates the model was fitted to, .* without \['rural'"
    ):
        Posterior(model, guide, turned)
    far = copy.copy(data)
    far.covariates = data.covariates * torch.tensor([365.0, 1.0])
    with pytest.warns(UserWarning, match="covariate 'age' lies [0-9]+ standard deviations"):
        Posterior(model, guide, far, 50, fallback=None)


def test_everybody_needs_covariates_that_are_numbers() -> None:
    df = pd.DataFrame({"u": ["ann", "bob"], "l": ["a", "b"], "r": ["b", "a"], "c": [1, 0]})
    columns = {"user": "u", "left": "l", "right": "r", "choice": "c"}
    some = pd.DataFrame({"age": [30.0]}, index=["ann"])
    with pytest.raises(ValueError, match="users must have a row for every person, got none for 'b"):
        Preferences.from_dataframe(df, users=some, **columns)
    unknown = pd.DataFrame({"age": [30.0, np.nan]}, index=["ann", "bob"])
    with pytest.raises(ValueError, match="users must .*finite|users must .*NaN|age"):
        Preferences.from_dataframe(df, users=unknown, **columns)


@pytest.mark.parametrize(
    ("columns", "match", "identified"),
    [
        (lambda x: [x, np.full_like(x, 0.1)], "covariate 'rural' is the same for all", [1, 0]),
        (lambda x: [x, 1 - 2 * x], "2 covariates .* are collinear, of rank 1", [0, 0]),
    ],
)
@pytest.mark.filterwarnings("ignore:maximum likelihood did not converge in")
def test_effects_that_the_data_do_not_identify_have_no_number(
    columns: Callable, match: str, identified: list[int]
) -> None:
    covariates = np.stack(columns(np.random.default_rng(1).normal(size=80)), -1)
    data = ask(80, 6, covariates=covariates)
    assert identified_covariates(data.covariates).tolist() == [bool(i) for i in identified]
    truth = build(data, 2)
    with torch.no_grad():  # People differ: else there is no information on directions of Λ either.
        truth.utility.loading.copy_(torch.tensor([[1.5, 0.0], [0.5, 1.2], [-0.6, 0.8]]))
    data = truth.simulate(data, seed=0)[0]
    model = HeterogeneousBTL(3, 2, "linear", num_covariates=2)
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=8)
    with pytest.warns(UserWarning, match=match):
        result = fit(model, guide, data, steps=3, progress_bar=False)
    table = result.population(100).loc["effect"]
    assert table.notna().to_numpy().all(-1).tolist() == [bool(i) for i in identified for _ in "abc"]
    assert table[table["estimate"].isna()].isna().to_numpy().all()
    effects = result.covariate_effects([0, 1], num_draws=50)["utility"]
    assert effects.notna().tolist() == [bool(i) for i in identified for _ in "ab"]


def test_homogeneity_is_tested_without_covariates() -> None:
    data = ask(20, 4)

    def pair() -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
        model = HeterogeneousBTL(3, 1, "linear", num_covariates=2)
        return model, NeuralProcessGuide(model)

    with pytest.raises(ValueError, match="build must return a model without covariates"):
        comparison.heterogeneity_test(pair, data)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"items": ["nobody"]}, "items must be known names, got 'nobody'"),
        ({"items": [3]}, "items must be 2 to 200 names, got 1"),
        ({"num_draws": 0}, "num_draws must be an integer of at least 1, got 0"),
    ],
)
def test_bad_option_of_effects_is_named(change: dict, match: str) -> None:
    data = ask(10, 4)
    with pytest.raises(ValueError, match=match):
        covariate_effects(build(data, 1), data, **change)
    with pytest.raises(ValueError, match="model must have covariates"):
        covariate_effects(HeterogeneousBTL(3, 1), data)


def test_the_number_of_covariates_is_known_and_items_are_named_once() -> None:
    data = Preferences([0], [1], [1], [0, 1], num_items=2)
    assert data.num_covariates == 0
    data = Preferences([0, 0], [1, 1], [1, 0], [0, 1, 2], num_items=3, covariates=np.eye(2, 3))
    assert data.num_covariates == 3
    with pytest.raises(ValueError, match=r"items must be different names, got \[0, 1, 0\]"):
        covariate_effects(HeterogeneousBTL(3, 1, num_covariates=3), data, [0, 1, 0])
