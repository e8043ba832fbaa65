"""Rankings of items, with errors clustered by person."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from cluster_robust import bell_mccaffrey
from scipy import stats
from two_feature_people import simulate

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.baselines import HomogeneousBTL
from fssa_bayes.population import Estimates, Uncertainty, ranking_table
from fssa_bayes.population.clusters import PersonMoments
from fssa_bayes.population.ranking import item_estimates, with_tails


def clustered_fit() -> tuple[Preferences, HeterogeneousBTL, np.ndarray, np.ndarray]:
    """A homogeneous fit with the sandwich covariance of its coefficients, computed by hand."""
    data = simulate(people=80, comparisons=9)
    model = HeterogeneousBTL(2, 0, utility="linear")
    fit(model, None, data, progress_bar=False)
    features = data.items.double().numpy()
    difference = features[data.left] - features[data.right]
    beta = (model.utility.mean / model.feature_scale).detach().double().numpy()
    prob = 1 / (1 + np.exp(-difference @ beta))
    covariance, _ = bell_mccaffrey(difference, prob * (1 - prob), data.choice - prob, data.offsets)
    return data, model, beta, covariance


def test_ranking_has_errors_clustered_by_person() -> None:
    data, model, beta, covariance = clustered_fit()
    items = [3, 7, 1, 20]
    table = ranking_table(model, data, items, num_draws=20_000, p_values=True)
    design = data.items[items].double().numpy()
    design = design - design.mean(0)
    utility = design @ beta
    error = np.sqrt(np.einsum("md,de,me->m", design, covariance, design))
    assert table.index.tolist() == [items[i] for i in np.argsort(-utility)]
    assert table["rank"].tolist() == [1, 2, 3, 4]
    table = table.loc[items]
    np.testing.assert_allclose(table["utility"], utility, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["standard_error"], error, rtol=1e-3)
    assert ((table["df"] > 40) & (table["df"] < 79)).all()  # 80 people are few: Student's t.
    width = (table["upper"] - utility) / error
    np.testing.assert_allclose(width, stats.t.ppf(0.95, table["df"]), rtol=1e-3)
    # Ranks of draws made another way, their quantiles on whole ranks.
    draws = utility + np.random.default_rng(1).multivariate_normal(beta * 0, covariance, 20_000) @ (
        design.T
    )
    ranks = 1 + (-draws).argsort(-1).argsort(-1)
    for name, level in (("rank_lower", 0.05), ("rank_upper", 0.95)):
        expected = np.quantile(ranks, level, axis=0)
        share = (ranks <= expected).mean(0)
        clear = np.abs(share - level) > 0.01  # Where the level falls between two ranks.
        assert clear.any()
        np.testing.assert_array_equal(table[name][clear], expected[clear])


def test_elo_points_are_400_for_odds_of_ten() -> None:
    data, model, *_ = clustered_fit()
    nats, elo = (ranking_table(model, data, scale=scale) for scale in ("nats", "elo"))
    unit = 400 / np.log(10)
    for column in ("utility", "lower", "upper"):
        np.testing.assert_allclose(elo[column], 1500 + unit * nats[column])
    np.testing.assert_allclose(elo["standard_error"], unit * nats["standard_error"])
    pd.testing.assert_frame_equal(elo.filter(like="rank"), nats.filter(like="rank"))
    assert elo["utility"].mean() == pytest.approx(1500)
    with pytest.raises(ValueError, match="scale must be one of"):
        ranking_table(model, data, scale="points")


def test_sets_hold_what_is_not_told_apart_from_their_best_item() -> None:
    """By the intervals of contrasts, which are computed elsewhere."""
    data, model, *_ = clustered_fit()
    table = ranking_table(model, data, sets=True, level=0.9)
    result = fit(model, None, data, progress_bar=False)
    estimates, _ = item_estimates(result.model, data)
    found, best, number = [], None, 0
    for item in table.index:
        lower = -1.0
        if best is not None:
            lower = estimates.contrast((best, item), level=0.9)["lower"].item()
        if best is None or lower > 0:
            best, number = item, number + 1
        found.append(number)
    assert 1 < number < len(table)
    assert table["set"].tolist() == found


def test_groups_are_ranked_each_by_itself() -> None:
    data, model, *_ = clustered_fit()
    items, groups = [3, 7, 1, 20, 5, 9], list("abaabb")
    table = ranking_table(model, data, items, groups=groups, num_draws=20_000)
    assert table["group"].tolist() == list("aaabbb")
    for label in "ab":
        own = [item for item, group in zip(items, groups, strict=True) if group == label]
        alone = ranking_table(model, data, own, num_draws=20_000)
        part = table[table["group"] == label].drop(columns="group")
        assert part.index.tolist() == alone.index.tolist()
        columns = ["utility", "standard_error", "lower", "upper", "rank"]
        pd.testing.assert_frame_equal(part[columns], alone[columns])
        assert (part[["rank_lower", "rank_upper"]] - alone[["rank_lower", "rank_upper"]]).abs().max(
            axis=None
        ) <= 1  # Other draws.
        assert part["rank_upper"].max() <= 3
    with pytest.raises(ValueError, match="groups must have one label an item, 2, got 1"):
        ranking_table(model, data, [1, 2], groups=["a"])


def test_ranking_of_items_without_features_is_that_of_population() -> None:
    rng = np.random.default_rng(0)
    left = rng.integers(5, size=400)
    right = (left + rng.integers(1, 5, size=400)) % 5
    data = Preferences(left, right, rng.integers(2, size=400), np.arange(0, 401, 8), num_items=6)
    model = HeterogeneousBTL(6, 0, utility="linear")
    result = fit(model, None, data, progress_bar=False)
    compared = [0, 1, 2, 3, 4]
    table = result.ranking(compared).loc[compared]
    # Nobody compared item 5, of which alone nothing is known.
    everything = result.ranking()
    assert everything.index[-1] == 5
    assert everything.loc[5].isna().all()
    pd.testing.assert_frame_equal(everything.loc[compared], table, check_dtype=False)
    assert (table["standard_error"] > 0.05).all()
    shown = Preferences(left, right, data.choice, data.offsets, num_items=5)
    other = HeterogeneousBTL(5, 0, utility="linear")
    expected = fit(other, None, shown, progress_bar=False).population().loc["mean"]
    np.testing.assert_allclose(table["utility"], expected["estimate"], atol=1e-4)
    np.testing.assert_allclose(table["standard_error"], expected["se_sandwich"], rtol=1e-3)


def two_components() -> tuple[Preferences, Preferences]:
    """Six people compare a, b, c and six others the items x, y, z; and the first six alone."""
    rng = np.random.default_rng(0)
    left = rng.integers(3, size=120)
    right = (left + rng.integers(1, 3, size=120)) % 3
    choice = rng.random(120) < 0.5 + 0.15 * np.sign(right - left)
    shift = np.repeat([0, 3], 60)
    both = Preferences(
        left + shift,
        right + shift,
        choice,
        np.arange(0, 121, 10),
        num_items=7,
        item_names=list("abcxyzn"),
    )
    first = Preferences(
        left[:60],
        right[:60],
        choice[:60],
        np.arange(0, 61, 10),
        num_items=3,
        item_names=list("abc"),
    )
    return both, first


@pytest.mark.filterwarnings("ignore:the comparison graph has 2 connected")
def test_components_are_ranked_each_by_itself() -> None:
    """As if the other had not been asked; between them there is no contrast."""
    both, first = (HomogeneousBTL().fit(d, progress_bar=False) for d in two_components())
    table, alone = both.result.ranking(kind="hessian"), first.result.ranking(kind="hessian")
    assert table["group"].tolist() == [0, 0, 0, 1, 1, 1, -1]
    columns = ["utility", "standard_error", "lower", "upper", "rank"]
    part = table.loc[list("abc"), columns]
    pd.testing.assert_frame_equal(part, alone.loc[list("abc"), columns], check_dtype=False)
    assert table[table["group"] == 1]["rank"].tolist() == [1, 2, 3]
    assert table.loc["n"].drop("group").isna().all()
    differences = both.contrast([("a", "x"), ("a", "n"), ("x", "z")], kind="hessian")
    assert differences.isna().all(axis=1).tolist() == [True, True, False]
    assert both.result.ranking(reference="x").loc[[*"abcn"]].isna().all(axis=None)
    means = both.coefficients()
    assert means["estimate"].isna().tolist() == [False] * 3 + [True] * 4


def test_a_contrast_between_large_components_does_not_exist() -> None:
    """However small the share of the difference that no comparison tells."""
    left = np.tile(np.arange(60), 2)
    right = np.where(left < 30, (left + 1) % 30, 30 + (left + 1) % 30)
    data = Preferences(left, right, np.repeat([0, 1], 60), np.arange(0, 121, 10), num_items=60)
    result = HomogeneousBTL().fit(data, progress_bar=False).result
    table = result.contrast([(0, 40), (0, 20)], kind="hessian")
    assert table.iloc[0].isna().all()
    assert table.iloc[1]["estimate"] == pytest.approx(0, abs=1e-6)
    # Two ways along the ring, 10 and 20 pairs long, each pair with the information 2 · ¼.
    assert table.iloc[1]["standard_error"] == pytest.approx((2 * 10 * 20 / 30) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("options", [{"utility": "bilinear"}, {"utility": "linear"}])
def test_ranking_needs_a_homogeneous_linear_model(options: dict) -> None:
    data = simulate(people=10)
    model = HeterogeneousBTL(2, 0 if options["utility"] == "bilinear" else 1, **options)
    with pytest.raises(ValueError, match="needs utility='linear' and latent_dim=0"):
        ranking_table(model, data)


def test_ranking_names_unknown_items() -> None:
    data, model, *_ = clustered_fit()
    with pytest.raises(ValueError, match=r"items must be known names, at least one, got \['x'\]"):
        ranking_table(model, data, [1, "x"])
    with pytest.raises(ValueError, match=r"items must be known names, at least one, got \[\]"):
        ranking_table(model, data, [])


def test_utilities_relative_to_an_item() -> None:
    """Differences to the reference, with the errors of differences."""
    data, model, beta, covariance = clustered_fit()
    table = ranking_table(model, data, [3, 7, 1], reference=7, level=0.5, p_values=True)
    design = (data.items[[3, 7, 1]] - data.items[7]).double().numpy()
    error = np.sqrt(np.einsum("md,de,me->m", design, covariance, design))
    table = table.loc[[3, 7, 1]]
    np.testing.assert_allclose(table["utility"], design @ beta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table["standard_error"], error, rtol=1e-3, atol=1e-9)
    other = table.loc[[3, 1]]
    statistic = (design @ beta)[[0, 2]] / error[[0, 2]]
    np.testing.assert_allclose(other["statistic"], statistic, rtol=1e-3)
    p_value = 2 * stats.t.sf(other["statistic"].abs(), other["df"])
    np.testing.assert_allclose(other["p_value"], p_value)
    with pytest.raises(ValueError, match="reference must be known names, got 'x'"):
        ranking_table(model, data, reference="x")
    with pytest.raises(ValueError, match="reference must be None where there are groups, got 3"):
        ranking_table(model, data, [3, 7], groups=["a", "b"], reference=3)


def test_ranks_of_few_people_have_the_tails_of_their_intervals() -> None:
    """Three people: an item's draws have the quantiles of t with two degrees, not the normal's."""
    error = torch.tensor([0.5, 2.0], dtype=torch.float64)
    moments = [
        PersonMoments(torch.arange(2), torch.zeros(2).double(), torch.eye(2).double() / 3)
        for _ in range(3)
    ]
    few = Uncertainty(torch.eye(2).double(), error.square().diag(), 3, lambda: moments, 0, "")
    estimates = Estimates(pd.Index([0, 1]), torch.zeros(2).double(), torch.eye(2).double(), few)
    assert estimates.degrees_of_freedom() == pytest.approx([2, 2])
    moved = with_tails(
        error[:, None] * torch.tensor(stats.norm.ppf([[0.05, 0.95, 1e-20]])), error, estimates
    )
    expected = error[:, None] * torch.tensor(stats.t.ppf([[0.05, 0.95, 1e-20]], 2))
    torch.testing.assert_close(moved, expected)
