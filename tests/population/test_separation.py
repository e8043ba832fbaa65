"""Separation is found from the data, and what is estimable has the estimates of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog, minimize

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, fit
from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.inference import FitResult
from fssa_bayes.population import events, find_separation, ranking_table


def read(
    rows: Sequence[tuple], names: Sequence, people: int | np.ndarray = 1, **options
) -> Preferences:
    """Makes data of rows (left, right, choice), divided evenly among so many people."""
    left, right, choice = (np.array(column) for column in zip(*rows, strict=True))
    offsets = people
    if isinstance(people, int):
        offsets = np.linspace(0, len(rows), people + 1).astype(int)
    options = {"num_items": len(names), "item_names": list(names)} | options
    return Preferences(left, right, choice.astype(float), offsets, **options)


def fit_homogeneous(data: Preferences, **options) -> FitResult:
    with pytest.warns(UserWarning, match="choices are separated"):
        return HomogeneousBTL(**options).fit(data, progress_bar=False).result


def thirty_judges() -> Preferences:
    """A beats B and C always; B against C is even."""
    rows = [row for judge in range(30) for row in ((0, 1, 1), (0, 2, 1), (1, 2, judge % 2))]
    return read(rows, "ABC", people=30)


def test_an_item_that_never_lost_has_no_estimate_and_a_bound() -> None:
    data = thirty_judges()
    table = fit_homogeneous(data).ranking()
    assert table.index.tolist()[0] == "A"
    item = table.loc["A"]
    assert item["utility"] == item["upper"] == np.inf
    assert np.isnan(item["standard_error"])
    assert item[["rank", "rank_lower", "rank_upper"]].tolist() == [1, 1, 1]  # By the choices.
    # B and C are equal: 60 wins at margin t have the log-likelihood −60 log(1 + e^−t).
    bound = -np.log(np.expm1(1.6448536**2 / 2 / 60))
    assert item["lower"] == pytest.approx(bound, abs=1e-5)
    others = table.loc[["B", "C"]]
    np.testing.assert_allclose(others["utility"], 0, atol=1e-9)
    # 15 wins of 30 judges with one vote each: the error of the difference is 2 / √30, corrected
    # for thirty judges by the factor √(30 / 29).
    np.testing.assert_allclose(2 * others["standard_error"], 2 / np.sqrt(29), rtol=1e-6)
    assert others["rank"].tolist() == [2, 2]
    assert others["rank_lower"].min() == 2


def test_differences_of_what_is_estimable_stand() -> None:
    result = fit_homogeneous(thirty_judges())
    table = result.contrast([("B", "C"), ("A", "B")], kind="hessian")
    assert table.loc["B - C", "estimate"] == pytest.approx(0, abs=1e-9)
    assert table.loc["B - C", "standard_error"] == pytest.approx(2 / np.sqrt(30), rel=1e-6)
    assert table.loc["A - B", "estimate"] == np.inf
    assert np.isnan(table.loc["A - B", "standard_error"])
    assert result.vcov().loc["A"].isna().all()
    relative = result.ranking(reference="A")
    assert (relative.loc[["B", "C"], "utility"] == -np.inf).all()
    assert (relative.loc[["B", "C"], "upper"] < -3).all()


def test_ten_choices_and_an_even_pair() -> None:
    data = read([(0, 1, 1)] * 10 + [(1, 2, 1), (1, 2, 0)], "abc", people=12)
    assert data.summary().separated == "'a' won every comparison with the other items"
    table = fit_homogeneous(data).ranking(kind="hessian")
    assert table.loc["a", "utility"] == np.inf
    np.testing.assert_allclose(table.loc[["b", "c"], "utility"], 0, atol=1e-9)
    # The difference of b and c has the information 2 · ¼.
    np.testing.assert_allclose(table.loc[["b", "c"], "standard_error"], np.sqrt(2) / 2, rtol=1e-6)


def test_five_people_who_agree_tell_nothing_but_a_direction() -> None:
    data = read([(0, 1, 1)] * 5, "ab", people=5)
    table = fit_homogeneous(data).ranking()
    assert table["utility"].tolist() == [np.inf, -np.inf]
    assert table["standard_error"].isna().all()
    assert table["rank"].tolist() == [1, 2]
    # The margin, twice the centred utility, has the log-likelihood −5 log(1 + e^−m).
    bound = -np.log(np.expm1(1.6448536**2 / 2 / 5)) / 2
    assert table.loc["a", "lower"] == pytest.approx(bound, abs=1e-5)
    assert table.loc["b", "upper"] == pytest.approx(-bound, abs=1e-5)


def test_a_heterogeneous_model_is_warned_of_the_same() -> None:
    data = read([(0, 1, 1)] * 5, "ab", people=5)
    model = HeterogeneousBTL(2, 1, utility="linear")
    with pytest.warns(UserWarning, match="no two of 2 items .*'a', 'b'.* finite distance"):
        result = fit(model, NeuralProcessGuide(model), data, steps=2, progress_bar=False)
    table = result.population(num_samples=25)
    assert table.loc["mean", "estimate"].tolist() == [np.inf, -np.inf]
    assert table.drop("mean", level="quantity").isna().all(axis=None)


def test_two_votes_for_a_new_item_change_nothing_for_the_others() -> None:
    rng = np.random.default_rng(1)
    left = rng.integers(6, size=300)
    right = (left + rng.integers(1, 6, size=300)) % 6
    chance = 1 / (1 + np.exp((right - left) / 3))
    rows = list(zip(left, right, rng.random(300) < chance, strict=True))
    before = HomogeneousBTL().fit(read(rows, "abcdef", people=60), progress_bar=False).result
    rows.insert(40, (2, 6, 0))
    rows.insert(20, (6, 1, 1))
    offsets = np.arange(0, 301, 5) + (np.arange(61) > 4) + (np.arange(61) > 8)
    data = read(rows, [*"abcdef", "new"], people=offsets)
    after = fit_homogeneous(data)
    for kind in ("sandwich", "hessian"):
        expected, table = before.ranking(kind=kind), after.ranking(kind=kind)
        expected[["rank", "rank_lower", "rank_upper"]] += 1  # The new item stands first.
        pd.testing.assert_frame_equal(
            table.loc[expected.index], expected, check_dtype=False, rtol=0, atol=1e-6
        )
        assert table.loc["new", "utility"] == np.inf
    coefficients = after.population().loc["mean"]
    pd.testing.assert_frame_equal(
        coefficients.drop("new"), before.population().loc["mean"], rtol=0, atol=1e-6
    )


def test_a_group_that_always_beat_another_is_compared_within() -> None:
    """Items are labelled above, below, and neither; differences within a group are finite."""
    even = [(0, 1, 1), (0, 1, 0), (2, 3, 1), (2, 3, 0), (3, 4, 1), (3, 4, 0)]
    data = read([*even, (0, 2, 1), (5, 0, 1), (5, 6, 1)], "abcdefg")
    text = data.summary().separated
    assert "'a', 'b', 'f' won every comparison with the other items" in text
    assert "'g' won and lost in a way that gives no finite distance" in text
    separation = find_separation(HeterogeneousBTL(7, 0, utility="linear"), data)
    place = separation.place(np.eye(7))
    assert place.reference.tolist() == [False, False, True, True, True, False, False]
    assert place.sign.tolist() == [1, 1, 0, 0, 0, 1, 0]
    contrasts = np.eye(7)[[0, 2, 0]] - np.eye(7)[[1, 4, 2]]
    assert separation.estimable(contrasts).tolist() == [True, True, False]


def test_groups_of_a_ranking_are_placed_each_by_itself() -> None:
    rows = [(0, 1, 1), (0, 1, 0), (2, 0, 1), (3, 4, 1), (3, 4, 0), (3, 5, 1)]
    data = read(rows, "abcdef", people=6)
    model = HeterogeneousBTL(6, 0, utility="linear")
    with pytest.warns(UserWarning, match="no maximum: 'c' won .*; 'f' lost"):
        fit(model, None, data, progress_bar=False)
    table = ranking_table(model, data, groups=data.components())
    assert table.index.tolist() == list("cabdef")
    assert table["utility"].round(6).tolist() == [np.inf, 0, 0, 0, 0, -np.inf]
    assert table["rank"].tolist() == [1, 2, 2, 1, 1, 3]


def test_ranks_at_infinity_are_those_that_the_choices_leave() -> None:
    """c over b over a, d over a: d may be anywhere above a. f over a and g."""
    even = [(0, 7, 1), (0, 7, 0)]
    rows = [*even, (1, 0, 1), (2, 1, 1), (3, 0, 1), (0, 4, 1), (5, 0, 1), (5, 6, 1)]
    table = fit_homogeneous(read(rows, "abcdefgh")).ranking(kind="hessian")
    bounds = table[["rank_lower", "rank_upper"]].T.to_dict("list")
    # Above a and h are b, c, d and f; below is e; g may be anywhere below f.
    expected = {"b": [2, 5], "c": [1, 4], "d": [1, 5], "f": [1, 4], "g": [2, 8], "e": [7, 8]}
    assert {name: bounds[name] for name in expected} == expected
    assert table.loc[list(expected), "rank"].isna().all()
    assert table.loc[["a", "h"], "rank"].tolist() == [5, 5]
    assert (table.loc[["a", "h"], ["rank_lower", "rank_upper"]].to_numpy() == [5, 7]).all()


def test_a_chain_has_an_order_without_distances() -> None:
    data = read([(0, 1, 1), (1, 2, 1)], "abc")
    table = fit_homogeneous(data).ranking(kind="hessian")
    assert table.index.tolist() == list("abc")
    assert table["rank"].tolist() == [1, 2, 3]


def features_that_decide(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    items = rng.normal(size=(40, 3)) * [1, 100, 0.01]
    left = rng.integers(40, size=300)
    right = (left + rng.integers(1, 40, size=300)) % 40
    return items, left, right


def test_a_price_that_decides_everything() -> None:
    items, left, right = features_that_decide(np.random.default_rng(0))
    choice = items[left, 0] < items[right, 0]
    rows = list(zip(left, right, choice, strict=True))
    names = ["price", "time", "comfort"]
    data = read(rows, range(40), people=30, items=items, feature_names=names)
    with pytest.warns(UserWarning, match="'price' goes to minus infinity; 'time', 'comfort' have"):
        result = HomogeneousBTL().fit(data, progress_bar=False).result
    table = result.population(level=0.9).loc["mean"]
    assert table.loc["price", "estimate"] == table.loc["price", "lower"] == -np.inf
    assert table.loc[["time", "comfort"], "estimate"].isna().all()
    assert table.filter(like="se_").isna().all(axis=None)

    # The bound by a direct search: the log-likelihood at the bound is 1.353 nats below 0.
    difference = (items[left] - items[right]) * np.where(choice, 1, -1)[:, None]

    def loss(others: np.ndarray) -> float:
        beta = np.array([table.loc["price", "upper"], others[0] / 100, others[1] * 100])
        return np.logaddexp(0, -difference @ beta).sum()

    best = minimize(loss, np.zeros(2), method="BFGS")
    assert best.fun == pytest.approx(1.6448536**2 / 2, abs=1e-4)


def test_a_feature_of_one_item_leaves_the_others_their_estimates() -> None:
    rng = np.random.default_rng(0)
    items, left, right = features_that_decide(rng)
    items[:, 2] = np.arange(40) == 7
    choice = rng.random(300) < 0.5
    has = (left == 7) | (right == 7)
    choice[has] = (left == 7)[has]
    names = ["price", "time", "flag"]
    rows = np.array(list(zip(left, right, choice, strict=True)))
    options = {"people": 300, "items": items, "feature_names": names}
    result = fit_homogeneous(read(rows, range(40), **options))
    table = result.population().loc["mean"]
    assert table.loc["flag", "estimate"] == np.inf
    others = {"people": int((~has).sum()), "items": items[:, :2], "feature_names": names[:2]}
    alone = HomogeneousBTL().fit(read(rows[~has], range(40), **others), progress_bar=False).result
    expected = alone.population().loc["mean"]
    scale = expected["se_hessian"].to_numpy()[:, None]
    np.testing.assert_allclose((table.loc[["price", "time"]] - expected) / scale, 0, atol=1e-5)


def test_a_bias_that_rests_on_an_item_that_always_won_is_named() -> None:
    """Left always won, but against `z`, which always won: both go to infinity together."""
    rows = [(0, 1, 1), (1, 0, 1), (1, 2, 1), (2, 0, 1), (0, 3, 0), (1, 3, 0)]
    data = read(2 * rows, "abcz", people=12)
    with pytest.warns(UserWarning, match=r"'z'.* 'position bias' go to infinity"):
        model = HomogeneousBTL(position_bias=True).fit(data, progress_bar=False)
    table = model.result.population()
    assert table.loc[("answer", "position bias"), "estimate"] == np.inf
    assert table.filter(like="se_").isna().all(axis=None)


@pytest.mark.parametrize("value", [0, 1])
def test_a_bias_that_one_side_alone_would_explain_is_refused(value: int) -> None:
    side = ("right", "left")[value]
    data = read([(0, 1, value), (1, 2, value), (2, 0, value)], "abc")
    with pytest.raises(ValueError, match=f"got the {side} as winner of all 3.*winner="):
        HomogeneousBTL(position_bias=True).fit(data, progress_bar=False)


def test_ties_join_items_unless_wins_have_no_cycle() -> None:
    """Without a cycle of wins the ties' parameter is at infinity too, and nothing is estimable."""
    model = HeterogeneousBTL(3, 0, utility="linear", ties="davidson")
    rows = [(0, 1, 1)] * 4 + [(1, 2, 0.5)] * 3
    separation = find_separation(model, read(rows, "abc", ties="keep"))
    assert separation.signs(np.eye(4)[3:]).tolist() == [1]
    assert not separation.estimable(np.eye(4)[1:2] - np.eye(4)[2:3]).any()
    separation = find_separation(model, read([*rows, (1, 2, 1), (1, 2, 0)], "abc", ties="keep"))
    assert separation.message == "'a' won every comparison with the other items"
    assert separation.estimable(np.eye(4)[3:]).all()
    assert separation.estimable(np.eye(4)[1:2] - np.eye(4)[2:3]).all()


def test_rankings_are_wins_of_the_items_above() -> None:
    ballots = {"ann": ["abc", "acb"], "bob": ["abc"], "cem": ["cb"]}
    data = Preferences.from_rankings({user: list(map(list, own)) for user, own in ballots.items()})
    result = fit_homogeneous(data)
    table = result.ranking(kind="hessian")
    assert table["utility"].iloc[0] == np.inf
    # What is left are two wins of b over c, and two of c over b.
    np.testing.assert_allclose(table.loc[["b", "c"], "utility"], 0, atol=1e-7)
    np.testing.assert_allclose(table.loc[["b", "c"], "standard_error"], 0.5, rtol=1e-6)


def direct_rows(data: Preferences, options: dict) -> np.ndarray:
    """What the index of each given answer exceeds that of another answer by, answer by answer."""
    table = np.eye(data.num_items) if data.items is None else data.items.double().numpy()
    rows = []
    for left, right, choice in zip(data.left, data.right, data.choice, strict=True):
        margin = table[left] - table[right]
        if "ties" in options:
            indices = {1: [*margin / 2, 0], 0: [*-margin / 2, 0], 0.5: [*0 * margin, 1]}
        else:
            bias = [1] * ("position_bias" in options)
            indices = {1: [*margin, *bias], 0: np.zeros(len(margin) + len(bias))}
        given = indices.pop(choice)
        rows += [np.subtract(given, other) for other in indices.values()]
    return np.array(rows)


def extremes(rows: np.ndarray, contrast: np.ndarray) -> tuple[bool, bool]:
    """Whether a contrast falls, and whether it rises, in a direction in which no row falls."""
    found = [
        linprog(sign * contrast, A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1, 1)).fun
        for sign in (1, -1)
    ]
    return found[0] < -1e-7, found[1] < -1e-7


@pytest.mark.parametrize("options", [{}, {"position_bias": True}, {"ties": "davidson"}])
@pytest.mark.parametrize("has_features", [False, True])
def test_random_tables_agree_with_a_programme_for_each_contrast(
    options: dict, has_features: bool
) -> None:
    separated = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        size = rng.integers(3, 11)
        left = rng.integers(5, size=size)
        right = (left + rng.integers(1, 5, size=size)) % 5
        choice = rng.choice([0, 0.5, 1] if "ties" in options else [0, 1], size=size)
        items = rng.integers(3, size=(5, 2)).astype(float) if has_features else None
        kept = {"items": items, "ties": "keep" if "ties" in options else "half"}
        data = read(list(zip(left, right, choice, strict=True)), range(5), **kept)
        model = HeterogeneousBTL(data.num_features, 0, utility="linear", **options)
        separation, rows = find_separation(model, data), direct_rows(data, options)
        rises = any(extremes(rows, row)[1] for row in np.unique(rows, axis=0))
        assert bool(separation) == rises == bool(separation.message), seed
        if not separation:
            continue
        separated += 1
        contrasts = np.eye(rows.shape[1])
        if items is None:
            contrasts[:5] -= contrasts[4]
        falls, rises = np.array([extremes(rows, contrast) for contrast in contrasts]).T
        assert (separation.estimable(contrasts) == ~falls & ~rises).all(), seed
        assert (separation.signs(contrasts) == rises.astype(int) - falls).all(), seed
    assert separated > 1


def test_many_comparisons_need_few_rows() -> None:
    """A linear programme over all 60,000 different rows would take minutes."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(600, 6))
    left = rng.integers(600, size=80_000)
    right = (left + rng.integers(1, 600, size=80_000)) % 600
    for feature, expected in ((5, False), (items[:, 0].argmax(), True)):
        choice = rng.random(80_000) < 0.5
        table = items.copy()
        if expected:
            table[:, 0] = np.arange(600) == feature
            has = (left == feature) | (right == feature)
            choice[has] = (right == feature)[has]
        data = read(list(zip(left, right, choice, strict=True)), range(600), items=table)
        separation = find_separation(HeterogeneousBTL(6, 0, utility="linear"), data)
        assert len(separation.cone.working) < 10_000
        assert separation.message == ("0 goes to minus infinity" if expected else "")


def test_a_collinear_feature_is_no_separation() -> None:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(20, 2)) @ [[1.0, 0, 1], [0, 1, 1]]
    left = rng.integers(20, size=200)
    right = (left + rng.integers(1, 20, size=200)) % 20
    rows = list(zip(left, right, rng.random(200) < 0.5, strict=True))
    data = read(rows, range(20), items=items)
    assert not find_separation(HeterogeneousBTL(3, 0, utility="linear"), data)


def test_separation_needs_a_linear_utility() -> None:
    model = HeterogeneousBTL(2, 0, utility="bilinear")
    data = read([(0, 1, 1)], "ab", items=np.eye(2))
    with pytest.raises(ValueError, match=r"find_separation\(\) needs"):
        find_separation(model, data)


def test_a_coefficient_of_known_sign_is_not_looked_at() -> None:
    """A price that only falls cannot rise to infinity, wherever the choices point."""
    data = read([(0, 1, 1)] * 4, "ab", people=4, items=np.array([[1.0], [0.0]]))
    for kind, expected in (("-lognormal", False), ("normal", True)):
        model = HeterogeneousBTL(1, 1, utility="linear", coefficients=[kind])
        assert bool(find_separation(model, data)) == expected


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"position_bias": True}, {"ties": "davidson"}], ids=str)
def test_comparisons_are_counted_a_stretch_at_a_time(
    monkeypatch: pytest.MonkeyPatch, options: dict, weighted: bool
) -> None:
    """Of data on disk only a stretch is in memory; sums of weights of 1 and 2 are exact."""
    rng = np.random.default_rng(0)
    left = rng.integers(6, size=200)
    right = (left + rng.integers(1, 6, size=200)) % 6
    choice = rng.integers(3, size=200) / 2
    data = Preferences(
        *(left, right, choice, np.array([0, 30, 31, 120, 200])),
        num_items=6,
        ties="keep" if "ties" in options else "half",
        side=rng.integers(-1, 2, size=200) if "position_bias" in options else None,
        weights=np.array([1.0, 2.0, 1.0, 2.0]) if weighted else None,
    )
    model = HeterogeneousBTL.for_data(data, latent_dim=0, utility="linear", **options)
    whole = events.list_answers(model, data)
    monkeypatch.setattr(events, "_COUNTED", 7)
    parts = events.list_answers(model, data)
    assert whole.weight.sum() == (len(left) if not weighted else 200 + 1 + 80)
    for name in ("better", "worse", "scale", "bias", "tie", "event", "weight"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
