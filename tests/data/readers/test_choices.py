"""Choices from sets in the long format: read as loops read them, and scored as by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, Preferences

SHARED = Path(__file__).parents[4] / "shared" / "data"
COLUMNS = {"user": "who", "situation": "when", "item": "mode", "chosen": "taken"}
# Situations restart with every person; cat has one of two alternatives.
TRIPS = pd.DataFrame(
    [
        ("bob", 1, "bus", 2.0, 40.0, 0),
        ("bob", 1, "car", 9.0, 20.0, 1),
        ("bob", 1, "train", 6.0, 30.0, 0),
        ("ann", 2, "train", 5.0, 31.0, 0),
        ("ann", 2, "bus", 3.0, 45.0, 0),
        ("ann", 2, "car", 8.0, 25.0, 0),
        ("ann", 2, "bike", 0.0, 70.0, 1),
        ("bob", 2, "car", 7.0, 22.0, 0),
        ("bob", 2, "train", 6.5, 33.0, 1),
        ("ann", 1, "bus", 3.5, 41.0, 1),
        ("ann", 1, "car", 6.0, 24.0, 0),
        ("ann", 1, "train", 4.0, 29.0, 0),
        ("cat", 1, "bike", 0.0, 60.0, 0),
        ("cat", 1, "car", 5.0, 26.0, 1),
    ],
    columns=["who", "when", "mode", "price", "time", "taken"],
    index=range(100, 114),
)
FEATURES = ["price", "time"]
ITEMS = pd.DataFrame(
    {"seats": [40.0, 4.0, 300.0, 1.0, 9.0], "wheels": [6.0, 4.0, 0.0, 2.0, 0.0]},
    index=["bus", "car", "train", "bike", "boat"],
)


def random_trips(seed: int = 0, situations: int = 40) -> pd.DataFrame:
    """Sets of two to six of eight alternatives, of ten people, with a best and a worst."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(situations):
        size = int(rng.integers(2, 7))
        best, worst = rng.choice(size, 2, replace=False)
        for place, mode in enumerate(rng.choice(list("abcdefgh"), size, replace=False)):
            noise = rng.normal(size=2)
            rows.append((number % 10, number, mode, *noise, int(place == best), place == worst))
    return pd.DataFrame(rows, columns=["who", "when", "mode", "price", "time", "taken", "last"])


def read(df: pd.DataFrame = TRIPS, **options: object) -> Preferences:
    return Preferences.from_choices(df, **COLUMNS | options)


def stars(df: pd.DataFrame, worst: str | None = None) -> list[tuple]:
    """Person, left, right and choice of every comparison, by loops over situations."""
    rows = []
    for user in df["who"].unique():
        own = df[df["who"] == user]
        for when in own["when"].unique():
            table = own[own["when"] == when]
            names, marks = table["mode"].tolist(), table["taken"].tolist()
            best = names[marks.index(1)]
            for name in names[:-1]:
                rows.append(
                    (user, name, names[-1], 1 if name == best else 0 if names[-1] == best else 0.5)
                )
            if worst is not None:
                last = names[table[worst].tolist().index(1)]
                names.remove(best)
                for name in names[:-1]:
                    rows.append(
                        (
                            user,
                            names[-1],
                            name,
                            1 if name == last else 0 if names[-1] == last else 0.5,
                        )
                    )
    return rows


def listed(data: Preferences) -> list[tuple]:
    """The same of data, whose items may be named by situation."""
    names = [str(name).split(": ")[-1] for name in data.item_names]
    users = data.user_names[data.person]
    return [
        (user, names[left], names[right], choice)
        for user, left, right, choice in zip(users, data.left, data.right, data.choice, strict=True)
    ]


def log_likelihood(data: Preferences, model: HeterogeneousBTL) -> float:
    """The log-likelihood of a homogeneous model."""
    batch = data.batch()
    with torch.no_grad():
        return (
            model.choice(batch, torch.zeros(len(data), 0).double())
            .log_prob(batch.choice)
            .sum()
            .item()
        )


def homogeneous(data: Preferences, coefficients: list[float]) -> HeterogeneousBTL:
    """A model with these coefficients of the features in the units given."""
    model = HeterogeneousBTL.for_data(data, 0, utility="linear")
    model.take_units(data)
    model = model.double()
    with torch.no_grad():
        model.utility.mean.copy_(
            torch.tensor(coefficients, dtype=torch.float64) * model.feature_scale
        )
    return model


def multinomial_logit(df: pd.DataFrame, utility: pd.Series, outside: float | None = None) -> float:
    """The log-likelihood by hand; where nothing is taken, the outside option is."""
    total = 0.0
    for _, own in df.groupby(["who", "when"]):
        values = utility[own.index].tolist() + ([] if outside is None else [outside])
        marks = own["taken"].tolist() + ([] if outside is None else [1 - own["taken"].sum()])
        total += values[marks.index(1)] - np.log(np.exp(values).sum())
    return total


# What is read.


@pytest.mark.parametrize("df", [TRIPS, random_trips()], ids=["typed", "random"])
@pytest.mark.parametrize("options", [{}, {"features": FEATURES}], ids=["items", "rows"])
def test_situations_become_comparisons_with_the_last_alternative(df, options) -> None:
    data = read(df, **options)
    assert data.user_names.tolist() == df["who"].unique().tolist()
    assert listed(data) == stars(df)
    assert data.num_judgements == len(df.drop_duplicates(["who", "when"]))
    assert data.num_comparisons == len(df) - data.num_judgements


def test_features_of_rows_are_those_of_items_that_are_named_by_situation() -> None:
    data = read(features=FEATURES)
    assert data.item_names[2:4].tolist() == ["bob / 1: train", "bob / 2: car"]
    ordered = TRIPS.loc[[*range(100, 103), 107, 108, *range(103, 107), *range(109, 114)]]
    np.testing.assert_array_equal(data.items.numpy(), ordered[FEATURES])
    alone = TRIPS.assign(when=TRIPS["who"] + TRIPS["when"].astype(str))
    unnamed = read(alone, user=None, features=FEATURES)
    assert unnamed.item_names[0] == "bob1: bus"
    assert not unnamed.people_are_named
    assert unnamed.counts.tolist() == [2, 3, 1, 2, 1]
    once = read(alone, user="when", situation=None, features=FEATURES)
    assert once.user_names.tolist() == ["bob1", "ann2", "bob2", "ann1", "cat1"]
    assert once.item_names[0] == "bob1: bus"


def test_names_that_read_alike_stay_apart() -> None:
    df = pd.DataFrame(
        {"who": ["a", "a", "a / b", "a / b"], "when": ["b / c", "b / c", "c", "c"]}
    ).assign(mode=["x", "y"] * 2, taken=[1, 0] * 2, price=range(4))
    names = read(df, features=["price"]).item_names
    assert names.is_unique
    assert names[:2].tolist() == ["a / b / c: x", "a / b / c: y"]


@pytest.mark.parametrize("options", [{}, {"items": ITEMS.drop("boat")}], ids=["constants", "items"])
def test_two_alternatives_are_a_comparison(options) -> None:
    rng = np.random.default_rng(3)
    pairs = pd.DataFrame(
        {"who": rng.integers(5, size=30), "y": rng.integers(2, size=30), "when": range(30)}
    )
    modes = np.array([rng.choice(ITEMS.index[:4], 2, replace=False) for _ in range(30)])
    pairs = pairs.assign(left=modes[:, 0], right=modes[:, 1])
    columns = {"user": "who", "left": "left", "right": "right", "choice": "y"}
    with pytest.warns(UserWarning, match="repeat an earlier row"):
        expected = Preferences.from_dataframe(pairs, **columns, **options)
    long = pairs.melt(["who", "when", "y"], value_name="mode").sort_values(
        ["when", "variable"], kind="stable"
    )
    long["taken"] = np.where(long["variable"] == "left", long["y"], 1 - long["y"])
    data = read(long, **options)
    assert data.digest() == expected.digest()
    assert data.ranking is None
    rows = read(long.join(ITEMS, on="mode"), features=list(ITEMS.columns))
    assert rows.ranking is None
    if options:
        for side in ("left", "right"):
            np.testing.assert_array_equal(
                rows.items[getattr(rows, side)], expected.items[getattr(expected, side)]
            )


@pytest.mark.parametrize(
    "marks",
    [
        TRIPS["taken"].astype(bool),
        TRIPS["taken"].astype(float),
        TRIPS["taken"].astype(str),
        TRIPS["taken"].astype(bool).astype(object),
        TRIPS["mode"]
        .where(TRIPS["taken"] == 1)
        .groupby([TRIPS["who"], TRIPS["when"]])
        .transform("max"),
    ],
    ids=["Boolean", "float", "text", "object", "name"],
)
def test_codings_of_the_choice(marks: pd.Series) -> None:
    assert read(TRIPS.assign(taken=marks)).digest() == read().digest()


def test_alternatives_with_numbers_as_names_are_chosen_by_name() -> None:
    codes = {"bus": 1, "car": 0, "train": 2, "bike": 3}
    by_name = TRIPS["mode"].map(codes)
    expected = read(TRIPS.assign(mode=by_name))
    best = (
        by_name.where(TRIPS["taken"] == 1).groupby([TRIPS["who"], TRIPS["when"]]).transform("max")
    )
    assert read(TRIPS.assign(mode=by_name, taken=best)).digest() == expected.digest()


def test_rows_that_are_not_available_are_left_out() -> None:
    extra = TRIPS.assign(here=1)
    more = [("bob", 1, "boat", np.nan, np.nan, 0, 0), ("cat", 1, "bus", np.nan, 1.0, 0, 0)]
    extra = pd.concat([pd.DataFrame(more, columns=extra.columns), extra], ignore_index=True)
    people = {"users": pd.DataFrame({"age": [30.0, 40.0, 50.0]}, index=["ann", "bob", "cat"])}
    # The rows in front change the order in which people appear.
    expected = read(pd.concat([TRIPS[:3], TRIPS[12:], TRIPS[3:12]]), features=FEATURES, **people)
    data = read(extra, features=FEATURES, available="here", **people)
    assert data.digest() == expected.digest()
    assert data.covariates.tolist() == [[40.0], [50.0], [30.0]]


def test_the_worst_is_chosen_among_those_that_remain() -> None:
    df = random_trips(1)
    data = read(df, worst="last")
    assert listed(data) == stars(df, "last")
    size = df.groupby("when").size()
    assert data.num_judgements == len(size) + int((size > 2).sum())
    names = df["mode"].where(df["last"]).groupby(df["when"]).transform("max")
    assert read(df.assign(last=names), worst="last").digest() == data.digest()


def test_categories_and_constants() -> None:
    df = TRIPS.assign(color=np.where(TRIPS["time"] > 30, "red", "blue"))
    data = read(df, features=["price", "color"], constants=True)
    names = ["price", "color[T.red]", "constant[T.bus]", "constant[T.car]", "constant[T.train]"]
    assert data.feature_names.tolist() == names
    assert data.feature_levels["constant"] == ("bike", "bus", "car", "train")
    rows = dict(zip(data.item_names, data.items.tolist(), strict=True))
    assert rows["ann / 2: bike"] == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert rows["ann / 2: train"] == [5.0, 1.0, 0.0, 0.0, 1.0]
    declared = df.assign(mode=pd.Categorical(df["mode"], ["train", "bus", "car", "bike"]))
    levels = read(declared, features=["price"], constants=True).feature_levels
    assert levels == {"constant": ("train", "bus", "car", "bike")}


# The outside option.


def with_nothing(df: pd.DataFrame) -> pd.DataFrame:
    """Nobody buys in some situations."""
    return df.assign(taken=df["taken"] * (df["when"] % 3 != 0))


def test_an_outside_option_has_rows_or_not() -> None:
    df = with_nothing(random_trips(2))
    expected = read(df, features=FEATURES, outside="none")
    assert expected.feature_names.tolist() == ["price", "time", "none"]
    taken = df.groupby("when")["taken"].sum()
    rows = df.drop_duplicates("when").assign(mode="none", price=np.nan, time=7.0)
    rows["taken"] = 1 - taken[rows["when"]].to_numpy()
    whole = pd.concat([df, rows]).sort_values("when", kind="stable", ignore_index=True)
    some = whole[(whole["mode"] != "none") | (whole["when"] % 2 == 0)]
    for table in (whole, some):
        assert read(table, features=FEATURES, outside="none").digest() == expected.digest()
    best = df["mode"].where(df["taken"] == 1).groupby(df["when"]).transform("max").fillna("none")
    named = read(df.assign(taken=best), features=FEATURES, outside="none")
    assert named.digest() == expected.digest()
    every = read(df, outside="none")
    assert every.item_names[-1] == "none"
    assert every.items is None
    inside = expected.items[expected.items[:, 2] == 0]
    assert len(inside) == len(df)
    assert (expected.items[expected.items[:, 2] == 1, :2] == 0).all()


def test_constants_are_compared_with_the_outside_option() -> None:
    df = with_nothing(random_trips(2))
    data = read(df, features=["price"], constants=True, outside="none")
    assert data.feature_names.tolist() == ["price", *(f"constant[T.{name}]" for name in "abcdefgh")]
    assert data.feature_levels == {"constant": ("none", *"abcdefgh")}
    nothing = [name.endswith(": none") for name in data.item_names]
    assert (data.items[nothing] == 0).all()
    assert (data.items[np.logical_not(nothing), 1:].sum(1) == 1).all()


@pytest.mark.parametrize("kind", ["features", "items", "neither", "constants"])
def test_the_likelihood_with_an_outside_option_is_that_by_hand(kind: str) -> None:
    """Features are centred and scaled by the model: the outside option must move with them."""
    df = with_nothing(random_trips(4)).assign(price=lambda own: 50 + 9 * own["price"])
    rng = np.random.default_rng(5)
    items = pd.DataFrame(
        {"size": 100 + rng.normal(size=8), "age": rng.normal(size=8)}, index=list("abcdefgh")
    )
    own = pd.Series(rng.normal(size=8), index=list("hgfedcba"))
    if kind == "features":
        data = read(df, features=FEATURES, outside="none")
        coefficients, utility = [-0.1, 0.7, -4.0], -0.1 * df["price"] + 0.7 * df["time"]
    elif kind == "items":
        data = read(df, items=items, outside="none")
        coefficients = [0.3, -0.8, 28.0]
        utility = df["mode"].map(items @ coefficients[:2])
    elif kind == "neither":
        data = read(df, outside="none")
        coefficients, utility = [*own[data.item_names[:-1]], 0.4], df["mode"].map(own)
        assert data.item_names[-1] == "none"
    else:
        data = read(df, features=["price"], constants=True, outside="none")
        coefficients = [-0.1, *own.sort_index()]
        utility = -0.1 * df["price"] + df["mode"].map(own)
    outside = 0.0 if kind == "constants" else coefficients[-1]
    expected = multinomial_logit(df, utility, outside)
    found = log_likelihood(data, homogeneous(data, coefficients))
    assert found == pytest.approx(expected, abs=1e-5)
    assert abs(multinomial_logit(df, utility, outside + 0.1) - expected) > 0.01


def test_later_choices_from_some_of_the_alternatives_are_read_by_name() -> None:
    """A new person sees three of eight: constants that are absent must not take others' places."""
    df = random_trips(9)
    model = homogeneous(read(df, features=["price"], constants=True), [0.5, *np.arange(1.0, 8.0)])
    own = df["mode"].map(dict(zip("abcdefgh", np.arange(8.0), strict=True)))
    later = df[df["when"].isin([9, 12])].assign(who="new")
    assert later["mode"].nunique() == 6
    assert "a" not in later["mode"].tolist()  # The one without a constant.
    data = read(later, features=["price"], constants=True).for_model(model)
    expected = multinomial_logit(later, 0.5 * df["price"] + own)
    assert log_likelihood(data, model) == pytest.approx(expected, abs=1e-5)


# The likelihood.


def test_the_likelihood_is_the_multinomial_logit_in_any_order_of_rows() -> None:
    df = random_trips(6)
    utility = 1.3 * df["price"] - 0.4 * df["time"]
    data = read(df, features=FEATURES)
    found = log_likelihood(data, homogeneous(data, [1.3, -0.4]))
    assert found == pytest.approx(multinomial_logit(df, utility), abs=1e-5)
    shuffled = read(df.sample(frac=1, random_state=1), features=FEATURES)
    assert shuffled.digest() != data.digest()
    again = log_likelihood(shuffled, homogeneous(shuffled, [1.3, -0.4]))
    assert again == pytest.approx(found, abs=1e-6)


def test_the_likelihood_of_best_and_worst() -> None:
    """The worst has the probability of the best by the negated utilities of those that remain."""
    df = random_trips(7)
    utility = 1.3 * df["price"] - 0.4 * df["time"]
    rest = df[df["taken"] == 0]
    rest = rest.assign(taken=rest["last"].astype(int))
    expected = multinomial_logit(df, utility) + multinomial_logit(rest, -utility)
    data = read(df, features=FEATURES, worst="last")
    found = log_likelihood(data, homogeneous(data, [1.3, -0.4]))
    assert found == pytest.approx(expected, abs=1e-5)


# What is refused.


def one_more(**cells: object) -> pd.DataFrame:
    """The first situation with another row."""
    row = TRIPS.iloc[[0]].assign(mode="boat", **cells)
    return pd.concat([TRIPS, row.set_axis([200])])


HERE = TRIPS.assign(here=1, last=(TRIPS["time"] < 23) | TRIPS.index.isin([103, 110, 112]))


@pytest.mark.parametrize(
    ("df", "options", "match"),
    [
        (
            one_more(taken=1),
            {},
            "chosen='taken' must mark one alternative of each situation.*got 'car' and 'boat' in "
            r"situation 1 of user 'bob' \(1 such situations\)",
        ),
        (
            TRIPS.assign(taken=TRIPS["taken"].where(TRIPS["who"] != "cat", 0)),
            {},
            "got none in situation 1 of user 'cat'",
        ),
        (one_more(taken=2), {}, "got 2 at row 200, in situation 1 of user 'bob'"),
        (TRIPS.assign(taken="bus"), {}, "got 'bus', which was not on offer, in situation 2"),
        (TRIPS.assign(taken="boat"), {}, "got 'boat' at row 100"),
        (TRIPS.assign(taken=TRIPS["mode"]), {}, "got 'car' at row 101"),
        (
            pd.concat([TRIPS, TRIPS.iloc[[0]].set_axis([200])]),
            {},
            "an alternative must stand once in a situation, got 'bus' again at row 200, in "
            "situation 1 of user 'bob'",
        ),
        (
            HERE.assign(here=TRIPS["mode"] != "bike"),
            {"available": "here"},
            "chosen must mark an alternative that is available, got 'bike' at row 106, in "
            "situation 2 of user 'ann'",
        ),
        (
            HERE.assign(here=TRIPS["taken"]),
            {"available": "here"},
            "a situation must have at least two alternatives on offer, got 'car' alone in "
            r"situation 1 of user 'bob' \(5 such situations\)",
        ),
        (TRIPS.iloc[[1, *range(3, 14)]], {}, "got 'car' alone in situation 1 of user 'bob'"),
        (
            HERE.assign(here=TRIPS["time"]),
            {"available": "here"},
            "available='here' must hold 1 / 0 or Booleans, got 40.0 at row 100",
        ),
        (
            HERE.assign(last=TRIPS["taken"]),
            {"worst": "last"},
            "the best and the worst must be different alternatives, got 'car' for both in "
            "situation 1 of user 'bob'",
        ),
        (
            HERE.assign(last=HERE["mode"] == "bus"),
            {"worst": "last"},
            "worst='last' must mark one alternative of each situation.*got none in situation",
        ),
        (TRIPS, {"items": ITEMS.drop("bus")}, "unknown item 'bus' in situation 1 of user 'bob'"),
        (
            TRIPS.assign(price=TRIPS["price"].where(TRIPS["time"] != 45)),
            {"features": FEATURES},
            "features must have no missing values, got one in column 'price' at row 104, in "
            "situation 2 of user 'ann'",
        ),
        (
            TRIPS.assign(price=TRIPS["price"].where(TRIPS["time"] != 45, np.inf)),
            {"features": FEATURES},
            "features must be finite, got inf in column 'price' at row 104",
        ),
        (
            TRIPS.assign(price=TRIPS["price"].astype(complex)),
            {"features": FEATURES},
            "features must be numbers, text or categories, got column 'price'",
        ),
        (
            TRIPS.assign(mode=TRIPS["mode"].where(TRIPS["time"] != 45)),
            {},
            "item='mode' must have no",
        ),
        (TRIPS, {"features": ["price", "speed"]}, "'speed' in features is not a column"),
        (TRIPS, {"features": []}, "features must be different columns, at least one"),
        (TRIPS, {"features": FEATURES, "items": ITEMS}, "items and features cannot be given both"),
        (TRIPS, {"constants": True}, "constants=True goes with features="),
        (TRIPS, {"user": None, "situation": None}, "situation must name a column"),
        (
            TRIPS,
            {"situation": None},
            "an alternative must stand once in a situation, got 'car' again",
        ),
        (TRIPS, {"user": None, "users": ITEMS}, "users must be None where user=None"),
        (TRIPS, {"items": ITEMS, "outside": "boat"}, "outside='boat' must have no row in items"),
        (TRIPS, {"features": FEATURES, "outside": "price"}, "a constant is named 'price'"),
        (
            TRIPS.assign(color="red"),
            {"features": ["color"], "outside": "none"},
            "column 'color' must be of pandas' categories",
        ),
    ],
)
def test_errors_name_row_person_and_situation(df, options, match) -> None:
    if options.get("user", "") is None and "users" in options:
        df = df.assign(when=df["who"] + df["when"].astype(str))
    with pytest.raises(ValueError, match=match):
        read(df, **options)


def test_features_that_never_vary_within_a_situation() -> None:
    df = random_trips(8).assign(age=lambda own: own["who"] * 1.0, one=1.0)
    with pytest.raises(ValueError, match="got 'age', which differs between situations alone"):
        read(df, features=["price", "age"])
    with pytest.warns(UserWarning, match="choices say nothing of their coefficients: 'one'"):
        data = read(df, features=["price", "one"])
    assert data.num_features == 2
    few = df[df["when"] < 9]  # What is known of a new person must be read.
    with pytest.warns(UserWarning, match="nothing of their coefficients: 'age', 'one'"):
        read(few, features=["price", "age", "one"])


def test_a_summary_counts_situations_and_names_of_alternatives() -> None:
    """Five situations of two to four of four modes; best and worst are two choices of one."""
    data = read(features=FEATURES)
    assert data.alternatives[data.item_names.get_indexer(["bob / 2: train"])].tolist() == ["train"]
    summary = data.summary()
    assert (summary.alternative_names, summary.component_sizes) == (4, (4, 3, 3, 2, 2))
    rows = dict(summary.rows())
    assert rows["choice situations"] == "5"
    assert rows["alternatives"] == "2 to 4 a situation; 4 distinct names"
    assert rows["attributes"] == "2 of an alternative"
    assert rows["choices a person"] == "1 to 2, median 2"
    assert not {"items", "comparisons", "choice sets", "connected components"} & set(rows)
    df = random_trips()
    both = read(df, features=FEATURES, worst="last")
    assert dict(both.summary().rows())["choice situations"] == "40"
    assert both.num_judgements == 40 + (df.groupby("when").size() > 2).sum()
    assert len(data.subset([1]).summary().component_sizes) == 2
    assert read().summary().alternative_names == 0
    with pytest.raises(ValueError, match="alternatives must name the alternative of each of the 2"):
        Preferences([0], [1], [1], [0, 1], items=np.eye(2), alternatives=["bus"])


# Real data, read in place.


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
@pytest.mark.parametrize("name", ["electricity", "yogurt", "cars_us"])
def test_real_choices_with_features_of_items_and_of_rows(name: str) -> None:
    df = pd.read_csv(SHARED / f"{name}.csv.gz")
    df = df.rename(columns={"user": "who", "situation": "when", "item": "mode"})
    df = df.assign(taken=(df["rank"] == 1).astype(int))
    items = pd.read_csv(SHARED / f"{name}_items.csv.gz", index_col="item")
    shared = read(df, items=items)
    rows = read(df.join(items, on="mode"), features=list(items.columns))
    size = df.groupby(["who", "when"]).size()
    for data in (shared, rows):
        assert data.num_judgements == len(size)
        assert data.num_comparisons == int((size - 1).sum())
    assert listed(shared) == listed(rows)
    for side in ("left", "right"):
        np.testing.assert_array_equal(
            shared.items[getattr(shared, side)], rows.items[getattr(rows, side)]
        )
