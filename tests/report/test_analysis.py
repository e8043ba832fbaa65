"""The analysis of a file, by the library: the same numbers as its parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import (
    FitResult,
    HeterogeneousBTL,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    fit,
)
from fssa_bayes.datasets import linear_factors
from fssa_bayes.report import Section, analyse, rank, to_markdown, to_text
from fssa_bayes.report.alternatives import describe_unit
from fssa_bayes.report.analysis import (
    Collector,
    build_people,
    choose_dimensions,
    default_dimensions,
    describe_convergence,
)


@pytest.fixture(scope="module")
def data() -> Preferences:
    population = linear_factors.draw_population(3, 2, seed=0)
    return linear_factors.simulate(40, 12, population, seed=0).data


def test_the_ranking_is_that_of_a_fit(data: Preferences) -> None:
    analysis = rank(data, seed=3)
    model = HeterogeneousBTL(data.num_features, 0, utility="linear")
    labels = data.components()
    used, groups = data.item_names[labels >= 0], labels[labels >= 0]
    expected = fit(model, None, data, progress_bar=False).ranking(used, groups=groups, seed=3)
    found = analysis.report.sections[0].files["ranking.csv"].loc[expected.index]
    np.testing.assert_allclose(found["utility"], expected["utility"], atol=1e-5)
    np.testing.assert_allclose(found["standard_error"], expected["standard_error"], rtol=1e-4)
    assert analysis.figures["leader"] == str(expected.index[0])


def test_items_of_one_choice_set_each_are_not_ranked() -> None:
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(720, 2)), columns=["x", "y"])
    df = df.assign(
        user=np.arange(720) // 18, situation=np.arange(720) // 3, item=np.arange(720) % 3
    )
    value = (df["x"] - df["y"] + rng.gumbel(size=720)).to_numpy().reshape(-1, 3)
    df["chosen"] = (value == value.max(-1, keepdims=True)).ravel()
    columns = {name: name for name in ("user", "situation", "item", "chosen")}
    data = Preferences.from_choices(df, **columns, features=["x", "y"])
    analysis = rank(data, seed=3)
    model = HeterogeneousBTL(data.num_features, 0, utility="linear")
    expected = fit(model, None, data, progress_bar=False).population(level=0.9).loc["mean"]
    found = analysis.report.sections[0].files["coefficients.csv"]
    assert list(found.index) == list(data.feature_names)
    np.testing.assert_allclose(found["estimate"], expected["estimate"], atol=1e-5)
    np.testing.assert_allclose(found["standard_error"], expected["se_sandwich"], rtol=1e-4)
    np.testing.assert_allclose(found["lower"], expected["lower"], rtol=1e-3)
    assert analysis.figures["leader"] is None


@pytest.mark.parametrize("shared", [True, False], ids=["shared items", "items of a situation"])
def test_a_report_speaks_of_choices_from_sets(shared: bool, tmp_path: Path) -> None:
    """Coefficients and words; the number of choices and what guessing scores are known."""
    rng = np.random.default_rng(0)
    sizes = np.tile([2, 3, 4, 6], 24 * 3)
    df = pd.DataFrame(
        {
            "user": np.repeat(np.arange(24), 12).repeat(sizes),
            "situation": np.arange(len(sizes)).repeat(sizes),
            "item": np.concatenate([np.arange(size) for size in sizes]),
            "chosen": np.concatenate([np.arange(size) == 0 for size in sizes]),
        }
    )
    columns = {name: name for name in df}
    if shared:
        data = Preferences.from_choices(df, **columns)
    else:
        df[["x", "y"]] = rng.normal(size=(len(df), 2))
        data = Preferences.from_choices(df, **columns, features=["x", "y"])
    model = HeterogeneousBTL(data.num_features, 2, utility="linear")
    if not shared:
        with torch.no_grad():
            model.utility.mean.copy_(torch.tensor([1.0, -0.5]))
    data, _ = model.simulate(data, seed=1)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    analysis = analyse(data, fitted=(model, guide), num_samples=50, num_bootstrap=int(not shared))
    analysis.report.write(tmp_path)
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    counted = "288 choice situations with 2 to 6 alternatives each (6 distinct names)"
    if shared:
        counted = "72 comparisons and 216 choices from sets of 3 to 6 alternatives"
    assert f"24 people, {counted}" in page
    guess = np.log([2, 3, 4, 6]).mean()
    assert describe_unit(data, has_ties=False)[1].endswith(f"guessing scores −{guess:.3f}")
    assert "nats per choice" in page
    assert ("Ranking for the average person" in page) == shared
    assert ("What matters to the average person" in page) != shared
    assert ("probability of each alternative" in page) == shared
    assert ("Tastes of person" in page) != shared
    assert page.startswith("# Choices from sets")
    assert analysis.figures["judgements"] == 288
    shown = [name for section in analysis.report.sections for name in headings(section)]
    assert not [name for name in shown if "_" in name]
    assert ("| comparisons | 72 |" in page) == shared  # Else they are situations, too.
    assert ("| choice sets | 216 of 3 to 6 alternatives |" in page) == shared


@pytest.mark.filterwarnings("ignore:the largest context has:UserWarning")
@pytest.mark.filterwarnings("ignore:maximum likelihood did not converge in")
def test_the_gain_is_that_of_posteriors(data: Preferences) -> None:
    model = HeterogeneousBTL(data.num_features, 2, utility="linear")
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=5, progress_bar=False)
    told = []
    analysis = analyse(data, fitted=(model, guide), num_samples=50, seed=1, tell=told.append)
    train, test = data.split_users(0.2, seed=1)
    context, target = test.split_context(10, seed=1)
    average = HeterogeneousBTL(data.num_features, 0, utility="linear")
    fit(average, None, train, progress_bar=False)
    gain = Posterior(model, guide, context, 50, seed=1).log_score(target)
    gain = gain - Posterior(average, None, context, 1).log_score(target)
    assert analysis.figures["known_choices"] == 10
    assert analysis.figures["gain"] == pytest.approx(gain.mean().item(), abs=1e-6)
    error = gain.std().item() / len(gain) ** 0.5
    assert analysis.figures["gain_standard_error"] == pytest.approx(error, rel=1e-4)
    assert told == list(analysis.report.sections)
    for section in told:
        assert section.heading in to_text(section)
        assert not [name for name in headings(section) if "_" in name]
        assert to_markdown(section).startswith(f"## {section.heading}")


def test_a_model_that_does_not_fit_is_refused_before_work(data: Preferences) -> None:
    homogeneous = HeterogeneousBTL(data.num_features, 0)
    with pytest.raises(ValueError, match="latent_dim of at least 1, got 0"):
        analyse(data, fitted=(homogeneous, None))
    other = HeterogeneousBTL(data.num_features + 1, 1)
    with pytest.raises(ValueError, match="data must have the model's num_features"):
        analyse(data, fitted=(other, NeuralProcessGuide(other)))
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        analyse(data, latent_dim=0)


@pytest.mark.slow
def test_dimensions_are_chosen_among_those_that_data_can_tell_apart(data: Preferences) -> None:
    """With three features people differ in three directions at most, and 4 is no number for it."""
    chosen, section = choose_dimensions(data, "linear", 5, 0)
    dims, table = section.table["latent dimensions"], section.table
    assert list(dims.sort_values()) == [1, 2]
    close = table["behind the best (nats)"] <= table["standard error of that"].fillna(0)
    assert chosen == dims[close].min()
    assert f"{chosen} latent dimensions: the fewest within one standard error" in section.text[0]
    few, section = choose_dimensions(data.subset(range(19)), "linear", 5, 0)
    assert few == 1
    assert "takes 20 people of the fit" in section.text[0]


def test_one_ranking_a_person_leaves_no_known_choice() -> None:
    """Three pairs of a ranking are one judgement."""
    rng = np.random.default_rng(0)
    data = Preferences.from_rankings([rng.permutation(["a", "b", "c"]) for _ in range(30)])
    model = HeterogeneousBTL(3, 1, utility="linear")
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=2, progress_bar=False)
    analysis = analyse(data, fitted=(model, guide), num_samples=25, num_bootstrap=0)
    assert analysis.figures["known_choices"] == 0
    assert analysis.figures["people_scored"] == 6
    assert "6 unseen judgements of 6 people" in analysis.report.sections[1].text[0]


def test_a_penalty_keeps_the_ranking_finite_and_a_warning_stands_once() -> None:
    rows = [("a", "b"), ("a", "b"), ("b", "c"), ("c", "b"), ("中文", "a"), ("中文", "c")]
    table = pd.DataFrame([(n % 2, *row) for n, row in enumerate(rows * 3)], columns=list("uwl"))
    with pytest.warns(UserWarning, match="repeat an earlier row"):
        data = Preferences.from_dataframe(table, user="u", winner="w", loser="l")
    plain, held = rank(data), rank(data, penalty=0.5)
    (warning,) = (text for section in plain.report.sections for text in section.warnings)
    assert "--penalty 0.5 of `fssa-bayes rank`" in warning
    assert "boxes stand for characters" in plain.report.sections[0].figures[0].caption
    model = HeterogeneousBTL(4, 0, utility="linear", penalty=0.5)
    expected = fit(model, None, data, progress_bar=False).ranking()["utility"]
    found = held.report.sections[0].files["ranking.csv"]["utility"]
    np.testing.assert_allclose(found, expected.loc[found.index], atol=1e-5)
    assert not any(section.warnings for section in held.report.sections)
    with pytest.raises(ValueError, match="penalty must be a number of at least 0, got nan"):
        rank(data, penalty=np.nan)
    collector, section = Collector(), Section("One")
    assert collector.add(section, ["x", "y"]).warnings == ("x", "y")
    assert collector.add(section, ["y", "z"]).warnings == ("z",)


def test_a_ranking_says_who_is_not_known_and_what_points_nowhere() -> None:
    """Votes of nobody in particular; b is between a and c, at no finite distance from either."""
    votes = pd.DataFrame({"w": list("aabb"), "l": list("bbcc"), "n": [1, 2, 1, 1]})
    data = Preferences.from_dataframe(votes, winner="w", loser="l", count="n")
    analysis = rank(data)
    text = to_text(analysis.report.sections[0])
    assert "fitted to 5 comparisons" in text
    assert "take the comparisons for independent, as the data do not say who answered" in text
    assert "people" not in text
    assert "All that the choices say of 'a', 'c' points one way, up or down." in text
    assert "The choices put 'b' at no finite distance from the others" in text
    assert "not named" in str(data.summary())
    assert analysis.figures["leader"] == "a"
    assert analysis.figures["people"] is None


@pytest.mark.parametrize(
    ("steps", "slope", "stage", "watched", "said"),
    [
        (200, -0.1, "ImportanceWeightedELBO", False, "--steps 400 (steps=400 in Python) in place"),
        (200, -0.1, "ImportanceWeightedELBO", True, "--steps 400 (steps=400 in Python) in place"),
        (200, 0.0, "ImportanceWeightedELBO", False, "the loss had settled"),
        (300, -0.1, "ImportanceWeightedELBO", True, "more steps would not help"),
        (300, -0.1, "MaximumLikelihood", False, "maximum likelihood, to convergence in 200"),
    ],
)
def test_more_steps_are_named_where_they_may_help(
    steps: int, slope: float, stage: str, watched: bool, said: str
) -> None:
    """A fit of 200 steps, whose loss falls or not, of at most as many steps or of 300."""
    noise = np.random.default_rng(0).normal(size=200)
    history = pd.DataFrame({"stage": stage, "loss": slope * np.arange(200) + noise})
    held_out = pd.DataFrame({"score": [0.0]}) if watched else None
    result = FitResult(None, None, None, history, held_out)
    assert said in describe_convergence(result, steps)


def headings(section: Section) -> Iterator[str]:
    """Yields the headings of all columns that a section shows."""
    if section.table is not None:
        yield from section.table.columns
    for part in section.parts:
        yield from headings(part)


@pytest.mark.parametrize(
    ("features", "utility", "expected"),
    [(1, "linear", 1), (4, "linear", 4), (9, "linear", 5), (9, "bilinear", 2), (None, "linear", 2)],
)
def test_coefficients_of_few_features_have_any_covariance(
    features: int | None, utility: str, expected: int
) -> None:
    items = None if features is None else np.eye(10, features, dtype=np.float32)
    data = Preferences([0, 1], [2, 9], [1, 0], [0, 1, 2], items=items, num_items=10)
    assert default_dimensions(data, utility) == expected
    model, _ = build_people(data, utility, expected)
    assert model.latent_dim == expected
