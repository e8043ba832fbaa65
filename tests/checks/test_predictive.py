"""Predictive checks: closed forms, brute force, level under the true model, power."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences
from fssa_bayes.checks import NotEnoughDataError
from fssa_bayes.checks import predictive_checks as check
from fssa_bayes.checks.selection import mark_at_most
from fssa_bayes.checks.statistics import SharedPairs, Triples, prepare_statistics
from fssa_bayes.posterior import PopulationDraws

MEAN = torch.tensor([1.0, -0.5, 0.5])
LOADING = torch.tensor([[1.0, 0.0], [0.5, 0.8], [-0.6, 1.0]])


def linear(scale: float = 1.0, latent_dim: int = 2) -> HeterogeneousBTL:
    model = HeterogeneousBTL(3, latent_dim, utility="linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(MEAN)
        model.utility.loading.copy_(scale * LOADING[:, :latent_dim])
    return model


def pairs(people: int, comparisons: int, seed: int, num_items: int = 40) -> Preferences:
    rng = np.random.default_rng(seed)
    left = rng.integers(num_items, size=people * comparisons)
    right = (left + rng.integers(1, num_items, size=len(left))) % num_items
    items = np.random.default_rng(0).normal(size=(num_items, 3))
    offsets = np.arange(0, len(left) + 1, comparisons)
    return Preferences(
        left, right, np.zeros(len(left)), offsets, items=items, feature_names=["a", "b", "c"]
    )


def test_agreement_of_two_types_in_closed_form() -> None:
    """Two types who always choose, a the first and b the second: agreement is Σ of squares."""
    people = 10
    left = np.tile([0, 1], people)
    right = np.tile([1, 2], people)
    data = Preferences(left, right, left, np.arange(0, 2 * people + 1, 2), num_items=3)
    is_a = np.arange(people) < 4
    choices = np.repeat(is_a, 2)[None].astype(np.float32)
    # 4 of one type and 6 of the other: C(4, 2) + C(6, 2) of C(10, 2) pairs of people agree.
    expected = (6 + 15) / 45
    shared = SharedPairs(data)
    assert shared.total == 2 * 45
    np.testing.assert_allclose(shared(choices), expected)
    swapped = SharedPairs(data.swap(np.arange(2 * people) % 3 == 0))
    turned = np.where(np.arange(2 * people) % 3 == 0, 1 - choices, choices)
    np.testing.assert_allclose(swapped(turned), expected)


def test_agreement_counts_no_person_with_themselves() -> None:
    data = Preferences([0, 0, 0, 1], [1, 1, 1, 0], [1, 1, 0, 1], [0, 2, 4], num_items=2)
    shared = SharedPairs(data)
    # Low item chosen: person 0 yes, yes; person 1 no, no (right of 1 over 0 is item 1 chosen).
    assert shared.total == 4
    assert shared(data.choice[None])[0] == 0.0
    alone = SharedPairs(data.subset([0]))
    assert alone.total == 0


def test_cycles_by_brute_force(make_data) -> None:
    data = make_data((12, 9, 2, 15), num_items=5)
    triples = Triples(data, seed=0)
    choices = np.random.default_rng(1).integers(2, size=(3, data.num_comparisons)).astype(float)
    for row, found in zip(choices, triples(choices), strict=True):
        cycles = []
        for person in range(len(data)):
            wins: dict[tuple[int, int], list[float]] = {}
            for n in range(data.offsets[person], data.offsets[person + 1]):
                a, b = int(data.left[n]), int(data.right[n])
                wins.setdefault((a, b), []).append(row[n])
                wins.setdefault((b, a), []).append(1 - row[n])
            prob = {pair: np.mean(value) for pair, value in wins.items()}
            for i, j, k in itertools.combinations(range(5), 3):
                if {(i, j), (j, k), (i, k)} <= prob.keys():
                    cycles.append(
                        prob[i, j] * prob[j, k] * prob[k, i] + prob[j, i] * prob[k, j] * prob[i, k]
                    )
        assert len(cycles) == len(triples.edges) > 5
        np.testing.assert_allclose(found, np.mean(cycles))


@pytest.mark.parametrize("featured", [True, False])
def test_spreads_by_brute_force(featured: bool, make_data) -> None:
    data = make_data((3, 1, 5, 0, 2), num_features=3 if featured else None)
    torch.manual_seed(0)
    model = HeterogeneousBTL(data.num_features, 2, utility="linear").eval()
    with torch.no_grad():
        statistics, skipped = prepare_statistics(model, data, seed=0)
    assert not any("spread" in name for name in skipped)
    out = dict(zip(statistics.names, statistics(data.choice[None])[0], strict=True))
    rows = np.concatenate([part.rows for part in statistics.spreads])
    marginal = np.full(data.num_comparisons, np.nan)
    marginal[rows] = np.concatenate([part.marginal for part in statistics.spreads])
    residual = data.choice - marginal
    table = np.eye(data.num_items) if data.items is None else data.items.double().numpy()
    scale = 1.0 if data.items is None else table.std(0, ddof=1)
    difference = (table[data.left] - table[data.right]) / scale
    side = np.where(marginal > 0.5, 1, -1)
    directions = {"left": np.ones((data.num_comparisons, 1)), "favourites": side[:, None]}
    directions["similar pairs"] = difference
    if featured:
        directions |= {str(d): difference[:, [d]] for d in range(3)}
    for name, direction in directions.items():
        total = size = 0.0
        for start, stop in itertools.pairwise(data.offsets):
            for n, m in itertools.permutations(range(start, stop), 2):
                weight = direction[n] @ direction[m]
                total += weight * residual[n] * residual[m]
                size += abs(weight)
        np.testing.assert_allclose(out[f"spread: {name}"], total / size, atol=1e-6)


def test_marginal_probability_and_own_covariance_match_quadrature() -> None:
    """One feature, one dimension: p̄ and the covariance of two choices by Gauss–Hermite."""
    model = HeterogeneousBTL(1, 1, utility="linear").eval()
    with torch.no_grad():
        model.utility.mean.fill_(0.5)
        model.utility.loading.fill_(1.5)
    data = Preferences([0, 2], [1, 1], [1, 0], [0, 2], items=[[0.0], [1.0], [3.0]])
    with torch.no_grad():
        statistics, _ = prepare_statistics(model, data, seed=0, marginal_draws=200_000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    prob = 1 / (1 + np.exp(-np.outer([-1.0, 2.0], 0.5 + 1.5 * nodes)))
    mean = prob @ weights / weights.sum()
    covariance = (prob[0] * prob[1]) @ weights / weights.sum() - mean[0] * mean[1]
    variance = mean * (1 - mean)
    (part,) = statistics.spreads
    np.testing.assert_allclose(part.marginal, mean, atol=3e-3)
    own = part.weights["spread: the model's directions"][0].numpy()
    np.testing.assert_allclose(own[0, 1], covariance / variance[0] / variance[1], rtol=0.02)
    assert own[0, 0] == own[1, 1] == 0


@pytest.mark.slow
def test_the_true_model_is_seldom_rejected() -> None:
    """At a level of 20 % for all checks together, 60 data sets from the model itself."""
    model, rejected = linear(), 0
    for seed in range(60):
        data, _ = model.simulate(pairs(60, 6, seed, num_items=8), seed=1000 + seed)
        table = check(model, data, 60, seed=seed, level=0.2)
        assert not table["verdict"].str.contains("skipped").any()
        rejected += table["verdict"].str.contains("than the model says").any()
    # Binomial(60, .2): 1 to 24 has probability .9999.
    assert 1 <= rejected <= 24


def test_variance_shrunk_to_64_percent_is_seen() -> None:
    """Λ at .8 of the truth, 1,000 people x 12, with every pair new or nearly so."""
    data, _ = linear().simulate(pairs(1000, 12, 0, num_items=400), seed=1)
    table = check(linear(0.8), data, 100, seed=0)
    for name in ("spread: the model's directions", "spread: similar pairs"):
        assert table.loc[name, "verdict"] == "higher than the model says"
        row = table.loc[name]
        assert row["observed"] - row["replicated"] > 4 * row["sd"]
    inflated = check(linear(1.25), data, 100, seed=0)
    lower = inflated.loc["spread: the model's directions", "verdict"]
    assert lower == "lower than the model says"


def test_position_bias_and_homogeneity_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    asked = pairs(400, 10, 0, num_items=8)
    data, _ = linear().simulate(asked, seed=1)
    biased = data.with_choices(np.where(rng.random(data.num_comparisons) < 0.1, 1, data.choice))
    table = check(linear(), biased, 100)
    assert table.loc["share of left", "verdict"] == "higher than the model says"
    homogeneous = HeterogeneousBTL(3, 0, utility="linear")
    with torch.no_grad():
        homogeneous.utility.mean.copy_(MEAN)
    table = check(homogeneous, data, 100)
    assert table.loc["agreement on shared pairs", "verdict"] == "lower than the model says"
    assert table.loc["spread: similar pairs", "verdict"] == "higher than the model says"
    directions = table.loc["spread: the model's directions"]
    assert directions["verdict"] == "skipped: in the model all are alike"
    alike, _ = homogeneous.simulate(asked, seed=2)
    assert set(check(homogeneous, alike, 100)["verdict"]) == {
        "as the model says",
        "skipped: in the model all are alike",
    }


def test_populations_widen_the_replicates() -> None:
    guide = NeuralProcessGuide(linear())
    members = tuple((linear(scale), guide) for scale in (0.7, 1.0, 1.3))
    data, _ = linear().simulate(pairs(300, 10, 0), seed=1)
    fixed = check(linear(), data, 60, seed=0)
    drawn = check(linear(), data, 60, seed=0, population=PopulationDraws(members, "by hand"))
    name = "spread: the model's directions"
    assert drawn.loc[name, "sd"] > 2 * fixed.loc[name, "sd"]


def test_what_cannot_be_checked_is_named(make_data) -> None:
    model = linear()
    table = check(model, pairs(30, 1, 0, num_items=4000), 20)
    assert table.loc["intransitive triples", "verdict"].startswith("skipped: nobody compared three")
    assert table.loc["spread: left", "verdict"] == "skipped: nobody has two comparisons"
    assert table.loc["spread: a", "verdict"] == "skipped: nobody has two comparisons"
    assert table.loc["agreement on shared pairs", "verdict"].startswith("skipped: no two people")
    assert np.isfinite(table.loc["share of left", "replicated"])
    halves = make_data((4, 5), half_wins=True)
    shown = check(HeterogeneousBTL(3, 2, utility="linear"), halves, 20)
    assert shown.loc["share of left", "units"] == (halves.choice != 0.5).sum()
    with pytest.raises(ValueError, match="num_replicates must be an integer of at least 20, got 5"):
        check(model, halves, 5)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 1.5"):
        check(model, halves, level=1.5)
    with pytest.raises(NotEnoughDataError, match="other than half wins"):
        check(model, halves.with_choices(np.full(9, 0.5)))
    with pytest.raises(NotEnoughDataError, match="other than half wins"):
        check(model, make_data((0, 0)))


def test_same_seed_same_table_and_global_state_untouched() -> None:
    data, _ = linear().simulate(pairs(40, 6, 0), seed=1)
    model = linear()
    state = torch.get_rng_state()
    first, second = check(model, data, 30, seed=3), check(model, data, 30, seed=3)
    assert first.equals(second)
    assert torch.equal(state, torch.get_rng_state())


def test_long_lists_of_comparisons_are_drawn_from() -> None:
    counts = np.array([2, 0, 1000, 5])
    keep = mark_at_most(counts, 300, seed=0)
    person = np.repeat(np.arange(4), counts)
    assert np.bincount(person[keep], minlength=4).tolist() == [2, 0, 300, 5]


def test_habits_of_ties_are_told_from_taste() -> None:
    """People who call a tie half the time among others who hardly do: ties are personal, alone."""
    people, comparisons = 300, 8
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 0, utility="linear", ties="davidson").eval()
    with torch.no_grad():
        model.utility.mean.copy_(MEAN)
    asked = pairs(people, comparisons, seed=1)
    data, _ = model.simulate(asked, seed=2)
    table = check(model, data, 200, seed=3)
    assert table.loc[["share of ties", "spread: ties"], "verdict"].eq("as the model says").all()
    assert table.loc["share of ties", "observed"] == np.mean(data.choice == 0.5)

    rng = np.random.default_rng(4)
    sure = np.repeat(rng.random(people) < 0.5, comparisons)
    decided = HeterogeneousBTL(3, 0, utility="linear").eval()
    with torch.no_grad():
        decided.utility.mean.copy_(MEAN)
    plain, _ = decided.simulate(asked, seed=5)
    choice = np.where(~sure & (rng.random(len(sure)) < 0.4), 0.5, plain.choice)
    mixed = asked.with_choices(choice, ties="keep")
    table = check(model, mixed, 200, seed=3)
    assert table.loc["spread: ties", "verdict"] == "higher than the model says"
    # A tie with probability 0 or .4, each of half the people: covariance .2 squared, p near .2.
    assert table.loc["spread: ties", "observed"] == pytest.approx(0.04, abs=0.012)
    assert table.loc["spread: similar pairs", "verdict"] == "as the model says"


def test_a_model_without_ties_has_no_checks_of_them() -> None:
    data = linear(latent_dim=0).simulate(pairs(30, 4, seed=0), seed=0)[0]
    assert not check(linear(latent_dim=0), data, 20).index.str.contains("ties").any()
