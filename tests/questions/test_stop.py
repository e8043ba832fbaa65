"""When to stop: stated probabilities are those of the model, and come true as often as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences
from fssa_bayes.exact import grid
from fssa_bayes.posterior import PopulationDraws
from fssa_bayes.questions import Interview, Stop, Verdict
from fssa_bayes.questions.stop import draw_afresh

NAMES = ["tea", "cola"]
MEAN, SCALE = 0.8, 1.5  # Of the utility of tea less that of cola, in nats.


def two_items(mean: float = MEAN, **options: object) -> HeterogeneousBTL:
    """People whose margin of tea over cola is N(mean, SCALE²)."""
    model = HeterogeneousBTL(2, 1, "linear", feature_names=NAMES, **options).eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([mean, 0.0]))
        model.utility.loading.copy_(torch.tensor([[SCALE], [0.0]]))
    return model


def posterior_of(model: HeterogeneousBTL, *answers: str, **options: object) -> Posterior:
    context = Preferences.empty(["ann"], NAMES, ties="keep" if model.has_ties else "half")
    for answer in answers:
        context = context.append("ann", *NAMES, answer)
    return Posterior(model, None, context, **({"num_samples": 4000} | options))


@pytest.mark.parametrize("within", [None, 0.0, 0.5, 2.0])
def test_probability_without_answers_is_that_of_a_normal_margin(within: float | None) -> None:
    verdict = Stop(within=within).judge(posterior_of(two_items()))
    expected = stats.norm.cdf((MEAN + (within or 0)) / SCALE)
    assert verdict.item == "tea"
    assert verdict.prob == pytest.approx(expected, abs=4 * verdict.mc_error)


@pytest.mark.parametrize(
    "options",
    [{}, {"lapses": True}, {"position_bias": True}, {"ties": "davidson"}],
    ids=["plain", "lapses", "bias", "ties"],
)
def test_probability_given_answers_is_that_of_a_fine_grid(options: dict[str, object]) -> None:
    """Thrice right, once left: lapses, bias and ties are inside the probability."""
    model = two_items(**options)
    bias, lapse, log_tie = 0.7, 0.2, -0.3
    with torch.no_grad():
        for name, value in (("bias", bias), ("log_tie", log_tie)):
            if getattr(model, name) is not None:
                getattr(model, name).fill_(value)
        if model.lapse_logit is not None:
            model.lapse_logit.fill_(special.logit(lapse))
    margin = np.linspace(MEAN - 9 * SCALE, MEAN + 9 * SCALE, 20_001)
    left = special.expit(margin + (bias if "position_bias" in options else 0))
    right = 1 - left
    if "ties" in options:
        terms = np.stack([margin / 2, -margin / 2, np.full_like(margin, log_tie)])
        left, right, _ = special.softmax(terms, 0)
    if "lapses" in options:
        left, right = ((1 - lapse) * p + lapse / 2 for p in (left, right))
    weight = stats.norm.pdf(margin, MEAN, SCALE) * right**3 * left
    mean = (weight * margin).sum() / weight.sum()
    item = "tea" if mean > 0 else "cola"
    good = margin > -0.5 if mean > 0 else margin < 0.5
    verdict = Stop().judge(posterior_of(model, "right", "right", "right", "left"))
    assert abs(mean) > 0.1
    assert verdict.item == item
    expected = weight[good].sum() / weight.sum()
    assert verdict.prob == pytest.approx(expected, abs=4 * verdict.mc_error)


def test_draws_of_the_population_are_part_of_the_probability() -> None:
    """Two populations, equally likely: the probability is the mean of both."""
    means = 0.2, 3.0
    population = PopulationDraws(tuple((two_items(mean), None) for mean in means), "by hand")
    posterior = posterior_of(two_items(), population=population)
    verdict = Stop(within=None).judge(posterior)
    expected = np.mean([stats.norm.cdf(mean / SCALE) for mean in means])
    assert verdict.prob == pytest.approx(expected, abs=4 * verdict.mc_error)


def test_judgement_is_by_fresh_draws_four_times_as_many() -> None:
    posterior = posterior_of(two_items(), "left", num_samples=300)
    fresh, again = draw_afresh(posterior), draw_afresh(posterior)
    assert fresh.proposals[0].shape == (1200, 1, 1)
    assert torch.equal(fresh.proposals[0], again.proposals[0])
    assert not np.isin(posterior.proposals[0].numpy(), fresh.proposals[0].numpy()).any()
    good = fresh.utility()[:, 0].diff()[:, 0] < 0.5
    assert Stop().judge(posterior).prob == pytest.approx(good.double().mean().item())


def test_a_gold_standard_is_judged_as_it_is() -> None:
    model = two_items()
    context = posterior_of(model, "left", num_samples=25).context
    posterior = Posterior.from_draws(model, context, grid(model, context))
    assert draw_afresh(posterior) is posterior
    prob = posterior.rank_prob()[0, 0, 0].item()
    verdict = Stop(within=None).judge(posterior)
    assert verdict.prob == pytest.approx(prob, abs=4 * max(verdict.mc_error, 1e-3))


@pytest.mark.parametrize("answers", [(), ("right", "right", "left")], ids=["none", "three"])
def test_monte_carlo_error_covers_the_spread_over_seeds(answers: tuple[str, ...]) -> None:
    """Stratified draws err less than the independent ones that the error is stated for."""
    verdicts = [
        Stop(within=None).judge(posterior_of(two_items(), *answers, num_samples=100, seed=seed))
        for seed in range(20)
    ]
    same = [verdict for verdict in verdicts if verdict.item == verdicts[0].item]
    spread = np.std([verdict.prob for verdict in same], ddof=1)
    stated = np.mean([verdict.mc_error for verdict in same])
    assert len(same) > 10
    assert 0 < spread < 1.2 * stated


# P(tea is the best or within 0.5 nats) = .807 without answers.
CRITERIA = {
    "nothing": (Stop(), 3, None, ""),
    "best": (Stop(best=0.75), 0, None, "'tea' is the best or within 0.5 nats of the best with"),
    "best alone": (Stop(best=0.6, within=None), 0, None, "'tea' is the best with probability"),
    "best of nothing less": (Stop(best=0.75, within=None), 0, None, ""),
    "value": (Stop(value=0.02), 3, 0.02, "no question is worth more than 0.02 nats"),
    "too much value": (Stop(value=0.02), 3, 0.021, ""),
    "no value known": (Stop(value=0.02), 3, None, ""),
    "answers": (Stop(max_questions=3), 3, None, "max_questions=3 are answered"),
    "too few answers": (Stop(max_questions=3), 2, None, ""),
    "all off": (Stop(None, None, None, None), 10**6, 0.0, ""),
}


@pytest.mark.parametrize(("stop", "asked", "value", "reason"), CRITERIA.values(), ids=CRITERIA)
def test_the_first_criterion_met_stops(
    stop: Stop, asked: int, value: float | None, reason: str
) -> None:
    verdict = stop.judge(posterior_of(two_items()), num_asked=asked, value=value)
    assert verdict.stop == bool(reason)
    assert verdict.reason.startswith(reason)
    assert bool(verdict.reason) == verdict.stop


def test_only_the_items_named_are_recommended() -> None:
    verdict = Stop().judge(posterior_of(two_items()), ["cola"])
    assert verdict == Verdict(True, verdict.reason, "cola", 1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 0.0}, "best must lie above 0 and not above 1, or be None, got 0.0"),
        ({"best": 90}, "best must lie above 0 and not above 1, or be None, got 90"),
        ({"best": math.nan}, "best must lie above 0 .* got nan"),
        ({"best": "high"}, "best must be a number, or None, got 'high'"),
        ({"best": True}, "best must be a number, or None, got True"),
        ({"within": -1.0}, "within must be at least 0 and finite, or None, got -1.0"),
        ({"value": math.nan}, "value must be at least 0 and finite, or None, got nan"),
        ({"max_questions": -1}, "max_questions must be an integer of at least 0, or None, got -1"),
        ({"max_questions": 2.5}, "max_questions must be an integer .* got 2.5"),
    ],
)
def test_criteria_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stop(**options)


def test_criteria_may_be_numbers_of_any_type() -> None:
    stop = Stop(best=np.float32(0.5), within=1, max_questions=np.int64(3))
    assert stop == Stop(0.5, 1.0, None, 3)
    assert [type(x) for x in (stop.best, stop.within, stop.max_questions)] == [float, float, int]


def test_several_people_and_unknown_items_are_refused() -> None:
    model = two_items()
    both = Posterior(model, None, Preferences.empty(["ann", "bob"], NAMES), num_samples=25)
    with pytest.raises(ValueError, match="posterior must be of one person, got 2 people"):
        Stop().judge(both)
    with pytest.raises(ValueError, match="items must be known names, got 'milk'"):
        Stop().judge(posterior_of(model, num_samples=25), ["tea", "milk"])


@pytest.mark.parametrize(("modelled", "least", "most"), [(True, -0.01, 0.01), (False, 0.03, 0.2)])
def test_lapses_are_part_of_the_probability_where_the_model_has_them(
    modelled: bool, least: float, most: float
) -> None:
    """People lapse in 30 % of their answers to one pair; what is stated at the end, less the truth.

    All sequences of answers are followed, and margins lie on a fine grid. A model without lapses
    is too sure.
    """
    lapse, stop = 0.3, Stop(within=None, max_questions=6)
    model = two_items(0.4, lapses=True) if modelled else two_items(0.4)
    with torch.no_grad():
        model.utility.loading.mul_(2)
        if modelled:
            model.lapse_logit.fill_(special.logit(lapse))
    margin = np.linspace(0.4 - 20 * SCALE, 0.4 + 20 * SCALE, 8001)
    left = (1 - lapse) * special.expit(margin) + lapse / 2
    density = stats.norm.pdf(margin, 0.4, 2 * SCALE)
    reached = {(0, 0): density / density.sum()}
    stated = true = total = 0.0
    while reached:
        (lefts, rights), weight = reached.popitem()
        answers = ["left"] * lefts + ["right"] * rights
        posterior = posterior_of(model, *answers, num_samples=1000)
        verdict = stop.judge(posterior, num_asked=len(answers))
        if verdict.stop:
            total += weight.sum()
            stated += weight.sum() * verdict.prob
            true += weight[margin > 0 if verdict.item == "tea" else margin < 0].sum()
            continue
        for after, prob in (((lefts + 1, rights), left), ((lefts, rights + 1), 1 - left)):
            reached[after] = reached.get(after, 0) + weight * prob
        # Those with fewer answers first, so that all ways to a state are together.
        reached = dict(sorted(reached.items(), key=lambda state: -sum(state[0])))
    assert total == pytest.approx(1)
    assert least < stated - true < most


NUM_ITEMS = 8


def crowd(seed: int) -> HeterogeneousBTL:
    """A model of people who differ in two directions about eight items."""
    names = [f"item {number}" for number in range(NUM_ITEMS)]
    model = HeterogeneousBTL(NUM_ITEMS, 2, "linear", feature_names=names).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        model.utility.mean.copy_(torch.from_numpy(rng.normal(0, 0.3, NUM_ITEMS)))
        model.utility.loading.copy_(torch.from_numpy(rng.normal(0, 1.2, (NUM_ITEMS, 2))))
    return model


def interview_person(
    model: HeterogeneousBTL, stop: Stop, number: int
) -> tuple[float, bool, Interview]:
    """Interviews a person drawn from the model.

    Returns:
        The probability stated at the end, whether it came true, and the interview.
    """
    rng = np.random.default_rng([7, number])
    z = torch.from_numpy(rng.standard_normal((1, 2)).astype(np.float32))
    with torch.no_grad():
        utility = model.item_utility(torch.arange(NUM_ITEMS), z)[0].tolist()
    worth = dict(zip(model.feature_names, utility, strict=True))
    interview = Interview(model, None, stop=stop, user=number, num_samples=200, seed=number)
    while question := interview.ask():
        left, right = question
        is_left = rng.random() < special.expit(worth[left] - worth[right])
        interview.answer("left" if is_left else "right")
    verdict = interview.verdict
    is_true = worth[verdict.item] >= max(utility) - (stop.within or 0)
    return verdict.prob, is_true, interview


@pytest.mark.parametrize(
    ("people", "stop"),
    [
        (30, Stop(best=0.8, max_questions=5)),
        pytest.param(1000, Stop(best=0.8, max_questions=6), marks=pytest.mark.slow),
        pytest.param(200, Stop(best=0.7, within=None, value=0.05), marks=pytest.mark.slow),
    ],
    ids=["small", "many", "value"],
)
def test_what_is_stated_at_the_end_comes_true_as_often(people: int, stop: Stop) -> None:
    model = crowd(seed=0)
    results = [interview_person(model, stop, number) for number in range(people)]
    stated = np.array([prob for prob, _, _ in results])
    true = sum(is_true for _, is_true, _ in results)
    interval = stats.binomtest(int(true), people).proportion_ci(0.999)
    assert interval.low <= stated.mean() <= interval.high
    for prob, _, interview in results:
        asked = interview.num_answered
        assert prob >= stop.best or asked == stop.max_questions or stop.value is not None
        assert asked <= stop.max_questions
    assert len({interview.num_answered for _, _, interview in results}) > 2
