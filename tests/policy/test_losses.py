"""Losses of preference optimisation: closed forms, gradients, edges, weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fssa_bayes.policy import PairScores, PreferenceLoss, dpo_loss
from fssa_bayes.policy.losses import LOSSES


@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("beta", [0.1, 3.0])
def test_loss_has_its_closed_form(marginal: bool, beta: float) -> None:
    log_ratio = torch.tensor([[0.3, -2.0, 40.0], [-1.0, 7.0, 0.0]], dtype=torch.float64)
    probability = 1 / (1 + np.exp(-beta * log_ratio.numpy()))
    expected = -np.log(probability.mean(0)) if marginal else -np.log(probability).mean(0)
    loss = dpo_loss(log_ratio, beta=beta, marginal=marginal)
    assert np.allclose(loss.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("marginal", [False, True])
def test_gradient_of_the_loss_is_that_of_finite_differences(marginal: bool) -> None:
    log_ratio = 5 * torch.randn(4, 6, dtype=torch.float64)
    log_ratio.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dpo_loss(x, beta=0.7, marginal=marginal), log_ratio)


def test_loss_of_the_mixture_is_never_larger() -> None:
    log_ratio = 10 * torch.randn(5, 200, dtype=torch.float64)
    mixture, expected = (dpo_loss(log_ratio, beta=1.0, marginal=m) for m in (True, False))
    assert (mixture < expected).all()
    same = log_ratio[:1].expand(5, -1)
    assert torch.allclose(
        dpo_loss(same, beta=1.0, marginal=True), dpo_loss(same, beta=1.0), rtol=1e-12
    )
    # One draw is no mixture, bit for bit.
    single = log_ratio[:1].float()
    assert torch.equal(dpo_loss(single, beta=1.0, marginal=True), dpo_loss(single, beta=1.0))


@pytest.mark.parametrize("marginal", [False, True])
def test_loss_is_exact_at_the_edges(marginal: bool) -> None:
    log_ratio = torch.tensor([[1e4, -1e4, 0.0]] * 3, requires_grad=True)
    loss = dpo_loss(log_ratio, beta=2.0, marginal=marginal)
    assert loss[:2].tolist() == [0.0, 2e4]
    assert loss[2].item() == pytest.approx(math.log(2), rel=1e-7)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert torch.allclose(gradient.sum(0), torch.tensor([0.0, -2.0, -1.0]))
    half = dpo_loss(torch.zeros(1, 1, dtype=torch.bfloat16), beta=1.0, marginal=marginal)
    assert half.dtype == torch.float32
    assert half.item() == torch.tensor(2.0).log().item()


def test_bad_options_of_the_loss_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log_ratio must have shape \(S, P\).* got \(3,\)"):
        dpo_loss(torch.zeros(3), beta=1.0)
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="beta must be positive and finite"):
            dpo_loss(torch.zeros(1, 3), beta=beta)


# Several losses, by the names of TRL.


def scores(pairs: int = 5, draws: int = 3) -> PairScores:
    generator = torch.Generator().manual_seed(0)
    log_prob = -20 * torch.rand(draws, 2 * pairs, generator=generator, dtype=torch.float64)
    reference = -20 * torch.rand(2 * pairs, generator=generator, dtype=torch.float64)
    return PairScores(log_prob, reference, torch.randint(1, 9, (2 * pairs,), generator=generator))


def by_hand(name: str, s: PairScores, beta: float, smoothing: float) -> np.ndarray:
    """Evaluates the losses as the papers print them, one pair and draw after the other."""
    draws, pairs = len(s.log_prob), len(s.tokens) // 2
    found = np.zeros((draws, pairs))
    for draw in range(draws):
        for pair in range(pairs):
            ratio = [float(s.log_prob[draw, r] - s.reference[r]) for r in (pair, pair + pairs)]
            tokens = [int(s.tokens[r]) for r in (pair, pair + pairs)]
            h, each = ratio[0] - ratio[1], ratio[0] / tokens[0] - ratio[1] / tokens[1]
            found[draw, pair] = {
                "sigmoid": math.log1p(math.exp(-beta * h)),
                "sigmoid_norm": math.log1p(math.exp(-beta * each)),
                "ipo": (each - 1 / (2 * beta)) ** 2,
                "robust": (
                    (1 - smoothing) * math.log1p(math.exp(-beta * h))
                    - smoothing * math.log1p(math.exp(beta * h))
                )
                / (1 - 2 * smoothing),
                "sft": -float(s.log_prob[draw, pair]) / tokens[0],
            }[name]
    return found.mean(0)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_papers(name: str) -> None:
    smoothing = 0.2 if name == "robust" else 0.0
    loss = PreferenceLoss(name, beta=0.3, label_smoothing=smoothing)
    expected = by_hand(name, scores(), 0.3, smoothing)
    assert np.allclose(loss(scores()).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_are_those_of_finite_differences(name: str) -> None:
    loss = PreferenceLoss(name, label_smoothing=0.1 if name == "robust" else 0.0)
    given = scores()
    given.log_prob.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(given._replace(log_prob=x)), given.log_prob)


def test_losses_are_added_with_their_weights() -> None:
    both = PreferenceLoss(["sigmoid", "sft"], [1.0, 0.25], beta=0.3, marginal=True)
    chosen, rejected = scores().ratios()
    expected = dpo_loss(chosen - rejected, beta=0.3, marginal=True)
    expected = expected + 0.25 * PreferenceLoss("sft")(scores())
    torch.testing.assert_close(both(scores()), expected)
    assert PreferenceLoss().names == ("sigmoid", "sft")
    assert PreferenceLoss().weights == (1.0, 1.0)


def test_robust_is_unbiased_under_reversed_choices() -> None:
    """Averaged over reversals of a share ε it is the sigmoid loss of what was meant."""
    given, share = scores(draws=1), 0.2
    swapped = PairScores(*(torch.cat(part.chunk(2, -1)[::-1], -1) for part in given))
    robust = PreferenceLoss("robust", beta=0.3, label_smoothing=share)
    mixed = (1 - share) * robust(given) + share * robust(swapped)
    torch.testing.assert_close(mixed, PreferenceLoss("sigmoid", beta=0.3)(given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dpo"}, r"loss_type must name some of \['sigmoid', .*got 'dpo'"),
        ({"loss_type": []}, r"loss_type must name some of .*got \[\]"),
        ({"loss_type": ["sft", "sft"]}, "each loss once"),
        ({"loss_weights": [1.0]}, "loss_weights must be 2 positive numbers"),
        ({"loss_weights": []}, "loss_weights must be 2 positive numbers"),
        ({"loss_weights": [1.0, 0.0]}, "loss_weights must be 2 positive numbers"),
        ({"loss_type": "robust"}, "between 0 and 0.5 for 'robust', got 0.0"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "between 0 and 0.5"),
        ({"label_smoothing": 0.1}, "label_smoothing must be 0 without 'robust'"),
        ({"loss_type": "ipo", "marginal": True}, "marginal needs 'sigmoid'"),
        ({"beta": 0.0}, "beta must be positive"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceLoss(**options)
