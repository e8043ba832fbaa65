"""Posteriors with draws of the population: against grids and closed forms."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_problems import grid_choice_prob, linear_pair, six_people
from torch import Tensor

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    fit,
    load,
    save,
)
from fssa_bayes.posterior import PopulationDraws, PopulationMixture


@pytest.fixture(scope="module")
def data() -> Preferences:
    return six_people()


@pytest.fixture(scope="module")
def pair() -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    return linear_pair()


def shifted(model: HeterogeneousBTL, shift: float, scale: float) -> HeterogeneousBTL:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.utility.mean.add_(shift)
        other.utility.loading.mul_(scale)
    return other


def by_hand(*models: HeterogeneousBTL) -> PopulationDraws:
    members = [(model, NeuralProcessGuide(model).eval()) for model in models]
    return PopulationDraws(tuple(members), "by hand")


@pytest.fixture(scope="module")
def fitted():
    """A fit to few people, whose population is uncertain."""
    rng = np.random.default_rng(0)
    left = rng.integers(30, size=60 * 8)
    right = (left + rng.integers(1, 30, size=len(left))) % 30
    items = rng.normal(size=(30, 2)) * [1.0, 3.0]
    beta = rng.normal([1.0, -0.3], [1.0, 0.3], size=(60, 2)).repeat(8, 0)
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(len(left)) < 1 / (1 + np.exp(-margin))
    data = Preferences(left, right, choice, np.arange(0, 481, 8), items=items)
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal")
    objective = ImportanceWeightedELBO(16)
    return fit(model, guide, data, objective=objective, steps=300, progress_bar=False)


def test_every_draw_is_evaluated_by_its_own_population(pair, data) -> None:
    models = [shifted(pair[0], 0.5 * n, 1 + n) for n in range(3)]
    mixture = PopulationMixture(models)
    batch, z = data.batch(), torch.randn(40, len(data), 2)
    for label in (torch.arange(40)[:, None] % 3 + torch.zeros(1, len(data)).long(),
                  torch.randint(3, (40, len(data)))):  # fmt: skip
        draws = torch.cat([z, label.unsqueeze(-1).float()], -1)
        with torch.no_grad():
            margin = mixture.choice(batch, draws).margin
            utility = mixture.item_utility(data.items, draws)
            for population, model in enumerate(models):
                own = label == population
                expected = model.choice(batch, z).margin
                torch.testing.assert_close(margin[own], expected[own])
                expected = model.item_utility(data.items, z)
                torch.testing.assert_close(utility[own], expected[own])


def test_populations_are_weighed_by_what_the_context_says(pair, data) -> None:
    """Two equally likely populations: the joint posterior of population and z, on a grid."""
    models = shifted(pair[0], -0.7, 0.5), shifted(pair[0], 0.7, 1.5)
    context, target = data.subset([3, 4, 5]).split_context(4, seed=1)
    posterior = Posterior(*pair, context, 8000, population=by_hand(*models))
    evidence, prob = [], []
    axis = torch.linspace(-6, 6, 161)
    points = torch.cartesian_prod(axis, axis)
    prior = -0.5 * points.square().sum(-1, keepdim=True)
    for model in models:
        with torch.no_grad():
            z = points.unsqueeze(1).expand(-1, 3, -1)
            batch = context.batch()
            joint = prior + model.choice(batch, z).log_prob(batch.choice)
        evidence.append(joint.logsumexp(0))
        prob.append(grid_choice_prob(model, context, target))
    share = torch.stack(evidence).softmax(0)
    assert share.max() > 0.6  # The contexts do tell the populations apart.
    exact = share[0, :, None] * prob[0] + share[1, :, None] * prob[1]
    choice = posterior.choice_prob(target)
    mask = target.batch().mask
    assert (choice.mean - exact)[mask].abs().max() < 0.02
    assert posterior.z.shape == (8000, 3, 2)
    assert posterior.proposals[0].shape == (8000, 3, 2)
    ranks = posterior.rank_prob(["a", "b", "c"])
    torch.testing.assert_close(ranks.sum(-1), torch.ones(3, 3))
    utility = posterior.utility(["a", "b", "c"])
    first = (utility.argmax(-1, keepdim=True) == torch.arange(3)).float().mean(0)
    assert (first - ranks[..., 0]).abs().max() < 0.03
    with pytest.raises(ValueError, match="exports draws of one population"):
        posterior.to_inference_data()


def test_homogeneous_populations_in_closed_form(data) -> None:
    torch.manual_seed(0)
    base = HeterogeneousBTL(3, 0, utility="linear")
    models = [shifted(base, shift, 1.0) for shift in (-1.0, 0.2, 1.0)]
    drawn = PopulationDraws(tuple((model, None) for model in models), "by hand")
    context, target = data.subset([3, 4, 5]).split_context(4, seed=1)
    batch, unseen, z = context.batch(), target.batch(), torch.zeros(3, 0)
    with torch.no_grad():
        weight = torch.stack([m.choice(batch, z).log_prob(batch.choice) for m in models]).softmax(0)
        prob = torch.stack([m.choice(unseen, z).mean for m in models])
    found = Posterior(base, None, context, population=drawn).choice_prob(target).mean
    exact = (weight.unsqueeze(-1) * prob).sum(0)
    torch.testing.assert_close(found[unseen.mask], exact[unseen.mask])
    equal = Posterior(base, None, context, population=drawn, correct=None).choice_prob(target).mean
    torch.testing.assert_close(equal[unseen.mask], prob.mean(0)[unseen.mask])


@pytest.mark.slow
def test_drawn_populations_have_the_sandwich_covariance(fitted) -> None:
    table = fitted.population(seed=0)
    draws = fitted.population_draws(600, seed=0)
    scale = fitted.model.feature_scale
    mean = torch.stack([m.utility.mean.detach() / scale for m, _ in draws.members])
    np.testing.assert_allclose(mean.mean(0), table.loc["mean", "estimate"], atol=0.06)
    np.testing.assert_allclose(mean.std(0), table.loc["mean", "se_sandwich"], rtol=0.12)
    loading = torch.stack([m.utility.loading.detach() / scale[:, None] for m, _ in draws.members])
    # The first row of the triangular factor is the first standard deviation, but for its sign.
    sd = loading[:, 0].norm(dim=-1)
    assert abs(sd.median().item() - table.loc[("sd", 0), "estimate"]) < 0.05
    assert sd.std().item() == pytest.approx(table.loc[("sd", 0), "se_sandwich"], rel=0.15)
    # z keeps its meaning: no draw turns Λ, so their mean is near the estimate.
    estimate = fitted.model.utility.loading.detach() / scale[:, None]
    assert (loading.mean(0) - estimate).norm() < 0.3 * estimate.norm()
    again = fitted.population_draws(3, seed=0).members[0][0]
    assert torch.equal(again.utility.mean, fitted.population_draws(3).members[0][0].utility.mean)


@pytest.mark.slow
def test_sampled_intervals_are_wider(fitted) -> None:
    context, target = fitted.data.split_context(2, seed=0)
    fixed = Posterior(fitted.model, fitted.guide, context).choice_prob(target)
    populations = fitted.population_draws()
    assert len(populations) == 50
    drawn = Posterior(fitted.model, fitted.guide, context, population=populations)
    p = drawn.choice_prob(target)
    width = (p.upper - p.lower).mean() / (fixed.upper - fixed.lower).mean()
    assert 1.01 < width < 1.5
    assert (p.mean - fixed.mean).abs().max() < 0.2
    assert drawn.pareto_k.median() < 0.7


@pytest.mark.slow
def test_bootstrap_refits_to_people_drawn_with_replacement(fitted) -> None:
    model = HeterogeneousBTL(2, 0, utility="linear")
    result = fit(model, None, fitted.data, progress_bar=False)
    before = model.utility.mean.detach().clone()
    draws = result.bootstrap(150, seed=0)
    assert torch.equal(model.utility.mean.detach(), before)
    scale = model.feature_scale
    mean = torch.stack([m.utility.mean.detach() / scale for m, _ in draws.members])
    error = result.population()["se_sandwich"]
    np.testing.assert_allclose(mean.std(0), error, rtol=0.25)
    short = fitted.bootstrap(2, steps=2, objective=ImportanceWeightedELBO(2))
    for member, guide in short.members:
        assert guide.model is member
    posterior = Posterior(fitted.model, fitted.guide, fitted.data, 50, population=short)
    assert torch.isfinite(posterior.utility([0, 1])).all()


def test_populations_that_cannot_be_drawn_are_refused(pair, data, fitted) -> None:
    model, guide = pair
    with pytest.raises(ValueError, match="population must be 'fixed' or PopulationDraws, got 'x'"):
        Posterior(model, guide, data, population="x")
    other = by_hand(HeterogeneousBTL(3, 1, utility="linear"))
    with pytest.raises(ValueError, match="population must hold draws of this model"):
        Posterior(model, guide, data, population=other)
    with pytest.raises(ValueError, match="at least the number of populations, 30, got 25"):
        Posterior(model, guide, data, 25, population=by_hand(*[model] * 30))
    with pytest.raises(ValueError, match="num must be an integer of at least 2, got 1"):
        fitted.population_draws(1)
    with pytest.raises(ValueError, match="num must be an integer of at least 2, got 1"):
        fitted.bootstrap(1)
    bilinear = HeterogeneousBTL(2, 2)
    twin = NeuralProcessGuide(bilinear)
    result = fit(bilinear, twin, fitted.data, steps=1, validation=None, progress_bar=False)
    with pytest.raises(ValueError, match="population_draws.. needs utility='linear'"):
        result.population_draws()


def test_draws_of_the_population_outlive_copies_and_files(fitted, tmp_path: Path) -> None:
    context, target = fitted.data.split_context(2, seed=0)
    populations = fitted.population_draws(3)

    def score(model: HeterogeneousBTL, guide: NeuralProcessGuide) -> Tensor:
        return Posterior(model, guide, context, population=populations).log_score(target)

    expected = score(fitted.model, fitted.guide)
    assert torch.equal(score(*copy.deepcopy((fitted.model, fitted.guide))), expected)
    save(tmp_path / "model", fitted.model, fitted.guide)
    assert torch.equal(score(*load(tmp_path / "model")), expected)
