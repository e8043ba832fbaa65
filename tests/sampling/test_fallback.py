"""Trust for one person: wrong guides are made up for, and unusual people are noticed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences
from fssa_bayes.posterior import surprise as trust
from fssa_bayes.sampling import draw_posterior, thin
from fssa_bayes.sampling import grid as exact


def questions(users: int, width: int, seed: int = 0) -> Preferences:
    """Pairs of 12 items with two features for each of several people."""
    rng = np.random.default_rng(seed)
    left = rng.integers(12, size=users * width)
    right = (left + rng.integers(1, 12, size=users * width)) % 12
    items = np.random.default_rng(9).normal(size=(12, 2))
    offsets = width * np.arange(users + 1)
    return Preferences(left, right, np.ones(users * width), offsets, items=items)


def make_pair(scale: float, mean: float = 1.0) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """A linear model with one latent dimension and a guide that was taught nothing."""
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 1, utility="linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([mean, -mean]))
        model.utility.loading.copy_(torch.tensor([[scale], [scale / 2]]))
    return model, NeuralProcessGuide(model, "normal").eval()


def mislead(guide: NeuralProcessGuide, shift: float) -> NeuralProcessGuide:
    """Makes every pair push z to one side, wherever the posterior is."""
    with torch.no_grad():
        for parameter in guide.direction.parameters():
            parameter.zero_()
        last = guide.potential[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 3.0, shift]))
    return guide


# ---------------------------------------------------------------------- where the guide fails


def moments(posterior: Posterior) -> tuple[torch.Tensor, torch.Tensor]:
    z, log_weights = posterior.proposals
    weights = log_weights.exp().unsqueeze(-1)
    mean = (weights * z).sum(0)
    return mean[:, 0], (weights * (z - mean).square()).sum(0).sqrt()[:, 0]


@pytest.fixture(scope="module")
def misled() -> tuple[HeterogeneousBTL, NeuralProcessGuide, Preferences, Posterior]:
    """Six people, a guide that is wrong about all of them, and the exact posterior."""
    model, guide = make_pair(scale=2.0)
    context = model.simulate(questions(6, 6, seed=1), seed=1)[0]
    gold = Posterior.from_draws(model, context, exact.grid(model, context, num=501))
    return model, mislead(guide, shift=-6.0), context, gold


def test_more_draws_make_up_for_a_wrong_guide(misled) -> None:
    model, guide, context, gold = misled
    mean, spread = moments(gold)
    errors = {}
    for fallback in (None, "draws"):
        posteriors = [
            Posterior(model, guide, context, 200, seed=seed, fallback=fallback) for seed in range(6)
        ]
        off = torch.stack([(moments(posterior)[0] - mean) / spread for posterior in posteriors])
        errors[fallback] = off.square().mean().sqrt().item()
        ratio = torch.stack([moments(posterior)[1] / spread for posterior in posteriors])
    last = posteriors[-1]
    failed = last.pareto_k > trust.MOST_PARETO_K
    assert failed.sum() >= 4
    assert np.array_equal(last.method, np.where(failed, "more draws", "guide"))
    assert last.reliable.all()
    assert last.proposals[0].shape == (200, 6, 1)
    # Sixteen times as many draws: a quarter of the error, thinning added.
    assert errors["draws"] < 0.5 * errors[None]
    assert errors["draws"] < 1.5 / math.sqrt(200)
    assert ratio.mean().item() == pytest.approx(1, abs=0.03)
    prob, exactly = (p.choice_prob(context).mean for p in (last, gold))
    assert (prob - exactly).abs().max() < 0.05


def test_a_good_guide_is_left_alone(misled) -> None:
    model, _, _, _ = misled
    context = questions(4, 0)
    with_, without = (
        Posterior(model, NeuralProcessGuide(model), context, 100, fallback=fallback)
        for fallback in ("draws", None)
    )
    assert torch.equal(with_.proposals[0], without.proposals[0])
    assert (with_.method == "guide").all()
    assert with_.reliable.all()
    assert without.reliable.all()


def test_without_fallback_a_wrong_guide_is_said_to_be_unreliable(misled) -> None:
    model, guide, context, _ = misled
    posterior = Posterior(model, guide, context, 200, fallback=None)
    assert not posterior.reliable.any()
    assert (posterior.method == "guide").all()
    assert Posterior(model, guide, context, 200, correct=None).fallback is None


def test_nuts_comes_last_and_says_so(misled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty times narrower posteriors are out of reach of sixteen times as many draws."""
    model, guide = make_pair(scale=80.0)
    mislead(guide, shift=-40.0)
    context = model.simulate(questions(3, 8, seed=2), seed=3)[0].subset([0])
    gold = Posterior.from_draws(model, context, exact.grid(model, context, num=501))
    unable = Posterior(model, guide, context, 100)
    assert unable.method.tolist() == ["more draws"]
    assert unable.reliable.tolist() == [False]
    short = {"warmup_steps": 40, "num_samples": 60, "num_chains": 2, "max_attempts": 1}
    monkeypatch.setattr(
        trust, "nuts", lambda *args, **kwargs: exact.nuts(*args, **(kwargs | short))
    )
    monkeypatch.setattr(exact, "_LEAST_ESS", 10)
    with pytest.warns(UserWarning, match="posterior of 0: sampled by NUTS"):
        posterior = Posterior(model, guide, context, 100, fallback="nuts")
    assert posterior.method.tolist() == ["nuts"]
    assert len(posterior.proposals[1].unique()) == 1
    (mean, spread), (exact_mean, exact_spread) = moments(posterior), moments(gold)
    assert ((mean - exact_mean).abs() < 0.5 * exact_spread).all()
    assert (spread / exact_spread).item() == pytest.approx(1, abs=0.35)
    assert posterior.z.shape == (100, 1, 1)


def test_thinning_keeps_expectations_and_no_draw_twice(misled) -> None:
    model, guide, context, _ = misled
    draws = draw_posterior(model, guide, context.subset([0]), 60, seed=0, correct="psis")
    uneven = torch.distributions.Gamma(0.3, 1.0).sample((60, 1)).log().log_softmax(0)
    draws = replace(draws, z=torch.arange(60.0).reshape(60, 1, 1), log_weights=uneven)
    weights = uneven.double().exp()[:, 0]
    total, repeats = torch.zeros(60, dtype=torch.float64), 1500
    for seed in range(repeats):
        thinned = thin(draws, 20, np.random.default_rng(seed))
        index = thinned.z[:, 0, 0].long()
        assert len(index.unique()) == 20
        new = thinned.log_weights[:, 0].double().exp()
        assert new.sum().item() == pytest.approx(1, abs=1e-5)
        total[index] += new
    largest = weights.topk(3).indices
    assert (weights[largest] > 1 / 20).any()
    error = 5 * (weights.clamp(max=0.05) * 0.05 / repeats).sqrt() + 1e-6
    assert ((total / repeats - weights).abs() < error).all()


def test_unknown_fallback_is_refused(misled) -> None:
    model, guide, context, _ = misled
    with pytest.raises(ValueError, match="fallback must be one of .* got 'mcmc'"):
        Posterior(model, guide, context, fallback="mcmc")


# ---------------------------------------------------------------------- who is unlike the others


def surprise(pair: tuple, context: Preferences, **options):
    """The table for a poor guide, whose k-hats do not matter to it."""
    posterior = Posterior(*pair, context, 50, fallback=None)
    return posterior.context_surprise(**({"num_samples": 30, "num_simulations": 400} | options))


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


def test_a_homogeneous_model_can_be_surprised_too() -> None:
    model = HeterogeneousBTL(2, 0, utility="linear")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([3.0, -3.0]))
    context = model.simulate(questions(10, 15), seed=0)[0]
    choice = context.choice.reshape(10, 15).copy()
    choice[0] = 1 - choice[0]
    table = surprise((model, None), context.with_choices(choice.ravel()))
    assert table["flag"].tolist() == [True] + [False] * 9


def test_same_seed_same_table_and_no_trace(misled) -> None:
    model, guide, context, gold = misled
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
