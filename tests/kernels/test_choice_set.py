"""The log-probability of choices from sets: values, gradients and edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fssa_bayes.kernels import choice_set


def written_out(margin: Tensor, chosen: Tensor, available: Tensor | None = None) -> Tensor:
    """Set by set and draw by draw, from the definition, in double precision, (S, T)."""
    draws, sets, others = margin.shape
    result = margin.new_zeros(draws, sets, dtype=torch.float64)
    for s in range(draws):
        for t in range(sets):
            utility = [margin.new_zeros((), dtype=torch.float64)]
            utility += [
                margin[s, t, j].double()
                if available is None or available[t, j]
                else margin.new_full((), -torch.inf, dtype=torch.float64)
                for j in range(others)
            ]
            utility = torch.stack(utility)
            result[s, t] = (utility[chosen[t]] - utility.logsumexp(0)).to(result.dtype)
    return result


def case(draws: int, sets: int, others: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    margin = 3 * torch.randn(draws, sets, others, generator=generator, dtype=torch.float64)
    available = torch.rand(sets, others, generator=generator) < 0.7
    available[:, 0] = True
    chosen = torch.tensor(
        [[0, *(own.nonzero().flatten() + 1).tolist()][t % 2] for t, own in enumerate(available)]
    )
    return margin, chosen, available


@pytest.mark.parametrize("backend", [None, "reference", "chunked"])
@pytest.mark.parametrize(("draws", "sets", "others"), [(1, 1, 1), (3, 5, 2), (2, 4, 9), (0, 3, 2)])
def test_values_and_gradients_are_those_written_out(backend, draws, sets, others) -> None:
    margin, chosen, available = case(draws, sets, others)
    for which in (None, available):
        own, expected = (margin.clone().requires_grad_() for _ in range(2))
        value = choice_set(own, chosen, which, backend=backend)
        true = written_out(expected, chosen, which)
        torch.testing.assert_close(value, true)
        weight = torch.linspace(0.5, 2, value.numel(), dtype=torch.float64).view_as(value)
        (value * weight).sum().backward()
        if draws:
            (true * weight).sum().backward()
            torch.testing.assert_close(own.grad, expected.grad)


def test_many_draws_are_taken_in_parts() -> None:
    margin, chosen, _ = case(700, 40, 3)
    own, other = (margin.clone().requires_grad_() for _ in range(2))
    value = choice_set(own, chosen)
    expected = choice_set(other, chosen, backend="reference")
    torch.testing.assert_close(value, expected)
    value.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(own.grad, other.grad)


def test_choices_may_differ_between_draws() -> None:
    margin, _, _ = case(6, 5, 2)
    chosen = torch.arange(30).view(6, 5) % 3
    value = choice_set(margin, chosen)
    each = [choice_set(margin[s : s + 1], chosen[s]) for s in range(6)]
    torch.testing.assert_close(value, torch.cat(each))
    groups = margin.view(2, 3, 5, 2).clone().requires_grad_()
    in_groups = chosen.view(2, 3, 5)
    torch.testing.assert_close(choice_set(groups, in_groups).view(6, 5), value)
    assert torch.autograd.gradgradcheck(lambda m: choice_set(m, in_groups), groups)


def test_pairs_are_bradley_terry_comparisons() -> None:
    margin = torch.linspace(-30, 30, 13, dtype=torch.float64).view(1, 13, 1)
    for chosen, sign in ((1, 1), (0, -1)):
        value = choice_set(margin, torch.full((13,), chosen))
        expected = torch.nn.functional.logsigmoid(sign * margin[..., 0])
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)


def test_probabilities_sum_to_one() -> None:
    margin, _, available = case(4, 6, 3)
    total = sum(choice_set(margin, torch.full((6,), j), available).exp() for j in range(4))
    torch.testing.assert_close(total, torch.ones(4, 6, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_edges_are_finite_and_exact(size: float) -> None:
    margin = torch.tensor([[[size, 0.5 * size, 1.0]]], requires_grad=True)
    chosen = torch.tensor([2])
    value = choice_set(margin, chosen)
    utility = torch.tensor([0.0, size, 0.5 * size, 1.0], dtype=torch.float64)
    expected = utility[2] - utility.logsumexp(0)
    torch.testing.assert_close(value[0, 0].double(), expected, rtol=1e-6, atol=0)
    value.sum().backward()
    share = utility.softmax(0)[1:].float()
    torch.testing.assert_close(margin.grad[0, 0], torch.tensor([0.0, 1, 0]) - share)
    near = torch.tensor([[[-40.0, -50.0]]])
    expected = -torch.log1p(torch.tensor([-40.0, -50]).double().exp().sum())
    value = choice_set(near, torch.tensor([0]))[0, 0].double()
    torch.testing.assert_close(
        value, -(torch.tensor([-40.0, -50]).double().exp().sum()), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-30)


def test_what_is_not_available_has_no_effect_and_other_nans_stay() -> None:
    margin, chosen, available = case(2, 5, 3)
    spoiled = margin.masked_fill(~available, torch.nan).requires_grad_()
    value = choice_set(spoiled, chosen, available)
    assert torch.equal(value, choice_set(margin, chosen, available))
    (gradient,) = torch.autograd.grad(value.sum(), spoiled)
    assert (gradient[:, ~available] == 0).all()
    margin[0, 2, 0] = torch.nan
    value = choice_set(margin, chosen, available)
    assert value[0, 2].isnan()
    assert value.isnan().sum() == 1


def test_derivatives_of_second_order_and_transforms() -> None:
    margin, chosen, _ = case(2, 3, 2)
    assert torch.autograd.gradgradcheck(
        lambda m: choice_set(m, chosen), margin.clone().requires_grad_()
    )

    def total(m: Tensor) -> Tensor:
        return choice_set(m, chosen).sum()

    hessian = torch.autograd.functional.hessian(total, margin).view(12, 12)
    one = margin.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(one), one)
    torch.testing.assert_close(torch.func.grad(total)(margin), slope)
    share = torch.nn.functional.pad(margin, (1, 0)).softmax(-1)[..., 1:]
    block = share[0, 0].outer(share[0, 0]) - share[0, 0].diag()
    torch.testing.assert_close(hessian[:2, :2], block)


def test_what_does_not_fit_is_refused() -> None:
    margin, chosen, available = case(2, 3, 2)
    with pytest.raises(ValueError, match=r"available must have shape .*\(3, 2\)"):
        choice_set(margin, chosen, available[:, :1])
    with pytest.raises(ValueError, match="backend must be"):
        choice_set(margin, chosen, backend="triton")
