"""Random numbers of posteriors: nobody's depend on other people, on threads or on global state."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences
from fssa_bayes.posterior import ChoiceProbability, PopulationDraws

COUNTS = (3, 1, 12, 0, 7, 70, 5, 16, 2, 9, 1, 33)
"""Numbers of comparisons: none, one, more than a block of the kernels, multiples of a vector."""

MODELS = {
    "linear, normal guide": ({"utility": "linear"}, {"posterior": "normal"}),
    "linear in five dimensions": (
        {"utility": "linear", "latent_dim": 5},
        {"posterior": "multivariate_normal"},
    ),
    "linear in one dimension": ({"utility": "linear", "latent_dim": 1}, {"posterior": "flow"}),
    "bilinear, affine flow": ({}, {"posterior": "flow"}),
    "bilinear, bent flow": ({}, {"posterior": "flow", "coupling": "bent"}),
    "bilinear, learned prior": ({"prior": "flow"}, {"posterior": "multivariate_normal"}),
    "few factors": ({"num_factors": 3, "hidden_dim": 10}, {"posterior": "flow", "hidden_dim": 9}),
    "mlp": ({"utility": "mlp", "latent_dim": 3}, {"posterior": "multivariate_normal"}),
    "looked-up items": ({"utility": "linear"}, {"posterior": "multivariate_normal"}),
    "covariates": ({"num_covariates": 2, "latent_dim": 1}, {"posterior": "flow"}),
    "ties and lapses": ({"ties": "davidson", "lapses": True}, {"posterior": "normal"}),
    "rankings": ({"utility": "linear"}, {"posterior": "multivariate_normal"}),
}


def rankings() -> Preferences:
    rng = np.random.default_rng(0)
    rows = [
        (f"person {user}", f"{user} {which}", item, rank + 1)
        for user, count in enumerate((1, 3, 2, 9, 1, 4, 2, 1, 6, 5))
        for which in range(count)
        for rank, item in enumerate(rng.permutation(12)[: rng.integers(2, 6)])
    ]
    items = pd.DataFrame(rng.normal(size=(12, 3)))
    frame = pd.DataFrame(rows, columns=["user", "ranking", "item", "rank"])
    return Preferences.from_rankings(
        frame, user="user", ranking="ranking", item="item", rank="rank", items=items
    )


@pytest.fixture(scope="module", params=MODELS)
def case(request, make_data, randomise) -> tuple:
    """A model, its guide, and people, some of whom the guide fails."""
    options, of_guide = MODELS[request.param]
    if request.param == "rankings":
        data = rankings()
    else:
        look_up = request.param == "looked-up items"
        shape = {"num_items": 60, "num_features": None if look_up else 3}
        data = make_data(COUNTS, half_wins=True, **shape)
    if "num_covariates" in options:
        covariates = np.random.default_rng(1).normal(size=(len(data), 2))
        parts = data.left, data.right, data.choice, data.offsets
        data = Preferences(*parts, items=data.items.numpy(), covariates=covariates)
    if options.get("ties"):
        data = data.with_choices(data.choice, ties="keep")
    torch.manual_seed(0)
    model = HeterogeneousBTL(data.num_features, **{"latent_dim": 2} | options)
    model.take_units(data)
    guide = NeuralProcessGuide(model, **of_guide)
    return randomise(model.eval(), 0.3), randomise(guide.eval(), 0.2), data


def assert_same(one: Posterior, many: Posterior, people: Sequence[int]) -> None:
    """Compares a posterior of some people with one of everybody, bit for bit."""
    place = torch.as_tensor(people)
    names = ("pareto_k", "relative_ess", "reliable", "guide_pareto_k", "guide_relative_ess")
    for name in ("z", *names):
        own, all_ = getattr(one, name), getattr(many, name)
        assert torch.equal(own, all_[:, place] if name == "z" else all_[place]), name
    for own, all_ in zip(one.proposals, many.proposals, strict=True):
        assert torch.equal(own, all_[:, place])
    assert (one.method == many.method[people]).all()
    own, all_ = one.choice_prob(one.context), many.choice_prob(many.context)
    for field in fields(ChoiceProbability):
        value = getattr(own, field.name)
        expected = getattr(all_, field.name)[place, : value.shape[1]]
        np.testing.assert_array_equal(value.numpy(), expected.numpy(), err_msg=field.name)
    np.testing.assert_array_equal(one.log_score(one.context), many.log_score(many.context)[place])


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives PyTorch three threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_nobody_depends_on_other_people(case, threads) -> None:
    *pair, data = case
    torch.set_num_threads(1)
    many = Posterior(*pair, data, num_samples=90, seed=3)
    last = len(data) - 1
    order = np.random.default_rng(0).permutation(len(data))
    for people in ([3], [last], [5, 0], [1, 3, 8], order):
        torch.set_num_threads(1 if len(people) == 2 else 3)
        assert_same(Posterior(*pair, data.subset(people), num_samples=90, seed=3), many, people)


def test_draws_around_modes_need_no_guide(case, threads) -> None:
    model, guide, data = case
    if not model.is_mixed_logit:
        with pytest.raises(ValueError, match="guide must be given"):
            Posterior(model, None, data, num_samples=90)
        return
    many = Posterior(model, None, data, num_samples=90, seed=3)
    with_guide = Posterior(model, guide, data, num_samples=90, seed=3)
    assert torch.equal(many.proposals[0], with_guide.proposals[0])
    assert (many.method != "guide + prior").all()
    assert many.guide_pareto_k.isnan().all()
    for people in ([4], [7, 2], [0, 5, 9]):
        own = Posterior(model, None, data.subset(people), num_samples=90, seed=3)
        for name in ("pareto_k", "relative_ess", "reliable"):
            assert torch.equal(getattr(own, name), getattr(many, name)[people])
        assert torch.equal(own.proposals[0], many.proposals[0][:, people])
        assert torch.equal(own.proposals[1], many.proposals[1][:, people])


def test_better_draws_do_not_depend_on_other_people(make_data, randomise) -> None:
    data = make_data(COUNTS)
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, utility="linear", prior="flow")
    with torch.no_grad():
        model.utility.loading.mul_(20.0)
    guide = randomise(NeuralProcessGuide(model, "normal"), 0.4)
    many = Posterior(model, guide, data, num_samples=250)
    failed = np.flatnonzero(many.method == "more draws")
    assert len(failed) >= 2
    for people in (failed[:1], failed[::-1].copy()):
        assert_same(Posterior(model, guide, data.subset(people), num_samples=250), many, people)


def test_draws_of_the_population_do_not_depend_on_other_people(make_data, randomise) -> None:
    data = make_data(COUNTS)
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2)
    members = []
    for scale in (0.05, 0.1, 0.15):
        other = randomise(copy.deepcopy(model), scale)
        members.append((other, randomise(NeuralProcessGuide(other), scale)))
    population = PopulationDraws(tuple(members), "by hand")
    pair = members[0]
    many = Posterior(*pair, data, num_samples=100, population=population)
    for people in ([4], [9, 2, 0]):
        own = Posterior(*pair, data.subset(people), num_samples=100, population=population)
        assert_same(own, many, people)


def test_names_and_not_positions_choose_the_random_numbers(make_data) -> None:
    data = make_data((4, 4, 4))
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 3)  # With two dimensions people share draws.
    guide = NeuralProcessGuide(model)

    def draw(names: Sequence) -> torch.Tensor:
        tables = data.left, data.right, data.choice, data.offsets
        named = Preferences(*tables, items=data.items.numpy(), user_names=pd.Index(names))
        return Posterior(model, guide, named, num_samples=50, fallback=None).proposals[0]

    first = draw([7, 8, 9])
    for same in (pd.Index([7, 8, 9], dtype="Int64"), [7.0, 8.0, 9.0]):
        assert torch.equal(draw(same), first)
    for other in (["7", "8", "9"], [8, 9, 7]):
        assert not (draw(other) == first).any()


def test_threads_agree_with_one_after_another_and_leave_global_state_alone(
    make_data, randomise, threads
) -> None:
    data = make_data((3, 1, 12, 0, 7), half_wins=True)
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, prior="flow")  # Pyro's flows remember their last draws.
    guide = randomise(NeuralProcessGuide(model), 0.2)

    def draw(seed: int) -> Posterior:
        return Posterior(model, guide, data, num_samples=100, seed=seed)

    def use(seed: int) -> Posterior:
        posterior = draw(seed)
        posterior.choice_prob(data)
        if seed == 0:
            few = Posterior(model, guide, data.subset([0, 1]), num_samples=25)
            few.context_surprise(50, num_samples=25)
            few.to_inference_data()
        return posterior

    serial = [draw(seed) for seed in range(8)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        np.random.seed(11)
        random.seed(11)
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        with ThreadPoolExecutor(8) as executor:
            futures = [executor.submit(use, seed) for seed in range(8)]
            while not all(future.done() for future in futures):
                assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (str(np.random.get_state()), random.getstate()) == before[1:]
    for future, expected in zip(futures, serial, strict=True):
        assert_same(future.result(), expected, range(len(data)))
    assert not torch.equal(serial[0].z, serial[1].z)


def test_noise_is_standard_normal_and_independent_between_people(make_data) -> None:
    """The prior of a model without comparisons is what the streams hold.

    Proposals are the same points, shifted for each person; the equally weighted draws are in an
    order of each person's own, so that draw by draw two people are independent.
    """
    data = make_data([1] * 400).subset(range(400)).split_context(0)[0]
    model = HeterogeneousBTL(3, 3)  # With two dimensions people share draws.
    posterior = Posterior(model, NeuralProcessGuide(model), data, num_samples=200)
    z = posterior.z.double()  # 240,000 numbers.
    assert abs(z.mean()) < 4 / 490
    assert abs(z.var() - 1) < 4 * 2**0.5 / 490
    assert abs((z**4).mean() - 3) < 4 * 96**0.5 / 490
    correlation = torch.corrcoef(z[..., 0].T)
    apart = correlation[~torch.eye(400, dtype=torch.bool)]
    assert apart.abs().max() < 5.5 / 200**0.5  # 79,800 pairs: 5.5 standard errors are one in 3e7.
    assert abs(apart.square().mean() * 200 - 1) < 0.05
