"""Predictions for real people, and score tests against derivatives of the exact likelihood."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, exact
from fssa_bayes.checks import (
    NotEnoughDataError,
    compare_by_context,
    draw_model,
    predict_held_out,
    score_by_context,
    score_folds,
    score_tests,
)
from fssa_bayes.diagnostics import sbc_test
from fssa_bayes.posterior import ChoiceProbability


@pytest.fixture(scope="module")
def model(make_data) -> HeterogeneousBTL:
    return draw_model(make_data([3], num_items=30).items, 1, "linear", spread=1.5, seed=1)


@pytest.fixture(scope="module")
def guide(model: HeterogeneousBTL) -> NeuralProcessGuide:
    torch.manual_seed(0)
    return NeuralProcessGuide(model, posterior="normal", hidden_dim=8)


@pytest.fixture(scope="module")
def people(make_data, model: HeterogeneousBTL) -> Preferences:
    return model.simulate(make_data([8] * 400, num_items=30), seed=2)[0]


def log_evidence(model: HeterogeneousBTL, people: Preferences) -> np.ndarray:
    return exact.grid(model, people).log_evidence.double().numpy()


@pytest.mark.slow
def test_scores_are_derivatives_of_the_log_marginal_likelihood(model, guide, people) -> None:
    """Central differences of the evidence on a grid, by position bias and by scale of margins."""
    scores = score_tests(model, guide, people, num_samples=4000)["score"]
    step = 0.02
    biased = HeterogeneousBTL(3, 1, "linear", position_bias=True)
    biased.load_state_dict(model.state_dict(), strict=False)
    ends = []
    for change in (step, -step):
        with torch.no_grad():
            biased.bias.fill_(change)
        ends.append(log_evidence(biased, people))
    assert scores["left over right"] == pytest.approx(
        (ends[0] - ends[1]).mean() / (2 * step), abs=0.01
    )
    for name, parts in (
        ("consistency of choices", ("mean", "loading")),
        ("difference between people", ("loading",)),
    ):
        ends = []
        for factor in (1 + step, 1 - step):
            scaled = copy.deepcopy(model)
            with torch.no_grad():
                for part in parts:
                    getattr(scaled.utility, part).mul_(factor)
            ends.append(log_evidence(scaled, people))
        # The mean over the population is taken over 256 draws of z, another direction by that much.
        assert scores[name] == pytest.approx((ends[0] - ends[1]).mean() / (2 * step), abs=0.03)


@pytest.mark.slow
def test_the_score_of_lapses_is_the_derivative_by_their_rate(model, guide, people) -> None:
    score = score_tests(model, guide, people, num_samples=4000)["score"]["lapses"]
    lapsing = HeterogeneousBTL(3, 1, "linear", lapses=True)
    lapsing.load_state_dict(model.state_dict(), strict=False)
    rate = 1e-3
    with torch.no_grad():
        lapsing.lapse_logit.fill_(np.log(rate / (1 - rate)))
    slope = (log_evidence(lapsing, people) - log_evidence(model, people)).mean() / rate
    assert score == pytest.approx(slope, abs=0.05)


@pytest.mark.slow
def test_a_right_model_is_not_contradicted(model, guide, people) -> None:
    table = score_tests(model, guide, people)
    assert (table["p"] > 0.001).all()
    prediction = predict_held_out(model, guide, people, sizes=(0, 4))
    pit = torch.cat([at.pit for at in prediction]).unsqueeze(-1)
    assert not sbc_test(pit, np.repeat([0, 4], len(people)), prob=0.99).rejected


@pytest.mark.slow
def test_a_shrunken_model_is_contradicted_in_that_direction(model, guide, make_data) -> None:
    people = model.simulate(make_data([12] * 1000, num_items=30), seed=3)[0]
    smaller, its_guide = copy.deepcopy((model, guide))
    with torch.no_grad():
        smaller.utility.loading.mul_(0.8)
    table = score_tests(smaller, its_guide, people)
    assert table["z"]["difference between people"] > 4
    larger, its_guide = copy.deepcopy((model, guide))
    with torch.no_grad():
        larger.utility.loading.mul_(1.25)
    assert score_tests(larger, its_guide, people)["z"]["difference between people"] < -4


@pytest.mark.slow
def test_left_and_lapses_are_seen(model, guide, people) -> None:
    rng = np.random.default_rng(0)
    slips = rng.random(people.num_comparisons) < 0.2
    random = np.where(slips, rng.integers(2, size=len(slips)), people.choice)
    assert score_tests(model, guide, people.with_choices(random))["z"]["lapses"] > 2
    leftish = np.where(slips, 1, people.choice)
    assert score_tests(model, guide, people.with_choices(leftish))["z"]["left over right"] > 3


def test_knowing_nothing_gains_nothing(model, guide, people) -> None:
    (prediction,) = predict_held_out(model, guide, people, sizes=(0,))
    assert prediction.gain() == (0.0, 0.0)


@pytest.mark.slow
def test_knowing_choices_gains_what_exact_posteriors_gain(model, guide, people) -> None:
    (prediction,) = predict_held_out(model, guide, people, sizes=(4,), num_samples=4000)
    context, target = people.split_context(4, seed=0)
    nothing, _ = target.split_context(0, seed=0)
    known, unknown = (
        Posterior.from_draws(model, c, exact.grid(model, c)).log_score(target)
        for c in (context, nothing)
    )
    assert prediction.gain()[0] == pytest.approx((known - unknown).mean().item(), abs=2e-3)


def test_sizes_without_enough_people_are_left_out(model, guide, people) -> None:
    predictions = predict_held_out(model, guide, people, sizes=(0, 7, 8, 100))
    assert [at.num_context for at in predictions] == [0, 7]
    with pytest.raises(NotEnoughDataError, match="at most 8"):
        predict_held_out(model, guide, people, sizes=(8,))


def test_too_few_people_for_a_test(model, guide, people) -> None:
    with pytest.raises(NotEnoughDataError, match="at least 20 people"):
        score_tests(model, guide, people.subset(range(10)))


@pytest.fixture(scope="module")
def with_ties(model: HeterogeneousBTL) -> HeterogeneousBTL:
    tied = HeterogeneousBTL(3, 1, "linear", ties="davidson", lapses=True)
    tied.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        tied.log_tie.fill_(0.3)
        tied.lapse_logit.fill_(-3.0)
    return tied


@pytest.mark.slow
def test_a_right_model_with_ties_and_lapses_is_not_contradicted(with_ties, make_data) -> None:
    """Half of a tie's probability belongs to either side, where ties are answers."""
    pairs = make_data([8] * 800, num_items=30)
    people = with_ties.simulate(pairs, seed=4)[0]
    assert (people.choice == 0.5).mean() > 0.2
    guide = NeuralProcessGuide(with_ties, posterior="normal", hidden_dim=8)
    assert (score_tests(with_ties, guide, people)["p"] > 0.001).all()
    (at,) = predict_held_out(with_ties, guide, people, sizes=(3,))
    residual = (at.choice - at.prob).nanmean(-1)
    assert abs(residual.mean()) < 3 * residual.std() / len(residual) ** 0.5
    assert not sbc_test(at.pit.unsqueeze(-1), prob=0.99).rejected


class Constant:
    """Predicts left with one probability, and says so."""

    def __init__(self, prob: float) -> None:
        self.prob = prob

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        mean = torch.full(target.batch().mask.shape, self.prob)
        return ChoiceProbability(mean, mean, mean, 0 * mean, 0 * mean, 0 * mean)

    def log_score(self, target: Preferences) -> torch.Tensor:
        batch = target.batch()
        score = batch.choice * np.log(self.prob) + (1 - batch.choice) * np.log(1 - self.prob)
        return (score * batch.mask).sum(-1) / batch.num_comparisons


@pytest.fixture(scope="module")
def scores(people: Preferences) -> pd.DataFrame:
    few = people.subset(range(40))
    tables = {"coin": lambda context: Constant(0.5), "left": lambda context: Constant(0.8)}
    return score_by_context(tables, few, sizes=(0, 3))


def test_gains_over_a_coin_in_closed_form(people: Preferences, scores: pd.DataFrame) -> None:
    table = compare_by_context(scores, "coin")
    share = people.subset(range(40)).choice.reshape(40, 8).mean(1)
    gain = share * np.log(1.6) + (1 - share) * np.log(0.4)
    row = table.loc[0, "left"]
    np.testing.assert_allclose(row["gain"], gain.mean(), rtol=1e-6)
    np.testing.assert_allclose(row["standard_error"], gain.std(ddof=1) / 40**0.5, rtol=1e-6)
    np.testing.assert_allclose(row["elpd_diff"], 8 * gain.sum(), rtol=1e-6)
    np.testing.assert_allclose(row["dse"], 8 * gain.std(ddof=1) * 40**0.5, rtol=1e-6)
    np.testing.assert_allclose(row["accuracy"], share.mean())
    coin = table.loc[0, "coin"]
    assert (coin["accuracy"], coin["gain"], coin["dse"]) == (0.5, 0.0, 0.0)
    assert coin["log_score"] == pytest.approx(-np.log(2))
    assert (scores.loc[scores["known"] == 3, "unseen"] == 5).all()


def test_a_posterior_is_a_predictor(model, guide, people: Preferences) -> None:
    few = people.subset(range(30))
    table = score_by_context(
        {"ours": lambda context: Posterior(model, guide, context, 100, seed=0)}, few, sizes=(2,)
    )
    context, target = few.split_context(2, seed=0)
    expected = Posterior(model, guide, context, 100, seed=0)
    np.testing.assert_allclose(table["log_score"], expected.log_score(target), rtol=1e-6)
    likely = expected.choice_prob(target).mean > 0.5
    right = (likely.numpy() == (target.batch().choice == 1).numpy()).mean(1)
    np.testing.assert_allclose(table["accuracy"], right)


def test_bad_comparisons_are_named(people: Preferences, scores: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"baseline must be one of \['coin', 'left'\], got 'us'"):
        compare_by_context(scores, "us")
    with pytest.raises(ValueError, match="one row a size, predictor and user"):
        compare_by_context(pd.concat([scores, scores]), "coin")
    with pytest.raises(ValueError, match=r"more than min\(sizes\) = 8 comparisons, got 8"):
        score_by_context({"coin": lambda context: Constant(0.5)}, people, sizes=(8,))
    with pytest.raises(ValueError, match="predictors must hold at least one"):
        score_by_context({}, people)


def test_folds_score_everybody_once_by_others(people: Preferences) -> None:
    few = people.subset(range(30))
    seen = []

    def fitter(train: Preferences):
        seen.append(set(train.user_names))
        prob = float(np.clip(train.choice.mean(), 0.01, 0.99))
        return lambda context: Constant(prob)

    table = score_folds({"share": fitter}, few, sizes=(0, 2), num_folds=3, seed=1)
    assert (table.groupby(["known", "user"]).size() == 1).all()
    assert set(table["user"]) == set(few.user_names)
    for number, others in enumerate(seen):
        left_out = set(table.loc[table["fold"] == number, "user"])
        assert left_out.isdisjoint(others)
        assert left_out | others == set(few.user_names)
    one = score_folds({"share": fitter}, few, sizes=(0, 2), num_folds=3, folds=[2], seed=1)
    expected = table[table["fold"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, expected)
    with pytest.raises(ValueError, match=r"folds must be some of 0 to 2, got \[3\]"):
        score_folds({"share": fitter}, few, num_folds=3, folds=[3])
    with pytest.raises(ValueError, match="num_folds must be an integer between 2 and the 30"):
        score_folds({"share": fitter}, few, num_folds=31)


def test_sizes_and_folds_are_checked_before_any_fit(people) -> None:
    def refuse(_: Preferences) -> None:
        raise AssertionError("nothing may be fitted")

    with pytest.raises(ValueError, match="sizes must hold at least one"):
        score_by_context({"a": refuse}, people, ())
    with pytest.raises(ValueError, match="sizes must hold at least one"):
        score_folds({"a": refuse}, people, ())
    with pytest.raises(ValueError, match=r"folds must name a fold once, got \[0, 0\]"):
        score_folds({"a": refuse}, people, folds=[0, 0])
