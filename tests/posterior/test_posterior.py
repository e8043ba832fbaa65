"""Posterior: against the grid and the exact two-type answer, and its laws."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
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
from fssa_bayes._arviz import pareto_smooth
from fssa_bayes.data import user_batches
from fssa_bayes.posterior import PopulationDraws, PopulationMixture


@pytest.fixture(scope="module")
def data() -> Preferences:
    rng = np.random.default_rng(0)
    counts = np.array([0, 1, 3, 6, 12, 24])
    total = counts.sum()
    left = rng.integers(8, size=total)
    right = (left + rng.integers(1, 8, size=total)) % 8
    return Preferences(
        left,
        right,
        rng.choice([0, 0.5, 1], size=total),
        np.concatenate([[0], np.cumsum(counts)]),
        items=rng.normal(size=(8, 3)),
        item_names=list("abcdefgh"),
        user_names=[f"w{n}" for n in counts],
    )


@pytest.fixture(scope="module")
def pair() -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, utility="linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.5, -0.3, 0.2]))
        model.utility.loading.copy_(torch.tensor([[1.0, 0.0], [0.4, 0.8], [-0.5, 0.6]]))
    return model, NeuralProcessGuide(model).eval()


def grid_posterior(model: HeterogeneousBTL, data: Preferences) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (G, K) and exact probabilities (G, U), computed without the package's proposals."""
    axis = torch.linspace(-6, 6, 161)
    points = torch.cartesian_prod(axis, axis)
    batch = data.batch()
    log_prior = -0.5 * points.square().sum(-1, keepdim=True)
    with torch.no_grad():
        z = points.unsqueeze(1).expand(-1, len(data), -1)
        log_joint = log_prior + model.choice(batch, z).log_prob(batch.choice)
    return points, log_joint.softmax(0)


def grid_choice_prob(
    model: HeterogeneousBTL, context: Preferences, target: Preferences
) -> torch.Tensor:
    points, prob = grid_posterior(model, context)
    z = points.unsqueeze(1).expand(-1, len(target), -1)
    with torch.no_grad():
        mean = model.choice(target.batch(), z).mean
    return (prob.unsqueeze(-1) * mean).sum(0)


def test_untrained_guide_is_corrected_to_the_grid_posterior(pair, data) -> None:
    model, guide = pair
    posterior = Posterior(model, guide, data, num_samples=8000)
    points, prob = grid_posterior(model, data)
    exact_mean = torch.einsum("gu,gk->uk", prob, points)
    exact_var = torch.einsum("gu,gk->uk", prob, points**2) - exact_mean**2
    # Three standard errors at the relative effective sample sizes seen, at least .2.
    bound = 3 * (exact_var / (0.2 * 8000)).sqrt()
    z, log_weights = posterior.proposals
    weighted = torch.einsum("su,suk->uk", log_weights.exp(), z)
    assert ((weighted - exact_mean).abs() < bound).all()
    assert ((posterior.z.mean(0) - exact_mean).abs() < bound).all()
    assert ((posterior.z.var(0) / exact_var).log().abs() < 0.15).all()


def test_uncorrected_draws_are_the_guides(pair, data) -> None:
    model, guide = pair
    posterior = Posterior(model, guide, data, num_samples=4000, correct=None)
    with torch.no_grad():
        expected = guide.posterior(data.batch()).sample((20_000,))
    error = (expected.var(0) / 4000).sqrt()
    assert ((posterior.z.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    assert torch.equal(posterior.proposals[1].exp().sum(0).round(decimals=5), torch.ones(6))


def test_choice_probabilities_match_the_grid(pair, data) -> None:
    model, guide = pair
    context, target = data.subset([3, 4, 5]).split_context(4, seed=1)
    choice = Posterior(model, guide, context, num_samples=8000).choice_prob(target)
    mask = target.batch().mask
    exact = grid_choice_prob(model, context, target)
    assert (choice.mean - exact)[mask].abs().max() < 0.02
    for values in (choice.mean, choice.lower, choice.upper, choice.epistemic, choice.aleatoric):
        assert torch.equal(torch.isnan(values), ~mask)
    assert (choice.lower < choice.mean)[mask].all()
    assert (choice.mean < choice.upper)[mask].all()
    total = torch.special.entr(choice.mean) + torch.special.entr(1 - choice.mean)
    torch.testing.assert_close((choice.epistemic + choice.aleatoric)[mask], total[mask])


def test_log_score_is_the_log_of_the_mean_probability(pair, data) -> None:
    model, guide = pair
    context, target = data.subset([3, 4, 5]).split_context(4, seed=1)
    posterior = Posterior(model, guide, context, num_samples=2000)
    prob, batch = posterior.choice_prob(target).mean, target.batch()
    pointwise = batch.choice * prob.log() + (1 - batch.choice) * (1 - prob).log()
    expected = pointwise.nansum(-1) / batch.num_comparisons
    torch.testing.assert_close(posterior.log_score(target), expected, atol=1e-4, rtol=1e-4)


def test_uncertainty_closes_the_parts_at_the_ends(pair, data) -> None:
    """One draw of z leaves no epistemic part, and the homogeneous model has none."""
    model = HeterogeneousBTL(3, 0, utility="linear")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    choice = Posterior(model, None, data).choice_prob(data)
    mask = data.batch().mask
    assert choice.epistemic[mask].max() < 1e-6
    torch.testing.assert_close(choice.lower, choice.upper, equal_nan=True)
    z = torch.zeros(1, len(data), 0)
    torch.testing.assert_close(choice.mean[mask], model.choice(data.batch(), z).mean[0][mask])


def test_empty_context_gives_equal_weights_and_the_prior(pair, data) -> None:
    model, guide = pair
    posterior = Posterior(model, guide, data.subset([0]), num_samples=4000)
    z, log_weights = posterior.proposals
    assert len(log_weights.unique()) == 1
    assert posterior.pareto_k.item() == 0
    assert posterior.relative_ess.item() == pytest.approx(1)
    assert z.mean().abs() < 0.05
    assert z.var().item() == pytest.approx(1, abs=0.05)


def test_utilities_are_centred_and_ranks_are_doubly_stochastic(pair, data) -> None:
    model, guide = pair
    posterior = Posterior(model, guide, data, num_samples=500)
    utility = posterior.utility(items=["a", "c", "h"], users=["w24", "w3"])
    assert utility.shape == (500, 2, 3)
    torch.testing.assert_close(utility.sum(-1), torch.zeros(500, 2), atol=1e-5, rtol=0)
    rank = posterior.rank_prob()
    torch.testing.assert_close(rank.sum(-1), torch.ones(6, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(rank.sum(-2), torch.ones(6, 8), atol=1e-4, rtol=0)


def test_ranks_follow_a_person_who_is_certain() -> None:
    model = HeterogeneousBTL(1, 1, utility="linear")
    with torch.no_grad():
        model.utility.mean.fill_(5.0)
        model.utility.loading.zero_()
    data = Preferences([0], [1], [1], [0, 1], items=[[0.0], [1.0], [3.0]], item_names=list("abc"))
    rank = Posterior(model, NeuralProcessGuide(model), data, num_samples=50).rank_prob()
    torch.testing.assert_close(rank[0], torch.eye(3).flip(0), atol=1e-6, rtol=0)


def test_new_items_by_their_features(pair, data) -> None:
    model, guide = pair
    posterior = Posterior(model, guide, data, num_samples=200)
    by_name = posterior.utility(items=["b", "d"])
    by_feature = posterior.utility(items=data.items[[1, 3]])
    torch.testing.assert_close(by_name, by_feature)


def test_same_seed_same_draws_and_no_trace_in_the_global_state(pair, data) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = Posterior(*pair, data, num_samples=100, seed=3)
    second = Posterior(*pair, data, num_samples=100, seed=3)
    other = Posterior(*pair, data, num_samples=100, seed=4)
    assert torch.equal(first.z, second.z)
    assert not torch.equal(first.z, other.z)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])


def test_pareto_k_recovers_the_tail_of_known_weights() -> None:
    rng = np.random.default_rng(0)
    shapes = np.array([0.2, 0.5, 0.9])
    weights = rng.pareto(1 / shapes, size=(20_000, 3)).T + 1
    _, pareto_k = pareto_smooth(np.log(weights))
    assert np.abs(pareto_k - shapes).max() < 0.15
    log_weights, pareto_k = pareto_smooth(np.zeros((2, 50)))
    assert (pareto_k == 0).all()
    np.testing.assert_allclose(np.exp(log_weights), 1 / 50)


def test_bad_input_is_refused(pair, data) -> None:
    model, guide = pair
    posterior = Posterior(model, guide, data, num_samples=50)
    other = Preferences([0], [1], [1], [0, 1], items=[[0.0], [1.0]])
    for call, match in [
        (lambda: Posterior(model, None, data), "guide must be given"),
        (lambda: Posterior(model, guide, other), "num_features=3 features, got 1"),
        (lambda: Posterior(model, guide, data, num_samples=0), "num_samples .* got 0"),
        (lambda: Posterior(model, guide, data, correct="snis"), "correct must be .* 'snis'"),
        (lambda: posterior.log_score(data.subset([1, 0, 2])), "same people"),
        (lambda: posterior.utility(items=["a", "zz"]), "items must be known names, got 'zz'"),
        (lambda: posterior.utility(users=["nobody"]), "users must be known names, got 'nobody'"),
        (lambda: posterior.utility(items=torch.zeros(2, 5)), r"features with shape \(M, 3\)"),
        (lambda: posterior.rank_prob(items=[]), "at least one name"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


def test_a_rank_table_too_large_for_memory_is_refused_before_any_work(pair) -> None:
    model, guide = pair
    left = np.arange(0, 100_000, 2)
    data = Preferences(
        left, left + 1, np.ones(50_000), [0, 25_000, 50_000], items=np.ones((100_000, 3))
    ).subset([0])
    posterior = Posterior(model, guide, data.split_context(5)[0], num_samples=50)
    with pytest.raises(ValueError, match="rank_prob would need 37.3 GiB .* name fewer items="):
        posterior.rank_prob()


def test_items_unique_to_a_person_need_a_common_set(pair) -> None:
    data = Preferences([0, 2], [1, 3], [1, 0], [0, 1, 2], items=np.eye(4, 3))
    posterior = Posterior(*pair, data, num_samples=50)
    with pytest.raises(ValueError, match="items must name a common set"):
        posterior.utility()
    assert posterior.utility(items=[0, 1, 2]).shape == (50, 2, 3)


def test_a_context_beyond_training_is_named(pair, data) -> None:
    model, guide = pair
    guide.largest_context.fill_(10)
    try:
        with pytest.warns(
            UserWarning, match="24 comparisons, and the guide was trained for at most 10"
        ):
            Posterior(model, guide, data, num_samples=50)
    finally:
        guide.largest_context.fill_(0)


def test_nan_parameters_are_an_error_not_a_number(data) -> None:
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, utility="linear")
    guide = NeuralProcessGuide(model)
    with torch.no_grad():
        model.utility.mean[0] = torch.nan
    with pytest.raises(FloatingPointError, match="posterior of user"):
        Posterior(model, guide, data, num_samples=50)


def test_differences_are_correlations_and_spreads_of_utilities(pair, data) -> None:
    posterior = Posterior(*pair, data, num_samples=200, seed=1)
    items, users = list("abcdf"), ["w3", "w6", "w24"]
    table = posterior.differences(items, users)
    utility = posterior.utility(items, users).double().numpy()
    average = utility.mean((0, 1))
    direction = [[np.corrcoef(row, average)[0, 1] for row in draw] for draw in utility]
    for name, values in (("direction", direction), ("scale", utility.std(-1))):
        for suffix, level in (("", 0.5), ("_lower", 0.05), ("_upper", 0.95)):
            expected = np.quantile(values, level, axis=0)
            np.testing.assert_allclose(table[name + suffix], expected, atol=1e-5)
    assert table.index.tolist() == users
    assert table["comparisons"].tolist() == [3, 6, 24]
    with pytest.raises(ValueError, match="items must be at least 3 to compare people by, got 2"):
        posterior.differences(["a", "b"])


def test_batches_of_people_are_bounded_by_their_padding() -> None:
    """One person with very many comparisons costs a batch of their own, and no more."""
    counts = np.full(3000, 4)
    counts[700] = 5000
    left = np.zeros(counts.sum(), dtype=int)
    data = Preferences(left, left + 1, left, np.append(0, np.cumsum(counts)), num_items=2)
    limit, device = 2**19, torch.device("cpu")
    batches = user_batches(data, 100, device, margins=limit)
    shapes = [batch.mask.shape for _, batch in batches]
    assert sum(users for users, _ in shapes) == 3000
    assert sum(width == 5000 for _, width in shapes) == 1
    assert all(100 * users * max(width, 16) <= limit or users == 1 for users, width in shapes)
    assert len(shapes) < 25


def test_a_guide_without_the_posterior_is_named(pair, data) -> None:
    model, guide = pair
    guide.objectives = ["NeuralProcessELBO", "Sleep"]
    try:
        with pytest.warns(UserWarning, match="fitted by NeuralProcessELBO"):
            Posterior(model, guide, data, num_samples=50)
        Posterior(model, guide, data, num_samples=50, correct=None)
    finally:
        guide.objectives = []


# ---------------------------------------------------------------------- populations drawn too


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
    assert abs(sd.median().item() - table.loc[("sd", "0"), "estimate"]) < 0.05
    assert sd.std().item() == pytest.approx(table.loc[("sd", "0"), "se_sandwich"], rel=0.15)
    # z keeps its meaning: no draw turns Λ, so their mean is near the estimate.
    estimate = fitted.model.utility.loading.detach() / scale[:, None]
    assert (loading.mean(0) - estimate).norm() < 0.3 * estimate.norm()
    again = fitted.population_draws(3, seed=0).members[0][0]
    assert torch.equal(again.utility.mean, fitted.population_draws(3).members[0][0].utility.mean)


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
