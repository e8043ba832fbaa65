"""Ties, position bias and lapses as part of the model: recovery, errors, everything downstream."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize
from torch import Tensor

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    exact,
    fit,
    load,
    save,
)
from fssa_bayes.population import ranking_table
from fssa_bayes.population.information import population_information

MakeData = Callable[..., Preferences]

TIES = {"ties": "davidson"}
BIAS = {"position_bias": True}
LAPSES = {"lapses": True}
ALL = TIES | BIAS | LAPSES
OPTIONS = {"ties": TIES, "bias": BIAS, "lapses": LAPSES, "all": ALL}
EACH = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
TRUTH = {"log_tie": -0.4, "bias": 0.3, "lapse_logit": -2.0}
BETA = (2.0, -1.0)


def questions(number: int, seed: int, per_person: int = 10) -> Preferences:
    """Pairs of 25 common items with two features, without answers."""
    rng = np.random.default_rng(seed)
    left = rng.integers(25, size=number)
    right = (left + rng.integers(1, 25, size=number)) % 25
    offsets = np.arange(0, number + 1, per_person)
    items = rng.normal(size=(25, 2))
    return Preferences(left, right, np.zeros(number), offsets, items=items)


def truth(latent_dim: int = 0, **options) -> HeterogeneousBTL:
    """The linear model with coefficients BETA, standard deviation .8, and TRUTH."""
    model = HeterogeneousBTL(2, latent_dim, utility="linear", **options).eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor(BETA))
        model.utility.loading.copy_(0.8 * torch.eye(2)[:, :latent_dim])
        for name, value in TRUTH.items():
            if getattr(model, name) is not None:
                getattr(model, name).fill_(value)
    return model


def parameters(model: HeterogeneousBTL) -> list[float]:
    return [*BETA, *(v for name, v in TRUTH.items() if getattr(model, name) is not None)]


def by_hand(theta: Tensor, x: Tensor, choice: Tensor, options: dict) -> Tensor:
    """Log-likelihood of each comparison (R,) from features x (R, 2), as the papers write it."""
    rest = list(theta[2:])
    log_tie = rest.pop(0) if "ties" in options else None
    margin = x @ theta[:2] + (rest.pop(0) if "position_bias" in options else 0.0)
    terms = [margin / 2, -margin / 2]
    if log_tie is not None:
        terms.append(log_tie.expand_as(margin))
    log_prob = torch.stack(terms).log_softmax(0)
    if rest:
        rate = rest[0].sigmoid()
        log_prob = ((1 - rate) * log_prob.exp() + rate / len(terms)).log()
    outcome = torch.where(choice == 1, 0, torch.where(choice == 0, 1, 2))
    return log_prob.gather(0, outcome[None])[0]


def features(data: Preferences) -> Tensor:
    return (data.items[data.left] - data.items[data.right]).double()


# Recovery.


@pytest.mark.slow
@EACH
def test_homogeneous_fit_covers_the_truth(options: dict) -> None:
    """In 100 simulated sets, each parameter within two standard errors at least 90 times."""
    model = truth(**options)
    inside = np.zeros(len(parameters(model)), dtype=int)
    for seed in range(100):
        data, _ = model.simulate(questions(3000, 1000 + seed, per_person=30), seed=seed)
        fitted = HeterogeneousBTL(2, 0, utility="linear", **options)
        table = fit(fitted, None, data, progress_bar=False).population()
        table = table.drop(index=("answer", "lapse rate"), errors="ignore")
        distance = (table["estimate"] - parameters(model)) / table["se_hessian"]
        inside += (distance.abs() < 2).to_numpy()
    assert inside.min() >= 90, inside


@EACH
def test_homogeneous_fit_is_the_direct_maximum_with_its_errors(options: dict) -> None:
    data, _ = truth(**options).simulate(questions(2000, 3), seed=3)
    fitted = HeterogeneousBTL(2, 0, utility="linear", **options)
    result = fit(fitted, None, data, progress_bar=False)
    table = result.population()
    x, choice = features(data), torch.from_numpy(data.choice).double()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(theta, requires_grad=True)
        value = -by_hand(theta, x, choice, options).sum()
        return value.item(), torch.autograd.grad(value, theta)[0].numpy()

    start = np.zeros(len(parameters(fitted)))
    best = optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-5})
    at = torch.tensor(best.x)
    hessian = torch.autograd.functional.hessian(lambda t: -by_hand(t, x, choice, options).sum(), at)
    scores = torch.autograd.functional.jacobian(lambda t: by_hand(t, x, choice, options), at)
    people = scores.reshape(len(data), -1, len(at)).sum(1)
    outer, inverse = people.T @ people, hessian.inverse()
    plain = table.drop(index=("answer", "lapse rate"), errors="ignore")
    np.testing.assert_allclose(plain["estimate"], best.x, rtol=2e-3, atol=2e-4)
    assert result.log_marginal_likelihood().value == pytest.approx(-best.fun, abs=2e-3)
    for column, covariance in (
        ("se_hessian", inverse),
        ("se_outer_product", outer.inverse()),
        ("se_sandwich", inverse @ outer @ inverse),
    ):
        np.testing.assert_allclose(plain[column], covariance.diagonal().sqrt(), rtol=5e-3)
    if "lapses" in options:  # The rate by the delta method.
        rate, error = table.loc[("answer", "lapse rate"), ["estimate", "se_sandwich"]]
        logit, logit_error = table.loc[("answer", "lapse logit"), ["estimate", "se_sandwich"]]
        assert rate == pytest.approx(1 / (1 + math.exp(-logit)))
        assert error == pytest.approx(rate * (1 - rate) * logit_error)
    ranked = ranking_table(fitted, data, items=[0, 1, 2])
    design = data.items[:3].double() - data.items[:3].double().mean(0)
    sandwich = (inverse @ outer @ inverse)[:2, :2]
    expected = torch.einsum("md,de,me->m", design, sandwich, design).sqrt()
    np.testing.assert_allclose(ranked.loc[[0, 1, 2], "standard_error"], expected, rtol=5e-3)


def test_davidsons_own_example() -> None:
    """Six brands of chocolate pudding, 745 comparisons (Davidson 1970, example 2).

    Estimates and standard errors are those that the R package PlackettLuce prints for it, after
    seven iterations, which agree with the paper's.
    """
    table = np.array(
        [
            [1, 2, 19, 22, 16], [1, 3, 16, 19, 12], [2, 3, 19, 19, 10], [1, 4, 18, 23, 13],
            [2, 4, 23, 19, 9], [3, 4, 19, 20, 15], [1, 5, 13, 19, 18], [2, 5, 16, 20, 12],
            [3, 5, 16, 15, 17], [4, 5, 17, 14, 16], [1, 6, 18, 21, 12], [2, 6, 22, 20, 12],
            [3, 6, 13, 18, 10], [4, 6, 14, 19, 18], [5, 6, 11, 21, 12],
        ]
    )  # fmt: skip
    first, second, *counts = table.T
    rows = pd.DataFrame(
        {
            "left": np.concatenate([first.repeat(n) for n in counts]),
            "right": np.concatenate([second.repeat(n) for n in counts]),
            "choice": np.repeat(["left", "right", "tie"], [n.sum() for n in counts]),
        }
    )
    rows["person"] = np.arange(len(rows))
    data = Preferences.from_dataframe(
        rows, user="person", left="left", right="right", choice="choice", ties="keep"
    )
    assert data.summary().ties == 202
    result = fit(HeterogeneousBTL(6, 0, utility="linear", **TIES), None, data, progress_bar=False)
    printed = [0.2202, 0.1530, 0.1753, 0.1339, 0.3771, -0.2919]
    errors = [0.1872, 0.1935, 0.1882, 0.1927, 0.1924, 0.0825]
    against_first = result.contrast([*((i, 1) for i in range(2, 7)), {"log nu": 1}], kind="hessian")
    np.testing.assert_allclose(against_first["estimate"], printed, atol=1e-3)
    np.testing.assert_allclose(against_first["standard_error"], errors, atol=1e-3)
    assert -2 * result.log_marginal_likelihood().value == pytest.approx(1619.4, abs=0.1)


@pytest.mark.slow
def test_heterogeneous_fit_recovers_ties_bias_and_lapses() -> None:
    """Ten parameters at once, each within 3.5 standard errors of the truth, as by chance."""
    model = truth(2, **ALL)
    data, _ = model.simulate(questions(30_000, 5, per_person=30), seed=5)
    torch.manual_seed(0)
    fitted = HeterogeneousBTL(2, 2, utility="linear", **ALL)
    guide = NeuralProcessGuide(fitted, "multivariate_normal", hidden_dim=16)
    stages = [MaximumLikelihood(), Sleep(steps=200)]
    result = fit(fitted, guide, data, objective=stages, learning_rate=6e-3, progress_bar=False)
    table = result.population(num_samples=400)
    rate = 1 / (1 + math.exp(2.0))
    positive = [NormalDist().cdf(float(mean) / 0.8) for mean in BETA]
    expected = [*BETA, 0.8, 0.8, 0.0, *positive, *TRUTH.values(), rate]
    distance = (table["estimate"] - expected) / table["se_sandwich"]
    assert distance.abs().max() < 3.5, table
    assert table.loc["answer", "se_sandwich"].max() < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("options", [BIAS | LAPSES, ALL], ids=["no ties", "all"])
def test_standard_errors_by_louis_match_the_likelihood_on_a_grid(options: dict) -> None:
    """Scores and information for K = 1 against derivatives of an exact integral over z."""
    asked = questions(320, 7, per_person=8)
    asked.items[:, 1] = 0.0  # One feature, so that everything fits in a plane.
    model = truth(1, **options)
    data, _ = model.simulate(asked, seed=7)
    guide = NeuralProcessGuide(model)
    eye = torch.eye(1).double()
    outer, information = population_information(model, guide, data, eye, 8000, 0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, log_weights = torch.tensor(nodes), torch.tensor(weights / weights.sum()).log()
    x, choice = features(data), torch.from_numpy(data.choice).double()

    def per_person(theta: Tensor) -> Tensor:
        beta = (theta[0] + theta[1] * nodes)[:, None] * torch.tensor([1.0, 0.0]).double()
        of_node = [
            by_hand(torch.cat([one, theta[2:]]), x, choice, options).reshape(len(data), -1).sum(-1)
            for one in beta
        ]
        return (torch.stack(of_node) + log_weights[:, None]).logsumexp(0)

    theta = torch.tensor([BETA[0], 0.8, *parameters(model)[2:]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(per_person, theta)
    hessian = torch.autograd.functional.hessian(lambda t: per_person(t).sum(), theta)
    free = [0, 1, *range(4, len(outer))]  # Mean and loading of the first feature, then answers.
    outer, information = outer[free][:, free], information[free][:, free]
    torch.testing.assert_close(outer, jacobian.T @ jacobian, rtol=0.04, atol=0.5)
    torch.testing.assert_close(information, -hessian, rtol=0.04, atol=0.5)


# The model.


@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
@pytest.mark.parametrize("latent_dim", [0, 2])
@EACH
def test_log_likelihood_is_that_of_the_papers(
    utility: str, latent_dim: int, options: dict, make_data: MakeData
) -> None:
    data = make_data((4, 0, 3), half_wins="ties" in options)
    model = HeterogeneousBTL(3, latent_dim, utility=utility, **options).double()
    with torch.no_grad():
        for name, value in TRUTH.items():
            if getattr(model, name) is not None:
                getattr(model, name).fill_(value)
        batch = data.batch()
        batch = batch.replace(items=batch.items.double(), choice=batch.choice.double())
        z = torch.randn(5, 3, latent_dim, dtype=torch.float64)
        r = model.item_utility(batch.items, z)
        margin = r.gather(-1, batch.left.expand(5, -1, -1)) - r.gather(
            -1, batch.right.expand(5, -1, -1)
        )
        theta = torch.tensor([1.0, 0.0, *parameters(model)[2:]], dtype=torch.float64)
        x = torch.stack([margin, torch.zeros_like(margin)], -1)
        each = by_hand(theta, x, batch.choice.expand(5, -1, -1), options)
        result = model.choice(batch, z).log_prob(batch.choice)
    torch.testing.assert_close(result, each.masked_fill(~batch.mask, 0.0).sum(-1))


@pytest.mark.parametrize("options", [TIES, LAPSES, TIES | LAPSES])
def test_sides_do_not_matter_but_for_the_bias(options: dict, make_data: MakeData) -> None:
    """Swapping sides together with choices changes nothing, unless there is a position bias."""
    data = make_data((4, 0, 3), half_wins="ties" in options)
    z = torch.randn(5, 3, 2)
    for biased in (False, True):
        torch.manual_seed(1)
        model = HeterogeneousBTL(3, 2, position_bias=biased, **options)
        if biased:
            model.bias.data.fill_(0.5)
        with torch.no_grad():
            there, back = (
                model.choice(d.batch(), z).log_prob(d.batch().choice) for d in (data, data.swap())
            )
        same = torch.isclose(there, back, rtol=1e-5, atol=1e-5)[:, [0, 2]]
        assert same.all() if not biased else not same.any()


def test_ties_bias_and_lapses_are_simulated_as_often_as_they_occur() -> None:
    """Without differences in utility: P(tie) = (1 − λ) ν / (e^{b/2} + e^{−b/2} + ν) + λ / 3."""
    model = truth(**ALL)
    with torch.no_grad():
        model.utility.mean.zero_()
    data, _ = model.simulate(questions(20_000, 0), seed=1)
    assert data.ties == "keep"
    half, nu, rate = 0.15, math.exp(-0.4), 1 / (1 + math.exp(2.0))
    parts = np.array([math.exp(-half), nu, math.exp(half)])
    prob = (1 - rate) * parts / parts.sum() + rate / 3
    found = np.array([(data.choice == value).mean() for value in (0, 0.5, 1)])
    assert (np.abs(found - prob) < 4 * np.sqrt(prob * (1 - prob) / 20_000)).all()
    again, _ = model.simulate(questions(20_000, 0), seed=1)
    assert np.array_equal(again.choice, data.choice)


def test_population_parameters_learn_faster() -> None:
    """The first step of Adam moves a parameter by its learning rate."""
    data, _ = truth(2, **ALL).simulate(questions(400, 2), seed=2)
    model = HeterogeneousBTL(2, 2, utility="bilinear", **ALL)
    before = {n: v.item() for n, v in model.answer_parameters().items()}
    fit(model, NeuralProcessGuide(model), data, objective=ImportanceWeightedELBO(4, steps=1),
        validation=None, learning_rate=1e-3, progress_bar=False)  # fmt: skip
    for name, value in model.answer_parameters().items():
        assert abs(value.item() - before[name]) == pytest.approx(1e-2, rel=0.05), name


def test_bad_options_are_refused() -> None:
    for options, error, match in [
        ({"ties": "rao-kupper"}, ValueError, "ties must be None or 'davidson', got 'rao-kupper'"),
        ({"ties": True}, ValueError, "ties must be None or 'davidson', got True"),
        ({"position_bias": 0.3}, TypeError, "position_bias must be True or False, got 0.3"),
        ({"lapses": None}, TypeError, "lapses must be True or False, got None"),
    ]:
        with pytest.raises(error, match=match):
            HeterogeneousBTL(3, 2, **options)


def test_data_and_model_must_mean_the_same_by_one_half(make_data: MakeData) -> None:
    half = make_data((3, 4), half_wins=True)
    kept = half.with_choices(half.choice, ties="keep")
    wins = make_data((3, 4))
    with_ties = HeterogeneousBTL(3, 0, utility="linear", **TIES)
    without = HeterogeneousBTL(3, 0, utility="linear")
    for model, data, match in [
        (without, kept, r"keeps ties \(\d of 7 comparisons\), and the model has none: build it"),
        (with_ties, half, "half a win each .* read the data with ties='keep'"),
        (with_ties, wins, "must have ties to fit .* got none in 7 comparisons"),
    ]:
        with pytest.raises(ValueError, match=match):
            fit(model, None, data, progress_bar=False)
    for model, data in ((without, kept), (with_ties, half)):
        with pytest.raises(ValueError, match="ties"):
            Posterior(model, None, data)
        with pytest.raises(ValueError, match="ties"):
            Posterior(model, None, wins).log_score(data)
    Posterior(with_ties, None, wins)  # Few contexts hold a tie.
    fit(without, None, half, progress_bar=False)
    with pytest.raises(ValueError, match="ties must be None, 'half' or 'keep', got 'drop'"):
        half.with_choices(half.choice, ties="drop")


# Downstream.


@pytest.fixture(scope="module")
def people() -> tuple[HeterogeneousBTL, NeuralProcessGuide, Preferences, Preferences]:
    model = truth(2, **ALL)
    data, _ = model.simulate(questions(60, 11, per_person=12), seed=11)
    torch.manual_seed(0)
    return model, NeuralProcessGuide(model).eval(), *data.split_context(6, seed=0)


def exact_probabilities(model: HeterogeneousBTL, context, target) -> tuple[Tensor, Tensor]:
    """Posterior weights on a grid (G, U), and P(left), P(right), P(tie) on it (3, G, U, N)."""
    axis = torch.linspace(-5, 5, 121)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1).expand(-1, len(context), -1)
    batch, unseen = context.batch(), target.batch()
    rate, nu = model.lapse_logit.sigmoid(), model.log_tie.exp()

    def prob(batch) -> Tensor:
        r = points @ model.utility.loading.T + model.utility.mean
        x = (batch.items[batch.left] - batch.items[batch.right]).to(r)
        m = torch.einsum("guk,unk->gun", r, x) + model.bias
        parts = torch.stack([(m / 2).exp(), (-m / 2).exp(), nu.expand_as(m)])
        return (1 - rate) * parts / parts.sum(0) + rate / 3

    with torch.no_grad():
        outcome = torch.where(batch.choice == 1, 0, torch.where(batch.choice == 0, 1, 2))
        seen = prob(batch).log().gather(0, outcome.expand(1, len(points), -1, -1))[0]
        log_joint = seen.sum(-1) - points.square().sum(-1) / 2
        return log_joint.softmax(0), prob(unseen)


def test_posterior_predicts_all_three_outcomes_as_the_grid_does(people) -> None:
    """Importance weights correct a guide that knows neither sides nor ties."""
    model, guide, context, target = people
    weight, prob = exact_probabilities(model, context, target)
    posterior = Posterior(model, guide, context, num_samples=20_000)
    p = posterior.choice_prob(target)
    mean = torch.einsum("gu,ogun->oun", weight, prob)
    torch.testing.assert_close(p.mean, mean[0], atol=0.01, rtol=0)
    torch.testing.assert_close(p.tie, mean[2], atol=0.01, rtol=0)
    aleatoric = torch.einsum("gu,gun->un", weight, torch.special.entr(prob).sum(0))
    total = torch.special.entr(mean).sum(0)
    torch.testing.assert_close(p.aleatoric, aleatoric, atol=0.02, rtol=0)
    torch.testing.assert_close(p.epistemic, total - aleatoric, atol=0.01, rtol=0)
    assert (p.lower < p.mean).all()
    assert (p.mean < p.upper).all()
    assert not p.mean.requires_grad
    unseen = target.batch().choice
    outcome = torch.where(unseen == 1, 0, torch.where(unseen == 0, 1, 2))
    score = mean.log().gather(0, outcome[None])[0].mean(-1)
    torch.testing.assert_close(posterior.log_score(target), score, atol=0.02, rtol=0)


def test_there_is_no_tie_in_a_model_without(make_data: MakeData) -> None:
    data = make_data((3, 1, 4))
    model = HeterogeneousBTL(3, 2, position_bias=True, lapses=True)
    p = Posterior(model, NeuralProcessGuide(model), data, 100).choice_prob(data)
    mask = data.batch().mask
    assert (p.tie[mask] == 0).all()
    assert torch.isnan(p.tie[~mask]).all()


def test_export_holds_ties(people) -> None:
    model, guide, context, target = people
    posterior = Posterior(model, guide, context, num_samples=4000)
    exported = posterior.to_inference_data(target)
    p, mask = posterior.choice_prob(target), target.batch().mask
    predictions = exported["predictions"]
    for name, expected in (("prob", p.mean), ("prob_tie", p.tie)):
        found = predictions[name].values.mean((0, 1))
        np.testing.assert_allclose(found, expected[mask], atol=0.03)
    shares = (predictions["choice"].values == 0.5).mean((0, 1))
    np.testing.assert_allclose(shares, p.tie[mask], atol=0.05)
    drawn = exported["posterior_predictive"]["choice"].values
    assert set(np.unique(drawn)) == {0, 0.5, 1}
    log_prob = exported["log_likelihood"]["choice"].values[0]
    batch = context.batch()
    with torch.no_grad():
        each = model.choice(batch, posterior.z).log_prob_each(batch.choice)
    np.testing.assert_allclose(log_prob, each[:, batch.mask], rtol=1e-5)
    assert exported.attrs["ties"] == "davidson"
    assert exported.attrs["log nu"] == pytest.approx(-0.4)


@pytest.mark.parametrize("position_bias", [False, True])
def test_the_guide_sees_sides_where_they_matter(
    position_bias: bool, make_data: MakeData, randomise: Callable
) -> None:
    """A tie counts as both orders; under a bias, sides matter."""
    data = make_data((3, 1, 5, 2), half_wins=True)
    data = data.with_choices(data.choice, ties="keep")
    model = HeterogeneousBTL(3, 2, ties="davidson", position_bias=position_bias)
    guide = randomise(NeuralProcessGuide(model), 0.2)
    batch, swapped = data.batch(), data.swap().batch()
    z = torch.randn(50, len(data), 2)
    with torch.no_grad():
        there, back = guide.posterior(batch).log_prob(z), guide.posterior(swapped).log_prob(z)
    assert torch.allclose(there, back, atol=1e-4, rtol=1e-4) != position_bias


@pytest.mark.slow
def test_a_guide_learns_what_a_biased_choice_is_worth(make_data: MakeData) -> None:
    """Where the left is favoured, a choice of the left says less of a person, as on a grid."""
    model = HeterogeneousBTL(3, 1, "linear", position_bias=True)
    with torch.no_grad():
        model.bias.fill_(2.0)
        model.utility.loading.copy_(torch.tensor([[1.5], [0.0], [0.0]]))
    guide = NeuralProcessGuide(model, posterior="normal", hidden_dim=16)
    pairs = make_data([6] * 200, num_items=30)
    stage = Sleep(8, steps=200, batch_size=64)
    fit(model, guide, pairs, objective=stage, learning_rate=1e-2, progress_bar=False)
    people, _ = model.simulate(pairs.subset(range(100)), seed=1)
    chosen = people.with_choices(np.ones(people.num_comparisons))
    for known in (chosen, chosen.swap()):
        gold = exact.grid(model, known)
        mean = (gold.log_weights.exp().unsqueeze(-1) * gold.z).sum(0)
        with torch.no_grad():
            loc = guide.posterior(known.batch()).base_dist.loc
        assert (loc - mean).square().mean() < 0.1 * mean.square().mean()


@EACH
def test_saved_and_loaded(options: dict, make_data: MakeData, tmp_path: Path) -> None:
    data = make_data((3, 1, 5, 2), half_wins="ties" in options)
    data = data.with_choices(data.choice, ties="keep")
    model = HeterogeneousBTL(3, 2, **options)
    guide = NeuralProcessGuide(model)
    fit(model, guide, data, steps=2, validation=None, progress_bar=False)
    save(tmp_path / "run", model, guide)
    loaded, loaded_guide = load(tmp_path / "run")
    assert loaded.config == model.config
    assert loaded.answer_parameters().keys() == model.answer_parameters().keys()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    first, second = (
        Posterior(*pair, data, num_samples=50).choice_prob(data).mean
        for pair in ((model, guide), (loaded, loaded_guide))
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_a_killed_fit_goes_on_with_its_answer_parameters(tmp_path: Path) -> None:
    data, _ = truth(2, **ALL).simulate(questions(200, 4), seed=4)
    results = []
    for stop in (None, 3):
        torch.manual_seed(0)
        model = HeterogeneousBTL(2, 2, utility="linear", **ALL)
        guide = NeuralProcessGuide(model, hidden_dim=8)
        options = {"objective": ImportanceWeightedELBO(4, steps=6), "progress_bar": False}
        if stop is not None:
            options |= {"checkpoint": tmp_path, "checkpoint_interval": 3}

            class StopError(Exception):
                pass

            class Interrupted(ImportanceWeightedELBO):
                name, calls = "ImportanceWeightedELBO", 0

                def backward(self, *args):
                    type(self).calls += 1
                    if type(self).calls == 5:
                        raise StopError
                    return super().backward(*args)

            first = Interrupted(4, steps=6)
            with pytest.raises(StopError):
                fit(model, guide, data, **options | {"objective": first})
        fit(model, guide, data, **options)
        results.append(model.answer_parameters())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


# Precision of products.


@pytest.mark.parametrize("utility", ["bilinear", "mlp"])
def test_lower_precision_changes_utilities_a_little(utility: str, make_data: MakeData) -> None:
    data, z = make_data((4, 3)), torch.randn(5, 2, 2)
    results = {}
    for precision in ("highest", "tf32", "bf16"):
        torch.manual_seed(0)
        model = HeterogeneousBTL(3, 2, utility=utility, matmul_precision=precision)
        with torch.no_grad():
            margin = model.choice(data.batch(), z).margin
        r = model.item_utility(data.items, z)
        results[precision] = margin, r.detach()
        model.choice(data.batch(), z).log_prob(data.batch().choice).sum().backward()
        assert all(p.grad is not None for p in model.utility.item_tower.parameters())
    for highest, same, rough in zip(*results.values(), strict=True):
        assert torch.equal(highest, same)
        difference = (rough - highest).norm() / highest.norm()
        assert 1e-4 < difference < 0.05


def test_precision_of_what_has_no_networks_is_refused() -> None:
    for options, match in [
        ({"matmul_precision": "fp8"}, "must be one of .*'highest', 'tf32', 'bf16'.* got 'fp8'"),
        ({"utility": "linear", "matmul_precision": "bf16"}, "must be 'highest' .* got 'bf16'"),
        ({"utility": torch.nn.Identity(), "matmul_precision": "tf32"}, "must be 'highest'"),
    ]:
        with pytest.raises(ValueError, match=match):
            HeterogeneousBTL(3, 2, **options)


def test_homogeneous_fits_are_in_double_precision_whatever_is_asked(make_data: MakeData) -> None:
    data, fitted = make_data((40, 30)), []
    for precision in ("highest", "bf16"):
        torch.manual_seed(0)
        model = HeterogeneousBTL(3, 0, hidden_dim=4, matmul_precision=precision)
        fit(model, None, data, steps=5, validation=None, progress_bar=False)
        fitted.append(model.state_dict())
    torch.testing.assert_close(*fitted, rtol=1e-5, atol=1e-6)
