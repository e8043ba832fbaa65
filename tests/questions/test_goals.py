"""Goals: against closed forms, fine grids, and Bayes' theorem in double precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from asked_people import NAMES, posterior_of, random_posterior
from numpy import ndarray

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences
from fssa_bayes.questions import (
    BestItemInformation,
    Goal,
    InformationGain,
    PredictiveInformation,
    ValueOfInformation,
    next_questions,
    score_questions,
)

ANSWERS = {"ties": -0.3, "bias": 0.4, "lapse": 0.1}
PAIRS = list(itertools.combinations("abcde", 2))
TRIPLES = list(itertools.combinations("abcde", 3))
KINDS = [(PAIRS, "choice", {}), (PAIRS, "choice", ANSWERS)]
KINDS += [(TRIPLES, "choice", {}), (TRIPLES, "ranking", {})]
TARGETS = [("a", "c"), ("b", "e"), ("d", "b")]


def answer_prob(
    utility: ndarray,
    question: tuple,
    kind: str = "choice",
    *,
    ties: float | None = None,
    bias: float = 0.0,
    lapse: float = 0.0,
) -> ndarray:
    """Probabilities (A, S) of the answers to a question, as products of odds."""
    odds = np.exp([utility[:, NAMES.index(item)] for item in question])
    if kind == "ranking":
        orders = itertools.permutations(odds)
        return np.array(
            [np.prod([o[i] / sum(o[i:]) for i in range(len(o))], axis=0) for o in orders]
        )
    if len(question) == 2:
        odds[0] *= math.exp(bias)
    if ties is not None:
        odds = np.vstack([odds, math.exp(ties) * np.sqrt(odds[0] * odds[1])])
    return (1 - lapse) * odds / odds.sum(0) + lapse / len(odds)


def kl(p: ndarray, q: ndarray) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def by_hand(goal: Goal, prob: ndarray, utility: ndarray, weights: ndarray, options: dict) -> float:
    """Scores a question with answer probabilities (A, S) by the posterior after each answer."""
    mean = prob @ weights
    after = prob * weights / mean[:, None]
    if isinstance(goal, InformationGain):
        return sum(p * kl(w, weights) for p, w in zip(mean, after, strict=True))
    if isinstance(goal, ValueOfInformation):
        now = (weights @ utility).max()
        return sum(p * (w @ utility).max() for p, w in zip(mean, after, strict=True)) - now
    if isinstance(goal, BestItemInformation):
        tables = [np.eye(utility.shape[1])[utility.argmax(-1)].T]
    else:
        tables = [answer_prob(utility, target, **options) for target in goal.targets]
    told = [
        sum(p * kl(table @ w, table @ weights) for p, w in zip(mean, after, strict=True))
        for table in tables
    ]
    return float(np.mean(told))


TYPES = [((0.5, 0.5), math.log(2)), ((0.3, 0.7), 0.61086)]


@pytest.mark.parametrize(("weights", "information"), TYPES)
def test_one_answer_tells_two_types_apart(weights, information) -> None:
    scores = score_questions(posterior_of([[40, -40], [-40, 40]], weights), [("a", "b")])
    assert scores.score[0] == pytest.approx(information, abs=1e-5)
    assert scores.prob[0] == pytest.approx(max(weights))
    after = score_questions(posterior_of([[40, -40], [-40, 40]], (1.0, 0.0)), [("a", "b")])
    assert after.score[0] == pytest.approx(0, abs=1e-6)


def test_a_pair_on_which_all_draws_agree_tells_nothing() -> None:
    posterior = posterior_of([[1, 0, 5], [3, 2, -4], [0, -1, 1]], (0.2, 0.3, 0.5))
    scores = score_questions(posterior, [("a", "b"), ("a", "c")])
    assert scores.score[0] == pytest.approx(0, abs=1e-7)
    assert scores.mc_error[0] == pytest.approx(0, abs=1e-7)
    assert scores.score[1] > 0.3


@pytest.fixture(scope="module")
def linear() -> tuple[Posterior, ndarray, ndarray]:
    """A posterior that is the prior, and mean and covariance of the four items' utilities."""
    model = HeterogeneousBTL(3, 2, "linear").eval()
    mean, loading = torch.tensor([0.5, -0.3, 0.2]), torch.tensor([[1.0, 0.0], [0.4, 2.0], [-3, 1]])
    with torch.no_grad():
        model.utility.mean.copy_(mean)
        model.utility.loading.copy_(loading)
    items = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    data = Preferences.empty(["ann"], pd.DataFrame(items, index=list("abcd")))
    factor = items @ loading.numpy()
    return Posterior(model, None, data, 8000), items @ mean.numpy(), factor @ factor.T


def spread(covariance: ndarray, i: int, j: int) -> float:
    """Standard deviation of the difference of two items' utilities."""
    return math.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])


def test_information_about_a_normal_margin_is_that_of_a_fine_grid(linear) -> None:
    posterior, mean, covariance = linear
    scores = score_questions(posterior)
    for (left, right), score, error in zip(
        itertools.combinations(range(4), 2), scores.score, scores.mc_error, strict=True
    ):
        sd = spread(covariance, left, right)
        points = np.linspace(-10, 10, 1601)
        density = np.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
        prob = 1 / (1 + np.exp(-(mean[left] - mean[right] + sd * points)))
        entropy = -prob * np.log(prob) - (1 - prob) * np.log1p(-prob)
        total = np.trapezoid(density * prob, points)
        exact = -total * math.log(total) - (1 - total) * math.log1p(-total)
        exact -= np.trapezoid(density * entropy, points)
        assert abs(score - exact) < 4 * error
        assert error < 0.01


def test_eubo_is_clarks_expected_maximum(linear) -> None:
    posterior, mean, covariance = linear
    scores = score_questions(posterior, goal=ValueOfInformation(kind="eubo"))
    for (i, j), score, error in zip(
        itertools.combinations(range(4), 2), scores.score, scores.mc_error, strict=True
    ):
        sd = spread(covariance, i, j)
        alpha = (mean[i] - mean[j]) / sd
        below = 0.5 * (1 + math.erf(alpha / math.sqrt(2)))
        density = math.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi)
        most = mean[i] * below + mean[j] * (1 - below) + sd * density
        assert abs(score - (most - mean.max())) < 4 * error
        assert error < 0.05


GOALS = [InformationGain(), PredictiveInformation(TARGETS), BestItemInformation()]
GOALS += [ValueOfInformation()]


@pytest.mark.parametrize(("pool", "kind", "options"), KINDS)
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: type(goal).__name__)
def test_scores_are_expectations_over_the_posteriors_after_the_answer(
    goal, pool, kind, options
) -> None:
    posterior, utility, weights = random_posterior(**options)
    scores = score_questions(posterior, pool, goal, kind=kind)
    for question, score in zip(pool, scores.score, strict=True):
        prob = answer_prob(utility, question, kind, **options)
        assert score == pytest.approx(by_hand(goal, prob, utility, weights, options), abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 16, 17, 40])
def test_the_value_of_many_items_is_that_of_each(rank) -> None:
    """Utilities of low rank are not multiplied out; those of rank 17 and more are."""
    rng = np.random.default_rng(rank)
    utility = rng.normal(size=(150, rank)) @ rng.normal(size=(rank, 40)) / math.sqrt(rank)
    weights = rng.dirichlet(np.ones(150))
    posterior = posterior_of(utility, weights.tolist())
    pool = [(left, left + 1) for left in range(0, 40, 4)]
    batch = next_questions(posterior, pool, ValueOfInformation(), batch=2)
    now, found = (weights @ utility).max(), {}
    for pair in pool:
        left = 1 / (1 + np.exp(utility[:, pair[1]] - utility[:, pair[0]]))
        found[pair] = np.stack([left, 1 - left])
        expected = ((found[pair] * weights) @ utility).max(-1).sum() - now
        score = score_questions(posterior, [pair], ValueOfInformation()).score[0]
        assert score == pytest.approx(expected, abs=2e-6)
    one, other = (found[pair] for pair in batch.question)
    both = (one[:, None] * other).reshape(4, -1)
    expected = ((both * weights) @ utility).max(-1).sum() - now
    assert batch.score.sum() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize(("pool", "kind", "options"), KINDS)
def test_no_goal_learns_more_than_there_is_about_z(pool, kind, options) -> None:
    posterior, *_ = random_posterior(num_draws=12, seed=3, **options)
    most = score_questions(posterior, pool, kind=kind).score
    some = BestItemInformation(["a", "b", "c"])
    for goal in (BestItemInformation(), some, PredictiveInformation(TARGETS)):
        score = score_questions(posterior, pool, goal, kind=kind).score
        assert (score > -1e-6).all()
        assert (score < most + 1e-6).all()
    assert (score_questions(posterior, pool, ValueOfInformation(), kind=kind).score > -1e-6).all()


@pytest.mark.parametrize("goal", [*GOALS, ValueOfInformation(kind="eubo")], ids=str)
def test_sides_and_constants_change_nothing(goal) -> None:
    posterior, utility, weights = random_posterior()
    scores = score_questions(posterior, PAIRS, goal)
    swapped = score_questions(posterior, [pair[::-1] for pair in PAIRS], goal)
    constant = np.random.default_rng(1).normal(scale=3, size=(len(utility), 1))
    moved = score_questions(posterior_of(utility + constant, weights.tolist()), PAIRS, goal)
    for other in (swapped, moved):
        np.testing.assert_allclose(other.score, scores.score, atol=3e-6)
        np.testing.assert_allclose(other.mc_error, scores.mc_error, atol=3e-6)
        np.testing.assert_allclose(other.prob, scores.prob, atol=1e-6)


@pytest.mark.parametrize("goal", [*GOALS, ValueOfInformation(kind="eubo")], ids=str)
def test_monte_carlo_errors_are_those_of_repetitions(goal) -> None:
    rng, repetitions = np.random.default_rng(0), 60
    loading = np.array([[2.0, 0.0], [0.5, 1.5], [-1.0, 1.0], [0.3, 0.2], [0.0, -1.0]])
    found = []
    for _ in range(repetitions):
        utility = np.array([0.0, 0.2, 0.1, 0.0, 0.3]) + rng.normal(size=(300, 2)) @ loading.T
        weights = rng.dirichlet(np.full(300, 2.0)).tolist()
        found.append(score_questions(posterior_of(utility, weights), [("a", "b")], goal))
    table = pd.concat(found)
    # The standard deviation of 60 numbers is known up to 9 %.
    assert table.score.std() / table.mc_error.mean() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ValueOfInformation(kind="evpi"), "kind must be 'evoi' or 'eubo', got 'evpi'"),
        (lambda: BestItemInformation(["a"]), "items must have at least two names"),
        (lambda: BestItemInformation(["a", "a"]), "items must be distinct, got 'a'"),
        (lambda: ValueOfInformation(["a", "z"]), "items must be known names, got 'z'"),
        (lambda: PredictiveInformation([]), "targets must have at least one question"),
        (lambda: PredictiveInformation([("a", "a")]), "targets must not repeat an item"),
        (lambda: PredictiveInformation([("a", "y")]), "items of targets must be known names"),
    ],
)
def test_bad_goals_are_refused(make, message) -> None:
    posterior, *_ = random_posterior(num_draws=3)
    with pytest.raises(ValueError, match=message):
        score_questions(posterior, PAIRS, make())


def test_eubo_of_rankings_is_refused() -> None:
    posterior, *_ = random_posterior(num_draws=3)
    with pytest.raises(ValueError, match="got rankings"):
        score_questions(posterior, TRIPLES, ValueOfInformation(kind="eubo"), kind="ranking")
    with pytest.raises(TypeError, match="goal must be a Goal"):
        score_questions(posterior, PAIRS, "evoi")
