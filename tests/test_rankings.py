"""Rankings: read, split whole, and scored by Plackett–Luce in every place that scores."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from scipy.optimize import minimize
from scipy.stats import kstest
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, fit
from fssa_bayes.baselines import (
    Baseline,
    DeterministicNeuralProcess,
    DistributionalBTL,
    HomogeneousBTL,
    MixtureBTL,
    OneModelPerLabel,
)
from fssa_bayes.checks import (
    compare_by_context,
    predict_held_out,
    predictive_checks,
    score_by_context,
    score_folds,
    score_tests,
    simulate_people,
)
from fssa_bayes.comparison import heterogeneity_test, leave_comparisons_out, score_users
from fssa_bayes.data import Batch
from fssa_bayes.guide.pairs import Pairs
from fssa_bayes.inference import (
    ImportanceWeightedELBO,
    NeuralProcessELBO,
    PredictiveLikelihood,
    Sleep,
    split_batch,
)
from fssa_bayes.model import BradleyTerry
from fssa_bayes.population import population_draws
from fssa_bayes.population.information import batch_information
from fssa_bayes.sampling import grid, nuts

ITEMS = ["a", "b", "c", "d", "e"]
BALLOTS = {
    "ann": [("a", "c", "b"), ("d", "a")],
    "bob": [("d", "c", "b", "a"), ("b", "a", "e"), ("e", "d", "c")],
    "cat": [("b", "e")],
}


def plackett_luce(utility: Tensor, order: Sequence[int], below: Sequence[int] = ()) -> Tensor:
    """The log-probability written out, (*): the winner of each stage among all that are left."""
    left, total = [*order, *below], utility.new_zeros(utility.shape[:-1])
    for winner in order:
        total = total + utility[..., winner] - utility[..., left].logsumexp(-1)
        left.remove(winner)
    return total


def positions(data: Preferences, ranking: Sequence) -> list[int]:
    return data.item_names.get_indexer(list(ranking)).tolist()


def likelihood(batch: Batch, utility: Tensor) -> BradleyTerry:
    """p(choices) for utilities (*, U, M) of the batch's items."""
    left, right = (utility.gather(-1, x.expand(*utility.shape[:-1], -1)) for x in _sides(batch))
    return BradleyTerry.from_margin(left - right, batch.mask, rankings=batch.rankings)


def _sides(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.left.masked_fill(~batch.mask, 0), batch.right.masked_fill(~batch.mask, 0)


def simulate_ballots(
    utility: np.ndarray, num_ranked: int | None = None, *, seed: int = 0
) -> dict[int, list]:
    """Ballots of people with utilities (U, B, M), B ballots each, by sorting with Gumbel noise."""
    noisy = utility + np.random.default_rng(seed).gumbel(size=utility.shape)
    orders = np.argsort(-noisy, -1)[..., :num_ranked]
    return {user: [tuple(order) for order in own] for user, own in enumerate(orders.tolist())}


# Reading.


def test_a_table_lists_and_a_wide_table_hold_the_same_rankings() -> None:
    rows = [
        (user, f"{number}", item, 10.0 * place + 5)
        for user, own in BALLOTS.items()
        for number, items in enumerate(own)
        for place, item in enumerate(items)
    ]
    table = pd.DataFrame(rows, columns=["who", "ballot", "what", "place"]).sample(
        frac=1, random_state=0
    )
    table = table.sort_values("who", kind="stable")
    columns = {"user": "who", "ranking": "ballot", "item": "what", "rank": "place"}
    from_table = Preferences.from_rankings(table, **columns)
    from_lists = Preferences.from_rankings(BALLOTS)
    for data in (from_table, from_lists):
        assert list(data.user_names) == ["ann", "bob", "cat"]
        assert data.judgement_counts.tolist() == [2, 3, 1]
        assert data.counts.tolist() == [3, 7, 1]
        assert told(data) == told(from_lists)
    wide = pd.DataFrame([[1, 3, 2, np.nan], [3, 1, 2, 4]], columns=list("abcd"), index=["x", "y"])
    molten = wide.rename_axis("user").reset_index().melt("user", var_name="item", value_name="rank")
    data = Preferences.from_rankings(molten.dropna(), user="user", item="item", rank="rank")
    assert told(data) == told(
        Preferences.from_rankings({"x": [("a", "c", "b")], "y": [("b", "c", "a", "d")]})
    )


def decode(rows: Sequence[tuple]) -> tuple[list, list]:
    """The items that rows (left, right, choice) rank, the best first, and those below them."""
    if len(rows) == 1:
        ((left, right, choice),) = rows
        return ([left], [right]) if choice == 1 else ([right], [left])
    (base,) = {right for _, right, _ in rows}
    ahead = {left: 2 * choice - 1 for left, _, choice in rows}
    place = {base: 1 + max(0, *ahead.values())}
    place |= {item: place[base] - own for item, own in ahead.items()}
    last = max(place.values())
    ranked = sorted((item for item in place if place[item] < last), key=place.get)
    return ranked, sorted(item for item in place if place[item] == last)


def told(data: Preferences) -> set:
    """What is said, whatever the numbering: (person, winner, loser), and open pairs."""
    names, said = data.item_names, set()
    for who, rows in judgements(data):
        ranked, below = ([names[i] for i in part] for part in decode(rows))
        for place, winner in enumerate(ranked):
            said |= {(who, winner, loser) for loser in ranked[place + 1 :] + below}
        said |= {(who, frozenset(pair)) for pair in itertools.combinations(below, 2)}
    return said


def test_a_list_of_rankings_is_of_a_person_each() -> None:
    data = Preferences.from_rankings([("a", "b", "c"), ("c", "b", "a")])
    assert data.judgement_counts.tolist() == [1, 1]
    assert data.user_names.tolist() == [0, 1]


def test_unlisted_items_of_a_choice_set_and_missing_ranks_lie_below() -> None:
    short = Preferences.from_rankings({"u": [("c", "a")]}, choice_set=list("abcd"))
    table = pd.DataFrame({"u": "u", "i": list("abcd"), "r": [2, np.nan, 1, np.nan]})
    long = Preferences.from_rankings(table, user="u", item="i", rank="r")
    expected = {("u", "c", x) for x in "abd"} | {("u", "a", x) for x in "bd"}
    expected |= {("u", frozenset("bd"))}
    assert told(short) == told(long) == expected
    summary = short.summary()
    assert (summary.rankings, summary.stages, summary.open_pairs) == (1, 2, 1)
    assert summary.half_wins == 0
    assert "1 (2 stages; 1 pairs left open)" in str(summary)


def test_storage_does_not_depend_on_the_outcome() -> None:
    """Or left would be the winner, and every calibration of P(left) would be wrong."""
    for options in ({}, {"choice_set": ["d", "c", "b", "a"]}):
        stored = [
            Preferences.from_rankings({"u": [order, order[:3]]}, **options)
            for order in (("a", "b", "c", "d"), ("d", "b", "a", "c"))
        ]
        for data in stored:
            assert list(data.item_names) == options.get("choice_set", ["a", "b", "c", "d"])
            assert (data.left < data.right).all()
        whole = stored[0].ranking == 0
        assert np.array_equal(stored[0].left[whole], stored[1].left[whole])
        assert np.array_equal(stored[0].right[whole], stored[1].right[whole])
    mixed = Preferences.from_rankings([("b", 1, "a")])
    assert list(mixed.item_names) == ["b", 1, "a"]


def test_a_ranking_of_two_is_a_comparison() -> None:
    ballots = {"u": [("b", "a"), ("a", "c")], "v": [("c", "b")]}
    data = Preferences.from_rankings(ballots)
    rows = [("u", "b", "a", "b"), ("u", "a", "c", "a"), ("v", "c", "b", "c")]
    table = pd.DataFrame(rows, columns=["user", "left", "right", "choice"])
    columns = {name: name for name in table.columns}
    pairs = Preferences.from_dataframe(table, **columns)
    assert data.ranking is None
    assert not data.has_rankings
    assert told(data) == told(pairs)
    assert data.batch().rankings is None


FEATURES = pd.DataFrame({"size": [0.0, 1.0]}, index=["a", "b"])
TABLE = pd.DataFrame(
    {"user": "u", "item": ["a", "b", "c"], "rank": [1.0, 2, 3], "ballot": 0, "word": "x"}
)
NAMED = {"user": "user", "item": "item", "rank": "rank"}


@pytest.mark.parametrize(
    ("rankings", "options", "error", "message"),
    [
        (
            {"u": [("a", "b"), ("a", "b", "a")]},
            {},
            ValueError,
            "'a' again in ranking 1 of user 'u'",
        ),
        ({"u": [("a",)]}, {}, ValueError, r"ranking 0 of user 'u' must have at least two.*\('a'\)"),
        ({"u": []}, {}, ValueError, "user 'u' must have at least one ranking"),
        ({"u": [()]}, {}, ValueError, "ranking 0 of user 'u' must have items"),
        ({}, {}, ValueError, "at least one ranking"),
        ({"u": ["ab"]}, {}, TypeError, "each a list of items"),
        ({"u": ("a", "b")}, {}, TypeError, "list of rankings"),
        ("ab", {}, TypeError, "rankings must be"),
        ({"u": [("a", "b")]}, {"user": "u"}, ValueError, "user='u' names a column"),
        ({"u": [("a", "b")]}, {"method": "borda"}, ValueError, "method must be one of"),
        ({"u": [("a", "b")]}, {"choice_set": ["a"]}, ValueError, "'b' in ranking 0 of user 'u'"),
        ({"u": [("a", "b")]}, {"choice_set": ["a", "b", "a"]}, ValueError, "'a' again"),
        ({"u": [("a", "b")]}, {"choice_set": "ab"}, TypeError, "choice_set must be a list"),
        ({"u": [("a", "c")]}, {"items": FEATURES}, ValueError, "item 'c' in a ranking of user 'u'"),
        (TABLE, {}, ValueError, "user must name a column"),
        (TABLE, NAMED | {"rank": "place"}, ValueError, "rank='place' is not a column"),
        (TABLE, NAMED | {"rank": "word"}, ValueError, "rank='word' must be numeric"),
        (TABLE, NAMED | {"ranking": "user"}, ValueError, "must be different columns"),
        (TABLE.assign(rank=[1, 2, 2]), NAMED, ValueError, "rank 2 for 'b' and 'c' in ranking 0"),
        (TABLE.assign(rank=[1, 2, 0]), NAMED, ValueError, "got 0 at row 2 .*not on offer"),
        (TABLE.assign(rank=np.nan), NAMED, ValueError, "must rank an item"),
        (TABLE.assign(item=["a", None, "b"]), NAMED, ValueError, "item='item' must have no miss"),
        (TABLE.iloc[:0], NAMED, ValueError, "at least one ranking"),
    ],
)
def test_bad_rankings_are_refused(rankings, options, error, message) -> None:
    with pytest.raises(error, match=message):
        Preferences.from_rankings(rankings, **options)


@pytest.mark.parametrize(
    ("left", "right", "choice", "message"),
    [
        ([0, 0, 1], [1, 2, 2], [1, 0, 1], "one item on the same side"),
        ([0, 1, 0], [2, 2, 2], [1, 0.5, 1], "each item once"),
        ([0, 1, 3], [2, 2, 2], [0.5, 0.5, 0.5], "one order"),  # Nobody is ranked.
        ([0, 1, 3], [2, 2, 2], [1, 1, 0.5], "one order"),  # Two are chosen.
        ([0, 1, 3], [2, 2, 2], [2, 0.5, 0.5], "one order"),  # Nobody is second.
    ],
)
def test_rows_that_are_no_ranking_are_refused(left, right, choice, message) -> None:
    arguments = [np.array(x) for x in (left, right, choice)]
    ranking = np.zeros(3, dtype=int)
    with pytest.raises(ValueError, match=message):
        Preferences(*arguments, np.array([0, 3]), num_items=4, ranking=ranking)
    if len(set(right)) == 1 and len(set(left)) == 3:
        data = Preferences.from_rankings([(0, 1, 2, 3)])
        with pytest.raises(ValueError, match=message):
            data.with_choices(np.array(choice))


@pytest.mark.parametrize("choice", [0.25, np.nan, np.inf])
def test_a_choice_is_a_multiple_of_a_half(choice) -> None:
    with pytest.raises(ValueError, match="choice must be 0, 0.5 or 1"):
        Preferences([0, 1], [2, 2], [choice, 0.5], [0, 2], num_items=3, ranking=[0, 0])
    with pytest.raises(ValueError, match="choice must be 0, 0.5 or 1"):
        Preferences([0, 1], [2, 2], [1.5, 1], [0, 2], num_items=3)


# Splits.


def ballots(num_users: int = 30, *, seed: int = 0, most: int = 5) -> Preferences:
    """Rankings of 2 to 5 of five items, some of them partial, 1 to 4 of each person."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        for number in range(rng.integers(1, 5)):
            size = rng.integers(2, most + 1)
            items = rng.permutation(most)[:size]
            ranked = rng.integers(1, size + 1)
            ranks = np.where(np.arange(size) < ranked, 1.0 + np.arange(size), np.nan)
            rows += [
                (f"p{user}", number, item, rank) for item, rank in zip(items, ranks, strict=True)
            ]
    table = pd.DataFrame(rows, columns=["user", "ranking", "item", "rank"])
    features = pd.DataFrame(rng.normal(size=(most, 2)), columns=["x", "y"])
    return Preferences.from_rankings(table, **NAMED, ranking="ranking", items=features)


def judgements(data: Preferences) -> list[tuple]:
    """Each judgement as what it says, person by person."""
    person = np.repeat(np.arange(len(data)), data.counts)
    rows = list(zip(data.left, data.right, data.choice, strict=True))
    number = np.arange(len(rows)) if data.ranking is None else data.ranking
    return [
        (data.user_names[person[own[0]]], tuple(rows[i] for i in own))
        for own in (np.flatnonzero(number == j) for j in range(number.max() + 1))
    ]


def test_context_and_target_part_between_rankings() -> None:
    data = ballots()
    keep = data.judgement_counts > 2
    context, target = data.subset(keep).split_context(2, seed=3)
    assert (context.judgement_counts == 2).all()
    parts = sorted(judgements(context) + judgements(target))
    assert parts == sorted(judgements(data.subset(keep)))
    with pytest.warns(UserWarning, match="2 context judgements"):
        again, _ = data.split_context(2, seed=3)
    assert judgements(again) == judgements(context)
    empty, everything = data.split_context(0)
    assert empty.num_comparisons == 0
    assert judgements(everything) == judgements(data)


def test_subsets_and_repeated_people_keep_their_rankings() -> None:
    data = ballots()
    people = [4, 4, 1]
    expected = [j for u in people for j in judgements(data.subset([u]))]
    assert judgements(data.subset(people)) == expected


def test_pooled_rankings_are_dealt_whole() -> None:
    data = ballots()
    pooled = data.pooled(width=8)
    assert len(pooled) > 5
    assert [j for _, j in judgements(pooled)] == [j for _, j in judgements(data)]
    assert pooled.counts.max() < 8 + 10


def test_resampled_and_imagined_people_get_whole_rankings() -> None:
    data = ballots()
    known = {own for _, own in judgements(data)}
    batch = data.resample_pairs(np.array([0, 40, 3]), np.random.default_rng(0))
    names = batch.items  # Features tell the items apart.
    table = {tuple(row.tolist()): i for i, row in enumerate(data.items)}
    assert batch.judgement_mask.sum(-1).tolist() == [0, 40, 3]
    for user in range(3):
        for number in batch.ranking[user].unique().tolist():
            own = batch.ranking[user] == number
            if number == -1:
                assert not batch.mask[user, own].any()
                continue
            sides = [[table[tuple(names[i].tolist())] for i in x[user, own]] for x in _sides(batch)]
            assert tuple(zip(*sides, batch.choice[user, own].tolist(), strict=True)) in known
    asked = np.array([[0, 0, 5], [7, 0, 7]])
    imagined = data.imagine(asked)
    everything = [own for _, own in judgements(data)]
    assert [own for _, own in judgements(imagined)] == [everything[j] for j in asked.ravel()]
    assert imagined.judgement_counts.tolist() == [3, 3]


def test_random_splits_of_a_batch_keep_rankings_whole() -> None:
    batch = ballots().batch()
    total, shares = batch.judgement_mask.sum(-1), []
    for _ in range(200):
        context, target = split_batch(batch)
        assert torch.equal(context ^ target, batch.mask)
        # A ranking that was cut would raise an error here.
        known, unknown = (batch.replace(mask=x).judgement_mask.sum(-1) for x in (context, target))
        assert torch.equal(known + unknown, total)
        shares.append(known / total)
    # A context has 0 to n − 1 of n judgements, each number equally likely.
    torch.testing.assert_close(
        torch.stack(shares).mean(0), (total - 1) / (2 * total), atol=0.08, rtol=0
    )


def test_digest_and_pairs() -> None:
    data = ballots()
    other = Preferences(
        data.left, data.right, data.choice.clip(0, 1), data.offsets, items=data.items, ties="half"
    )
    assert data.digest() != other.digest()
    pairs = data.as_pairs()
    assert pairs.ranking is None
    assert (pairs.choice != 0.5).all()
    summary = data.summary()
    assert told(pairs) == {pair for pair in told(data) if len(pair) == 3}
    assert pairs.num_comparisons == sum(
        len(ranked) * (len(ranked) - 1) // 2 + len(ranked) * len(below)
        for ranked, below in (decode(rows) for _, rows in judgements(data))
    )
    rankings = summary.rankings + summary.choice_sets
    stages = summary.stages + summary.choice_sets
    assert pairs.broken == (rankings, stages)
    assert f"{rankings:,} of {stages:,} stages" in str(pairs.summary())
    with pytest.warns(UserWarning, match="broken into pairs.*sandwich"):
        broken = Preferences.from_rankings(BALLOTS, method="pairs")
    assert broken.digest() == Preferences.from_rankings(BALLOTS).as_pairs().digest()
    # Ann's ballot of 3 has 2 stages, Bob's 3, 2 and 2; the two pairs are none.
    assert broken.broken == (4, 9)


# Likelihood.

UTILITY = torch.tensor([0.3, -1.2, 0.8, 2.0, -0.4], dtype=torch.float64)


@pytest.mark.parametrize(("size", "num_ranked"), [(2, 2), (3, 3), (4, 1), (4, 2), (4, 4), (5, 3)])
def test_probabilities_are_those_written_out_and_sum_to_one(size: int, num_ranked: int) -> None:
    orders = list(itertools.permutations(range(size), num_ranked))
    rankings = [list(order) for order in orders]
    data = Preferences.from_rankings(rankings, choice_set=list(range(size)))
    batch = data.batch()
    utility = UTILITY[batch.items].expand(len(orders), -1)
    values = likelihood(batch, utility).log_prob(batch.choice.double())
    expected = torch.stack(
        [plackett_luce(UTILITY, order, sorted({*range(size)} - {*order})) for order in orders]
    )
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(values.exp().sum(), values.new_ones(()))


def written_out(data: Preferences, utility: Tensor) -> Tensor:
    """The log-probability of each person's rankings (*, U), from what the data say."""
    totals = {user: utility.new_zeros(utility.shape[:-1]) for user in data.user_names}
    for user, rows in judgements(data):
        order, below = decode(rows)
        totals[user] = totals[user] + plackett_luce(utility, order, below)
    return torch.stack(list(totals.values()), -1)


def test_mixtures_of_rankings_under_many_draws() -> None:
    data = ballots()
    batch = data.batch()
    draws = torch.randn(3, 2, 5, dtype=torch.float64)
    used = data.items.unsqueeze(0).eq(batch.items.unsqueeze(1)).all(-1).double().argmax(-1)
    utility = draws[..., used].unsqueeze(-2).expand(-1, -1, len(data), -1)
    distribution = likelihood(batch, utility)
    expected = written_out(data, draws)
    choice = batch.choice.double()
    for value in (choice, choice.expand(2, -1, -1), choice.expand(3, 2, -1, -1)):
        torch.testing.assert_close(distribution.log_prob(value), expected)
        each = distribution.log_prob_each(value)
        torch.testing.assert_close(each.sum(-1), expected)
        assert (each[..., ~batch.judgement_mask] == 0).all()
        assert (each[..., batch.judgement_mask] < 0).all()


def test_half_wins_stand_beside_rankings() -> None:
    data = Preferences(
        np.array([0, 0, 1]),
        np.array([1, 2, 2]),
        np.array([0.5, 1, 0.5]),
        np.array([0, 3]),
        num_items=3,
        ranking=np.array([0, 1, 1]),
    )
    r = UTILITY
    expected = plackett_luce(r, [0], [1, 2])
    expected += 0.5 * sum(plackett_luce(r, pair) for pair in ([0, 1], [1, 0]))
    batch = data.batch()
    value = likelihood(batch, r[batch.items][None]).log_prob(batch.choice.double())
    torch.testing.assert_close(value[0], expected)
    assert data.summary().half_wins == 1


def test_swapped_and_soiled_comparisons_change_nothing(soil, widen) -> None:
    data = ballots()
    model = HeterogeneousBTL(2, 1, "linear")
    guide = NeuralProcessGuide(model)
    z = torch.randn(4, len(data), 1)
    batch = data.batch()
    wide = widen(batch.replace(ranking=None))
    ranking = torch.cat([batch.ranking, batch.ranking.new_full((len(data), 3), -1)], -1)
    others = {
        "swapped": data.swap(np.arange(data.num_comparisons) % 3 == 0).batch(),
        "soiled": soil(batch).replace(ranking=batch.ranking.masked_fill(~batch.mask, 10**9)),
        "wide": wide.replace(ranking=ranking),
    }
    value = model.choice(batch, z).log_prob(batch.choice)
    mean = guide.posterior(batch).sample
    torch.manual_seed(1)
    draw = mean()
    for name, other in others.items():
        if name == "soiled":
            other = other.clean()
        torch.testing.assert_close(model.choice(other, z).log_prob(other.choice), value)
        torch.manual_seed(1)
        torch.testing.assert_close(guide.posterior(other).sample(), draw, msg=name)


def test_a_nan_stays_with_its_person() -> None:
    batch = ballots().batch()
    margin = torch.zeros(batch.mask.shape)
    margin[0] = torch.nan
    distribution = BradleyTerry.from_margin(margin, batch.mask, rankings=batch.rankings)
    value = distribution.log_prob(batch.choice)
    assert value[0].isnan()
    assert value[1:].isfinite().all()


def test_gradients_are_those_of_finite_differences() -> None:
    data = Preferences.from_rankings(BALLOTS, choice_set=ITEMS)
    batch = data.batch()

    def total(utility: Tensor) -> Tensor:
        return likelihood(batch, utility[batch.items].expand(3, -1)).log_prob(batch.choice.double())

    utility = UTILITY.clone().requires_grad_()
    assert torch.autograd.gradcheck(total, utility)
    assert torch.autograd.gradgradcheck(total, utility)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_transforms_agree_with_plain_derivatives() -> None:
    data = Preferences.from_rankings(BALLOTS, choice_set=ITEMS)
    batch = data.batch()

    def total(utility: Tensor) -> Tensor:
        return likelihood(batch, utility[batch.items].expand(3, -1)).log_prob(batch.choice.double())

    jacobian = torch.autograd.functional.jacobian(total, UTILITY)
    hessian = torch.autograd.functional.hessian(lambda utility: total(utility).sum(), UTILITY)
    torch.testing.assert_close(torch.func.jacrev(total)(UTILITY), jacobian)
    torch.testing.assert_close(torch.func.jacfwd(total)(UTILITY), jacobian)
    tangent = torch.func.jvp(total, (UTILITY,), (torch.ones_like(UTILITY),))[1]
    torch.testing.assert_close(tangent, jacobian.sum(1), atol=1e-12, rtol=1e-9)
    found = torch.func.hessian(lambda utility: total(utility).sum())(UTILITY)
    torch.testing.assert_close(found, hessian)
    several = torch.stack([UTILITY, -UTILITY])
    found = torch.func.vmap(total)(several)
    torch.testing.assert_close(found, torch.stack([total(utility) for utility in several]))


@pytest.mark.parametrize("scale", [20.0, 1e4])
def test_edges_are_finite_and_exact(scale: float) -> None:
    batch = Preferences.from_rankings([("a", "b", "c"), ("c", "b", "a")]).batch()
    r = torch.tensor([2.0, 1.0, 0.0]) * scale
    utility = r[batch.items].expand(2, -1).clone().requires_grad_()
    value = likelihood(batch, utility).log_prob(batch.choice)
    value.sum().backward()
    exact = -2 * math.exp(-scale) - math.exp(-2 * scale) if scale < 100 else 0.0
    assert value[0].item() == pytest.approx(exact, rel=1e-5)
    assert value[1].item() == pytest.approx(-3 * scale, rel=1e-6)
    expected = torch.tensor([[0.0, 0.0, 0.0], [-2.0, 1.0, 1.0]])[:, batch.items]
    torch.testing.assert_close(utility.grad, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("num_ranked", [1, 2, 4])
def test_draws_have_the_stated_frequency(num_ranked: int) -> None:
    orders = list(itertools.permutations(range(4), num_ranked))
    data = Preferences.from_rankings({"u": [list(orders[0])], "v": [[2, 1, 3, 0][:num_ranked]]},
                                     choice_set=list(range(4)))  # fmt: skip
    batch = data.batch()
    utility = UTILITY[batch.items].expand(2, -1)
    distribution = likelihood(batch, utility)
    draws = distribution.sample((40_000,))
    prob = distribution.log_prob(draws).exp()
    for user in range(2):
        outcomes, count = draws[:, user].unique(dim=0, return_counts=True)
        assert len(outcomes) == len(orders)
        expected = distribution.log_prob(outcomes.unsqueeze(1).expand(-1, 2, -1)).exp()[:, user]
        error = (expected * (1 - expected) / len(draws)).sqrt()
        assert ((count / len(draws) - expected).abs() < 4.5 * error).all()
    # Each row by itself, where the ranking tells, is a Bradley–Terry comparison.
    known = draws != 0.5
    share = (draws > 0.5).double().sum(0) / known.sum(0)
    error = (share * (1 - share) / known.sum(0)).sqrt()
    assert ((share - distribution.mean).abs() < 4.5 * error).all()
    assert prob.min() > 0


def test_models_with_other_answers_are_refused() -> None:
    data = ballots()
    for options in ({"ties": "davidson"}, {"position_bias": True}, {"lapses": True}):
        model = HeterogeneousBTL(2, 0, "linear", **options)
        with pytest.raises(ValueError, match="Plackett–Luce, which has no ties, position bias"):
            fit(model, None, data)
        with pytest.raises(ValueError, match="Plackett–Luce"):
            model.choice(data.batch(), torch.zeros(1, len(data), 0))
    batch = data.batch()
    with pytest.raises(ValueError, match="without ties, position bias and lapses"):
        BradleyTerry.from_margin(
            torch.zeros(batch.mask.shape), batch.mask, log_tie=torch.zeros(()),
            rankings=batch.rankings,
        )  # fmt: skip
    # Without the row of its winner a ranking of three says nothing.
    cut = batch.rankings.inside & (batch.choice > 0.5)
    mask = batch.mask & ~cut
    with pytest.raises(ValueError, match="ranking as a whole"):
        HeterogeneousBTL(2, 0, "linear").choice(
            batch.replace(mask=mask), torch.zeros(1, len(data), 0)
        )


# The average person.


def many_ballots(num: int = 300, seed: int = 0) -> Preferences:
    """Rankings of the best 1 to 4 of five items, each of a person of its own."""
    utility = np.broadcast_to(UTILITY.numpy(), (num, 1, 5))
    own = simulate_ballots(utility, seed=seed)
    cut = np.random.default_rng(seed + 1).integers(1, 5, size=num)
    return Preferences.from_rankings(
        {user: [ranking[: cut[user]]] for user, (ranking,) in own.items()}, choice_set=range(5)
    )


def minorise(data: Preferences, rounds: int = 400) -> np.ndarray:
    """Hunter's (2004) MM iterations, stage by stage; log strengths, centred."""
    stages = []
    for _, rows in judgements(data):
        ranked, below = decode(rows)
        items = ranked + below
        last = len(ranked) if len(below) else len(ranked) - 1
        stages += [(winner, items[place:]) for place, winner in enumerate(ranked[:last])]
    wins = np.bincount([winner for winner, _ in stages], minlength=data.num_items)
    member = np.zeros((len(stages), data.num_items))
    for row, (_, items) in enumerate(stages):
        member[row, items] = 1
    strength = np.ones(data.num_items)
    for _ in range(rounds):
        strength = wins / (member / (member @ strength)[:, None]).sum(0)
    return np.log(strength) - np.log(strength).mean()


@pytest.mark.slow
def test_the_maximum_of_the_likelihood() -> None:
    data = many_ballots()
    model = HeterogeneousBTL(5, 0, "linear")
    result = fit(model, None, data, progress_bar=False)
    ours = result.population()["estimate"]

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        utility = torch.tensor(free, requires_grad=True)
        total = -written_out(data, utility).sum()
        (gradient,) = torch.autograd.grad(total, utility)
        return total.item(), gradient.numpy()

    direct = minimize(loss, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(ours, direct.x - direct.x.mean(), atol=2e-5)
    np.testing.assert_allclose(ours, minorise(data), atol=2e-5)
    log_likelihood = result.log_marginal_likelihood(num_samples=1).value
    assert log_likelihood == pytest.approx(-direct.fun, abs=1e-3)


def moments_by_hand(
    log_prob: Callable[[Tensor], Tensor], parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """Outer products of people's scores, and minus the Hessian of the sum, by autograd."""
    scores = torch.autograd.functional.jacobian(log_prob, parameters).flatten(1)
    size = parameters.numel()
    hessian = torch.autograd.functional.hessian(lambda x: log_prob(x).sum(), parameters)
    return scores.T @ scores, -hessian.reshape(size, size)


def test_standard_errors_of_the_average_person() -> None:
    data = many_ballots(60)
    model = HeterogeneousBTL(5, 0, "linear")
    table = fit(model, None, data, progress_bar=False).population()
    outer, information = moments_by_hand(
        lambda r: written_out(data, r), model.utility.mean.detach().double()
    )
    inverse, inverse_outer = torch.linalg.pinv(information), torch.linalg.pinv(outer, rtol=1e-9)
    meat = torch.zeros(5, 5, dtype=torch.float64)
    for user in range(60):  # CR2: scores enlarged by what a person has of the information.
        own = data.subset([user])
        squared, share = moments_by_hand(
            lambda r, own=own: written_out(own, r), model.utility.mean.detach().double()
        )
        bend = fractional_matrix_power(torch.eye(5).double() - share @ inverse, -0.5).real
        meat += torch.from_numpy(bend @ squared.numpy() @ bend.T)
    for name, covariance in (
        ("se_hessian", inverse),
        ("se_outer_product", inverse_outer),
        ("se_sandwich", inverse @ meat @ inverse),
    ):
        centre = torch.eye(5) - 0.2
        error = (centre.double() @ covariance @ centre.double()).diagonal().sqrt()
        np.testing.assert_allclose(table[name], error, rtol=2e-4)


@pytest.mark.parametrize("size", [3, 5])
def test_what_breaking_into_pairs_costs(size: int) -> None:
    """For equal utilities: naive variances too small by (n + 1) / 3, and efficiency below 1."""
    orders = simulate_ballots(np.zeros((6000, 1, size)), seed=1)
    exact = Preferences.from_rankings(orders)
    tables = {}
    for name, data in (("exact", exact), ("pairs", exact.as_pairs())):
        model = HeterogeneousBTL(size, 0, "linear")
        tables[name] = fit(model, None, data, progress_bar=False).population()
        z = tables[name]["estimate"] / tables[name]["se_sandwich"]
        assert z.abs().max() < 3.5  # The truth is 0: both are consistent.
    variance = {name: (table[["se_hessian", "se_sandwich"]] ** 2).mean() for name, table in
                tables.items()}  # fmt: skip
    excess = variance["pairs"]["se_sandwich"] / variance["pairs"]["se_hessian"]
    assert excess == pytest.approx((size + 1) / 3, rel=0.03)
    harmonic = sum(1 / i for i in range(1, size + 1))
    efficiency = (size - 1) / (size - harmonic) * 3 * size / (4 * (size + 1))
    ratio = variance["exact"]["se_sandwich"] / variance["pairs"]["se_sandwich"]
    assert ratio == pytest.approx(efficiency, rel=0.03)
    if size == 5:
        assert efficiency == pytest.approx(0.92, abs=0.005)


# People who differ.


def linear_model(data: Preferences, seed: int = 0) -> HeterogeneousBTL:
    torch.manual_seed(seed)
    model = HeterogeneousBTL(data.num_features, 1, "linear")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.7, -0.5]))
        model.utility.loading.copy_(torch.tensor([[1.2], [0.8]]))
    return model


POINTS = torch.linspace(-8, 8, 401, dtype=torch.float64)


def by_hand(data: Preferences, table: Tensor) -> Tensor:
    """log p(rankings | z) of each person at the points (G, U), for (w0, Λ) as a table (2, 2)."""
    coefficients = torch.stack([torch.ones_like(POINTS), POINTS], -1) @ table.T
    return written_out(data, coefficients @ data.items.double().T)


def table_of(model: HeterogeneousBTL) -> Tensor:
    weights = [model.utility.mean.unsqueeze(-1), model.utility.loading]
    return torch.cat(weights, -1).detach().double()


LOG_PRIOR = -0.5 * POINTS**2 - 0.5 * math.log(2 * math.pi) + math.log(16 / 400)


def test_posteriors_are_those_of_a_grid_by_hand() -> None:
    data = ballots(8)
    model = linear_model(data)
    log_mass = by_hand(data, table_of(model)) + LOG_PRIOR[:, None]
    evidence = log_mass.logsumexp(0)
    mass = (log_mass - evidence).exp()
    mean = (mass * POINTS[:, None]).sum(0)
    exact = grid(model, data)
    torch.testing.assert_close(exact.log_evidence.double(), evidence, atol=2e-3, rtol=0)
    weights = exact.log_weights.double().exp()
    torch.testing.assert_close((weights * exact.z[..., 0]).sum(0), mean, atol=2e-3, rtol=0)

    guide = NeuralProcessGuide(model)
    posterior = Posterior(model, guide, data, num_samples=8000)
    z, log_weights = posterior.proposals
    ours = (log_weights.exp() * z[..., 0]).sum(0)
    torch.testing.assert_close(ours.double(), mean, atol=0.06, rtol=0)
    scores = score_users(model, guide, data, num_samples=8000)
    np.testing.assert_allclose(scores.values, evidence, atol=0.05)


def test_pairs_claim_to_know_more_than_they_do() -> None:
    """Errors of z in posterior standard deviations: 1 for the exact posterior, more for pairs."""
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(size=(5, 2)))
    asked = Preferences.from_rankings({u: [range(5)] * 4 for u in range(400)}, items=features)
    model = linear_model(asked)
    data, z = model.simulate(asked, seed=1)
    size = {}
    for name, context in (("exact", data), ("pairs", data.as_pairs())):
        exact = grid(model, context)
        weights, points = exact.log_weights.exp(), exact.z[..., 0]
        mean = (weights * points).sum(0)
        sd = ((weights * points**2).sum(0) - mean**2).sqrt()
        size[name] = ((z[:, 0] - mean) / sd).square().mean().item(), sd.mean().item()
    assert size["exact"][0] == pytest.approx(1, abs=0.2)  # 3 standard errors of 400 squares.
    assert size["pairs"][0] > 1.3
    assert size["pairs"][1] < 0.9 * size["exact"][1]


def test_scores_of_unseen_rankings() -> None:
    data = ballots(12)
    data = data.subset(data.judgement_counts > 2)
    model = linear_model(data)
    context, target = data.split_context(2, seed=1)
    exact = Posterior.from_draws(model, context, grid(model, context))
    known = by_hand(context, table_of(model)) + LOG_PRIOR[:, None]
    known = known.log_softmax(0)
    expected = []
    for user in range(len(target)):
        own = target.subset([user])
        alone = [own.imagine(np.array([[j]])) for j in range(own.num_judgements)]
        each = torch.cat([by_hand(one, table_of(model)) for one in alone], -1)
        expected.append((known[:, [user]] + each).logsumexp(0).mean())
    torch.testing.assert_close(
        exact.log_score(target).double(), torch.stack(expected), atol=2e-3, rtol=0
    )
    prob = exact.choice_prob(target).mean
    assert torch.equal(prob.isnan(), ~target.batch().mask)


def test_leaving_a_ranking_out() -> None:
    data = ballots(6)
    model = linear_model(data)
    guide = NeuralProcessGuide(model)
    score = leave_comparisons_out(model, guide, data, num_samples=8000)
    assert score.unit == "judgement"
    assert np.array_equal(np.bincount(score.person), data.judgement_counts)
    log_mass = by_hand(data, table_of(model)) + LOG_PRIOR[:, None]
    expected = []
    for user in range(len(data)):
        own = data.subset([user])
        for j in range(own.num_judgements):
            one = by_hand(own.imagine(np.array([[j]])), table_of(model))[:, 0]
            rest = (log_mass[:, user] - one).logsumexp(0)
            expected.append((log_mass[:, user].logsumexp(0) - rest).item())
    np.testing.assert_allclose(score.values, expected, atol=0.05)


def test_information_on_the_population() -> None:
    """Fisher's and Louis' identities on a grid, against derivatives of the evidence."""
    data = ballots(5)
    model = linear_model(data)
    z = POINTS.float().view(-1, 1, 1).expand(-1, len(data), 1)
    log_mass = by_hand(data, table_of(model)) + LOG_PRIOR[:, None]
    scores, information = batch_information(
        model, data.batch(), z, log_mass.softmax(0), torch.eye(1, dtype=torch.float64)
    )
    expected = moments_by_hand(
        lambda table: (by_hand(data, table) + LOG_PRIOR[:, None]).logsumexp(0), table_of(model)
    )
    torch.testing.assert_close(scores.T @ scores, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(information, expected[1], rtol=1e-4, atol=1e-4)


def test_simulated_rankings_and_posteriors_agree() -> None:
    """Simulation-based calibration of an exact posterior: draws and likelihood belong together."""
    data = ballots(40)
    data = data.subset(np.repeat(np.arange(40), 25))
    data.user_names = pd.RangeIndex(len(data))
    model = linear_model(data)
    simulated, z = model.simulate(data, seed=5)
    assert not np.array_equal(simulated.choice, data.choice)
    exact = grid(model, simulated)
    weights = exact.log_weights.double().exp()
    points, truth = exact.z[..., 0].double(), z[:, 0].double()
    half = (points[1] - points[0]) / 2  # A point stands for the cell around it.
    share = ((truth - points + half) / (2 * half)).clamp(0, 1)
    assert kstest((weights * share).sum(0).numpy(), "uniform").pvalue > 1e-3


def test_the_guide_sees_winners_with_the_weight_of_their_stage() -> None:
    data = Preferences.from_rankings({"u": [("d", "c", "b", "a"), ("a", "b")], "v": [("a", "c")]})
    pairs = Pairs(data.batch(), torch.float64)
    names = data.item_names[pairs.winner.numpy()], data.item_names[pairs.loser.numpy()]
    weight = pairs.weight[pairs.mask].tolist()
    seen = {(*pair, round(w, 6)) for *pair, w in zip(*names, weight, strict=True)}
    third = round(2 / 3, 6)
    assert seen == {
        ("d", "c", 0.5), ("d", "b", 0.5), ("d", "a", 0.5), ("c", "b", third), ("c", "a", third),
        ("b", "a", 1.0), ("a", "b", 1.0), ("a", "c", 1.0),
    }  # fmt: skip
    torch.testing.assert_close(pairs.count, pairs.count.new_tensor([23 / 6 + 1, 1]))
    short = Preferences.from_rankings([("d",)], choice_set=list("abcd"))
    pairs = Pairs(short.batch(), torch.float64)
    assert short.item_names[pairs.winner.numpy()].tolist() == ["d"] * 3  # Nothing of open pairs.


def test_contexts_without_rankings_have_the_prior() -> None:
    data = ballots(5)
    model = linear_model(data)
    guide = NeuralProcessGuide(model)
    data = data.subset(data.judgement_counts > 1)
    context, _ = data.split_context(0)
    z = torch.randn(3, len(data), 1)
    posterior = guide.posterior(context.batch())
    torch.testing.assert_close(posterior.log_prob(z), model.prior(len(data)).log_prob(z))


# Fits.


@pytest.fixture(scope="module")
def crowd():
    """Full rankings of five items by 300 people who differ, a fit to them, and the truth."""
    rng = np.random.default_rng(1)
    features = pd.DataFrame(rng.normal(size=(12, 2)), columns=["x", "y"])
    asked = {u: [rng.permutation(12)[:5] for _ in range(3)] for u in range(300)}
    truth = linear_model(asked := Preferences.from_rankings(asked, items=features))
    data, _ = truth.simulate(asked, seed=2)
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 1, "linear")
    guide = NeuralProcessGuide(model, "multivariate_normal", hidden_dim=32)
    result = fit(
        model,
        guide,
        data,
        objective=[ImportanceWeightedELBO(8, steps=300), Sleep(steps=150)],
        progress_bar=False,
    )
    return truth, data, result


@pytest.mark.slow
def test_recovery_from_rankings(crowd) -> None:
    truth, _, result = crowd
    table = result.population(num_samples=300)
    mean = truth.utility.mean.detach().numpy()
    sd = truth.utility.loading.detach().abs().squeeze(-1).numpy()
    for quantity, expected in (("mean", mean), ("sd", sd)):
        rows = table.loc[quantity]
        z = (rows["estimate"] - expected) / rows["se_sandwich"]
        assert z.abs().max() < 3, table
        assert rows["se_sandwich"].max() < 0.25


@pytest.mark.slow
def test_everything_that_looks_at_choices_takes_rankings(crowd) -> None:
    truth, _, result = crowd
    model, guide = result.model, result.guide
    people = result.data.subset(range(80))
    new, _ = truth.simulate(people, seed=9)
    held_out = predict_held_out(model, guide, new, sizes=(0, 1), num_samples=250)
    assert [at.num_context for at in held_out] == [0, 1]
    for at, left in zip(held_out, (3, 2), strict=True):
        assert ((~at.log_score.isnan()).sum(-1) == left).all()
        assert ((~at.choice.isnan()).sum(-1) == 4 * left).all()
        assert kstest(at.pit.numpy(), "uniform").pvalue > 1e-3
    gain, error = held_out[1].gain()
    assert gain > 2 * error  # One ranking tells something about the others.

    tests = score_tests(model, guide, new, num_samples=250)
    known, unknown = tests.index[:2], tests.index[2:]
    assert (tests.loc[known, "p"] > 1e-3).all()
    assert tests.loc[unknown, "p"].isna().all()
    shrunk = linear_model(new)
    with torch.no_grad():
        shrunk.utility.loading.mul_(0.4)
    shrunk_guide = NeuralProcessGuide(shrunk)
    z = score_tests(shrunk, shrunk_guide, new, num_samples=500)["z"]
    assert z["difference between people"] > 4

    checks = predictive_checks(truth, new, 100)
    assert set(checks["verdict"]) <= {
        "as the model says",
        "skipped: no two people judged the same pair",
    }
    verdicts = predictive_checks(shrunk, new, 100)["verdict"]
    assert verdicts["spread: the model's directions"] == "higher than the model says"

    posterior = Posterior(model, guide, new.split_context(1)[0], num_samples=250)
    surprise = posterior.context_surprise(num_simulations=100, num_samples=50)
    assert (surprise["tail_probability"] < 0.05).mean() < 0.2
    assert posterior.relative_ess.median() > 0.7

    drawn = population_draws(model, guide, result.data.subset(range(60)), num=3, num_samples=200)
    sampled = Posterior(model, guide, new, num_samples=250, population=drawn)
    fixed = Posterior(model, guide, new, num_samples=250)
    torch.testing.assert_close(sampled.log_score(new), fixed.log_score(new), atol=0.5, rtol=0)


@pytest.mark.slow
def test_exports_hold_a_log_likelihood_of_each_ranking(crowd) -> None:
    az = pytest.importorskip("arviz")
    _, _, result = crowd
    people = result.data.subset(range(6))
    context, target = people.split_context(2)
    posterior = Posterior(result.model, result.guide, context, num_samples=250)
    exported = posterior.to_inference_data(target)
    group = exported["log_likelihood"]
    assert group["choice"].sizes["judgement"] == 12
    assert group["judgement_user"].values.tolist() == np.repeat(people.user_names, 2).tolist()
    total = group["choice"].values[0].reshape(250, 6, 2).sum(-1)
    np.testing.assert_allclose(total, group["per_user"].values[0], rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings(action="ignore"):  # Few draws leave k-hats in doubt.
        assert az.loo(exported, var_name="choice").n_data_points == 12
    simulated = exported["posterior_predictive"]["choice"].values[0, 7]
    context.with_choices(simulated)  # Rankings again, or an error.


def test_short_fits_by_every_objective() -> None:
    data = ballots(24)
    for objective in (
        ImportanceWeightedELBO(4, subset=True),
        NeuralProcessELBO(),
        PredictiveLikelihood(4),
        Sleep(4),
    ):
        torch.manual_seed(0)
        model = HeterogeneousBTL(2, 1, "bilinear", hidden_dim=8)
        guide = NeuralProcessGuide(model, hidden_dim=8)
        result = fit(
            model, guide, data, objective=objective, steps=3, validation=0.2, refit=False,
            progress_bar=False,
        )  # fmt: skip
        assert result.history["loss"].notna().all()
        assert result.held_out["log_loss"].between(0.1, 5).all()


def test_partial_rankings_beside_half_wins_go_everywhere() -> None:
    """Nothing takes the pairs that they leave open for half wins, or leaves them out."""
    model = linear_model(ballots(40))
    whole, _ = model.simulate(ballots(40), seed=1)
    alone = whole.choice != 0.5
    alone &= np.bincount(whole.ranking)[whole.ranking] == 1
    choice = np.where(alone & (np.cumsum(alone) % 3 == 0), 0.5, whole.choice)
    data = whole.with_choices(choice)
    summary = data.summary()
    assert summary.half_wins > 0
    assert summary.open_pairs > 0
    guide = NeuralProcessGuide(model)
    posterior = Posterior(model, guide, data, num_samples=100)
    surprise = posterior.context_surprise(num_simulations=100, num_samples=20)
    assert (surprise["tail_probability"] > 0.05).mean() > 0.7
    checks = predictive_checks(model, data, 20)
    assert "higher than the model says" not in set(checks["verdict"])
    (unknown,) = predict_held_out(model, guide, data, sizes=(0,), num_samples=100)
    assert (unknown.choice == 0.5).sum() == summary.half_wins
    batch = data.batch()
    assert torch.equal(~unknown.log_score.isnan(), batch.judgement_mask)
    exported = posterior.to_inference_data()
    simulated = exported["posterior_predictive"]["choice"].values[0, 3]
    again = data.with_choices(np.where(data.half_wins, 0.5, simulated))  # Or an error.
    assert again.summary().open_pairs == summary.open_pairs


@pytest.mark.slow
def test_a_bootstrap_draws_rankings() -> None:
    data = ballots(60)

    def build():
        model = HeterogeneousBTL(2, 1, "linear")
        return model, NeuralProcessGuide(model, "normal", hidden_dim=8)

    options = {"objective": ImportanceWeightedELBO(8), "steps": 60}
    test = heterogeneity_test(build, data, num_null=2, num_samples=100, fit_options=options)
    assert test.method == "bootstrap"
    assert np.isfinite(test.null).all()


def test_simulated_studies_ask_for_rankings() -> None:
    data = ballots(24)
    model = linear_model(data)
    people = simulate_people(model, data, 3, num_users=40)
    assert (people.context.judgement_counts == 3).all()
    assert people.context.has_rankings
    assert (people.target.counts == 5).all()
    assert not people.target.has_rankings


def test_the_limit_for_pairs_is_not_that_of_rankings() -> None:
    data = ballots(40)

    def build():
        model = HeterogeneousBTL(2, 1, "linear")
        return model, NeuralProcessGuide(model, "normal", hidden_dim=8)

    with pytest.raises(ValueError, match="stand alone, got rankings; null='bootstrap'"):
        heterogeneity_test(build, data, null="mixture")


def test_chains_know_rankings_from_pairs(tmp_path) -> None:
    data = ballots(1, seed=2)
    assert data.has_rankings
    model = linear_model(data)
    for context in (data, data, data.as_pairs()):
        with warnings.catch_warnings(action="ignore"):  # Far too short to converge.
            nuts(model, context, num_samples=10, warmup_steps=10, num_chains=2, cache=tmp_path,
                 max_attempts=1)  # fmt: skip
    assert len(list(tmp_path.glob("*.nc"))) == 2


# Baselines.


@pytest.fixture(scope="module")
def two_tastes() -> Preferences:
    """Ballots of people of two kinds, four items each, half of them with two ranked."""
    rng = np.random.default_rng(3)
    taste = np.array([[1.5, 0.5, -0.5, -1.5], [-1.0, 1.0, -1.0, 1.0]])[rng.integers(2, size=40)]
    whole = simulate_ballots(taste[:20, None].repeat(4, 1), seed=4)
    short = simulate_ballots(taste[20:, None].repeat(4, 1), 2, seed=5)
    ballots = whole | {user + 20: own for user, own in short.items()}
    return Preferences.from_rankings(ballots, choice_set=range(4))


@pytest.mark.slow
def test_a_mixture_of_rankings_maximises_their_likelihood(two_tastes: Preferences) -> None:
    """EM's likelihood is that of Plackett and Luce, as written out and as `log_evidence` says."""
    mixture = MixtureBTL(2, num_restarts=2).fit(two_tastes, progress_bar=False)
    items = torch.arange(4)
    utility = [m.item_utility(items, torch.zeros(1, 1, 0)).flatten() for m in mixture.models]
    joint = torch.stack([written_out(two_tastes, u.detach().double()) for u in utility], -1)
    expected = (joint + mixture.weights.log()).logsumexp(-1)
    torch.testing.assert_close(mixture.log_evidence(two_tastes), expected, rtol=1e-4, atol=1e-4)
    assert mixture.log_likelihood == pytest.approx(expected.sum().item(), abs=0.01)
    assert (
        mixture.history["log_likelihood"].groupby(mixture.history["restart"]).diff().min() > -1e-6
    )


def test_distributional_learning_refuses_rankings(two_tastes: Preferences) -> None:
    baseline = DistributionalBTL("linear")
    with pytest.raises(ValueError, match=r"got rankings.*as_pairs"):
        baseline.fit(two_tastes, progress_bar=False)
    with pytest.raises(ValueError, match="must be fitted first"):  # Nothing half fitted is left.
        baseline.predict(two_tastes)
    pairs = two_tastes.as_pairs()
    baseline.fit(pairs, progress_bar=False)
    for use in (
        baseline.predict,
        baseline.predict(pairs).log_score,
        baseline.predict(pairs).choice_prob,
        baseline.log_evidence,
    ):
        with pytest.raises(ValueError, match=r"got rankings.*as_pairs"):
            use(two_tastes)


@pytest.mark.parametrize("kind", ["homogeneous", "mixture", "label", "network"])
def test_baselines_score_a_ranking_as_one_event(kind: str, two_tastes: Preferences) -> None:
    """The probabilities of all six orders of three items sum to one; those of pairs would not."""
    labels = dict.fromkeys(range(40), "a")
    baseline: Baseline = {
        "homogeneous": lambda: HomogeneousBTL(),
        "mixture": lambda: MixtureBTL(2, num_restarts=1),
        "label": lambda: OneModelPerLabel(labels),
        "network": lambda: DeterministicNeuralProcess(1, hidden_dim=8, steps=5),
    }[kind]()
    baseline.fit(two_tastes, progress_bar=False)
    known = two_tastes.subset(range(6)).split_context(0)[0]
    orders = list(itertools.permutations(range(3)))
    ballots = {user: [order] for user, order in enumerate(orders)}
    target = Preferences.from_rankings(ballots | {6: [(3, 0)]}).subset(range(6))
    score = baseline.predict(known).log_score(target)
    assert score.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_held_out_scores_count_rankings_once(two_tastes: Preferences) -> None:
    """Sums over people are differences of the evidence; accuracy is over the pairs ordered."""
    one = HomogeneousBTL().fit(two_tastes, progress_bar=False)
    two = HomogeneousBTL().fit(two_tastes.subset(range(15)), progress_bar=False)
    scores = score_by_context({"one": one.predict, "two": two.predict}, two_tastes, (0, 3, 4))
    assert scores.groupby("known")["unseen"].unique().map(list).to_dict() == {0: [4], 3: [1]}
    gain = two.log_evidence(two_tastes) - one.log_evidence(two_tastes)
    table = compare_by_context(scores, "one")
    assert table.loc[(0, "two"), "elpd_diff"] == pytest.approx(gain.sum().item(), abs=0.01)
    assert table.loc[(0, "two"), "dse"] == pytest.approx(gain.std().item() * 40**0.5, abs=0.01)
    liked = one.model.item_utility(torch.arange(4), torch.zeros(1, 1, 0)).flatten().detach().numpy()
    known = two_tastes.choice != 0.5
    right = (liked[two_tastes.left] > liked[two_tastes.right]) == (two_tastes.choice > 0.5)
    person = np.repeat(np.arange(40), two_tastes.counts)
    share = pd.Series(right[known]).groupby(person[known]).mean().to_numpy()
    own = scores[(scores["known"] == 0) & (scores["predictor"] == "one")]
    np.testing.assert_allclose(own["accuracy"], share)
    folds = score_folds(
        {"one": lambda train: HomogeneousBTL().fit(train, progress_bar=False).predict},
        two_tastes,
        (1,),
        num_folds=2,
    )
    assert (folds["unseen"] == 3).all()
    with pytest.raises(ValueError, match=r"min\(sizes\) = 4 judgements, got 4 at most"):
        score_by_context({"one": one.predict}, two_tastes, (4,))


# Names.


@pytest.mark.parametrize("item", [math.nan, None, pd.NA, pd.NaT, np.float32("nan")])
def test_a_missing_value_is_no_item(item: object) -> None:
    with pytest.raises(
        ValueError, match=r"an item must be a name, got .* in ranking 0 of user 'a'"
    ):
        Preferences.from_rankings({"a": [["x", item, "z"]]})
    with pytest.raises(ValueError, match=r"an item must be a name, got .* in choice_set"):
        Preferences.from_rankings({"a": [["x", "z"]]}, choice_set=["x", "z", item])


@pytest.mark.parametrize("item", [("y", "z"), ["y"], {"y"}])
def test_items_that_share_a_place_are_refused(item: object) -> None:
    with pytest.raises(TypeError, match=r"an item must be a name, got .* no two items may share"):
        Preferences.from_rankings({"a": [["x", item]]})


def test_a_choice_set_is_a_list() -> None:
    with pytest.raises(TypeError, match="choice_set must be a list of items, got 3"):
        Preferences.from_rankings({"a": [["x", "z"]]}, choice_set=3)
