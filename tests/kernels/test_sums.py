"""Sums that padding does not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fssa_bayes import kernels
from fssa_bayes.kernels.sums import halves, log_add, powers_below, steady_sum


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 31, 64, 100])
def test_zeros_at_the_end_change_no_bit(width: int) -> None:
    values = torch.randn(5, width)
    total = steady_sum(values)
    torch.testing.assert_close(total, values.sum(-1))
    for more in (1, 5, 64, 200):
        assert torch.equal(steady_sum(F.pad(values, (0, more))), total)
        assert torch.equal(steady_sum(F.pad(values, (0, more)).T, 0), total)
    folded = values.unsqueeze(-1).clone()
    for first, second in halves(folded, powers_below(width)):
        first += second
    assert torch.equal(folded[:, 0, 0], total)


def test_sum_over_nothing_is_zero() -> None:
    assert torch.equal(steady_sum(torch.ones(3, 0)), torch.zeros(3))


@pytest.mark.parametrize("operation", ["bilinear", "mlp"])
@pytest.mark.parametrize("width", [1, 2, 3, 10, 70, 300])
def test_likelihood_of_a_person_does_not_depend_on_others(operation: str, width: int) -> None:
    """Neither on the padding that others bring, nor on their items, nor on the place."""
    inner = 12
    item, user = torch.randn(500, inner), torch.randn(1024, 4, inner) / 3
    left, right = torch.randint(500, (2, 4, 310)).unbind()
    choice, mask = torch.randint(3, (4, 310)) / 2, torch.rand(4, 310) < 0.9
    mask[2] = torch.arange(310) < width
    weight = (torch.randn(inner),) if operation == "mlp" else ()
    run = getattr(kernels, f"pairwise_{operation}")
    together = run(item, user, *weight, left, right, choice, mask, backend="chunked")
    for columns in (width, width + 3):
        own = [table[2:3, :columns] for table in (left, right, choice, mask)]
        alone = run(item, user[:, 2:3], *weight, *own, backend="chunked")
        assert torch.equal(alone[:, 0], together[:, 2])


def test_log_add_is_logaddexp() -> None:
    first, second = torch.randn(2, 1000, dtype=torch.float64) * 30
    torch.testing.assert_close(log_add(first, second), torch.logaddexp(first, second))
    first, second = torch.tensor([0.0, 1.0, -2.0]).requires_grad_(), torch.tensor([0.0, -1.0, 5.0])
    (slope,) = torch.autograd.grad(log_add(first, second).sum(), first)
    torch.testing.assert_close(slope, torch.sigmoid(first - second).detach())
