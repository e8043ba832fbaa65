"""Scores: the probabilities of answers, pools of all kinds, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from asked_people import posterior_of, random_posterior
from exact_problems import linear_pair, six_people

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences
from fssa_bayes.model import Outcomes
from fssa_bayes.posterior import PopulationDraws
from fssa_bayes.questions import InformationGain, PredictiveInformation, score_questions
from fssa_bayes.questions.draws import draw_people, pair_prob, rank_prob
from fssa_bayes.questions.pool import list_pairs, read_pool

PAIRS = [("a", "b"), ("b", "a"), ("c", "a"), ("e", "d")]
ANSWERS = [{}, {"ties": -0.3}, {"bias": 0.4}, {"lapse": 0.1}]
ANSWERS += [{"ties": 0.2, "bias": -0.7, "lapse": 0.05}]


def ask(posterior: Posterior, pairs: list[tuple]) -> Preferences:
    """The context's people, each asked the pairs, for `choice_prob`."""
    data = posterior.context.subset(range(len(posterior.context)))
    left, right = ([data.item_names.get_loc(x) for x in side] for side in zip(*pairs, strict=True))
    return Preferences(
        np.tile(left, len(data)),
        np.tile(right, len(data)),
        np.ones(len(pairs) * len(data)),
        len(pairs) * np.arange(len(data) + 1),
        items=data.items,
        num_items=data.num_items,
        item_names=data.item_names,
        feature_names=None if data.items is None else data.feature_names,
        user_names=data.user_names,
    )


@pytest.mark.parametrize("options", ANSWERS)
def test_answers_and_information_are_those_of_choice_prob(options) -> None:
    posterior, *_ = random_posterior(**options)
    scores = score_questions(posterior, PAIRS)
    expected = posterior.choice_prob(ask(posterior, PAIRS))
    left, tie = expected.mean[0].numpy(), expected.tie[0].numpy()
    prob = np.stack([left, 1 - left - tie, tie])
    assert scores.answer.tolist() == [("left", "right", "tie")[i] for i in prob.argmax(0)]
    np.testing.assert_allclose(scores.prob, prob.max(0), atol=1e-6)
    np.testing.assert_allclose(scores.score, expected.epistemic[0], atol=2e-6)


def test_probabilities_are_the_models_at_margins_of_any_size() -> None:
    margin = torch.tensor([[0.0, 1e-4, 3.0, -3.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4]])
    for log_tie, lapse in itertools.product((None, -2.0, 1.5), (None, -3.0)):
        parameters = [None if x is None else torch.tensor(x) for x in (log_tie, lapse)]
        expected = [x.exp() for x in Outcomes.of(margin, *parameters) if x is not None]
        found = pair_prob(margin, *parameters)
        torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(sum(found), torch.ones_like(margin))


def test_draws_of_the_population_have_their_own_answers() -> None:
    """Two populations of one person's prior, with other ties, lapses and position bias."""
    torch.manual_seed(0)
    options = {"ties": "davidson", "position_bias": True, "lapses": True}
    models = [HeterogeneousBTL(5, 2, "linear", **options).eval() for _ in range(2)]
    with torch.no_grad():
        for model, sign in zip(models, (1, -1), strict=True):
            model.utility.mean.normal_()
            for parameter in model.answer_parameters().values():
                parameter.add_(sign)
    data = Preferences.empty(["ann", "ben"], list("abcde"), ties="keep")
    data = data.append("ben", "a", "b", "tie").append("ben", "c", "b", "left")
    population = PopulationDraws(tuple((model, None) for model in models), "by hand")
    posterior = Posterior(models[0], None, data, 400, population=population)
    scores = score_questions(posterior, PAIRS)
    expected = posterior.choice_prob(ask(posterior, PAIRS))
    left, tie = expected.mean.flatten().numpy(), expected.tie.flatten().numpy()
    np.testing.assert_allclose(scores.prob, np.max([left, 1 - left - tie, tie], 0), atol=1e-6)
    np.testing.assert_allclose(scores.score, expected.epistemic.flatten(), atol=2e-6)


def test_rankings_have_the_probabilities_of_plackett_and_luce() -> None:
    utility = torch.tensor([[0.3, -1.0, 2.0], [100.0, 0.0, -100.0]]).T.unsqueeze(0)
    prob = torch.stack([rank_prob(utility[:, o]) for o in itertools.permutations(range(3))])
    torch.testing.assert_close(prob.sum(0), torch.ones(1, 2))
    odds = np.exp([0.3, -1.0, 2.0])
    for order, found in zip(itertools.permutations(odds), prob[:, 0, 0].tolist(), strict=True):
        expected = order[0] / sum(order) * order[1] / (order[1] + order[2])
        assert found == pytest.approx(expected, rel=1e-5)


def test_rankings_and_choices_have_the_probabilities_of_the_model() -> None:
    posterior, *_ = random_posterior()
    pool = [("a", "b", "c"), ("e", "b", "d")]
    ranked = score_questions(posterior, pool, kind="ranking")
    chosen = score_questions(posterior, pool)
    for number, question in enumerate(pool):
        data = Preferences.empty(["ann"], list("abcde"))
        target = data.append_ranking("ann", ranked.answer[number])
        assert math.log(ranked.prob[number]) == pytest.approx(posterior.log_score(target).item())
        target = data.append_ranking("ann", [chosen.answer[number]], choice_set=list(question))
        table = posterior.alternative_prob(target)
        assert table["mean"].idxmax()[-1] == chosen.answer[number]
        assert chosen.prob[number] == pytest.approx(table["mean"].max(), abs=1e-6)
        assert chosen.score[number] == pytest.approx(table["epistemic"].iloc[0], abs=2e-6)
    assert (ranked.score > chosen.score).all()


def test_every_person_has_scores_of_their_own() -> None:
    model, guide = linear_pair()
    posterior = Posterior(model, guide, six_people(), 300)
    pairs = [("a", "b"), ("g", "c")]
    scores = score_questions(posterior, pairs)
    assert scores.columns.tolist() == ["user", "question", "score", "mc_error", "answer", "prob"]
    assert scores.user.tolist() == np.repeat(posterior.context.user_names, 2).tolist()
    expected = posterior.choice_prob(ask(posterior, pairs)).epistemic.flatten()
    np.testing.assert_allclose(scores.score, expected, atol=2e-6)
    some = score_questions(posterior, pairs, users=["w24", "w1"])
    expected = pd.concat([scores[scores.user == "w24"], scores[scores.user == "w1"]])
    pd.testing.assert_frame_equal(some, expected.reset_index(drop=True))


def test_pools_may_be_lists_arrays_tables_or_all_pairs() -> None:
    posterior, *_ = random_posterior()
    pairs = list(itertools.combinations("abcde", 2))
    expected = score_questions(posterior)
    assert expected.question.tolist() == pairs
    for pool in (pairs, np.array(pairs), pd.DataFrame(pairs), [list(pair) for pair in pairs]):
        pd.testing.assert_frame_equal(score_questions(posterior, pool), expected)


def test_items_without_names_are_positions() -> None:
    utility = np.random.default_rng(0).normal(size=(20, 12))
    scores = score_questions(posterior_of(utility), np.array([[3, 11], [0, 1]]))
    assert scores.question.tolist() == [(3, 11), (0, 1)]


def test_utilities_are_relative_to_the_first_item() -> None:
    posterior, utility, weights = random_posterior(bias=0.5)
    ((user, draws),) = draw_people(posterior, np.array([1, 3, 4]), np.array([0]))
    assert user == 0
    expected = (utility - utility[:, 1:2])[:, [1, 3, 4]].T
    there = draws.weights > 0
    np.testing.assert_allclose(draws.utility[:, there], expected, atol=1e-5)
    np.testing.assert_allclose(draws.weights[there], weights, rtol=1e-5)
    np.testing.assert_allclose(draws.bias[there], 0.5, atol=1e-5)


def test_random_pairs_are_distinct_pairs() -> None:
    everything = {tuple(pair) for pair in list_pairs(7).tolist()}
    assert len(everything) == 21
    for most in (1, 5, 20):
        some = {tuple(pair) for pair in list_pairs(7, most, seed=most).tolist()}
        assert len(some) == most
        assert some <= everything
    many = list_pairs(3_000_000, 1000)
    assert len(np.unique(many, axis=0)) == 1000
    assert (many[:, 0] < many[:, 1]).all()
    assert many.max() < 3_000_000


@pytest.mark.parametrize(
    ("pool", "options", "error", "message"),
    [
        ([], {}, ValueError, "pool must have at least one question, got none"),
        ([("a", "z")], {}, ValueError, "items of pool must be known names, got 'z'"),
        ([("a", "b"), ("c", "c")], {}, ValueError, r"got \('c', 'c'\) at question 1"),
        ([("a", "b"), ("a", "b", "c")], {}, ValueError, "questions of one size"),
        ([("a",)], {}, ValueError, "two items or more"),
        (["ab"], {}, TypeError, "each a sequence of items, got 'ab'"),
        ("ab", {}, TypeError, "got the string 'ab'"),
        ([("a", "b")], {"kind": "best"}, ValueError, "kind must be one of"),
        ([("a", "b")], {"users": ["bob"]}, ValueError, "users must be known names, got 'bob'"),
        ([tuple("abcdef")], {"kind": "ranking"}, ValueError, "at most 5 items, got 6"),
    ],
)
def test_bad_input_is_refused(pool, options, error, message) -> None:
    posterior, *_ = random_posterior(num_items=6, num_draws=3)
    with pytest.raises(error, match=message):
        score_questions(posterior, pool, **options)


def test_models_without_such_answers_are_refused() -> None:
    posterior, *_ = random_posterior(num_draws=3, ties=0.0)
    with pytest.raises(ValueError, match="rankings are scored by Plackett"):
        score_questions(posterior, [("a", "b", "c")])
    with pytest.raises(ValueError, match="rankings are scored by Plackett"):
        score_questions(posterior, [("a", "b")], PredictiveInformation([("a", "b", "c")]))
    model = HeterogeneousBTL(3, 0, "distributional")
    with pytest.raises(ValueError, match="drawn anew for each answer"):
        score_questions(Posterior(model, None, six_people()), [("a", "b")])


def test_a_homogeneous_model_has_nothing_to_learn() -> None:
    model = HeterogeneousBTL(3, 0, "linear")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    scores = score_questions(Posterior(model, None, six_people()), [("a", "b")], InformationGain())
    assert (scores.score.abs() < 1e-6).all()


def test_a_pool_of_two_items_is_a_comparison_of_either_kind() -> None:
    posterior, *_ = random_posterior(num_draws=3, ties=0.0)
    pool = read_pool(posterior.model, posterior.context, [("a", "b")], "ranking")
    assert not pool.is_ranking
    assert pool.name_answers(np.array([2])) == ["tie"]
