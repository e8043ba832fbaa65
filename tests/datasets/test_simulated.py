"""Simulated people with known truth: every limit in closed form against plain counting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, special, stats

from fssa_bayes.data import Preferences
from fssa_bayes.datasets import clusters, conflict, hidden_context, linear_factors, two_mode

CONTEXTS = [0, 1, 2, 5]


def close_to(per_user: np.ndarray, truth: float) -> bool:
    error = per_user.std(ddof=1) / np.sqrt(len(per_user))
    return abs(per_user.mean() - truth) < 4 * error + 1e-12


def scores(prob: np.ndarray, target: Preferences) -> tuple[np.ndarray, np.ndarray]:
    """Returns accuracy, where a guess is half right, and log-loss, each (U,)."""
    of_choice = np.where(target.choice == 1, prob, 1 - prob).reshape(len(target), -1)
    return ((np.sign(of_choice - 0.5) + 1) / 2).mean(1), -np.log(of_choice).mean(1)


SIMULATIONS = {
    "hidden_context": hidden_context.simulate,
    "clusters": clusters.simulate,
    "linear_factors": lambda users, comparisons, seed: linear_factors.simulate(
        users, comparisons, linear_factors.draw_population(3, 2), seed=seed
    ),
    "conflict": lambda users, comparisons, seed: conflict.simulate(
        users, comparisons, 0.3, seed=seed
    ),
}


@pytest.mark.parametrize("simulate", SIMULATIONS.values(), ids=SIMULATIONS)
def test_simulations_depend_on_their_seed_alone(simulate) -> None:
    state = np.random.get_state()[1].copy()
    first, again, other = (simulate(20, 3, seed=seed) for seed in (1, 1, 2))
    assert len(first.data) == 20
    assert (first.data.counts == 3).all()
    assert first.data.items.equal(again.data.items)
    assert first.data.choice.tolist() == again.data.choice.tolist()
    assert np.array_equal(first[1], again[1])
    assert not first.data.items.equal(other.data.items)
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("simulate", SIMULATIONS.values(), ids=SIMULATIONS)
@pytest.mark.parametrize("argument", ["num_users", "num_comparisons"])
def test_empty_simulations_are_refused(simulate, argument: str) -> None:
    sizes = {"num_users": 2, "num_comparisons": 2} | {argument: 0}
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        simulate(*sizes.values(), seed=0)


# Hidden context.


def hidden_utility(a: float, h: int) -> float:
    return a if a < 0.8 else (2 * a if h == 1 else 0.0)


def win(left: float, right: float) -> float:
    return 1.0 if left > right else 0.5 if left == right else 0.0


def borda_by_counting(a: float, drawn: str) -> float:
    """Averages wins over a fine grid of opponents and over all hidden contexts."""
    opponents = (np.arange(20_000) + 0.5) / 20_000
    contexts = [(h, k) for h in (0, 1) for k in (0, 1) if drawn == "item" or h == k]
    wins = [
        np.mean([win(hidden_utility(a, h), hidden_utility(b, k)) for b in opponents])
        for h, k in contexts
    ]
    return float(np.mean(wins))


@pytest.mark.parametrize("drawn", ["item", "comparison", "person"])
@pytest.mark.parametrize("a", [0.05, 0.41, 0.79, 0.81, 0.97])
def test_borda_scores_are_those_of_counting(a: float, drawn: str) -> None:
    counted = borda_by_counting(a, drawn)
    assert hidden_context.borda(np.array(a), drawn=drawn) == pytest.approx(counted, abs=1e-4)


def test_published_borda_scores() -> None:
    a = np.array([0.0, 0.3, 0.799, 0.8, 0.9, 1.0])
    expected = [0.1, 0.4, 0.899, 0.475, 0.5, 0.525]
    assert hidden_context.borda(a) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("drawn", "shape"), [("person", (400,)), ("comparison", (4000,)), ("item", (4000, 2))]
)
def test_simulated_choices_win_as_often_as_borda_says(drawn: str, shape: tuple) -> None:
    data, hidden = hidden_context.simulate(400, 10, drawn=drawn, seed=3)
    assert hidden.shape == shape
    a = data.items[:, 0].numpy()
    for low, high in ((0.2, 0.4), (0.6, 0.8), (0.8, 1.0)):
        inside = (a[data.left] >= low) & (a[data.left] < high)
        surprise = data.choice[inside] - hidden_context.borda(a[data.left][inside], drawn=drawn)
        assert close_to(surprise, 0.0)


@pytest.mark.parametrize("drawn", ["item", "comparison", "person"])
def test_hidden_contexts_explain_every_choice(drawn: str) -> None:
    data, hidden = hidden_context.simulate(300, 8, drawn=drawn, seed=4)
    each = np.repeat(hidden, 8) if drawn == "person" else hidden
    each = np.broadcast_to(each.reshape(2400, -1), (2400, 2))
    coins = []
    for row in range(2400):
        a, b = (data.items[side[row], 0].item() for side in (data.left, data.right))
        expected = win(hidden_utility(a, each[row, 0]), hidden_utility(b, each[row, 1]))
        if expected == 0.5:
            coins.append(data.choice[row])
        else:
            assert data.choice[row] == expected
    assert len(coins) > 10
    assert close_to(np.array(coins), 0.5)


@pytest.mark.parametrize("n", CONTEXTS)
def test_hidden_context_limits_are_reached(n: int) -> None:
    data, type = hidden_context.simulate(8000, n + 4, seed=5)
    context, target = data.split_context(n, seed=6)
    accuracy, log_loss = scores(hidden_context.bayes_choice_prob(context, target), target)
    assert close_to(accuracy, hidden_context.bayes_accuracy(n))
    assert close_to(log_loss, hidden_context.bayes_log_loss(n))
    assert close_to(hidden_context.bayes_type_prob(context) - type, 0.0)


def test_hidden_context_limits_without_and_with_everything_known() -> None:
    # Of all pairs .64 lie below .8, .32 on both sides and .04 above. Unknown: h decides the second
    # kind, and above the larger wins in three of four cases; known: a coin for half of the last.
    entropy = stats.bernoulli.entropy(0.75)
    assert hidden_context.bayes_accuracy(0) == pytest.approx(0.64 + 0.16 + 0.03)
    assert hidden_context.bayes_log_loss(0) == pytest.approx(0.32 * np.log(2) + 0.04 * entropy)
    assert hidden_context.bayes_accuracy(200) == pytest.approx(0.99)
    assert hidden_context.bayes_log_loss(200) == pytest.approx(0.02 * np.log(2))


def test_what_no_hidden_context_explains_is_refused() -> None:
    wrong = Preferences([0, 2], [1, 3], [1, 0], [0, 1, 2], items=[[0.2], [0.1], [0.6], [0.3]])
    with pytest.raises(ValueError, match="user 1 is of neither"):
        hidden_context.bayes_type_prob(wrong)
    for call in (hidden_context.borda, lambda _, drawn: hidden_context.simulate(1, 1, drawn=drawn)):
        with pytest.raises(ValueError, match="drawn must be one of .*, got 'people'"):
            call(np.array(0.5), drawn="people")


# Clusters.


def test_types_differ_on_five_of_ten_kinds() -> None:
    data, type, kind, place = clusters.simulate(500, 6, seed=1)
    assert np.array_equal(np.unique(kind), np.arange(10))
    assert (kind[data.left] == kind[data.right]).all()
    assert (place[data.left] + place[data.right] == 1).all()
    for row, t in enumerate(np.repeat(type, 6)):
        preferred = t if kind[data.left[row]] >= 5 else 0
        winner = data.left[row] if data.choice[row] else data.right[row]
        assert place[winner] == preferred
    assert close_to(clusters.controversial(data, kind), 0.5)
    assert close_to(type, 0.5)
    assert close_to(place[data.left], 0.5)


def test_items_lie_around_the_means_of_their_kind() -> None:
    centres = clusters.means()
    data, _, kind, place = clusters.simulate(400, 5, seed=2)
    items = data.items.numpy()
    distances = np.linalg.norm(items[:, None] - centres.reshape(1, 20, -1), axis=2)
    assert (distances.argmin(1) == 2 * kind + place).all()
    residual = items - centres[kind, place]
    assert close_to(residual.ravel(), 0.0)
    assert residual.std() == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize("n", CONTEXTS)
def test_ceilings_of_clusters_are_reached(n: int) -> None:
    data, type, kind, place = clusters.simulate(4000, n + 4, seed=3)
    context, target = data.split_context(n, seed=4)
    prob = clusters.bayes_choice_prob(context, target, kind, place)
    accuracy, log_loss = scores(prob, target)
    assert close_to(accuracy, clusters.bayes_accuracy(n))
    assert close_to(log_loss, clusters.bayes_log_loss(n))
    divided = clusters.controversial(target, kind)
    right = np.where(prob == 0.5, 0.5, (prob > 0.5) == target.choice)
    surprise = (right - clusters.bayes_accuracy(n, share=1)) * divided
    assert close_to(surprise.reshape(4000, 4).mean(1), 0.0)  # a person's pairs hang together
    assert right[~divided].mean() == clusters.bayes_accuracy(n, share=0) == 1
    known = clusters.bayes_type_prob(context, kind, place)
    assert set(known[known != 0.5] == type[known != 0.5]) <= {True}


def test_published_ceilings() -> None:
    assert clusters.bayes_accuracy(0) == 0.75
    assert clusters.bayes_accuracy(60) == pytest.approx(1)
    assert clusters.bayes_accuracy(0, share=1) == 0.5


def test_bad_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"centres must have shape \(10, 2, D\), got \(2, 2, 3\)"):
        clusters.simulate(1, 1, centres=np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="noise must be at least 0 and finite, got -1"):
        clusters.simulate(1, 1, noise=-1)
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        clusters.means(0)
    with pytest.raises(ValueError, match="share must lie between 0 and 1, got 2"):
        clusters.bayes_accuracy(1, share=2)
    data, _, kind, place = clusters.simulate(1, 40, seed=1)
    mixed = data.with_choices((place[data.left] == np.arange(40) % 2).astype(float))
    with pytest.raises(ValueError, match="user 0 is of neither"):
        clusters.bayes_type_prob(mixed, kind, place)


# Linear factors.


def test_coefficients_have_the_mean_and_covariance_of_the_population() -> None:
    population = linear_factors.draw_population(5, 2, spread=1.5, seed=1)
    _, coefficients = linear_factors.simulate(20_000, 1, population, seed=2)
    assert np.linalg.matrix_rank(population.covariance) == 2
    assert np.linalg.eigvalsh(population.covariance)[-2:] == pytest.approx([2.25, 2.25])
    centred = coefficients - population.mean
    for d in range(5):
        assert close_to(centred[:, d], 0.0)
        for e in range(5):
            assert close_to(centred[:, d] * centred[:, e], population.covariance[d, e])


def test_choices_follow_the_coefficients() -> None:
    population = linear_factors.draw_population(4, 3, seed=3)
    data, coefficients = linear_factors.simulate(2000, 5, population, seed=4)
    prob = linear_factors.choice_prob(data, coefficients)
    row = 7  # the third comparison of the second person
    gap = (data.items[data.left[row]] - data.items[data.right[row]]).double().numpy()
    assert prob[row] == pytest.approx(1 / (1 + np.exp(-gap @ coefficients[1])))
    for low, high in ((0, 0.1), (0.1, 0.4), (0.4, 0.6), (0.6, 0.9), (0.9, 1)):
        inside = (prob >= low) & (prob < high)
        assert close_to(data.choice[inside] - prob[inside], 0.0)
    log_loss = -np.log(np.where(data.choice == 1, prob, 1 - prob)).reshape(2000, -1).mean(1)
    assert close_to(log_loss - linear_factors.known_log_loss(coefficients), 0.0)


def test_population_choice_probabilities_are_integrals_over_people() -> None:
    population = linear_factors.draw_population(3, 2, spread=2.0, seed=5)
    data = linear_factors.simulate(3, 4, population, seed=6).data
    prob = linear_factors.population_choice_prob(data, population)
    for row in range(12):
        gap = (data.items[data.left[row]] - data.items[data.right[row]]).double().numpy()
        scale = np.sqrt(gap @ population.covariance @ gap)

        def density(margin: float, loc: float = gap @ population.mean, scale=scale) -> float:
            return special.expit(margin) * stats.norm.pdf(margin, loc, scale)

        assert prob[row] == pytest.approx(integrate.quad(density, -60, 60, limit=400)[0], abs=1e-4)


def test_known_log_loss_at_its_ends() -> None:
    coefficients = np.array([[0.0, 0.0], [300.0, 400.0]])
    loss = linear_factors.known_log_loss(coefficients)
    assert loss[0] == pytest.approx(np.log(2))
    assert loss[1] < 0.02


def test_people_who_do_not_differ() -> None:
    population = linear_factors.draw_population(3, 0)
    data, coefficients = linear_factors.simulate(5, 2, population)
    assert (coefficients == population.mean).all()
    expected = linear_factors.choice_prob(data, coefficients)
    assert linear_factors.population_choice_prob(data, population) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0, "rank": 0}, "num_features must be at least 1, got 0"),
        ({"num_features": 3, "rank": 4}, r"rank must lie in 0 … 3, the number of features, got 4"),
        ({"num_features": 3, "rank": 1, "spread": -1}, "spread must be at least 0"),
    ],
)
def test_bad_populations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_factors.draw_population(**options)


def test_mean_and_loadings_must_agree() -> None:
    population = linear_factors.Population(np.zeros(3), np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(2, 1\)"):
        linear_factors.simulate(1, 1, population)


# Conflict.


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_dividing_pairs_is_as_set(fraction: float) -> None:
    data, type = conflict.simulate(2000, 5, fraction, seed=1)
    x = data.items[:, 0].double().numpy()
    wins = [two_mode.utility(x[data.left], t) > two_mode.utility(x[data.right], t) for t in (0, 1)]
    assert close_to(wins[0] != wins[1], fraction)
    assert np.array_equal(conflict.conflicts(data), wins[0] != wins[1])
    assert conflict.conflict_fraction(np.array(wins)) == np.mean(wins[0] != wins[1])
    chosen = np.where(np.repeat(type, 5) == 0, wins[0], wins[1])
    assert np.array_equal(data.choice, chosen)


@pytest.mark.parametrize("divided", [False, True])
def test_pairs_are_uniform_given_whether_they_divide(divided: bool) -> None:
    made = conflict.simulate(20_000, 1, float(divided), seed=2).data.items.reshape(-1, 2).numpy()
    drawn = two_mode.simulate(40_000, 1, seed=3).data
    kept = drawn.items.reshape(-1, 2).numpy()[conflict.conflicts(drawn) == divided]
    for summary in (lambda pair: pair[:, 0], lambda pair: pair.sum(1), lambda pair: pair.prod(1)):
        assert stats.ks_2samp(summary(made), summary(kept)).pvalue > 0.001


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 3])
def test_conflict_limits_are_reached(n: int, fraction: float) -> None:
    context, type = conflict.simulate(4000, n, fraction, seed=4)
    target = conflict.simulate(4000, 4, 0.7, type=type, seed=5).data
    accuracy, log_loss = scores(two_mode.bayes_choice_prob(context, target), target)
    limit = conflict.bayes_accuracy(n, fraction, target_fraction=0.7)
    assert close_to(accuracy, limit)
    limit = conflict.bayes_log_loss(n, fraction, target_fraction=0.7)
    assert close_to(log_loss, limit)
    entropy = stats.bernoulli.entropy(two_mode.bayes_type_prob(context))
    assert close_to(entropy, conflict.bayes_type_entropy(n, fraction))


def test_half_of_the_pairs_divided_is_the_two_mode_problem() -> None:
    for n in CONTEXTS:
        assert conflict.bayes_accuracy(n, 0.5) == two_mode.bayes_accuracy(n)
        assert conflict.bayes_log_loss(n, 0.5) == pytest.approx(two_mode.bayes_log_loss(n))


def test_bad_conflict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction must lie between 0 and 1, got 1\.5"):
        conflict.simulate(1, 1, 1.5)
    with pytest.raises(ValueError, match="target_fraction must lie between 0 and 1, got -1"):
        conflict.bayes_accuracy(1, 0.5, target_fraction=-1)
    with pytest.raises(ValueError, match="type must hold 0 or 1 for each of 2 people"):
        conflict.simulate(2, 1, 0.5, type=np.array([0, 2]))
    with pytest.raises(ValueError, match=r"choices must have shape \(types, R\), got \(3,\)"):
        conflict.conflict_fraction(np.zeros(3))


@pytest.mark.parametrize("wrong", [-1, 1.5])
@pytest.mark.parametrize(
    "limit",
    [
        hidden_context.bayes_accuracy,
        hidden_context.bayes_log_loss,
        two_mode.bayes_accuracy,
        two_mode.bayes_log_loss,
        clusters.bayes_accuracy,
        clusters.bayes_log_loss,
        lambda n: conflict.bayes_accuracy(n, 0.5),
        lambda n: conflict.bayes_type_entropy(n, 0.5),
    ],
)
def test_a_number_of_known_pairs_is_none_below_zero(limit: Callable, wrong: float) -> None:
    with pytest.raises(ValueError, match=f"num_context must be .* got {wrong}"):
        limit(wrong)


def test_a_hidden_context_is_0_or_1() -> None:
    with pytest.raises(ValueError, match="type must be 0 or 1, got 2"):
        hidden_context.utility(0.9, 2)
