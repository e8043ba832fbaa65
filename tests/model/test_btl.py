from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.model import HeterogeneousBTL, PreparedItems

UTILITIES = ["linear", "bilinear", "mlp", "module"]
MakeData = Callable[..., Preferences]
Change = Callable[[Batch], Batch]


class IdealPoint(nn.Module):
    """A utility of one's own: minus the squared distance to a point that moves with z."""

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.randn(latent_dim, num_features))

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        if items.dtype == torch.int64:
            items = F.one_hot(items, self.point.shape[1])
        return -(items - z @ self.point).square().sum(-1)


def make_model(utility: str, data: Preferences, latent_dim: int = 2, **options: Any):
    if utility == "module":
        utility = IdealPoint(data.num_features, latent_dim)
    model = HeterogeneousBTL(data.num_features, latent_dim, utility, hidden_dim=8, **options)
    model.set_standardisation(data.items)
    return model


def by_hand(utility: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """Evaluates the formula of a utility for one item (D,) and one person (K,)."""
    match type(utility).__name__:
        case "LinearUtility":
            return x @ (utility.mean + utility.loading @ z)
        case "BilinearUtility":
            return utility.item_tower(x) @ utility.user_tower(z)
        case "MLPUtility":
            hidden = utility.item_tower(x) + utility.user_layer @ z
            return utility.weight @ hidden.clamp(min=0)
        case _:
            return -(x - z @ utility.module.point).square().sum()


# Utilities.


@pytest.mark.parametrize("latent_dim", [0, 1, 3])
@pytest.mark.parametrize("utility", UTILITIES)
def test_utility_is_its_formula_in_standardised_units(
    utility: str, latent_dim: int, make_data: MakeData, randomise: Callable
) -> None:
    data = make_data(num_items=4)
    model = randomise(make_model(utility, data, latent_dim))
    z = torch.randn(2, 5, latent_dim)
    mean, scale = data.items.mean(0), data.items.std(0, unbiased=False)
    result = model.item_utility(data.items, z)
    for draw, person, item in np.ndindex(2, 5, 4):
        x = (data.items[item] - mean) / scale
        expected = by_hand(model.utility, x, z[draw, person])
        torch.testing.assert_close(result[draw, person, item], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("draws", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("num_features", [3, None], ids=["features", "positions"])
@pytest.mark.parametrize("num_items", [4, 40], ids=["items repeat", "items differ"])
@pytest.mark.parametrize("latent_dim", [0, 2])
@pytest.mark.parametrize("utility", UTILITIES)
def test_margin_is_the_difference_of_utilities(
    utility: str,
    latent_dim: int,
    num_items: int,
    num_features: int | None,
    draws: tuple,
    make_data: MakeData,
    randomise: Callable,
) -> None:
    data = make_data(num_items=num_items, num_features=num_features)
    model = randomise(make_model(utility, data, latent_dim))
    batch = data.batch()
    z = torch.randn(*draws, batch.num_users, latent_dim)
    utilities = model.item_utility(batch.items, z)
    left, right = (
        utilities.gather(-1, side.expand(*draws, -1, -1)) for side in (batch.left, batch.right)
    )
    choice = model.choice(batch, z)
    expected = (left - right).masked_fill(~batch.mask, 0.0)
    torch.testing.assert_close(choice.margin, expected, atol=1e-5, rtol=1e-5)
    log_prob = batch.choice * F.logsigmoid(expected) + (1 - batch.choice) * F.logsigmoid(-expected)
    expected = log_prob.masked_fill(~batch.mask, 0.0).sum(-1)
    torch.testing.assert_close(choice.log_prob(batch.choice), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("utility", UTILITIES)
def test_item_without_features_is_its_indicator(
    utility: str, make_data: MakeData, randomise: Callable
) -> None:
    data = make_data(num_items=5, num_features=None)
    explicit = Preferences(data.left, data.right, data.choice, data.offsets, items=np.eye(5))
    model = randomise(HeterogeneousBTL(5, 2, utility if utility != "module" else IdealPoint(5, 2)))
    z = torch.randn(3, len(data), 2)
    margins = [model.choice(each.batch(), z).margin for each in (data, explicit)]
    torch.testing.assert_close(*margins, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("utility", UTILITIES)
def test_without_a_latent_factor_people_are_alike(
    utility: str, make_data: MakeData, randomise: Callable
) -> None:
    data = make_data()
    model = randomise(make_model(utility, data, latent_dim=0, prior="flow"))
    result = model.item_utility(data.items, torch.zeros(4, 0))
    assert result.std(1).min() > 0.01
    assert torch.equal(result, result[:1].expand(4, -1))


# Coherence.


@pytest.mark.parametrize("utility", UTILITIES)
def test_swapping_left_and_right_swaps_the_probabilities(
    utility: str, make_data: MakeData, randomise: Callable
) -> None:
    data = make_data(half_wins=True)
    model = randomise(make_model(utility, data))
    z = torch.randn(3, len(data), 2)
    batch, swapped = data.batch(), data.swap().batch()
    choice, mirrored = model.choice(batch, z), model.choice(swapped, z)
    torch.testing.assert_close(choice.mean + mirrored.mean, torch.ones_like(choice.mean))
    expected = choice.log_prob(batch.choice)
    torch.testing.assert_close(mirrored.log_prob(swapped.choice), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_items", [4, 40], ids=["items repeat", "items differ"])
@pytest.mark.parametrize("num_features", [3, None], ids=["features", "positions"])
@pytest.mark.parametrize("utility", UTILITIES)
def test_garbage_under_the_mask_changes_nothing(
    utility: str, num_features: int | None, num_items: int, make_data: MakeData, soil: Change
) -> None:
    data = make_data(num_items=num_items, num_features=num_features)
    model = make_model(utility, data)
    z = torch.randn(3, len(data), 2)
    results = []
    for batch in (data.batch(), soil(data.batch())):
        model.zero_grad()
        log_prob = model.choice(batch, z).log_prob(batch.choice)
        log_prob.sum().backward()
        results.append([log_prob, *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*results, strict=True))


@pytest.mark.parametrize("utility", UTILITIES)
def test_wider_padding_changes_nothing(utility: str, make_data: MakeData, widen: Change) -> None:
    data = make_data()
    model = make_model(utility, data)
    z = torch.randn(3, len(data), 2)
    narrow, wide = (
        model.choice(batch, z).log_prob(batch.choice)
        for batch in (data.batch(), widen(data.batch()))
    )
    torch.testing.assert_close(wide, narrow, atol=1e-6, rtol=1e-6)


# The prior.


def test_normal_prior_is_standard() -> None:
    z = torch.randn(6, 3, dtype=torch.float64).float()
    expected = -0.5 * z.square().sum(-1) - 1.5 * np.log(2 * np.pi)
    torch.testing.assert_close(HeterogeneousBTL(2, 3).prior(6).log_prob(z), expected)


@pytest.mark.parametrize(("latent_dim", "num"), [(1, 4001), (2, 601)])
def test_flow_prior_is_a_density_and_draws_have_its_moments(
    latent_dim: int, num: int, grid: Callable
) -> None:
    model = HeterogeneousBTL(2, latent_dim, prior="flow", hidden_dim=8)
    for parameter in model.prior_flow.parameters():  # Smooth enough for the grid, and no normal.
        nn.init.normal_(parameter, std=0.3)
    z, cell = grid(latent_dim, 12.0, num)
    with torch.no_grad():
        density = model.prior(len(z)).log_prob(z).double().exp() * cell
        draws = model.prior(1).sample((40_000,))[:, 0].double()
    torch.testing.assert_close(density.sum().item(), 1.0, atol=2e-3, rtol=0)
    normal = torch.distributions.Normal(0, 1).log_prob(z.double()).sum(-1).exp() * cell
    assert (density - normal).abs().sum() > 0.1, "the flow must not be the normal it replaces"
    # Bounded functions, because the tails of a coupling flow are heavy.
    for moment in (torch.tanh, torch.cos, lambda z: z.tanh().prod(-1, keepdim=True)):
        values = moment(z.double())
        mean = density @ values
        error = (density @ (values - mean).square() / len(draws)).sqrt()
        assert ((moment(draws).mean(0) - mean).abs() < 4 * error + 1e-3).all()


def test_people_have_priors_of_their_own(randomise: Callable) -> None:
    """Draws of several people do not depend on each other, and each is scored by itself."""
    prior = randomise(HeterogeneousBTL(2, 2, prior="flow")).prior(3)
    with torch.no_grad():
        z = prior.sample((20_000,))
        log_prob = prior.log_prob(z.clone())
        alone = prior.log_prob(z[:, :1].expand(-1, 3, -1))[:, 0]
    torch.testing.assert_close(log_prob[:, 0], alone, atol=1e-5, rtol=1e-5)
    correlation = torch.corrcoef(z[..., 0].T)
    assert (correlation - torch.eye(3)).abs().max() < 4 / 20_000**0.5


# A model for data.


def test_a_model_for_data_has_their_sizes_and_names_and_weights_of_the_seed() -> None:
    people = {"covariates": np.ones((2, 3)), "covariate_names": ["x", "y", "w"]}
    data = Preferences(
        *(np.array(column) for column in ([0, 1], [1, 0], [1, 0.5], [0, 1, 2])),
        items=np.eye(2),
        feature_names=["a", "b"],
        ties="keep",
        **people,
    )
    state = torch.get_rng_state()
    model = HeterogeneousBTL.for_data(data, 2, seed=3, utility="linear")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    same = HeterogeneousBTL(2, 2, utility="linear", ties="davidson", num_covariates=3)
    assert model.config == same.config
    for name, value in same.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert (list(model.feature_names), list(model.covariate_names)) == (["a", "b"], ["x", "y", "w"])
    alike = HeterogeneousBTL.for_data(data, 0, ties=None)  # Options given come before the data's.
    assert (alike.num_covariates, alike.has_ties) == (0, False)


# Standardisation.


@pytest.mark.parametrize("utility", UTILITIES)
def test_units_of_the_features_do_not_matter(utility: str, make_data: MakeData) -> None:
    data = make_data()
    items = torch.tensor([100.0, 0.01, 3.0]) * data.items + torch.tensor([5.0, 0.1, -2.0])
    rescaled = Preferences(data.left, data.right, data.choice, data.offsets, items=items)
    z = torch.randn(3, len(data), 2)
    margins = []
    for each in (data, rescaled):
        torch.manual_seed(1)
        margins.append(make_model(utility, each).choice(each.batch(), z).margin)
    torch.testing.assert_close(*margins, atol=1e-4, rtol=1e-4)


def test_standardisation_is_taken_once_and_leaves_constants_alone() -> None:
    model = HeterogeneousBTL(2, 1, "linear")
    model.set_standardisation(None)
    assert not model.is_standardised
    model.set_standardisation(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    model.set_standardisation(torch.tensor([[100.0, -4.0], [500.0, 4.0]]))
    assert model.feature_mean.tolist() == [2, 7]
    assert model.feature_scale.tolist() == [1, 1]
    assert model.standardise(torch.tensor([[5.0, 8.0]])).tolist() == [[3, 1]]


# Simulation.


@pytest.mark.parametrize(
    ("utility", "latent_dim", "prior"),
    [("linear", 2, "normal"), ("bilinear", 1, "flow"), ("mlp", 2, "flow"), ("linear", 0, "normal")],
)
def test_simulated_choices_have_the_probabilities_of_their_people(
    utility: str, latent_dim: int, prior: str, make_data: MakeData, randomise: Callable
) -> None:
    """More people than `simulate` takes at once, so that batches in the wrong order show."""
    data = make_data([1, 3, 2] * 2000)
    model = randomise(make_model(utility, data, latent_dim, prior=prior), 0.5)
    simulated, z = model.simulate(data, seed=3)
    batch = simulated.batch()
    prob = model.choice(batch, z).mean[batch.mask]
    choice = batch.choice[batch.mask]
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (prob >= low) & (prob < low + 0.2)
        assert inside.sum() > 30
        error = (prob * (1 - prob))[inside].sum().sqrt()
        assert (choice - prob)[inside].sum().abs() < 4 * error


def test_simulation_keeps_the_questions_and_ignores_the_answers(make_data: MakeData) -> None:
    data = make_data()
    model = make_model("linear", data)
    opposite = data.with_choices(1 - data.choice)
    simulated, z = model.simulate(data, seed=1)
    again, z_again = model.simulate(opposite, seed=1)
    assert np.array_equal(simulated.choice, again.choice)
    assert torch.equal(z, z_again)
    assert np.array_equal(simulated.left, data.left)
    assert np.array_equal(simulated.right, data.right)
    assert np.array_equal(simulated.offsets, data.offsets)


def test_simulation_depends_on_its_seed_alone(make_data: MakeData) -> None:
    data = make_data([4] * 20)
    model = make_model("linear", data)
    state = torch.get_rng_state()
    first, z = model.simulate(data, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second, z_again = model.simulate(data, seed=1)
    third, z_other = model.simulate(data, seed=2)
    assert torch.equal(z, z_again)
    assert np.array_equal(first.choice, second.choice)
    assert not torch.equal(z, z_other)
    assert not np.array_equal(first.choice, third.choice)


# Errors.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"utility": "cubic"},
            r"utility must be 'bilinear', 'linear', 'mlp', .* or a module, got 'cubic'",
        ),
        ({"prior": "uniform"}, r"prior must be 'normal' or 'flow', got 'uniform'"),
        ({"num_features": 0}, r"num_features must be an integer of at least 1, got 0"),
        ({"num_features": 2.0}, r"num_features must be an integer of at least 1, got 2\.0"),
        ({"latent_dim": -1}, r"latent_dim must be an integer of at least 0, got -1"),
        ({"hidden_dim": 0}, r"hidden_dim must be an integer of at least 1, got 0"),
        ({"num_factors": 0}, r"num_factors must be an integer of at least 1, got 0"),
    ],
)
def test_bad_option_is_named(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        HeterogeneousBTL(**{"num_features": 3, "latent_dim": 2} | options)


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize(
    ("items", "width", "match"),
    [
        (torch.zeros(4, 2), 2, r"items must have the model's num_features=3 features, got 2"),
        (torch.arange(4), 2, r"item positions must be below .*num_features=3, got 3"),
        (torch.zeros(4, 3), 1, r"z must have the model's latent_dim=2 dimensions.*\(2, 1\)"),
        (torch.zeros(4, 3), 3, r"z must have the model's latent_dim=2 dimensions.*\(2, 3\)"),
    ],
    ids=["narrow items", "unknown position", "narrow z", "wide z"],
)
def test_bad_input_is_named(
    utility: str, items: Tensor, width: int, match: str, make_data: MakeData
) -> None:
    data = make_data([1, 2])
    model = make_model(utility, data)
    z = torch.zeros(2, width)
    with pytest.raises(ValueError, match=match):
        model.item_utility(items, z)
    with pytest.raises(ValueError, match=match):
        model.choice(data.batch().replace(items=items), z)


@pytest.mark.parametrize("utility", UTILITIES)
def test_prepared_items_give_the_same_values_and_gradients(
    utility: str, make_data: MakeData, randomise: Callable
) -> None:
    data = make_data()
    model = randomise(make_model(utility, data))
    batch, z = data.batch(), torch.randn(2, 5, 2)

    def evaluate(prepared: PreparedItems | None) -> list[Tensor]:
        model.zero_grad()
        log_prob = model.choice(batch, z, prepared).log_prob(batch.choice)
        log_prob.sum().backward()
        return [log_prob, *(parameter.grad.clone() for parameter in model.parameters())]

    expected = evaluate(None)
    result = evaluate(model.prepare_items(batch.items))
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
