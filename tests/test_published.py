"""Estimates and standard errors of differences beside those that established software prints.

Where every comparison stands alone, the error of these programs is the classical one,
`kind="hessian"`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import Preferences
from fssa_bayes.baselines import HomogeneousBTL


def expand(rows: list[tuple]) -> Preferences:
    """One comparison a row and a judge of its own, from (left, right, wins of left, of right)."""
    table = pd.DataFrame(rows, columns=["left", "right", "won", "lost"])
    parts = [
        table.loc[table.index.repeat(table[column]), ["left", "right"]].assign(choice=choice)
        for column, choice in (("won", 1), ("lost", 0))
    ]
    games = pd.concat(parts, ignore_index=True)
    games["judge"] = np.arange(len(games))
    return Preferences.from_dataframe(
        games, user="judge", left="left", right="right", choice="choice"
    )


def upper_triangle(names: list[str], wins: np.ndarray) -> list[tuple]:
    """Pairs with their wins, from a matrix of wins of the row over the column."""
    pairs = zip(*np.triu_indices(len(names), 1), strict=True)
    return [(names[i], names[j], wins[i, j], wins[j, i]) for i, j in pairs]


JOURNALS = ["Biometrika", "Comm Statist", "JASA", "JRSS-B"]


def test_citations_beside_bradleyterry2() -> None:
    """Citations between four journals of statistics (Stigler 1994; Agresti 2002, page 448).

    Turner & Firth (2012), Bradley-Terry models in R, JSS 48(9). The figures are those of the
    package's saved output, `tests/BTabilities.Rout.save`: relative to two journals, and sum to
    zero.
    """
    cited = np.array([[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]])
    baseline = HomogeneousBTL().fit(expand(upper_triangle(JOURNALS, cited)), progress_bar=False)
    ability = {
        "Biometrika": [-2.9490725, -0.4795698, 0.2689541],
        "JASA": [0.4795698, -2.4695027, 0.7485238],
    }
    error = {
        "Biometrika": [0.10254534, 0.06058873, 0.07082997],
        "JASA": [0.06058873, 0.09817049, 0.07294356],
    }
    for reference, expected in ability.items():
        others = [name for name in JOURNALS if name != reference]
        table = baseline.contrast([(name, reference) for name in others], kind="hessian")
        np.testing.assert_allclose(table["estimate"], expected, atol=2e-6)
        np.testing.assert_allclose(table["standard_error"], error[reference], atol=2e-6)
        ranked = baseline.result.ranking(reference=reference, kind="hessian").loc[others]
        np.testing.assert_allclose(ranked["standard_error"], error[reference], atol=2e-6)
    assert table.index[0] == "Biometrika - JASA"
    centred = baseline.vcov("hessian").loc[JOURNALS, JOURNALS]
    printed = [0.04333047, 0.07257974, 0.04164102, 0.05304699]
    np.testing.assert_allclose(np.sqrt(np.diag(centred)), printed, atol=2e-6)
    utility = baseline.coefficients().loc[JOURNALS, "estimate"]
    np.testing.assert_allclose(utility, [0.7899221, -2.1591504, 0.3103523, 1.0588761], atol=2e-6)


BASEBALL = """Milwaukee Detroit 4 3, Milwaukee Toronto 4 2, Milwaukee NewYork 4 3,
Milwaukee Boston 6 1, Milwaukee Cleveland 4 2, Milwaukee Baltimore 6 0, Detroit Milwaukee 3 3,
Detroit Toronto 4 2, Detroit NewYork 4 3, Detroit Boston 6 0, Detroit Cleveland 6 1,
Detroit Baltimore 4 3, Toronto Milwaukee 2 5, Toronto Detroit 4 3, Toronto NewYork 2 4,
Toronto Boston 4 3, Toronto Cleveland 4 2, Toronto Baltimore 6 0, NewYork Milwaukee 3 3,
NewYork Detroit 5 1, NewYork Toronto 2 5, NewYork Boston 4 3, NewYork Cleveland 4 2,
NewYork Baltimore 6 1, Boston Milwaukee 5 1, Boston Detroit 2 5, Boston Toronto 3 3,
Boston NewYork 4 2, Boston Cleveland 5 2, Boston Baltimore 6 0, Cleveland Milwaukee 2 5,
Cleveland Detroit 3 3, Cleveland Toronto 3 4, Cleveland NewYork 4 3, Cleveland Boston 4 2,
Cleveland Baltimore 2 4, Baltimore Milwaukee 2 5, Baltimore Detroit 1 5, Baltimore Toronto 1 6,
Baltimore NewYork 2 4, Baltimore Boston 1 6, Baltimore Cleveland 3 4"""
GAMES = [
    (home, away, int(won), int(lost))
    for home, away, won, lost in (row.split() for row in BASEBALL.split(","))
]
TEAMS = ["Boston", "Cleveland", "Detroit", "Milwaukee", "NewYork", "Toronto"]


@pytest.fixture(scope="module")
def baseball() -> HomogeneousBTL:
    """The American League's Eastern Division of 1987, the home team on the left."""
    return HomogeneousBTL(position_bias=True).fit(expand(GAMES), progress_bar=False)


def test_home_advantage_beside_bradleyterry2(baseball: HomogeneousBTL) -> None:
    """Agresti (2002), page 438; the package's saved output, `tests/baseball.Rout.save`."""
    pairs = [(team, "Baltimore") for team in TEAMS]
    table = baseball.contrast([*pairs, {"position bias": 1}], kind="hessian")
    printed = [1.1438, 0.7047, 1.4754, 1.6196, 1.2813, 1.3271, 0.3023]
    errors = [0.3378, 0.3350, 0.3446, 0.3474, 0.3404, 0.3403, 0.1309]
    p_values = [0.000710, 0.035417, 1.85e-05, 3.13e-06, 0.000167, 9.64e-05, 0.020981]
    np.testing.assert_allclose(table["estimate"], printed, atol=6e-5)
    np.testing.assert_allclose(table["standard_error"], errors, atol=6e-5)
    np.testing.assert_allclose(table["p_value"], p_values, rtol=5e-3)


def test_home_advantage_beside_the_log_linear_model(baseball: HomogeneousBTL) -> None:
    """The form in which prefmod fits these data, as its help page on `baseball` shows.

    Counts of wins are Poisson with a parameter of every pair of teams on every ground, and ± λ of
    the teams: λ is half a utility (Dittrich & Hatzinger 2009, Psychology Science Quarterly 51). No
    printed figures were found: the maximum is found here by Newton's method, with the Hessian in
    closed form.
    """
    names = ["Baltimore", *TEAMS]
    eye = np.eye(len(names))
    rows, counts = [], []
    for number, (home, away, won, lost) in enumerate(GAMES):
        difference = eye[names.index(home)] - eye[names.index(away)]
        pair = np.eye(len(GAMES))[number]
        for sign, count in ((1, won), (-1, lost)):
            rows.append([*(sign * difference[1:]), sign, *pair])
            counts.append(count)
    design, counts = np.array(rows, dtype=float), np.array(counts, dtype=float)
    theta = np.zeros(design.shape[1])
    for _ in range(30):
        mean = np.exp(design @ theta)
        hessian = (design * mean[:, None]).T @ design
        theta = theta + np.linalg.solve(hessian, design.T @ (counts - mean))
    error = np.sqrt(np.diag(np.linalg.inv(hessian)))
    pairs = [(team, "Baltimore") for team in TEAMS]
    table = baseball.contrast([*pairs, {"position bias": 1}], kind="hessian")
    np.testing.assert_allclose(table["estimate"], 2 * theta[:7], rtol=1e-4)
    np.testing.assert_allclose(table["standard_error"], 2 * error[:7], rtol=1e-5)


def test_german_parties_beside_psychotools() -> None:
    """Preferences of 192 people for six parties (`GermanParties2009`), one the abstention.

    Counts, estimates relative to FDP and standard errors are those of the package's saved output,
    `tests/Examples/psychotools-Ex.Rout.save`, of `summary(btmodel(preference))`.
    """
    names = ["none", "Linke", "Gruene", "SPD", "CDU/CSU", "FDP"]
    wins = [119, 25, 23, 38, 34, 124, 69, 76, 128, 125, 83, 70, 137, 134, 106]
    pairs = [(i, j) for j in range(6) for i in range(j)]  # In the order in which they are printed.
    rows = [(names[i], names[j], n, 192 - n) for (i, j), n in zip(pairs, wins, strict=True)]
    baseline = HomogeneousBTL().fit(expand(rows), progress_bar=False)
    table = baseline.contrast([(name, "FDP") for name in names[:-1]], kind="hessian")
    printed = [-0.3756, -0.6161, 1.1858, 0.8131, 0.1756]
    np.testing.assert_allclose(table["estimate"], printed, atol=6e-5)
    errors = [0.0890, 0.0910, 0.0951, 0.0907, 0.0875]
    np.testing.assert_allclose(table["standard_error"], errors, atol=6e-5)
    assert table.loc["CDU/CSU - FDP", "p_value"] == pytest.approx(0.045, abs=5e-4)
    assert baseline.result.log_marginal_likelihood().value == pytest.approx(-1720, abs=5)
