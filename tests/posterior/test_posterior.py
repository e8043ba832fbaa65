"""The posterior: against a grid, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_problems import grid_choice_prob, grid_posterior, linear_pair, six_people

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences


@pytest.fixture(scope="module")
def data() -> Preferences:
    return six_people()


@pytest.fixture(scope="module")
def pair() -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    return linear_pair()


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


def test_a_homogeneous_model_has_no_epistemic_uncertainty(pair, data) -> None:
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


def test_the_seed_decides_and_the_global_state_is_kept(pair, data) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = Posterior(*pair, data, num_samples=100, seed=3)
    second = Posterior(*pair, data, num_samples=100, seed=3)
    other = Posterior(*pair, data, num_samples=100, seed=4)
    assert torch.equal(first.z, second.z)
    assert not torch.equal(first.z, other.z)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])


def test_bad_input_is_refused(pair, data) -> None:
    model, guide = pair
    posterior = Posterior(model, guide, data, num_samples=50)
    other = Preferences([0], [1], [1], [0, 1], items=[[0.0], [1.0]])
    for call, match in [
        (lambda: Posterior(model, None, data, correct=None), "guide must be given"),
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
            Posterior(model, guide, data, num_samples=50, correct=None)
        Posterior(model, guide, data, num_samples=50)  # Draws around modes do not ask the guide.
    finally:
        guide.largest_context.fill_(0)


def test_nan_parameters_raise_an_error(data) -> None:
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


def test_a_guide_fitted_by_another_objective_is_named(pair, data) -> None:
    model, guide = pair
    guide.objectives = ["NeuralProcessELBO", "Sleep"]
    try:
        with pytest.warns(UserWarning, match="fitted by NeuralProcessELBO"):
            Posterior(model, guide, data, num_samples=50)
        Posterior(model, guide, data, num_samples=50, correct=None)
    finally:
        guide.objectives = []
