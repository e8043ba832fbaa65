"""Parameters side by side: what an optimiser does to them, and what remains of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fssa_bayes.inference.flat import FlatParameters


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss_of(network: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    return network(x).square().sum()


def test_adam_takes_the_steps_that_it_takes_of_each_parameter() -> None:
    alone, together = make_network(), make_network()
    optimiser = torch.optim.Adam(alone.parameters(), 0.1)
    flat = FlatParameters(list(together.parameters()))
    shared = torch.optim.Adam([flat.values], 0.1)
    with flat.shared():
        for step in range(4):
            optimiser.zero_grad()
            loss_of(alone, step).backward()
            optimiser.step()
            flat.clear()
            loss_of(together, step).backward()
            flat.collect()
            expected = nn.utils.get_total_norm([p.grad for p in alone.parameters()]).item()
            assert flat.norm() == pytest.approx(expected, rel=1e-5)
            shared.step()
    for first, second in zip(alone.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_parameters_have_memory_of_their_own_afterwards() -> None:
    network = make_network()
    flat = FlatParameters(list(network.parameters()))

    def fail() -> None:
        with flat.shared(), torch.no_grad():
            flat.values.fill_(2.0)
            assert all((p == 2).all() for p in network.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with torch.no_grad():
        flat.values.fill_(3.0)
    assert all((p == 2).all() and p.grad is None for p in network.parameters())
    assert len({p.untyped_storage().data_ptr() for p in network.parameters()}) == 4


def test_gradients_that_an_objective_puts_elsewhere_are_taken_over() -> None:
    network = make_network()
    first, *others, last = network.parameters()
    flat = FlatParameters(list(network.parameters()))
    with flat.shared():
        loss_of(network, 0).backward()
        first.grad, last.grad = torch.ones_like(first), None
        kept = [p.grad.clone() for p in others]
        flat.collect()
        found = flat.split(flat.values.grad)
        assert (found[0] == 1).all()
        assert not found[-1].any()
        assert all(torch.equal(*pair) for pair in zip(found[1:-1], kept, strict=True))
        flat.clear()
        assert first.grad is not None
        assert not flat.values.grad.any()


def test_each_dtype_has_a_tensor_of_its_own() -> None:
    parameters = [nn.Parameter(torch.ones(2, dtype=t)) for t in (torch.float32, torch.float64)]
    parts = FlatParameters.of([*parameters, nn.Parameter(torch.zeros(3, 1))])
    assert [part.values.dtype for part in parts] == [torch.float32, torch.float64]
    assert parts[0].values.tolist() == [1, 1, 0, 0, 0]
