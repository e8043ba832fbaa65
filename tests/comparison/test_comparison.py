"""Comparison of models: exact leave-one-out on a grid, boundary laws, folds, clustered errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Preferences,
    comparison,
    fit,
)
from fssa_bayes.comparison import (
    Elpd,
    choose_latent_dim,
    compare,
    heterogeneity_test,
    leave_comparisons_out,
    leave_users_out,
    score_users,
)
from fssa_bayes.comparison.heterogeneity import _boundary_draws, _cone_maximum, _half_chi_square

SHORT = {"objective": ImportanceWeightedELBO(8), "steps": 60, "validation": None}


@pytest.fixture(scope="module")
def pair() -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, utility="linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        model.utility.loading.copy_(torch.tensor([[1.0, 0.0], [0.2, 0.4], [-0.2, 0.2]]))
    return model, NeuralProcessGuide(model).eval()


def people(
    num: int, comparisons: int, seed: int, *, spread: float, features: int = 1
) -> Preferences:
    """People whose coefficients are N(.5, spread²), independent."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(50, features))
    left = rng.integers(50, size=num * comparisons)
    right = (left + rng.integers(1, 50, size=len(left))) % 50
    beta = rng.normal(0.5, spread, size=(num, features)).repeat(comparisons, 0)
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(len(left)) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(0, len(left) + 1, comparisons)
    return Preferences(left, right, choice, offsets, items=items)


def linear(latent_dim: int, features: int = 1):
    model = HeterogeneousBTL(features, latent_dim, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal", 16) if latent_dim else None
    return model, guide


# ---------------------------------------------------------------------- leaving out comparisons


@pytest.mark.parametrize("half_wins", [False, True])
def test_leave_one_out_matches_the_grid(half_wins: bool, pair, make_data, grid) -> None:
    """An untrained guide, corrected; the posterior without each comparison summed on a grid."""
    model, guide = pair
    data = make_data((1, 2, 4, 8), half_wins=half_wins, seed=2)
    score = leave_comparisons_out(model, guide, data, 8000, seed=1)
    points, _ = grid(2, 7.0, 181)
    batch = data.batch()
    with torch.no_grad():
        margin = model.choice(batch, points.unsqueeze(1).expand(-1, 4, -1)).margin.double()
    prior = -0.5 * points.double().square().sum(-1)
    expected, row = [], 0
    for person, count in enumerate(data.counts):
        m, y = margin[:, person, :count], torch.from_numpy(data.choice[row : row + count]).double()
        row += count
        log_prob = y * m - torch.nn.functional.softplus(m)
        for n in range(count):
            weights = (prior + log_prob.sum(-1) - log_prob[:, n]).softmax(0)
            prob = (weights * m[:, n].sigmoid()).sum()
            expected.append((y[n] * prob.log() + (1 - y[n]) * (1 - prob).log()).item())
    np.testing.assert_allclose(np.exp(score.values), np.exp(expected), atol=0.02)
    assert score.pareto_k.max() < 0.7
    # The total is as far off as it says, within three of its standard errors.
    assert abs(score.total - sum(expected)) < 3 * score.monte_carlo_error + 1e-3
    assert score.person.tolist() == np.repeat(np.arange(4), (1, 2, 4, 8)).tolist()
    np.testing.assert_allclose(score.by_person.sum(), score.total)


def test_a_homogeneous_score_is_the_log_likelihood(make_data) -> None:
    data = make_data((3, 1, 5))
    model, _ = linear(0, 3)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        batch = data.batch()
        exact = model.choice(batch, torch.zeros(3, 0)).log_prob(batch.choice)
    by_comparison = leave_comparisons_out(model, None, data)
    np.testing.assert_allclose(by_comparison.by_person, exact, rtol=1e-5)
    assert by_comparison.pareto_k is None
    by_person = score_users(model, None, data)
    np.testing.assert_allclose(by_person.values, exact, rtol=1e-5)
    assert by_person.monte_carlo_error == 0


# ---------------------------------------------------------------------- leaving out people


def test_people_are_scored_by_their_marginal_likelihood(pair, make_data, grid) -> None:
    model, guide = pair
    data = make_data((0, 2, 8))
    points, cell = grid(2, 7.0, 181)
    batch = data.batch()
    with torch.no_grad():
        log_prob = model.choice(batch, points.unsqueeze(1).expand(-1, 3, -1)).log_prob(batch.choice)
    prior = torch.distributions.Normal(0, 1).log_prob(points).sum(-1, keepdim=True)
    exact = (log_prob + prior).double().logsumexp(0) + np.log(cell)
    score = score_users(model, guide, data, 4000)
    assert score.values[0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(score.values, exact, atol=4 * score.monte_carlo_error + 1e-3)


def test_folds_are_fitted_to_the_others_and_scored_in_order(monkeypatch) -> None:
    data = people(23, 6, 0, spread=0.0)
    seen = []

    def spy(model, guide, training, **options):
        seen.append(set(training.user_names))
        return fit(model, guide, training, **options)

    monkeypatch.setattr(comparison, "fit", spy)
    score = leave_users_out(lambda: linear(0), data, 4, seed=5)
    assert len(seen) == 4
    left_out = [set(data.user_names) - fitted for fitted in seen]
    assert sorted(name for names in left_out for name in names) == list(range(23))
    for names in left_out:
        model, _ = linear(0)
        fit(model, None, data.subset(sorted(set(range(23)) - names)), progress_bar=False)
        test = data.subset(sorted(names))
        expected = score_users(model, None, test).values
        np.testing.assert_allclose(score.values[sorted(names)], expected, rtol=1e-4)
    again = leave_users_out(lambda: linear(0), data, 4, seed=5)
    assert np.array_equal(score.values, again.values)


# ---------------------------------------------------------------------- comparisons


def test_differences_are_paired_and_clustered_by_person() -> None:
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(30), 4)
    taste = rng.normal(size=30)[person]
    first, second = taste - 1.0, taste - 1.1 + 0.01 * rng.normal(size=120)
    scores = {
        name: Elpd(values, person, 30, "comparison", None, 0.0, "data")
        for name, values in (("second", second), ("first", first))
    }
    table = compare(scores)
    assert table.index.tolist() == ["first", "second"]
    difference = (first - second).reshape(30, 4).sum(-1)
    assert table.loc["second", "elpd_diff"] == pytest.approx(difference.sum())
    expected = np.sqrt(30 * difference.var(ddof=1))
    assert table.loc["second", "dse"] == pytest.approx(expected)
    # Pooled over comparisons the error of the total would be half as large.
    expected = np.sqrt(30 * first.reshape(30, 4).sum(-1).var(ddof=1))
    assert table.loc["first", "se"] == pytest.approx(expected)
    assert table.loc["second", "verdict"].startswith("worse")
    assert table.loc["first", ["elpd_diff", "dse"]].tolist() == [0, 0]


def test_verdicts_of_doubtful_differences() -> None:
    def score(values: np.ndarray) -> Elpd:
        return Elpd(values, np.arange(len(values)), len(values), "person", None, 0.0, "data")

    zero, noise = np.zeros(50), np.random.default_rng(0).normal(size=50)
    noise -= noise.mean()
    assert "not told apart" in compare({"a": score(zero), "b": score(noise - 0.2)})["verdict"]["b"]
    small = compare({"a": score(zero), "b": score(0.01 * noise - 0.02)})["verdict"]["b"]
    assert small.startswith("less than 4 nats")
    few = compare({"a": score(zero[:5]), "b": score(zero[:5] - 10)})["verdict"]["b"]
    assert few == "too few people to judge by: 5"
    assert str(score(zero - 1)) == "-50.0 ± 0.0 nats, leaving out a person"


def test_only_the_same_data_are_compared(make_data) -> None:
    model, _ = linear(0, 3)
    one, other = make_data((3, 4)), make_data((3, 4), seed=1)
    scores = {"one": score_users(model, None, one), "other": score_users(model, None, other)}
    with pytest.raises(ValueError, match="scores must be of the same data"):
        compare(scores)
    with pytest.raises(ValueError, match="scores must be of the same data"):
        compare({"one": scores["one"], "two": leave_comparisons_out(model, None, one)})
    with pytest.raises(ValueError, match="at least 2 models, got \\['one'\\]"):
        compare({"one": scores["one"]})


# ---------------------------------------------------------------------- the boundary


def test_one_variance_has_the_even_mixture() -> None:
    data = people(300, 8, 0, spread=0.0)
    model, _ = linear(0)
    fit(model, None, data, progress_bar=False)
    draws = _boundary_draws(model, data, 1, 4000)
    assert np.mean(draws == 0) == pytest.approx(0.5, abs=0.03)
    assert stats.kstest(draws[draws > 0], stats.chi2(1).cdf).pvalue > 0.01
    for statistic in (0.5, 3.0):
        assert np.mean(draws >= statistic) == pytest.approx(_half_chi_square(statistic), abs=0.02)


@pytest.mark.parametrize("rank", [1, 2])
def test_cone_maximum_against_a_general_optimiser(rank: int) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    quadratic = root @ root.T
    # vec(Σ) is symmetric, and so may the information be taken to be.
    turn = np.eye(4)[[0, 2, 1, 3]]
    quadratic = (quadratic + turn @ quadratic @ turn) / 2 + np.eye(4)
    linear = rng.normal(size=(6, 2, 2)) * 2
    linear = linear + linear.transpose(0, 2, 1)
    found = _cone_maximum(torch.from_numpy(linear), torch.from_numpy(quadratic), rank, 2000)
    for matrix, value in zip(linear, found, strict=True):

        def loss(entries: np.ndarray, matrix: np.ndarray = matrix) -> float:
            factor = entries.reshape(2, rank)
            sigma = (factor @ factor.T).ravel()
            return sigma @ quadratic @ sigma - 2 * matrix.ravel() @ sigma

        best = min(optimize.minimize(loss, rng.normal(size=2 * rank)).fun for _ in range(10))
        assert value.item() == pytest.approx(max(0.0, -best), abs=2e-3)


def test_p_values_are_uniform_if_all_are_alike() -> None:
    """Likelihood ratios of 200 data sets, both models maximised by quadrature and a grid."""
    rng = np.random.default_rng(0)
    difference = rng.normal(size=(200, 250, 6)) * 1.5  # Data sets, people, comparisons.
    choice = rng.random(difference.shape) < 1 / (1 + np.exp(-0.5 * difference))
    sign = torch.from_numpy(np.where(choice, 1.0, -1.0) * difference)
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(8))
    log_weights = (weights / weights.sum()).log()

    def log_likelihood(mean: torch.Tensor, variance: float) -> torch.Tensor:
        beta = mean[:, None] + variance**0.5 * nodes
        likelihood = torch.sigmoid(sign[..., None] * beta[:, None, None, :]).prod(2)
        return (likelihood.log() + log_weights).logsumexp(-1).sum(-1)

    mean, step, profile = torch.full((200,), 0.5, dtype=torch.float64), 0.02, []
    for variance in (0.0, 0.01, 0.03, 0.05, 0.08, 0.11, 0.15, 0.2, 0.26):
        low, centre, high = (log_likelihood(mean + side * step, variance) for side in (-1, 0, 1))
        # The parabola through three means; the next variance starts at its vertex.
        slope, curvature = (high - low) / 2, high - 2 * centre + low
        profile.append(centre - slope**2 / curvature / 2)
        mean = mean - step * slope / curvature
    profile = torch.stack(profile)
    statistic = 2 * (profile.max(0).values - profile[0])
    p_values = np.array([_half_chi_square(value) for value in statistic.tolist()])
    for level in (0.05, 0.1, 0.3):
        share = np.mean(p_values <= level)
        assert share == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 200))
    # Half of the data sets show no variance, which an ordinary chi-square does not foresee.
    assert np.mean(statistic.numpy() == 0) == pytest.approx(0.5, abs=0.12)


# ---------------------------------------------------------------------- do people differ?


@pytest.mark.parametrize(("spread", "differs"), [(0.0, False), (1.0, True)])
def test_heterogeneity_with_one_feature(spread: float, differs: bool) -> None:
    data = people(150, 8, 3, spread=spread)
    test = heterogeneity_test(lambda: linear(1), data, fit_options=SHORT)
    assert test.method == "mixture"
    assert (test.p_value < 0.05) is differs
    assert test.p_interval[0] <= test.p_value <= test.p_interval[1]
    assert ("the 150 people do differ" in str(test)) is differs
    assert "equal parts of chi-squares" in str(test)
    low, high = test.log_likelihood
    assert test.statistic == pytest.approx(2 * (high - low))


def test_heterogeneity_by_bootstrap_and_by_simulated_mixture() -> None:
    data = people(80, 6, 0, spread=1.0, features=2)
    options = {"fit_options": SHORT | {"steps": 40}, "num_samples": 200}
    bootstrap = heterogeneity_test(
        lambda: linear(1, 2), data, null="bootstrap", num_null=4, **options
    )
    assert bootstrap.method == "bootstrap"
    assert len(bootstrap.null) == 4
    assert bootstrap.p_value == pytest.approx(1 / 5)
    assert bootstrap.statistic > 4 * np.abs(bootstrap.null).max()
    assert "4 data sets simulated from the homogeneous model" in str(bootstrap)
    assert bootstrap.verdict.startswith("the statistic is larger than each of the 4 under the null")
    mixture = heterogeneity_test(lambda: linear(1, 2), data, num_null=200, **options)
    assert mixture.method == "simulated mixture"
    assert mixture.p_value == pytest.approx(1 / 201)
    assert mixture.statistic == bootstrap.statistic
    assert (mixture.null >= 0).all()


def test_heterogeneity_refuses_what_it_cannot_do() -> None:
    data = people(20, 4, 0, spread=1.0, features=3)
    with pytest.raises(ValueError, match="null must be 'auto', 'mixture' or 'bootstrap', got 'x'"):
        heterogeneity_test(lambda: linear(1, 3), data, null="x")
    with pytest.raises(ValueError, match="num_null must be an integer of at least 1, got 0"):
        heterogeneity_test(lambda: linear(1, 3), data, num_null=0)
    with pytest.raises(ValueError, match="5 people for each of the 6 variances .* got 20"):
        heterogeneity_test(lambda: linear(1, 3), data, null="mixture")
    with pytest.raises(ValueError, match="latent_dim of at least 1, got 0"):
        heterogeneity_test(lambda: linear(0, 3), data)

    def bilinear():
        model = HeterogeneousBTL(3, 1)
        return model, NeuralProcessGuide(model)

    with pytest.raises(ValueError, match="needs utility='linear'"):
        heterogeneity_test(bilinear, data, null="mixture")


# ---------------------------------------------------------------------- how many dimensions?


def test_dimensions_are_chosen_by_some_and_reported_on_others(monkeypatch) -> None:
    data = people(200, 8, 0, spread=1.5)
    fitted, scored = [], []

    def spy_fit(model, guide, training, **options):
        fitted.append(set(training.user_names))
        return fit(model, guide, training, **options)

    def spy_score(model, guide, test, *args, **options):
        scored.append(set(test.user_names))
        return score_users(model, guide, test, *args, **options)

    monkeypatch.setattr(comparison, "fit", spy_fit)
    monkeypatch.setattr(comparison, "score_users", spy_score)
    choice = choose_latent_dim(
        linear, data, (0, 1), num_folds=2, num_samples=200, fit_options=SHORT
    )
    assert choice.latent_dim == 1
    reported = scored[-1]
    assert len(reported) == choice.num_reported == 60
    assert all(not reported & names for names in fitted)
    assert all(not reported & names for names in scored[:-2])
    assert set(choice.choosing.index) == set(choice.reported.index) == {0, 1}
    assert "1 latent dimensions: the fewest within one standard error" in str(choice)
    with pytest.raises(ValueError, match="latent_dims must be at least 2 numbers"):
        choose_latent_dim(linear, data, (1, 1))
    with pytest.raises(ValueError, match="num_folds must be an integer between 2 and the 200"):
        leave_users_out(lambda: linear(0), data, 1)
