"""Tables of wins, against the estimates that were published for one of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import Preferences
from fssa_bayes.baselines import HomogeneousBTL

# Stigler (1994), Citation patterns in the journals of statistics and probability.
CITATIONS = pd.DataFrame(
    [
        ("Biometrika", "Comm Statist", 730, 33),
        ("Biometrika", "JASA", 498, 320),
        ("Biometrika", "JRSS-B", 221, 284),
        ("Comm Statist", "JASA", 68, 813),
        ("Comm Statist", "JRSS-B", 17, 276),
        ("JASA", "JRSS-B", 142, 325),
    ],
    columns=["i", "j", "n_ij", "n_ji"],
)
WINS = {"left": "i", "right": "j", "left_wins": "n_ij", "right_wins": "n_ji"}


def long_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a comparison, written out."""
    rows = [
        (row.i, row.j, choice)
        for row in table.itertuples()
        for choice, number in ((1, row.n_ij), (0, row.n_ji))
        for _ in range(number)
    ]
    return pd.DataFrame(rows, columns=["i", "j", "y"])


def test_published_abilities_of_journals() -> None:
    """Agresti (2002), Categorical data analysis, p. 438, and the R package BradleyTerry2."""
    data = Preferences.from_counts(CITATIONS, **WINS)
    found = HomogeneousBTL().fit(data, progress_bar=False).coefficients()["estimate"]
    found = found - found["Biometrika"]
    expected = {"Comm Statist": -2.94907, "JASA": -0.47957, "JRSS-B": 0.26895}
    for journal, ability in expected.items():
        assert found[journal] == pytest.approx(ability, abs=2e-5)


def test_the_estimates_are_those_of_the_long_table_to_the_bit() -> None:
    counted = Preferences.from_counts(CITATIONS, **WINS)
    long = Preferences.from_dataframe(long_table(CITATIONS), left="i", right="j", choice="y")
    assert counted.digest() == long.digest()
    shuffled = long_table(CITATIONS).sample(frac=1, random_state=1)
    tables = [HomogeneousBTL().fit(d, progress_bar=False).coefficients() for d in (counted, long)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    other = Preferences.from_dataframe(shuffled, left="i", right="j", choice="y")
    again = HomogeneousBTL().fit(other, progress_bar=False).coefficients()
    np.testing.assert_allclose(
        again.loc[tables[0].index, "estimate"].diff()[1:],
        tables[0]["estimate"].diff()[1:],
        atol=1e-6,
    )


def test_ties_people_and_sides() -> None:
    table = pd.DataFrame(
        {
            "judge": ["u", "v", "u"],
            "i": ["a", "a", "c"],
            "j": ["b", "b", "a"],
            "n_ij": [1, 0, 2],
            "n_ji": [0, 1, 0],
            "even": [1, 2, 0],
            "home": [1, 0, -1],
        }
    )
    data = Preferences.from_counts(table, **WINS, ties="even", user="judge", side="home")
    assert data.ties == "keep"
    assert data.user_names.tolist() == ["u", "v"]
    assert data.counts.tolist() == [4, 3]
    assert data.choice.tolist() == [1.0, 0.5, 1.0, 1.0, 0.0, 0.5, 0.5]
    assert data.side.tolist() == [1, 1, -1, -1, 0, 0, 0]
    assert Preferences.from_counts(table, **WINS).num_comparisons == 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"n_ij": [1, 2, 3, 4, 5, -1]},
            "'n_ij' must hold whole numbers from 0, got .*-1",
        ),
        (
            {"n_ji": [1, 2, np.nan, 4, 5, 6]},
            "'n_ji' must have no missing values, got 1",
        ),
        ({"n_ij": 0, "n_ji": 0}, "counts must add up to 1 to .* got 0"),
        ({"j": CITATIONS["i"]}, "an item cannot be compared with itself: 'Biometrika'"),
    ],
)
def test_bad_numbers_are_refused(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Preferences.from_counts(CITATIONS.assign(**change), **WINS)
    with pytest.raises(ValueError, match="left_wins='wins' is not a column of df"):
        Preferences.from_counts(CITATIONS, **WINS | {"left_wins": "wins"})
