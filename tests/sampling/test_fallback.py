"""Where a guide is wrong about people, better draws take the place of its own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from misled_guides import make_pair, mislead, questions

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, exact
from fssa_bayes.sampling import MOST_PARETO_K, ExactPosterior, fallback, shared


@pytest.fixture(autouse=True)
def nobody_shares_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws come from guides, as in more dimensions."""
    for module in (fallback, shared):
        monkeypatch.setattr(module, "may_share", lambda model: False)


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
    for how in (None, "draws"):
        posteriors = [
            Posterior(model, guide, context, 200, seed=seed, fallback=how) for seed in range(6)
        ]
        off = torch.stack([(moments(posterior)[0] - mean) / spread for posterior in posteriors])
        errors[how] = off.square().mean().sqrt().item()
        ratio = torch.stack([moments(posterior)[1] / spread for posterior in posteriors])
    last = posteriors[-1]
    without = Posterior(model, guide, context, 200, seed=5, fallback=None)
    failed = (without.pareto_k > MOST_PARETO_K) | (without.relative_ess < 0.2)
    assert torch.equal(failed, ~without.reliable)
    assert failed.sum() >= 4
    assert np.array_equal(last.method, np.where(failed, "more draws", "guide + prior"))
    assert (last.guide_pareto_k > MOST_PARETO_K).sum() >= 4
    assert last.reliable.all()
    assert last.proposals[0].shape == (200, 6, 1)
    # Sixteen times as many draws: a quarter of the error, thinning added.
    assert errors["draws"] < 0.5 * errors[None]
    assert errors["draws"] < 1.5 / math.sqrt(200)
    assert ratio.mean().item() == pytest.approx(1, abs=0.03)
    prob, exactly = (p.choice_prob(context).mean for p in (last, gold))
    assert (prob - exactly).abs().max() < 0.05


def test_the_draws_of_a_good_guide_are_kept(misled) -> None:
    model, _, _, _ = misled
    context = questions(4, 0)
    with_, without = (
        Posterior(model, NeuralProcessGuide(model), context, 100, fallback=fallback)
        for fallback in ("draws", None)
    )
    assert torch.equal(with_.proposals[0], without.proposals[0])
    assert (with_.method == "guide + prior").all()
    assert with_.reliable.all()
    assert without.reliable.all()


def test_without_fallback_a_wrong_guide_is_reported_as_unreliable(misled) -> None:
    model, guide, context, _ = misled
    posterior = Posterior(model, guide, context, 200, fallback=None)
    assert not posterior.reliable.any()
    assert (posterior.method == "guide + prior").all()
    assert Posterior(model, guide, context, 200, correct=None).fallback is None


def test_nuts_is_the_last_fallback_and_warns(misled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow posterior, of 2,000 choices, far out in the prior is out of reach."""
    model, guide = make_pair(scale=1.0)
    mislead(guide, shift=-40.0)
    context, z = model.simulate(questions(100, 2000, seed=2), seed=3)
    context = context.subset([int(z[:, 0].argmax())])
    gold = Posterior.from_draws(model, context, exact.grid(model, context, num=501))
    assert moments(gold)[1] < 0.15
    unable = Posterior(model, guide, context, 100)
    assert unable.method.tolist() == ["more draws"]
    assert unable.reliable.tolist() == [False]
    short = {"warmup_steps": 40, "num_samples": 60, "num_chains": 2, "max_attempts": 1}

    def short_chains(*args, **options) -> ExactPosterior:
        chains = exact.nuts(*args, **(options | short))
        return replace(chains, diagnostics=chains.diagnostics.assign(converged=True))

    monkeypatch.setattr(fallback, "nuts", short_chains)
    with pytest.warns(UserWarning, match="posterior of .*: sampled by NUTS"):
        posterior = Posterior(model, guide, context, 100, fallback="nuts")
    assert posterior.method.tolist() == ["nuts"]
    assert posterior.reliable.tolist() == [True]
    assert len(posterior.proposals[1].unique()) == 1
    (mean, spread), (exact_mean, exact_spread) = moments(posterior), moments(gold)
    assert ((mean - exact_mean).abs() < 0.5 * exact_spread).all()
    assert (spread / exact_spread).item() == pytest.approx(1, abs=0.35)
    assert posterior.z.shape == (100, 1, 1)


def test_unknown_fallback_is_refused(misled) -> None:
    model, guide, context, _ = misled
    with pytest.raises(ValueError, match="fallback must be one of .* got 'mcmc'"):
        Posterior(model, guide, context, fallback="mcmc")
