"""Draws of the prior that people share: who gets them, and that posteriors are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, exact
from fssa_bayes.sampling.shared import may_share


@pytest.fixture(scope="module", params=["normal", "flow"])
def case(request, make_data, randomise) -> tuple[HeterogeneousBTL, NeuralProcessGuide, Preferences]:
    """A model, a guide that knows nothing of it, and people with few choices or with many."""
    data = make_data((0, 1, 3, 5, 10, 80, 200), num_items=40, num_features=3)
    torch.manual_seed(0)
    model = randomise(HeterogeneousBTL(3, 2, prior=request.param).eval(), 0.2)
    model.take_units(data)
    return model, NeuralProcessGuide(model).eval(), model.simulate(data, seed=1)[0]


def test_people_share_where_the_draws_suffice_and_posteriors_are_exact(case) -> None:
    model, guide, data = case
    posterior = Posterior(model, guide, data, num_samples=2000)
    z, log_weights = posterior.proposals
    shared = posterior.method == "prior"
    assert shared[:4].all()
    assert not shared.all()
    assert torch.equal(z[:, 0], z[:, 1])  # The same draws, whose weights differ.
    assert not torch.equal(log_weights[:, 0], log_weights[:, 1])
    assert posterior.reliable[shared].all()
    few = data.subset([0, 1, 2, 3, 4])
    gold = exact.grid(model, few, num=401)
    prob = model.choice(few.batch(), gold.z).mean
    expected = (gold.log_weights.exp().unsqueeze(-1) * prob).sum(0)
    found = Posterior(model, guide, few, num_samples=2000).choice_prob(few).mean
    mask = few.batch().mask
    assert ((found - expected)[mask].abs() < 0.02).all()
    assert found[mask].std() > 0.1


def test_only_people_whose_draws_do_not_suffice_get_others(case) -> None:
    model, guide, data = case
    first, last = (
        Posterior(model, guide, data, num_samples=100, fallback=fallback)
        for fallback in (None, "draws")
    )
    reliable, shared = first.reliable.numpy(), first.method == "prior"
    assert reliable[shared].all()  # The others have draws of the guide, which may not suffice.
    assert (first.method[~shared] == "guide + prior").all()
    assert not reliable.all()
    assert (last.method == np.where(reliable, first.method, "more draws")).all()
    for before, after in zip(first.proposals, last.proposals, strict=True):
        assert torch.equal(before[:, reliable], after[:, reliable])
    assert last.reliable.sum() > first.reliable.sum()


def test_the_draws_follow_from_the_seed_alone(case) -> None:
    model, guide, data = case
    names = ["z", "pareto_k", "relative_ess", "reliable"]

    def values(people: list[int], seed: int = 0) -> list[torch.Tensor]:
        posterior = Posterior(model, guide, data.subset(people), num_samples=500, seed=seed)
        z, log_weights = posterior.proposals
        return [z, log_weights, *(getattr(posterior, name) for name in names[1:])]

    everybody, some = values([0, 1, 2, 3, 4, 5, 6]), values([3, 1])
    for one, all_ in zip(some, everybody, strict=True):
        own = all_[:, [3, 1]] if all_.ndim > 1 else all_[[3, 1]]
        assert torch.equal(one, own)
    assert not torch.equal(values([1], seed=1)[0], values([1])[0])


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((3, 1), {}, True),
        ((3, 2), {"prior": "flow"}, True),
        ((3, 2), {"ties": "davidson", "lapses": True}, True),
        ((3, 2), {"utility": "linear", "prior": "flow"}, True),
        ((3, 3), {}, False),
        ((3, 2), {"utility": "mlp"}, False),  # Its cost lies in pairs of draw and item.
        ((3, 2), {"utility": "linear"}, False),
        ((3, 2), {"num_covariates": 1}, False),
        ((3, 0), {"utility": "linear"}, False),
    ],
)
def test_draws_are_shared_in_few_dimensions(shape: tuple, options: dict, expected: bool) -> None:
    assert may_share(HeterogeneousBTL(*shape, **options)) is expected


def test_shared_draws_are_evaluated_once(case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide, data = case
    rows = []
    tower = model.utility.user_tower
    forward = type(tower).forward

    def count(self, values: torch.Tensor) -> torch.Tensor:
        if self is tower:
            rows.append(values[..., 0].numel())
        return forward(self, values)

    monkeypatch.setattr(type(tower), "forward", count)
    posterior = Posterior(model, guide, data.subset([0, 1, 2, 3]), num_samples=512)
    assert (posterior.method == "prior").all()
    assert rows
    assert max(rows) == 512
