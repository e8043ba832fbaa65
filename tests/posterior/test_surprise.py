"""People whose choices are unlike those of anybody the model knows are noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from misled_guides import make_pair, mislead, questions

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences, exact
from fssa_bayes.posterior.surprise import tail_probability


def surprise(pair: tuple, context: Preferences, **options):
    """The table for a poor guide, whose k-hats do not matter to it."""
    posterior = Posterior(*pair, context, 50, fallback=None)
    return posterior.context_surprise(**({"num_samples": 30, "num_simulations": 400} | options))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_tail_probabilities_of_the_models_people_are_uniform(wrong: bool) -> None:
    """At levels that can be attained, however poor the guide, for mixed numbers of choices."""
    model, guide = make_pair(scale=1.0)
    if wrong:
        mislead(guide, shift=-2.0)
    few, many = questions(200, 3), questions(200, 8, seed=5)
    share = {level: 0 for level in (0.01, 0.05, 0.1, 0.2, 0.5)}
    for asked in (few, many):
        context = model.simulate(asked, seed=11)[0]
        table = surprise((model, guide), context, num_simulations=199)
        for level in share:
            share[level] += (table["tail_probability"] <= level).sum() / 400
        assert table["simulations"].max() == 199
        assert table["simulations"].median() < 80
    for level, found in share.items():
        assert abs(found - level) < 3.5 * math.sqrt(level * (1 - level) / 400), (level, found)


def test_contrary_and_random_people_are_flagged() -> None:
    """A model in which people agree: three do the opposite, and one answers at random."""
    pair = make_pair(scale=0.3, mean=3.0)
    context = pair[0].simulate(questions(40, 12, seed=4), seed=5)[0]
    choice = context.choice.reshape(40, 12).copy()
    choice[:3] = 1 - choice[:3]
    choice[3] = np.arange(12) % 2
    table = surprise(pair, context.with_choices(choice.ravel()), num_simulations=2000)
    assert table["flag"].iloc[:4].all()
    assert table["flag"].iloc[4:].sum() <= 2
    assert (table["tail_probability"].iloc[:4] < 0.005).all()
    assert (table["log_evidence"] < table["expected"] - 3 * table["standard_deviation"])[:3].all()


def test_evidence_is_that_of_the_grid_and_half_wins_are_left_out() -> None:
    model, guide = make_pair(scale=1.0)
    context = model.simulate(questions(3, 4), seed=0)[0]
    table = surprise((model, guide), context, num_samples=4000, num_simulations=50)
    gold = exact.grid(model, context).log_evidence.numpy()
    np.testing.assert_allclose(table["log_evidence"], gold, atol=0.05)
    halves = context.with_choices(np.where(np.arange(12) < 4, 0.5, context.choice))
    table = surprise((model, guide), halves)
    assert table["log_evidence"].iloc[0] == pytest.approx(0, abs=1e-5)
    assert table["tail_probability"].iloc[0] == 1
    assert surprise((model, guide), questions(2, 0))["tail_probability"].tolist() == [1, 1]


def test_a_homogeneous_model_has_surprising_people_too() -> None:
    model = HeterogeneousBTL(2, 0, utility="linear")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([3.0, -3.0]))
    context = model.simulate(questions(10, 15), seed=0)[0]
    choice = context.choice.reshape(10, 15).copy()
    choice[0] = 1 - choice[0]
    table = surprise((model, None), context.with_choices(choice.ravel()))
    assert table["flag"].tolist() == [True] + [False] * 9


def test_the_seed_decides_and_the_global_state_is_kept() -> None:
    model, guide = make_pair(scale=2.0)
    mislead(guide, shift=-6.0)
    context = model.simulate(questions(6, 6, seed=1), seed=1)[0]
    gold = Posterior.from_draws(model, context, exact.grid(model, context, num=501))
    state = torch.get_rng_state()
    first, second = (surprise((model, guide), context, seed=3) for _ in range(2))
    assert first.equals(second)
    assert torch.equal(state, torch.get_rng_state())
    posterior = Posterior(model, guide, context, 50)
    for options, match in [
        ({"num_simulations": 10}, "num_simulations must be an integer of at least 50, got 10"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"level": 1.0}, "level must lie between 0 and 1, got 1.0"),
    ]:
        with pytest.raises(ValueError, match=match):
            posterior.context_surprise(**options)
    with pytest.raises(ValueError, match="guide must be given to estimate the evidence"):
        gold.context_surprise()


@pytest.mark.parametrize("chance", [0.02, 0.3])
def test_simulation_that_stops_estimates_the_tail_without_bias(chance: float) -> None:
    """Up to the m-th exceedance, (m − 1) / (simulations − 1) is unbiased (Haldane 1945)."""
    rng = np.random.default_rng(0)
    tails = np.array([tail_probability(rng.random(4000) < chance, most=10) for _ in range(500)])
    simulations = 10 / tails
    unbiased = 9 / (simulations - 1)
    assert unbiased.mean() == pytest.approx(chance, abs=4 * unbiased.std() / math.sqrt(500))
    assert tail_probability(np.array([False] * 18 + [True]), most=2) == 2 / 20
