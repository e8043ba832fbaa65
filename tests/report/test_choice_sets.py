"""The analysis of choices from sets and of rankings: words, coefficients, prices, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, plots
from fssa_bayes.report import Analysis, analyse, diagnose, rank
from fssa_bayes.report.alternatives import draw_sets, name_kind, say_what_is_ranked

COLUMNS = {"user": "who", "situation": "when", "item": "mode", "chosen": "taken"}
MODES = np.array(["bus", "car", "train", "walk"])


def trips(people: int, sizes: list[int], seed: int = 0) -> pd.DataFrame:
    """Choices of a mixed logit, price −1 ± .3 and comfort 2 ± 1; modes in the order of the rows."""
    rng = np.random.default_rng(seed)
    size = np.tile(sizes, people)
    start = np.cumsum(size) - size
    table = pd.DataFrame(
        {
            "who": np.repeat(np.arange(people), len(sizes)).repeat(size),
            "when": np.tile(np.arange(len(sizes)), people).repeat(size),
            "mode": MODES[np.arange(size.sum()) - start.repeat(size)],
            "price": rng.uniform(0, 4, size.sum()).round(2),
            "comfort": rng.uniform(0, 2, size.sum()).round(2),
        }
    )
    beta = rng.normal((-1, 2), (0.3, 1), (people, 2))[table["who"]]
    value = (beta * table[["price", "comfort"]]).sum(axis=1) + rng.gumbel(size=len(table))
    best = value.groupby([table["who"], table["when"]]).transform("max")
    return table.assign(taken=(value == best).astype(int))


@pytest.fixture(scope="module")
def data() -> Preferences:
    return Preferences.from_choices(
        trips(60, [3, 4, 2, 4, 3, 4, 3, 4]), **COLUMNS, features=["price", "comfort"]
    )


@pytest.fixture(scope="module")
def found(data: Preferences) -> Analysis:
    return analyse(data, price="price", num_samples=200, progress_bar=False)


def table_of(analysis: Analysis, name: str) -> pd.DataFrame:
    (table,) = (
        section.files[name]
        for whole in analysis.report.sections
        for section in (whole, *whole.parts)
        if name in section.files
    )
    return table


def test_situations_alternatives_and_attributes_are_counted(data: Preferences) -> None:
    """Sixty people, eight situations of two to four of four modes of travel, two attributes."""
    analysis = rank(data)
    report, figures = analysis.report, analysis.figures
    assert report.title == "Choices from sets"
    assert report.summary[0] == (
        "60 people, 480 choice situations with 2 to 4 alternatives each (4 distinct names), "
        "described by 2 attributes."
    )
    rows = dict(report.sections[1].table.itertuples(index=False))
    assert rows["choice situations"] == "480"
    assert rows["alternatives"] == "2 to 4 a situation; 4 distinct names"
    assert rows["attributes"] == "2 of an alternative"
    assert rows["choices a person"] == "8 to 8, median 8"
    assert not {"items", "comparisons", "repeated answers"} & set(rows)
    counted = [figures[name] for name in ("situations", "alternatives", "features", "items")]
    assert counted == [480, 4, 2, None]
    assert " items" not in " ".join(report.summary)


@pytest.mark.slow
def test_prices_are_those_of_the_population(found: Analysis) -> None:
    """The median of −β_comfort / β_price follows from the table of the population by simulation."""
    population = table_of(found, "population.csv")["estimate"]
    mean, sd = (population[kind][["price", "comfort"]].to_numpy() for kind in ("mean", "sd"))
    correlation = population["correlation"].iloc[0]
    noise = np.random.default_rng(0).multivariate_normal(
        [0, 0], [[1, correlation], [correlation, 1]], 200_000
    )
    price, comfort = (mean + sd * noise).T
    paid = table_of(found, "wtp.csv").loc["comfort"]
    assert paid["median"] == pytest.approx(np.median(-comfort / price), rel=0.02)
    assert paid["lower"] == pytest.approx(np.quantile(-comfort / price, 0.05), rel=0.1, abs=0.05)
    assert paid["price_positive"] == pytest.approx((price > 0).mean(), abs=0.005)
    # The truth is 2; its standard error is not that of a constant.
    assert abs(paid["median"] - 2) < 3 * paid["se_median"] < 1.5
    people = table_of(found, "people.csv")
    assert (people["interval_lower"] < people["interval_upper"]).all()
    own = table_of(found, "wtp_people.csv")
    assert own.index.get_level_values("attribute").unique().tolist() == ["comfort"]


@pytest.mark.slow
def test_the_person_is_drawn_by_coefficients(found: Analysis, tmp_path: Path) -> None:
    found.report.write(tmp_path)
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "mixed logit, whose correlated normal coefficients differ in 2 dimensions" in summary
    assert "Tastes of person" in summary
    assert "## Willingness to pay" in summary
    assert "Coefficients of the population" in summary
    assert "0 / 0: bus" not in summary  # The internal name of an alternative on offer.
    names = {"people.csv", "person.png", "wtp.csv", "wtp_people.csv", "coefficients.csv"}
    assert names <= {path.name for path in tmp_path.iterdir()}


def test_alternatives_are_drawn_by_their_names(
    data: Preferences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a utility that is not linear, which has no coefficients."""
    drawn = []
    forest = plots.forest
    monkeypatch.setattr(
        plots, "forest", lambda *args, **options: drawn.append(args[3]) or forest(*args, **options)
    )
    model = HeterogeneousBTL.for_data(data, 1)
    one = data.subset([5])
    draw_sets(Posterior(model, NeuralProcessGuide(model, hidden_dim=8), one, 50), one, 7)
    rows = trips(60, [3, 4, 2, 4, 3, 4, 3, 4]).query("who == 5 and when < 2")
    marked = rows["mode"] + rows["taken"].map({1: " *", 0: ""})
    assert drawn == [(rows["when"] + 1).astype(str).str.cat(marked, ": ").tolist()]


def test_situations_of_two_are_no_items_to_rank() -> None:
    """As trips are in mlogit's example: two alternatives, each described by its attributes."""
    table = trips(30, [2] * 6)
    data = Preferences.from_choices(table, **COLUMNS, features=["price", "comfort"])
    analysis = rank(data)
    found = table_of(analysis, "coefficients.csv")["estimate"]
    first, second = (table[table["mode"] == mode].reset_index(drop=True) for mode in MODES[:2])
    x = (first[["price", "comfort"]] - second[["price", "comfort"]]).to_numpy()
    x = x * np.where(first["taken"] == 1, 1, -1)[:, None]
    beta = np.zeros(2)
    for _ in range(20):  # Newton's method for log σ(x β).
        p = 1 / (1 + np.exp(x @ beta))
        beta = beta + np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ p)
    np.testing.assert_allclose(found, beta, atol=1e-4)
    text = analysis.report.sections[0].text[0]
    value = -np.log1p(np.exp(-(x @ beta))).sum()
    assert f"Log-likelihood {value:,.3f}" in text
    assert "180 choice situations with 2 alternatives each" in text
    assert analysis.figures["leader"] is None


def test_profiles_that_return_have_coefficients_and_ranks() -> None:
    """Alternatives of a table of items: the ranking rests on coefficients, which stand there."""
    table = trips(30, [4] * 4)
    items = pd.DataFrame({"speed": [1.0, 3.0, 2.0, 0.0]}, index=MODES)
    data = Preferences.from_choices(table, **COLUMNS, items=items)
    section = rank(data).report.sections[0]
    ranking, slope = section.files["ranking.csv"], section.parts[0].files["coefficients.csv"]
    utility = items["speed"] * slope.loc["speed", "estimate"]
    expected = utility[ranking.index] - utility[ranking.index].mean()
    np.testing.assert_allclose(ranking["utility"], expected, atol=1e-4)
    assert name_kind(data) == "Choices from sets"
    assert section.text[1].startswith("Multinomial logit")


@pytest.mark.parametrize("featured", [True, False])
def test_a_ranking_says_what_is_ranked(featured: bool) -> None:
    """Items of equal features have equal places if, and only if, the features are ranked."""
    rng = np.random.default_rng(0)
    ballots = [rng.permutation(["a", "b", "c", "d"]) for _ in range(40)]
    items = pd.DataFrame({"size": [1.0, 1.0, 2.0, 5.0]}, index=list("abcd"))
    data = Preferences.from_rankings(ballots, items=items if featured else None)
    analysis = rank(data)
    assert analysis.report.title == "Rankings"
    said = say_what_is_ranked(data)
    assert said in analysis.report.summary
    assert said == analysis.report.sections[0].text[0]
    assert analysis.report.sections[0].text[1].startswith("Plackett–Luce model")
    assert ("utility fitted to their feature" in said) == featured
    assert ("free strengths, one an item" in said) != featured
    utility = analysis.report.sections[0].files["ranking.csv"]["utility"]
    assert (utility["a"] == pytest.approx(utility["b"], abs=1e-9)) == featured


def test_what_people_pay_says_how_many_were_fitted(found: Analysis) -> None:
    """Choice sets are fitted to everybody in the end, other data to those not left out."""
    (section,) = (part for part in found.report.sections if part.heading == "Willingness to pay")
    assert "the fit to 60 people" in section.text[0]


@pytest.mark.filterwarnings("ignore:se_outer_product")
def test_few_people_are_described_by_what_the_page_holds(data: Preferences) -> None:
    """Choices by attributes have no ranking; a price that is left out is not passed over."""
    few = data.subset([0, 1, 2, 3])
    sentences = analyse(few, price="price").report.summary[-1]
    assert "The coefficients describe these people's choices." in sentences
    assert "What they pay in units of 'price' takes such a model: it is left out." in sentences
    assert "left out" not in " ".join(analyse(few).report.summary)


def test_a_price_is_a_feature_of_a_linear_utility(data: Preferences) -> None:
    with pytest.raises(ValueError, match=r"price must be one of the features \['price', 'comfort'"):
        analyse(data, price="cost")
    with pytest.raises(ValueError, match="price needs a linear utility, got bilinear"):
        analyse(data, price="price", utility="bilinear")
    model = HeterogeneousBTL.for_data(data, 1, utility="linear")
    with pytest.raises(ValueError, match="got a model fitted before"):
        analyse(data, price="price", fitted=(model, None))
    pairs = Preferences([0, 1], [1, 0], [1, 1], [0, 1, 2], num_items=2)
    with pytest.raises(ValueError, match="price must be a feature, and these items have none"):
        analyse(pairs, price="price")


def test_a_fitted_model_describes_new_people_by_coefficients(
    data: Preferences, tmp_path: Path
) -> None:
    model = HeterogeneousBTL.for_data(data, 2, utility="linear")
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([-1.0, 2.0]))
    few = data.subset([0, 1, 2])
    analysis = analyse(few, fitted=(model, None), num_samples=50)
    people = table_of(analysis, "people.csv")
    assert people.index.names == ["user", "attribute"]
    expected = Posterior(model, None, few, 50).coefficients()
    assert people.index.tolist() == expected.index.tolist()
    names = {"mean": "posterior_mean", "sd": "posterior_sd", "upper": "interval_upper"}
    for name, column in names.items():
        np.testing.assert_allclose(people[column], expected[name])
    assert any("too few to tell" in text for text in analysis.report.summary)
    analysis.report.write(tmp_path)
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "Tastes of person" in summary
    assert "/ 0: bus" not in summary  # The internal name of an alternative on offer.
    assert (tmp_path / "person.png").exists()


@pytest.mark.slow
def test_a_mixed_logit_without_a_guide_is_diagnosed(data: Preferences) -> None:
    """The checks of a guide are left out, and the others judge."""
    model = HeterogeneousBTL.for_data(data, 2, utility="linear")
    model.take_units(data)
    report = diagnose(model, None, data, sizes=(0, 2), num_users=200, num_samples=100)
    verdicts = {check.name: check.verdict for check in report.checks}
    assert verdicts["simulation-based calibration of the posterior"] == "pass"
    assert "error" not in verdicts.values()
    assert not any("guide" in name for name in verdicts)
