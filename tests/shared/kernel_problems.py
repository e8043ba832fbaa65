"""Problems of every operation of the kernels, and what holds for every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fssa_bayes import kernels

INDEX = torch.tensor([[0, 1]])


class Operation(NamedTuple):
    """One operation, its inputs for given sizes, and the utility of an item written plainly."""

    run: Callable[..., Tensor]
    inputs: Callable[[int, int, int, torch.Generator], list[Tensor]]
    utility: Callable[..., float]
    at_margin: Callable[[float], list[Tensor]]
    by_table: bool = False


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


OPERATIONS = {
    "gather": Operation(
        kernels.pairwise_gather,
        lambda s, u, m, g: [normal(s, u, m, generator=g)],
        lambda table, s, u, i: table[s, u, i],
        lambda margin: [torch.tensor([[[margin, 0.0]]])],
    ),
    "shared": Operation(
        kernels.pairwise_gather,
        lambda s, u, m, g: [normal(s, 1, m, generator=g)],
        lambda table, s, u, i: table[s, 0, i],
        lambda margin: [torch.tensor([[[0.0, -margin]]])],
    ),
    "many items": Operation(
        kernels.pairwise_gather,
        lambda s, u, m, g: [normal(s, u, m + 70, generator=g)],
        lambda table, s, u, i: table[s, u, i],
        lambda margin: [torch.tensor([[[margin, 0.0, *[1.0] * 70]]])],
    ),
    "bilinear": Operation(
        kernels.pairwise_bilinear,
        lambda s, u, m, g: [normal(m, 3, generator=g), normal(s, u, 3, generator=g)],
        lambda item, user, s, u, i: sum(item[i, k] * user[s, u, k] for k in range(3)),
        lambda margin: [torch.tensor([[margin], [0.0]]), torch.ones(1, 1, 1)],
    ),
    "mlp": Operation(
        kernels.pairwise_mlp,
        lambda s, u, m, g: [
            normal(m, 5, generator=g),
            normal(s, u, 5, generator=g),
            normal(5, generator=g),
        ],
        lambda item, user, weight, s, u, i: sum(
            weight[h] * max(item[i, h] + user[s, u, h], 0.0) for h in range(5)
        ),
        lambda margin: [
            torch.tensor([[max(margin, 0.0)], [max(-margin, 0.0)]]),
            torch.zeros(1, 1, 1),
            torch.ones(1),
        ],
    ),
}
# The same by utilities of all items, which otherwise depends on the number of items.
OPERATIONS["mlp table"] = OPERATIONS["mlp"]._replace(by_table=True)
SIZES = {  # draws, users, comparisons, items
    "one of each": (1, 1, 1, 2),
    "one draw": (1, 3, 4, 5),
    "one comparison": (4, 3, 1, 3),
    "repeated items": (3, 2, 9, 2),
    "odd": (5, 7, 11, 13),
    "empty contexts": (2, 3, 0, 4),
}


class Problem(NamedTuple):
    inputs: list[Tensor]
    left: Tensor
    right: Tensor
    choice: Tensor
    mask: Tensor

    def run(self, operation: Operation, **options: object) -> Tensor:
        return operation.run(*self.inputs, self.left, self.right, self.choice, self.mask, **options)


def problem(operation: Operation, draws: int, users: int, num: int, items: int) -> Problem:
    """Draws inputs, with holes in the mask and, where there are several, a user without any."""
    generator = torch.Generator().manual_seed(1)
    left = torch.randint(items, (users, num), generator=generator)
    shift = torch.randint(1, items, (users, num), generator=generator)
    choice = torch.randint(3, (users, num), generator=generator).double() / 2
    mask = torch.rand(users, num, generator=generator) < 0.7
    mask[:, :1] = True
    if users > 1:
        mask[-1] = False
    inputs = operation.inputs(draws, users, items, generator)
    return Problem(inputs, left, (left + shift) % items, choice, mask)


def margins(operation: Operation, p: Problem, position_bias: float) -> np.ndarray:
    tables = [tensor.numpy() for tensor in p.inputs]
    draws = p.inputs[min(1, len(p.inputs) - 1)].shape[0]
    result = np.zeros((draws, *p.left.shape))
    for s, u, n in np.ndindex(*result.shape):
        if p.mask[u, n]:
            left = operation.utility(*tables, s, u, p.left[u, n].item())
            right = operation.utility(*tables, s, u, p.right[u, n].item())
            result[s, u, n] = left - right + position_bias
    return result


def log_prob(margin: float, choice: float) -> float:
    return choice * margin - max(margin, 0.0) - math.log1p(math.exp(-abs(margin)))


def assert_agrees_with_a_loop(
    operation: Operation, backend: str | None, size: tuple[int, int, int, int], position_bias: float
) -> None:
    p = problem(operation, *size)
    margin = margins(operation, p, position_bias)
    expected = np.zeros_like(margin)
    for s, u, n in np.ndindex(*margin.shape):
        if p.mask[u, n]:
            expected[s, u, n] = log_prob(margin[s, u, n], p.choice[u, n].item())
    for options, truth in (
        ({"output": "margin"}, margin),
        ({"reduce": False}, expected),
        ({}, expected.sum(-1)),
    ):
        result = p.run(operation, backend=backend, position_bias=position_bias, **options)
        torch.testing.assert_close(result, torch.from_numpy(truth), rtol=1e-12, atol=1e-12)


def assert_soft_labels_agree_with_a_loop(operation: Operation, backend: str | None) -> None:
    """Choices between 0 and 1, alone and among certain ones and half wins."""
    p = problem(operation, 3, 4, 6, 5)
    soft = torch.linspace(0.03, 0.98, p.choice.numel(), dtype=torch.float64).view(p.choice.shape)
    mixed = torch.where(torch.arange(6) % 2 == 0, soft, p.choice)
    margin = margins(operation, p, 0.0)
    for choice in (soft, mixed, torch.full_like(soft, 0.3)):
        expected = np.zeros_like(margin)
        for s, u, n in np.ndindex(*margin.shape):
            if p.mask[u, n]:
                expected[s, u, n] = log_prob(margin[s, u, n], choice[u, n].item())
        inputs = [tensor.clone().requires_grad_() for tensor in p.inputs]
        labelled = p._replace(inputs=inputs, choice=choice)
        each = labelled.run(operation, backend=backend, reduce=False)
        torch.testing.assert_close(each, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
        total = labelled.run(operation, backend=backend)
        torch.testing.assert_close(total, each.sum(-1), rtol=1e-12, atol=1e-12)
        plain = labelled.run(operation, backend="reference")
        for found, truth in zip(
            torch.autograd.grad(total.sum(), inputs),
            torch.autograd.grad(plain.sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)


def assert_exact_at_the_edges(
    operation: Operation, backend: str | None, margin: float, choice: float
) -> None:
    """No clamp, no rounding of log(1 + exp) to 0: value and gradient keep their digits."""
    bias = torch.zeros((), requires_grad=True)
    left, right = INDEX[:, :1], INDEX[:, 1:]
    y = torch.full_like(left, choice, dtype=torch.float32)
    result = operation.run(
        *operation.at_margin(margin), left, right, y, position_bias=bias, backend=backend
    )
    result.sum().backward()
    tail = math.exp(-abs(margin)) / (1 + math.exp(-abs(margin)))  # sigmoid(-|m|)
    sigmoid = 1 - tail if margin > 0 else tail
    gradient = {0.0: -sigmoid, 0.5: 0.5 - sigmoid, 1.0: tail if margin > 0 else 1 - tail}[choice]
    assert result.item() == pytest.approx(log_prob(margin, choice), rel=1e-6, abs=0)
    assert bias.grad.item() == pytest.approx(gradient, rel=1e-6, abs=0)


def assert_garbage_under_the_mask_changes_nothing(
    operation: Operation, backend: str | None, index: int, options: dict
) -> None:
    p = problem(operation, 3, 4, 6, 5)
    results = []
    for garbage in (False, True):
        inputs = [tensor.clone().requires_grad_() for tensor in p.inputs]
        dirty = p._replace(inputs=inputs)
        if garbage:
            dirty = dirty._replace(
                left=p.left.masked_fill(~p.mask, index),
                right=p.right.masked_fill(~p.mask, index),
                choice=p.choice.masked_fill(~p.mask, torch.nan if index < 0 else 7.0),
            )
        result = dirty.run(operation, backend=backend, **options)
        results.append([result, *torch.autograd.grad(result.square().sum(), inputs)])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)  # which a NaN would fail as well


def assert_wider_padding_changes_nothing(operation: Operation, backend: str | None) -> None:
    p = problem(operation, 3, 4, 6, 5)
    wide = [torch.nn.functional.pad(tensor, (0, 5)) for tensor in p[1:]]
    torch.testing.assert_close(
        Problem(p.inputs, *wide).run(operation, backend=backend), p.run(operation, backend=backend)
    )


def assert_nan_stays_with_its_user(operation: Operation, place: str, backend: str | None) -> None:
    p = problem(operation, 3, 4, 6, 5)
    if place == "user":
        p.inputs[min(1, len(p.inputs) - 1)][:, 1] = torch.nan
        p.inputs[min(1, len(p.inputs) - 1)][:, 3] = torch.nan  # has no comparisons
    else:
        p.choice[1, 0] = torch.nan
    expected = torch.tensor([False, True, False, False]).expand(3, 4)
    assert torch.equal(p.run(operation, backend=backend).isnan(), expected)


def assert_not_finite_is_never_hidden(
    operation: Operation, backend: str | None, value: float, form: dict
) -> None:
    """A NaN anywhere leaves nothing finite; under an infinity what is finite is the limit."""
    for place in range(len(operation.inputs(1, 1, 2, torch.Generator()))):
        p = problem(operation, 2, 3, 4, 5)
        results = []
        for number in (value, value if math.isnan(value) else math.copysign(1e60, value)):
            inputs = [tensor.clone() for tensor in p.inputs]
            inputs[place].view(-1)[1] = number
            inputs = [tensor.requires_grad_() for tensor in inputs]
            side = backend if number == value or math.isnan(value) else "reference"
            result = p._replace(inputs=inputs).run(operation, backend=side, **form)
            # A margin's gradient may be finite where the margin is not.
            gradients = () if form.get("output") else torch.autograd.grad(result.sum(), inputs)
            results.append([result, *gradients])
        for found, limit in zip(*results, strict=True):
            seen = found.isfinite()
            torch.testing.assert_close(found[seen], limit[seen])
        if math.isnan(value):
            assert results[0][0].isnan().any()
            assert not gradients or gradients[place].isnan().any()


def assert_swapping_sides_and_choice_changes_nothing(
    operation: Operation, backend: str | None
) -> None:
    p = problem(operation, 3, 4, 6, 5)
    swapped = p._replace(left=p.right, right=p.left, choice=1 - p.choice)
    torch.testing.assert_close(
        swapped.run(operation, backend=backend),
        p.run(operation, backend=backend),
        rtol=1e-14,
        atol=1e-14,
    )
    biased = p.run(operation, backend=backend, position_bias=0.5)
    assert not torch.allclose(swapped.run(operation, backend=backend, position_bias=0.5), biased)
    torch.testing.assert_close(swapped.run(operation, backend=backend, position_bias=-0.5), biased)
