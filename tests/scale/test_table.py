"""Scores of people as a pure function of their own comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from many_people import ASKED, COLUMNS, NAMES, save_model, shuffle, simulate

from fssa_bayes import (
    HeterogeneousBTL,
    MaximumLikelihood,
    Posterior,
    Preferences,
    fit,
    load,
    save,
)
from fssa_bayes.scale import Scorer, model_digest, score_table


@pytest.fixture(params=["linear", "bilinear"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def of_people(table: pa.Table, names: list[str]) -> pa.Table:
    return table.filter(pc.is_in(table["user"], pa.array(names)))


def test_scores_do_not_depend_on_order_or_other_people(folder: Path) -> None:
    scorer, table = Scorer(folder, **ASKED), simulate(400)
    whole = scorer.score(table)
    assert whole["user"].unique().to_pylist() == sorted({f"person {n}" for n in range(400)})
    assert scorer.score(shuffle(table)).equals(whole)
    some = ["person 7", "person 33", "person 399"]
    assert scorer.score(of_people(table, some)).equals(of_people(whole, some))
    assert scorer.score(of_people(table, ["person 33"])).equals(of_people(whole, ["person 33"]))


def test_names_are_told_apart_by_value_and_not_by_the_type_of_the_column(linear: Path) -> None:
    table = simulate(6)
    whole = score_table(linear, table, **ASKED)
    coded = table.set_column(0, "user", table["user"].dictionary_encode())
    assert score_table(linear, coded, **ASKED).equals(whole)
    assert score_table(linear, table.set_column(0, "user", table["user"].cast(pa.large_string())),
                       **ASKED).equals(whole)  # fmt: skip


def test_scores_are_those_of_the_posterior(folder: Path) -> None:
    table = simulate(5)
    scores = score_table(
        folder, table, utilities=True, pairs=[("cedar", "ash")], best=6, num_samples=4000
    ).to_pandas()
    model, guide = load(folder)
    data = Preferences.from_dataframe(table.to_pandas(), **COLUMNS)
    posterior = Posterior(model, guide, data, 4000)
    users = data.user_names.tolist()

    utility = posterior.utility(NAMES)
    rows = scores[scores["quantity"] == "utility"].set_index(["user", "item"])
    for column, expected in (
        ("mean", utility.mean(0)),
        ("lower", utility.quantile(0.05, 0)),
        ("upper", utility.quantile(0.95, 0)),
    ):
        for number, user in enumerate(users):
            found = rows.loc[user].loc[NAMES, column].to_numpy()
            # Weighted draws here, the same draws resampled there: a Monte-Carlo error apart.
            np.testing.assert_allclose(found, expected[number].numpy(), atol=0.15)

    target = Preferences.from_dataframe(
        pd.DataFrame({"user": users, "left": "cedar", "right": "ash", "choice": 1}),
        **COLUMNS,
    )
    prob = posterior.choice_prob(target)
    pair = scores[scores["quantity"] == "probability"].set_index("user").loc[users]
    assert (pair["item"] == "cedar").all()
    assert (pair["other"] == "ash").all()
    for column in ("mean", "lower", "upper", "epistemic", "aleatoric"):
        np.testing.assert_allclose(pair[column], getattr(prob, column)[:, 0], atol=2e-4)

    best = scores[scores["quantity"] == "best"].set_index("user")
    ranks = posterior.rank_prob(NAMES)
    for number, user in enumerate(users):
        own = best.loc[user]
        assert own["rank"].tolist() == [1, 2, 3, 4, 5, 6]
        assert (np.diff(own["mean"]) <= 0).all()
        first = ranks[number, [NAMES.index(name) for name in own["item"]], 0]
        np.testing.assert_allclose(own["first"], first, atol=1e-5)
        np.testing.assert_allclose(own["ess"], 4000 * posterior.relative_ess[number], rtol=0.05)
        assert (own["comparisons"] == 5).all()
        assert own["reason"].isna().all()


def test_a_position_bias_belongs_to_probabilities_and_not_to_utilities(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "bilinear", position_bias=True)
    model, guide = load(folder)
    with torch.no_grad():
        model.bias.fill_(2.0)
    save(folder, model, guide, overwrite=True)
    options = {"num_samples": 200, "utilities": True}
    pairs = [("ash", "fir"), ("fir", "ash")]
    scores = score_table(folder, simulate(4), pairs=pairs, **options).to_pandas()
    there, back = (scores[scores["item"].eq(a) & scores["other"].eq(b)]["mean"] for a, b in pairs)
    assert (there.to_numpy() + back.to_numpy() > 1.2).all()
    utility = scores[scores["quantity"] == "utility"]
    np.testing.assert_allclose(utility.groupby("user")["mean"].sum(), 0, atol=1e-5)
    # A bias of 2 nats added to all but the first item would move it 1.7 nats below the others.
    assert utility[utility["item"] == NAMES[0]]["mean"].mean() > -1


def test_what_is_wrong_with_a_person_is_a_reason(linear: Path) -> None:
    rows = [
        ("fine", "ash", "elm", "LEFT"),
        ("no item", "ash", "oak", "left"),
        ("no item", "ash", "elm", "left"),
        ("same", "ash", "ash", "left"),
        ("odd", "ash", "elm", "perhaps"),
        ("half", "ash", None, "left"),
        ("blank", None, None, None),
        ("tied", "ash", "elm", "tie"),
        (None, "ash", "elm", "left"),
    ]
    table = pa.table(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
    for given in (table, shuffle(table)):
        scores = score_table(linear, given, **ASKED).to_pandas()
        reasons = scores[scores["reason"].notna()].set_index("user")["reason"]
        assert reasons.iloc[0] == "1 row names no person"
        assert "oak" in reasons["no item"]
        assert "compared with itself" in reasons["same"]
        assert "not one of" in reasons["odd"]
        assert "lacks" in reasons["half"]
        assert reasons["blank"].startswith("nothing is known")
        assert reasons["tied"].endswith("when ties are dropped")
        assert len(reasons) == 7
        assert scores[scores["reason"].isna()]["user"].unique().tolist() == ["fine"]
    fine = table.slice(0, 1)
    assert score_table(linear, fine, **ASKED).equals(
        of_people(score_table(linear, table, **ASKED), ["fine"])
    )
    half = score_table(linear, table, ties="half", **ASKED).to_pandas()
    assert half[half["user"] == "tied"]["reason"].isna().all()


def test_numbers_that_are_no_choice_are_reasons(linear: Path) -> None:
    table = pa.table(
        {
            "user": [1, 2, 3, 4],
            "left": ["ash"] * 4,
            "right": ["elm"] * 4,
            "choice": [1.0, 0.7, float("nan"), float("inf")],
        }
    )
    scores = score_table(linear, table, best=1, num_samples=50)
    rule = "is not one of 1, 0, 0.5, left, right, tie and the names of the two items"
    assert scores["reason"].to_pylist() == [
        None,
        f"choice 0.7 {rule}",
        "a comparison lacks an item or the choice",
        f"choice inf {rule}",
    ]


def test_the_name_of_the_preferred_item_is_a_choice(linear: Path) -> None:
    table = simulate(9)
    scores = score_table(linear, table, **ASKED)
    frame = table.to_pandas()
    named = frame["left"].where(frame["choice"] == 1, frame["right"])
    named = table.set_column(3, "choice", pa.array(named))
    assert score_table(linear, named, **ASKED).equals(scores)
    # Every person has a coding, whatever that of the others.
    words = table.set_column(3, "choice", pa.array(frame["choice"].map({1: "LEFT", 0: "right"})))
    both = pa.concat_tables([named.slice(0, 20), words.slice(20)])
    assert score_table(linear, shuffle(both), **ASKED).equals(scores)


def test_a_posterior_that_is_not_finite_is_the_reason_of_its_person_alone(
    linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fssa_bayes.scale.table as module

    class Fails(Posterior):
        def __init__(self, model, guide, context, *args, **options) -> None:
            if "person 3" in context.user_names:
                raise FloatingPointError("the posterior of user 'person 3' is not finite")
            super().__init__(model, guide, context, *args, **options)

    table = simulate(9)
    whole = score_table(linear, table, **ASKED)
    monkeypatch.setattr(module, "Posterior", Fails)
    scores = score_table(linear, table, **ASKED)
    failed = scores.filter(pc.is_valid(scores["reason"]))
    assert failed["user"].to_pylist() == ["person 3"]
    others = [f"person {number}" for number in range(9) if number != 3]
    assert of_people(scores, others).equals(of_people(whole, others))


def test_nobody_makes_an_empty_table(linear: Path) -> None:
    scores = score_table(linear, simulate(1).slice(0, 0), **ASKED)
    assert len(scores) == 0
    assert scores.schema == score_table(linear, simulate(1), **ASKED).schema


def test_items_with_features_are_found_by_name(tmp_path: Path) -> None:
    features = pd.DataFrame({"height": np.arange(6.0), "age": [3.0, 1, 4, 1, 5, 9]}, index=NAMES)
    data = Preferences.from_dataframe(simulate(60).to_pandas(), items=features, **COLUMNS)
    model = HeterogeneousBTL.for_data(data, latent_dim=2, utility="linear")
    fit(model, None, data, objective=MaximumLikelihood(32, steps=5), progress_bar=False)
    save(tmp_path / "model", model)
    expected = score_table(tmp_path / "model", simulate(3), items=features, **ASKED)
    turned = features.iloc[::-1, ::-1].assign(more=1.0)
    found = score_table(tmp_path / "model", simulate(3), items=turned, among=NAMES, **ASKED)
    assert found["item"].equals(expected["item"])
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-4)
    with pytest.raises(ValueError, match="items must be given"):
        score_table(tmp_path / "model", simulate(3), **ASKED)
    with pytest.raises(ValueError, match="without 'age'|\\['age'\\]"):
        score_table(tmp_path / "model", simulate(3), items=features[["height"]], **ASKED)


WRONG = {
    "no question": ({"best": 0, "pairs": []}, "one of utilities, pairs and best"),
    "unknown pair": ({"pairs": [("ash", "oak")]}, "pairs must name items.*oak"),
    "text for a pair": ({"pairs": ["ash"]}, "pairs must be pairs of names"),
    "same pair": ({"pairs": [("ash", "ash")]}, "two different items"),
    "unknown item": ({"among": ["ash", "oak"]}, "among must name items.*oak"),
    "one item": ({"among": ["ash"]}, "two or more different items"),
    "too many best": ({"best": 7}, "at most the number of items 6, got 7"),
    "negative best": ({"best": -1}, "best must be an integer of at least 0, got -1"),
    "few draws": ({"num_samples": 3}, "num_samples must be at least 25"),
    "ties": ({"ties": "lose"}, "ties must be one of"),
    "ties without a parameter": ({"ties": "keep"}, "needs a model with ties"),
    "seed": ({"seed": 1.5}, "seed must be an integer of at least 0, got 1.5"),
    "negative seed": ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    "fallback": ({"fallback": "hope"}, "fallback must be one of"),
    "features": ({"items": pd.DataFrame({"x": [1.0]})}, "items must be None"),
    "two columns of one name": ({"left": "right"}, "must be four columns"),
    "no column": ({"choice": "answer"}, "choice='answer' is not a column of table; its columns"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_by_name(case: str, linear: Path) -> None:
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        score_table(linear, simulate(2), **ASKED | options)


def test_people_named_by_what_has_no_digest_are_refused(linear: Path) -> None:
    table = simulate(2)
    missing = float("nan")
    for values in ([1.5] * 10, [missing] * 10, [b"x"] * 10, [None] * 10, [True] * 10):
        with pytest.raises(ValueError, match="user='user' must hold text or whole numbers"):
            score_table(linear, table.set_column(0, "user", pa.array(values)), **ASKED)


def test_what_is_no_table_of_plain_columns_is_refused(linear: Path) -> None:
    table = simulate(2)
    with pytest.raises(TypeError, match="must be a pyarrow Table, got DataFrame"):
        score_table(linear, table.to_pandas(), **ASKED)
    for place, name in ((1, "left"), (3, "choice")):
        nested = table.set_column(place, name, pa.array([["ash"]] * 10))
        with pytest.raises(ValueError, match=f"{name}='{name}' must hold text or numbers"):
            score_table(linear, nested, **ASKED)


def test_a_person_is_named_by_value_whatever_the_width_of_numbers(linear: Path) -> None:
    """A name is not its text: 1 and "1" are two people, who have draws of their own."""
    table, whole = simulate(2), pa.array(np.repeat([1, 2], 5))
    scores = score_table(linear, table.set_column(0, "user", whole), **ASKED)
    for kind in (pa.int8(), pa.uint32()):
        narrow = table.set_column(0, "user", whole.cast(kind))
        assert score_table(linear, narrow, **ASKED).equals(scores)
    as_text = score_table(linear, table.set_column(0, "user", whole.cast(pa.string())), **ASKED)
    assert as_text["user"].to_pylist() == [str(name) for name in scores["user"].to_pylist()]
    assert not as_text["mean"].equals(scores["mean"])


def test_a_digest_tells_models_apart_and_not_copies(linear: Path, bilinear: Path, tmp_path) -> None:
    save(tmp_path / "copy", *load(linear))
    assert model_digest(tmp_path / "copy") == model_digest(linear)
    assert model_digest(bilinear) != model_digest(linear)
