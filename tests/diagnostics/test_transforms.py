"""Probability integral transforms: uniform, with ties and weights, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diagnostic_studies import study
from scipy import stats
from torch.distributions import Normal

from fssa_bayes import diagnostics as dg


def test_pit_is_exactly_uniform_with_ties_at_few_draws() -> None:
    # Values on three points: with 20 draws a rank without randomised ties, or without the truth's
    # own share, is far from uniform among 20,000 people.
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(3, (21, 20_000, 1), generator=generator)
    pit = dg.weighted_pit(values[1:], None, values[0])
    assert stats.kstest(pit.ravel().numpy(), "uniform").pvalue > 0.01
    counts = np.bincount((pit.ravel().numpy() * 21).astype(int), minlength=21)
    assert stats.chisquare(counts).pvalue > 0.01


def test_pit_of_weighted_draws_with_the_weight_of_the_truth_is_exactly_uniform() -> None:
    # The proposal N(.6, 1.5²) is far from the posterior N(0, 1), and there are 20 draws.
    torch.manual_seed(4)
    target, proposal = Normal(0.0, 1.0), Normal(0.6, 1.5)
    truth, values = target.sample((20_000, 1)), proposal.sample((20, 20_000, 1))
    log_weights, own = (
        (target.log_prob(x) - proposal.log_prob(x)).squeeze(-1) + 5 for x in (values, truth)
    )
    exact = dg.weighted_pit(values, log_weights, truth, truth_log_weight=own).ravel()
    assert stats.kstest(exact.numpy(), "uniform").pvalue > 0.01
    # Without it the mean is ½ and the variance 1/12 up to the order of 1 / ESS.
    usual = dg.weighted_pit(values, log_weights, truth).ravel()
    assert abs(usual.mean() - 0.5) < 0.02
    assert abs(usual.var() * 12 - 1) < 0.05
    # The weights matter, and draws of weight zero do not.
    assert abs(dg.weighted_pit(values, None, truth).mean() - 0.5) > 0.05
    none = torch.full((5, 20_000), -torch.inf)
    padded = dg.weighted_pit(
        torch.cat([values, torch.full((5, 20_000, 1), 9.0)]), torch.cat([log_weights, none]), truth
    )
    torch.testing.assert_close(padded.ravel(), usual)


def test_pit_by_hand() -> None:
    # 20 draws 0 … 19 and a truth above 5 of them, of which one has half of the weight.
    values = torch.arange(20.0).reshape(20, 1, 1)
    weights = torch.full((20, 1), 0.5 / 19)
    weights[2] = 0.5
    ess = 1 / (weights**2).sum().item()
    own, below = 1 / (1 + ess), 0.5 + 4 * 0.5 / 19
    pit = dg.weighted_pit(values, weights.log(), torch.tensor([[4.5]]), seed=7).item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        uniform = torch.rand(1, 1, dtype=torch.float64).item()
    assert pit == pytest.approx((1 - own) * below + own * uniform)


def test_seeds_and_global_state() -> None:
    people, before = study(20, 20), torch.random.get_rng_state()
    first, again, other = (
        dg.weighted_pit(people.values, None, people.truth, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
