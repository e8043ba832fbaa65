"""Tables with one row a person or a ranking."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import Preferences
from fssa_bayes.baselines import HomogeneousBTL

ASKED = pd.DataFrame(
    {
        "age": [31, 45, 28],
        "tea:cola": [1, -1, np.nan],
        "tea : milk": [1, 0, -1],
        "cola:milk": [np.nan, -1, 1],
    },
    index=["ann", "bob", "eve"],
)
CODES = {1: "left", 0: "tie", -1: "right"}
LONG = pd.DataFrame(
    [
        ("ann", "tea", "cola", "left"),
        ("ann", "tea", "milk", "left"),
        ("bob", "tea", "cola", "right"),
        ("bob", "tea", "milk", "tie"),
        ("bob", "cola", "milk", "right"),
        ("eve", "tea", "milk", "right"),
        ("eve", "cola", "milk", "left"),
    ],
    columns=["who", "left", "right", "y"],
)
COLUMNS = {"user": "who", "left": "left", "right": "right", "choice": "y"}
BALLOTS = {
    "ann": [("tea", "cola", "milk")],
    "bob": [("milk", "tea")],
    "eve": [("cola", "tea", "milk")],
}


def estimates(data: Preferences) -> list[float]:
    return HomogeneousBTL().fit(data, progress_bar=False).model.utility.mean.tolist()


# One column a pair.


def test_pair_columns_are_the_long_table() -> None:
    data = Preferences.from_pair_columns(ASKED, choice_labels=CODES, ties="half")
    long = Preferences.from_dataframe(LONG, **COLUMNS, ties="half")
    assert data.digest() == long.digest()
    assert estimates(data) == estimates(long)
    kept = Preferences.from_pair_columns(ASKED, choice_labels=CODES, ties="keep")
    assert (kept.ties, int(kept.half_wins.sum())) == ("keep", 1)


@pytest.mark.parametrize(
    "answers",
    [
        [["left", "right", None], ["left", "tie", "right"], [None, "right", "left"]],
        [["tea", "cola", None], ["tea", "tie", "milk"], [None, "milk", "cola"]],
        [[1, 0, np.nan], [1, 0.5, 0], [np.nan, 0, 1]],
    ],
)
def test_answers_have_the_codings_of_the_long_table(answers: list) -> None:
    names = ["tea:cola", "tea:milk", "cola:milk"]
    table = pd.DataFrame(dict(zip(names, answers, strict=True)), index=ASKED.index)
    data = Preferences.from_pair_columns(table, ties="half")
    assert data.digest() == Preferences.from_dataframe(LONG, **COLUMNS, ties="half").digest()
    typed = Preferences.from_pair_columns(table.astype("category"), ties="half")
    assert typed.digest() == data.digest()


def test_people_may_stand_in_a_column_and_have_covariates() -> None:
    table = ASKED.reset_index(names="a:person")
    ages = pd.DataFrame({"age": ASKED["age"].astype(float)})
    data = Preferences.from_pair_columns(
        table, user="a:person", choice_labels=CODES, ties="half", users=ages
    )
    assert data.user_names.tolist() == ["ann", "bob", "eve"]
    assert data.covariates.flatten().tolist() == [31, 45, 28]
    with pytest.warns(UserWarning, match="1 of 3 rows have no answer"):
        some = Preferences.from_pair_columns(
            table, user="a:person", columns=["tea:cola"], choice_labels=CODES
        )
    assert some.num_comparisons == 2


def test_people_without_an_answer_are_left_out_with_a_warning() -> None:
    table = ASKED.assign(**{"tea : milk": [1, 0, np.nan], "cola:milk": [np.nan, -1, np.nan]})
    with pytest.warns(UserWarning, match="1 of 3 rows have no answer and were left out"):
        data = Preferences.from_pair_columns(table, choice_labels=CODES, ties="half")
    assert data.user_names.tolist() == ["ann", "bob"]


@pytest.mark.parametrize(
    ("table", "options", "match"),
    [
        (ASKED, {"sep": "/"}, r"df must have columns named like 'a/b' \(sep='/'\), got \['age'"),
        (ASKED.assign(**{"a:b:c": 1}), {}, "must be named like 'a:b' .*got 'a:b:c'"),
        (ASKED.assign(**{"a:": 1}), {}, "must be named like 'a:b' .*got 'a:'"),
        (ASKED[[]].assign(**{"a:a": 1}), {}, "an item cannot be compared with itself: 'a'"),
        (ASKED, {}, r"choice must be 1 / 0 / 0.5, .* got -1.0 at row bob \(user 'bob'\)"),
        (ASKED, {"user": "age:"}, "'age:' in user is not a column"),
        (ASKED.set_axis([1, 1, 2]), {}, "index .* must be unique, got (np.int64.)?1"),
        (ASKED, {"columns": ["age"]}, "must be named like 'a:b' .*got 'age'"),
        (ASKED, {"columns": "tea:cola"}, "columns must be a list of columns, got 'tea:cola'"),
        (ASKED * np.nan, {}, "no comparison is left: the 3 columns are blank"),
        (ASKED, {"ties": "skip"}, "ties must be one of"),
    ],
)
def test_bad_pair_columns_are_refused(table: pd.DataFrame, options: dict, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        Preferences.from_pair_columns(table, **options)


# One row a ranking.


def test_orderings_are_the_lists() -> None:
    table = pd.DataFrame(
        {
            "first": ["tea", "milk", "cola"],
            "second": ["cola", "tea", "tea"],
            "third": ["milk", None, "milk"],
        },
        index=list(BALLOTS),
    )
    places = ["first", "second", "third"]
    data = Preferences.from_rankings(table, orderings=places)
    lists = Preferences.from_rankings(BALLOTS)
    assert data.digest() == lists.digest()
    assert estimates(data) == estimates(lists)
    below = Preferences.from_rankings(table, orderings=places, choice_set=["tea", "cola", "milk"])
    expected = Preferences.from_rankings(BALLOTS, choice_set=["tea", "cola", "milk"])
    assert below.digest() == expected.digest()
    assert below.num_comparisons == 6  # Three rankings of three items.


def test_ranks_are_the_lists_and_the_long_table() -> None:
    table = pd.DataFrame(
        {"who": list(BALLOTS), "cola": [2, None, 1], "milk": [3, 1, 3], "tea": [1, 2, 2]}
    )
    data = Preferences.from_rankings(table, user="who", ranks=["cola", "milk", "tea"])
    assert data.digest() == Preferences.from_rankings(BALLOTS).digest()
    long = table.melt("who", var_name="item", value_name="rank").dropna()
    long = long.sort_values("who", kind="stable")
    other = Preferences.from_rankings(long, user="who", item="item", rank="rank")
    assert data.digest() == other.digest()


def test_a_person_may_have_several_rows() -> None:
    table = pd.DataFrame({"who": ["u", "v", "u"], "1st": ["a", "b", "b"], "2nd": ["b", "c", "c"]})
    data = Preferences.from_rankings(table, user="who", orderings=["1st", "2nd"])
    assert data.user_names.tolist() == ["u", "v"]
    assert data.counts.tolist() == [2, 1]


def test_rows_without_a_rank_are_left_out_with_a_warning() -> None:
    table = pd.DataFrame({"1st": ["a", None], "2nd": ["b", None]})
    with pytest.warns(UserWarning, match="1 of 2 rows rank no item and were left out"):
        assert len(Preferences.from_rankings(table, orderings=["1st", "2nd"])) == 1


@pytest.mark.parametrize(
    ("table", "options", "match"),
    [
        (
            {"1st": ["a", None], "2nd": ["b", "c"]},
            {"orderings": ["1st", "2nd"]},
            "blanks at the end alone, got 'c' in column '2nd' behind a blank at row 1",
        ),
        ({"1st": ["a"], "2nd": ["a"]}, {"orderings": ["1st", "2nd"]}, "got 'a' again in ranking 0"),
        ({"a": [1], "b": [0]}, {"ranks": ["a", "b"]}, "got .*0.* in column 'b' at row 0"),
        ({"a": [1], "b": ["x"]}, {"ranks": ["a", "b"]}, "got 'x' in column 'b' at row 0"),
        ({"a": [1], "b": [1]}, {"ranks": ["a", "b"]}, "no two items may share a rank"),
        ({"a": [1]}, {"ranks": ["a", "c"]}, "'c' in ranks is not a column"),
        ({"a": [1]}, {"ranks": ["a"], "item": "a"}, "ranks must be the only list .* got item too"),
        ({"a": [1]}, {"ranks": ["a"], "orderings": ["a"]}, "got ranks too"),
        (BALLOTS, {"ranks": ["tea"]}, None),
    ],
)
def test_bad_rankings_are_refused(table: dict, options: dict, match: str | None) -> None:
    if match is None:
        with pytest.raises(TypeError, match="rankings must be a pandas DataFrame, got dict"):
            Preferences.from_rankings(table, **options)
        return
    with pytest.raises(ValueError, match=match):
        Preferences.from_rankings(pd.DataFrame(table), **options)


def test_text_of_spaces_is_blank() -> None:
    asked = pd.DataFrame({"a:b": [1, 0], "a:c": [1, None]}, index=["ann", "bob"])
    expected = Preferences.from_pair_columns(asked)
    for blank in ("", "  "):
        data = Preferences.from_pair_columns(asked.astype(object).fillna(blank))
        assert data.digest() == expected.digest()
    table = pd.DataFrame({"1st": ["a", "b"], "2nd": ["b", "c"], "3rd": ["c", None]})
    ranks = pd.DataFrame({"a": [1, None], "b": [2, 1], "c": [3, 2]})
    for options, frame in (({"orderings": list(table)}, table), ({"ranks": list("abc")}, ranks)):
        data = Preferences.from_rankings(frame.astype(object).fillna(""), **options)
        assert data.digest() == Preferences.from_rankings(frame, **options).digest()


def test_people_who_share_a_name_are_refused_by_it() -> None:
    asked = pd.DataFrame({"a:b": [1, 0]}, index=[1, 1])
    with pytest.raises(ValueError, match="must be unique, got 1 more than once"):
        Preferences.from_pair_columns(asked)


def test_a_column_in_place_of_its_name_is_refused() -> None:
    with pytest.raises(TypeError, match="user must be the name of a column, got Series"):
        Preferences.from_pair_columns(ASKED, user=ASKED["age"])
    frame = LONG.assign(rank=1)
    with pytest.raises(TypeError, match="item must be the name of a column, got Series"):
        Preferences.from_rankings(frame, user="who", item=frame["left"], rank="rank")
