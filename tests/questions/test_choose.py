"""The next question: the best one, batches by joint information, and what is left out."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from asked_people import posterior_of, random_posterior
from numpy import ndarray
from scipy.special import expit, xlogy

from fssa_bayes import Posterior
from fssa_bayes.questions import (
    BestItemInformation,
    InformationGain,
    ValueOfInformation,
    next_questions,
    score_questions,
)


def joint_information(utility: ndarray, weights: ndarray, questions: list[tuple]) -> float:
    """The information of all answers to some pairs together, by all tuples of answers."""
    prob = np.ones((1, len(weights)))
    for left, right in questions:
        left, right = utility[:, "abcdefgh".index(left)], utility[:, "abcdefgh".index(right)]
        both = np.stack([expit(left - right), expit(right - left)])
        prob = (prob[:, None] * both).reshape(-1, len(weights))
    mean = prob @ weights
    return float(xlogy(prob, prob).sum(0) @ weights - xlogy(mean, mean).sum())


def test_the_next_question_has_the_highest_score() -> None:
    posterior, *_ = random_posterior()
    scores = score_questions(posterior).sort_values("score", ascending=False)
    pd.testing.assert_frame_equal(next_questions(posterior), scores[:1].reset_index(drop=True))


def test_a_batch_adds_up_to_the_joint_information() -> None:
    posterior, utility, weights = random_posterior()
    batch = next_questions(posterior, batch=5)
    chosen = batch.question.tolist()
    assert len(set(chosen)) == 5
    for count in range(1, 6):
        joint = joint_information(utility, weights, chosen[:count])
        assert batch.score[:count].sum() == pytest.approx(joint, abs=2e-6)
    # Greedy: no other question adds more to the first two.
    for other in itertools.combinations("abcde", 2):
        joint = joint_information(utility, weights, [*chosen[:2], other])
        assert joint <= batch.score[:3].sum() + 2e-6


def test_a_question_asked_twice_tells_less_than_two_questions() -> None:
    posterior, utility, weights = random_posterior(num_items=2)
    batch = next_questions(posterior, [("a", "b")], batch=2, allow_repeat=True)
    assert batch.question.tolist() == [("a", "b"), ("a", "b")]
    joint = joint_information(utility, weights, [("a", "b"), ("a", "b")])
    assert batch.score.sum() == pytest.approx(joint, abs=2e-6)
    assert 0 < batch.score[1] < batch.score[0]


def test_a_batch_has_no_near_duplicates() -> None:
    """The pair c, d says again what a, b says; e, f says less and something else."""
    rng = np.random.default_rng(0)
    one, other = 6 * rng.normal(size=(2, 400))
    zero = np.zeros(400)
    utility = np.stack([one, zero, one + 0.01, zero, 0.5 * other, zero], -1)
    posterior, pool = posterior_of(utility), [("a", "b"), ("c", "d"), ("e", "f")]
    scores = score_questions(posterior, pool).score
    assert scores[:2].min() > scores[2]
    batch = next_questions(posterior, pool, batch=2)
    assert batch.question[1] == ("e", "f")
    assert batch.question[0] in pool[:2]


def test_sampled_tuples_estimate_the_joint_information() -> None:
    posterior, utility, weights = random_posterior(num_items=6, num_draws=500)
    batch = next_questions(posterior, batch=10, seed=1)
    joint = joint_information(utility, weights, batch.question.tolist())
    assert batch.score.sum() == pytest.approx(joint, rel=0.02)
    again = next_questions(posterior, batch=10, seed=1)
    pd.testing.assert_frame_equal(again, batch)


def test_a_batch_by_eubo_adds_up_to_the_best_of_all_items_offered() -> None:
    posterior, utility, weights = random_posterior()
    batch = next_questions(posterior, goal=ValueOfInformation(kind="eubo"), batch=2)
    offered = ["abcde".index(item) for item in sum(batch.question, ())]
    expected = weights @ utility[:, offered].max(-1) - (weights @ utility).max()
    assert batch.score.sum() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("goal", [BestItemInformation(), ValueOfInformation()], ids=str)
def test_a_batch_by_other_goals_never_loses(goal) -> None:
    posterior, *_ = random_posterior()
    batch = next_questions(posterior, goal=goal, batch=4)
    assert (batch.score > -1e-6).all()
    most = score_questions(posterior, goal=goal).score.max()
    assert batch.score[0] == pytest.approx(most)
    assert batch.score.sum() >= most


def test_what_was_asked_is_left_out_in_either_order() -> None:
    context = [("b", "a", "left"), ("c", "d", "right")]
    posterior, *_ = random_posterior(context=context)
    left = set(itertools.combinations("abcde", 2)) - {("a", "b"), ("c", "d"), ("a", "e")}
    batch = next_questions(posterior, batch=7, asked=[("e", "a"), ("a", "b", "c")])
    assert set(batch.question) == left
    with pytest.raises(ValueError, match="pool must leave batch=8 questions for 'ann', got 7 of"):
        next_questions(posterior, batch=8, asked=[("e", "a")])
    with pytest.raises(ValueError, match="got 0 of 1"):
        next_questions(posterior, [("a", "b")])
    again = next_questions(posterior, [("a", "b")], allow_repeat=True)
    assert again.question[0] == ("a", "b")


def test_a_ranking_of_the_context_was_asked() -> None:
    posterior, *_ = random_posterior()
    data = posterior.context.append_ranking("ann", ["c", "a", "b"]).append("ann", "d", "e", 1)
    later = Posterior(posterior.model, None, data, 100)
    pool = [("a", "b", "c"), ("a", "d", "e")]
    assert next_questions(later, pool, kind="ranking").question.tolist() == [("a", "d", "e")]
    assert next_questions(later, [("a", "b"), ("d", "e")]).question.tolist() == [("a", "b")]


def test_both_orders_differ_where_there_is_a_position_bias() -> None:
    posterior, *_ = random_posterior(num_items=2, bias=1.5)
    scores = score_questions(posterior, [("a", "b"), ("b", "a")])
    assert abs(scores.score[0] - scores.score[1]) > 1e-3
    better = scores.question[scores.score.argmax()]
    worse = better[::-1]
    assert next_questions(posterior, [worse]).question[0] == worse
    assert next_questions(posterior, [worse, better]).question[0] == worse
    assert next_questions(posterior, [worse], both_orders=True).question[0] == better
    assert next_questions(posterior, both_orders=True).question[0] == better
    with pytest.raises(ValueError, match="batch=2 questions for 'ann', got 1 of 1"):
        next_questions(posterior, both_orders=True, batch=2)


@pytest.mark.parametrize("named", [True, False])
def test_large_pools_are_sampled_with_a_warning(named) -> None:
    utility = np.random.default_rng(0).normal(size=(5, 202))
    posterior = posterior_of(utility)
    pool = list(itertools.combinations(range(202), 2)) if named else None
    found = []
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"pool has 20,301 questions: 20,000 of them"):
            found.append(next_questions(posterior, pool, seed=3))
    pd.testing.assert_frame_equal(*found)
    every = score_questions(posterior, list(itertools.combinations(range(202), 2)))
    assert len(every) == 20_301
    assert found[0].score[0] >= every.score.nlargest(400).min()
    if not named:  # The same ones are scored, with the same warning.
        with pytest.warns(UserWarning, match=r"pool has 20,301 questions: 20,000 of them"):
            some = score_questions(posterior, seed=3)
        assert len(set(some.question)) == len(some) == 20_000
        assert some.score.max() == found[0].score[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"batch": True}, "batch must be an integer of at least 1, got True"),
        ({"batch": 2.0}, "batch must be an integer of at least 1, got 2.0"),
        ({"asked": [("a", "z")]}, "asked must be known names, got 'z'"),
        ({"users": ["bob"]}, "users must be known names, got 'bob'"),
        ({"pool": [("a", "a")]}, "pool must not repeat an item"),
    ],
)
def test_bad_input_is_refused(options, message) -> None:
    posterior, *_ = random_posterior(num_draws=3)
    with pytest.raises(ValueError, match=message):
        next_questions(posterior, goal=InformationGain(), **options)


@pytest.mark.parametrize("asked", ["ab", ("a", "b"), 3])
def test_what_was_asked_is_given_as_questions(asked) -> None:
    posterior, *_ = random_posterior(num_draws=3)
    with pytest.raises(TypeError, match=r"asked must (be a sequence of|hold) questions"):
        next_questions(posterior, asked=asked)
