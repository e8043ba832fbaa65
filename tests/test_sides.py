"""Comparisons whose places are known one by one: home games, away games and neutral ground."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, special

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, exact
from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.baselines.base import log_prob_of_people
from fssa_bayes.baselines.em import FlatComparisons
from fssa_bayes.data.comparisons import replace
from fssa_bayes.population import find_separation
from fssa_bayes.population.information import population_information

TEAMS = 8
STRENGTH = np.linspace(-1.0, 1.0, TEAMS)
HOME = 0.5


def games(number: int, seed: int, share_neutral: float = 0.3) -> pd.DataFrame:
    """Simulated games; a third of those at a home are written with the visitor first."""
    rng = np.random.default_rng(seed)
    first = rng.integers(TEAMS, size=number)
    second = (first + rng.integers(1, TEAMS, size=number)) % TEAMS
    side = np.where(rng.random(number) < share_neutral, 0, rng.choice([1, 1, -1], size=number))
    margin = STRENGTH[first] - STRENGTH[second] + HOME * side
    won = rng.random(number) < special.expit(margin)
    return pd.DataFrame({"first": first, "second": second, "won": won * 1, "at home": side})


def read(table: pd.DataFrame, **options: object) -> Preferences:
    columns = {"left": "first", "right": "second", "choice": "won", "side": "at home"}
    return Preferences.from_dataframe(table, **columns | options)


def direct_maximum(table: pd.DataFrame) -> np.ndarray:
    """Strengths, centred, and home advantage that maximise the likelihood, written out."""
    design = np.zeros((len(table), TEAMS + 1))
    row = np.arange(len(table))
    design[row, table["first"]] = 1
    design[row, table["second"]] = -1
    design[:, -1] = table["at home"]
    sign = 2 * table["won"].to_numpy() - 1

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (design @ theta)
        return -special.log_expit(margin).sum(), -design.T @ (sign * special.expit(-margin))

    found = optimize.minimize(
        loss, np.zeros(TEAMS + 1), jac=True, options={"gtol": 1e-8}, method="BFGS"
    ).x
    found[:-1] -= found[:-1].mean()
    return found


def test_neutral_ground_against_the_direct_maximum() -> None:
    table = games(1500, seed=0)
    data = read(table)
    baseline = HomogeneousBTL(position_bias=True).fit(data, progress_bar=False)
    found = baseline.coefficients()["estimate"]
    utility = found.iloc[:-1].set_axis([int(name) for name in found.index[:-1]]).sort_index()
    expected = direct_maximum(table)
    np.testing.assert_allclose(utility - utility.mean(), expected[:-1], atol=2e-5)
    np.testing.assert_allclose(found["position bias"], expected[-1], atol=2e-5)


def questions(side: np.ndarray | None = None, users: int = 30, per_user: int = 4) -> Preferences:
    """Comparisons of six items with two features, answered at random."""
    rng = np.random.default_rng(1)
    number = users * per_user
    left = rng.integers(6, size=number)
    return Preferences(
        left,
        (left + rng.integers(1, 6, size=number)) % 6,
        rng.choice([0, 1, 0.5], size=number),
        np.arange(0, number + 1, per_user),
        items=rng.normal(size=(6, 2)),
        side=side,
        ties="keep",
    )


def mixed(number: int = 120) -> np.ndarray:
    return np.resize([1.0, 0.0, -1.0, -1.0, 1.0], number)


def biased(latent_dim: int, utility: str = "linear", **options: object) -> HeterogeneousBTL:
    torch.manual_seed(0)
    model = HeterogeneousBTL(
        2, latent_dim, utility, hidden_dim=8, position_bias=True, ties="davidson", **options
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.bias.fill_(0.7)
    return model.eval()


@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
def test_the_bias_is_added_with_the_sign_of_the_side(utility: str) -> None:
    model, z = biased(2, utility), torch.randn(3, 30, 2)
    side = torch.from_numpy(mixed()).float().reshape(30, 4)
    with torch.no_grad():
        found = model.choice(questions(mixed()).batch(), z).margin
        with_left = model.choice(questions().batch(), z).margin
    torch.testing.assert_close(found, with_left + 0.7 * (side - 1), atol=1e-5, rtol=1e-5)


def test_sides_of_one_are_those_of_data_without() -> None:
    model, z = biased(2, lapses=True), torch.randn(5, 30, 2)
    ones, without = questions(np.ones(120)).batch(), questions().batch()
    for batch in (ones, without):
        loss = model.choice(batch, z).log_prob(batch.choice).sum()
        loss.backward()
    torch.testing.assert_close(*(model.choice(b, z).log_prob(b.choice) for b in (ones, without)))
    assert questions(np.ones(120)).digest() != questions().digest()


def test_what_lies_under_the_mask_changes_nothing() -> None:
    model, z = biased(2), torch.randn(2, 30, 2)
    batch = questions(mixed()).batch()
    mask = batch.mask.clone()
    mask[::2, -1] = False
    grads = []
    for filling in (1.0, torch.nan):
        hidden = batch.replace(mask=mask, side=batch.side.masked_fill(~mask, filling))
        model.zero_grad()
        value = model.choice(hidden, z).log_prob(hidden.choice)
        value.sum().backward()
        grads.append((value.detach(), model.bias.grad.clone()))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_derivatives_by_finite_differences() -> None:
    model = biased(0, lapses=True).double()
    data = questions(mixed())
    batch = data.batch()
    batch = batch.replace(items=batch.items.double(), choice=batch.choice.double())
    z = torch.zeros(1, 30, 0, dtype=torch.float64)

    def each(bias: float) -> torch.Tensor:
        with torch.no_grad():
            model.bias.fill_(bias)
            return model.choice(batch, z).log_prob_each(batch.choice)

    derivatives = model.choice(batch, z).differentiate(batch.choice)
    names = list(model.choice(batch, z).answers)
    at, step = 1 + names.index("position_bias"), 1e-4
    low, mid, high = (each(0.7 + shift) for shift in (-step, 0.0, step))
    torch.testing.assert_close(derivatives.first[at], (high - low) / (2 * step), atol=1e-7, rtol=0)
    second = (high - 2 * mid + low) / step**2
    torch.testing.assert_close(derivatives.second[at][at], second, atol=1e-5, rtol=0)
    by_margin = torch.from_numpy(mixed()).reshape(1, 30, 4) * derivatives.second[0][0]
    torch.testing.assert_close(derivatives.second[at][0], by_margin)
    torch.testing.assert_close(derivatives.second[0][at], by_margin)


@pytest.mark.parametrize("posterior", ["multivariate_normal", "flow"])
def test_exchanging_left_and_right_changes_neither_model_nor_guide(posterior: str) -> None:
    model = biased(2)
    guide = NeuralProcessGuide(model, posterior, hidden_dim=16).eval()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    data = questions(mixed())
    swapped = data.swap(np.resize([True, False, False, True, True, False], 120))
    assert (swapped.side == np.where(data.left == swapped.left, data.side, -data.side)).all()
    z = torch.randn(4, 30, 2)
    with torch.no_grad():
        one, other = data.batch(), swapped.batch()
        scores = [model.choice(b, z).log_prob(b.choice) for b in (one, other)]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)
        places = [guide.location(b) for b in (one, other)]
        torch.testing.assert_close(*places, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(places[0], guide.location(one.replace(side=-one.side)), atol=1e-3)


def test_probabilities_of_both_orders_add_up_on_neutral_ground_alone() -> None:
    model = HeterogeneousBTL(2, 0, "linear", position_bias=True)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([1.0, -2.0]))
        model.bias.fill_(0.7)
    left, right = [0, 1, 0, 1], [1, 0, 1, 0]
    data = Preferences(
        left, right, np.ones(4), [0, 4], items=[[0.3, 0.2], [0.1, 0.4]], side=[0, 0, 1, 1]
    )
    neutral, turned, home, away = Posterior(model, None, data).choice_prob(data).mean[0].tolist()
    np.testing.assert_allclose(neutral + turned, 1, rtol=1e-6)
    expected = special.expit(0.6 + np.array([0.0, 0.7]))
    np.testing.assert_allclose([neutral, home], expected, rtol=1e-6)
    np.testing.assert_allclose(away, special.expit(-0.6 + 0.7), rtol=1e-6)


def test_simulated_people_know_their_sides() -> None:
    model = HeterogeneousBTL(2, 0, "linear", position_bias=True)
    with torch.no_grad():
        model.bias.fill_(1.5)
    number = 20_000
    data = Preferences(
        np.zeros(number, int),
        np.ones(number, int),
        np.ones(number),
        [0, number],
        items=[[0.0, 0.0], [1.0, 1.0]],
        side=mixed(number),
    )
    simulated, _ = model.simulate(data, seed=3)
    for side in (-1.0, 0.0, 1.0):
        share = simulated.choice[data.side == side].mean()
        np.testing.assert_allclose(share, special.expit(1.5 * side), atol=0.015)


def test_sides_stay_with_their_comparisons() -> None:
    data = questions(np.where(np.arange(120) % 7 == 0, np.nan, mixed()))
    assert not data.places_are_known
    assert data.subset([3, 1]).side.tolist() == pytest.approx(
        [*data.side[12:16], *data.side[4:8]], nan_ok=True
    )
    context, target = data.split_context(2, seed=0)
    assert len(context.side) == len(target.side) == 60
    for part in (context, target, data.pooled(16), data.as_pairs(), *data.split_users(0.3)):
        assert len(part.side) == part.num_comparisons
    batch = data.batch([5, 2])
    np.testing.assert_array_equal(batch.side[1].numpy(), data.side[8:12])
    drawn = data.resample_pairs(np.full(6, 9), np.random.default_rng(0))
    assert drawn.side.shape == (6, 9)


def test_a_known_person_has_the_exact_posterior_whatever_the_side() -> None:
    model = biased(1)
    data = questions(mixed()).subset([0, 1])
    grid = exact.grid(model, data)
    z = torch.linspace(-6, 6, 4001)[:, None, None].expand(-1, 2, 1)
    batch = data.batch()
    with torch.no_grad():
        margin = model.item_utility(batch.items, z)
        person = torch.arange(2)[:, None]
        margin = margin[:, person, batch.left] - margin[:, person, batch.right]
        margin = margin + 0.7 * batch.side
        terms = torch.stack([margin / 2, -margin / 2, model.log_tie.expand_as(margin)])
        outcome = terms.log_softmax(0)
        choice = batch.choice
        log_prob = torch.where(choice == 1, outcome[0], outcome[1])
        log_prob = torch.where(choice == 0.5, outcome[2], log_prob).sum(-1)
        weight = (log_prob - z[..., 0].square() / 2).softmax(0)
    mean = (weight * z[..., 0]).sum(0)
    found = (grid.log_weights.softmax(0) * grid.z[..., 0]).sum(0)
    torch.testing.assert_close(found, mean, atol=2e-3, rtol=0)


def test_the_information_on_the_bias() -> None:
    data = read(games(600, seed=1))
    model = HomogeneousBTL(position_bias=True).fit(data, progress_bar=False).model
    rotation = torch.zeros(0, 0, dtype=torch.float64)
    _, information = population_information(model, None, data, rotation, 4, 0)
    strength = model.utility.mean.detach().numpy()
    margin = strength[data.left] - strength[data.right] + model.bias.item() * data.side
    prob = special.expit(margin)
    expected = (prob * (1 - prob) * data.side**2).sum()
    np.testing.assert_allclose(information[-1, -1], expected, rtol=1e-5)


def test_classes_use_the_sides() -> None:
    data, model = questions(mixed()), biased(0).double()
    expected = log_prob_of_people(model, data)
    found = FlatComparisons(model, data).log_prob(model)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_bias_that_nothing_tells_is_refused() -> None:
    table = games(60, seed=2)
    with pytest.raises(ValueError, match="a side of 1 or -1, got 0 in all 60: fit without"):
        HomogeneousBTL(position_bias=True).fit(read(table.assign(**{"at home": 0})))
    winners = table.assign(
        winner=np.where(table["won"] == 1, table["first"], table["second"]),
        loser=np.where(table["won"] == 1, table["second"], table["first"]),
    )
    data = Preferences.from_dataframe(winners, winner="winner", loser="loser")
    with pytest.raises(ValueError, match="tell the winner and the loser .* position_bias=False"):
        HomogeneousBTL(position_bias=True).fit(data)
    with pytest.raises(ValueError, match="tell the winner and the loser"):
        Posterior(biased(1), NeuralProcessGuide(biased(1)), questions(np.full(120, np.nan)))


def test_a_bias_of_one_place_alone_is_refused() -> None:
    side = np.array([1, -1, 1, 0, 0, -1])
    choice = np.array([1, 0, 1, 1, 0, 0])  # Home won everywhere.
    left, right = [0, 1, 2, 0, 0, 2], [1, 2, 0, 1, 1, 0]
    data = Preferences(left, right, choice, [0, 6], num_items=3, side=side)
    with pytest.raises(ValueError, match="got the place of advantage as winner of all 4, which"):
        HomogeneousBTL(position_bias=True).fit(data)


@pytest.mark.parametrize("ties", [None, "davidson"])
@pytest.mark.parametrize("seed", range(8))
def test_separation_is_that_of_the_same_games_written_the_other_way(seed: int, ties: str) -> None:
    """A home game of left is an away game of right; few games, so that some are separated."""
    rng, number = np.random.default_rng(seed), 9 if seed < 6 else 60
    left = rng.integers(4, size=number)
    right = (left + rng.integers(1, 4, size=number)) % 4
    choice = rng.choice([1.0, 1.0, 0.0] if ties is None else [1.0, 1.0, 0.0, 0.5], size=number)
    offsets = [0, number]
    plain = Preferences(left, right, choice, offsets, num_items=4, ties="keep")
    turned = Preferences(left, right, choice, offsets, num_items=4, ties="keep")
    turned = replace(turned, side=np.ones(number)).swap(rng.random(number) < 0.5)
    assert set(turned.side) == {-1, 1}
    model = HeterogeneousBTL(4, 0, "linear", position_bias=True, ties=ties)
    expected, found = (find_separation(model, data) for data in (plain, turned))
    assert found.message == expected.message
    assert bool(found) == bool(expected)
    assert bool(found) == (seed < 6) or seed in (1, 5)


def test_the_summary_counts_the_places() -> None:
    assert "place of advantage    48 left, 24 neither, 48 right" in str(
        questions(mixed()).summary()
    )
    unknown = questions(np.full(120, np.nan))
    assert "place of advantage    120 not known" in str(unknown.summary())
    assert "advantage" not in str(questions().summary())
