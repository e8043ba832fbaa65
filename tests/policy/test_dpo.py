"""The loss of direct preference optimisation: closed form, gradients, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fssa_bayes.policy import (
    dpo_loss,
)


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
