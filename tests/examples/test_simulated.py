"""Examples on simulated people run, small."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import run


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    out = run(
        "examples/quickstart.py",
        *("--users", "200", "--test-users", "50", "--steps", "20", "--draws", "200"),
        *("--out", str(tmp_path)),
    )
    assert all(f"\n{utility}  (fitted" in out for utility in ("bilinear", "mlp", "homogeneous"))
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000


@pytest.mark.slow
def test_paper_synthetic(tmp_path: Path) -> None:
    options = ("--users", "100", "--test-users", "60", "--steps", "5", "--draws", "50")
    out = run("examples/paper_synthetic.py", *options, "--out", str(tmp_path))
    assert "Bayes limit, expected" in out
    assert (tmp_path / "paper_synthetic.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "paper_synthetic.csv").set_index(["model", "contexts"])
    assert len(table) == 20
    # A model of one utility cannot use a context: the same people, other pairs.
    assert table.loc["BTL", "accuracy"].between(60, 85).all()
    assert (table["ece"] >= table["ece_lower"]).all()


@pytest.mark.slow
def test_calibration_study(tmp_path: Path) -> None:
    options = [
        *("--users", "150", "--steps", "10", "--refine", "10", "--study-users", "200"),
        *("--draws", "100", "--contexts", "0", "3", "--out", str(tmp_path)),
    ]
    out = run("examples/calibration_study.py", *options)
    assert "simulation-based calibration of the posterior" in out
    assert "People simulated from the truth: estimation error too" in out
    assert (tmp_path / "calibration_study.png").stat().st_size > 10_000
    assert "data:image/png;base64" in (tmp_path / "report.html").read_text(encoding="utf-8")
    checks = pd.read_csv(tmp_path / "checks.csv")
    assert set(checks["verdict"]) <= {"pass", "fail", "note", "skipped"}


@pytest.mark.slow
def test_misspecification(tmp_path: Path) -> None:
    options = ("--users", "100", "--test-users", "100", "--steps", "10", "--draws", "100")
    out = run("examples/misspecification.py", *options, "--out", str(tmp_path))
    for people in ("none", "lapses", "shrunken model", "informative contexts"):
        assert f"\n{people}" in out
    assert (tmp_path / "misspecification.png").stat().st_size > 10_000


@pytest.mark.slow
def test_conflict_study(tmp_path: Path) -> None:
    options = ("--users", "100", "--test-users", "50", "--steps", "5", "--draws", "50")
    out = run("examples/conflict_study.py", *options, "--out", str(tmp_path))
    assert "10 known choices" in out
    table = pd.read_csv(tmp_path / "conflict_study.csv")
    assert len(table) == 3 * 6 * 3
    limits = table[(table["contexts"] == 3) & (table["metric"] == "accuracy")]["limit"]
    assert limits.tolist() == pytest.approx([0.5, 0.6355, 0.789, 0.9375, 0.9922, 1], abs=1e-4)
    assert (tmp_path / "conflict_study.png").stat().st_size > 10_000


@pytest.mark.slow
def test_choosing(tmp_path: Path) -> None:
    run(
        "examples/choosing.py",
        *("--users", "60", "--test-users", "40", "--steps", "5", "--draws", "50"),
        *("--out", str(tmp_path)),
    )
    table = pd.read_csv(tmp_path / "which_objective.csv", index_col=0)
    assert len(table) == 6
    assert (table["less than the best"] <= 0).all()
    dimensions = pd.read_csv(tmp_path / "how_many_latent_dimensions.csv", index_col=0)
    assert dimensions.index.tolist() == [0, 1, 2, 3, 5]
    assert dimensions.loc[0, "variance / truth"] == 0
    assert (tmp_path / "choosing.png").stat().st_size > 10_000


@pytest.mark.slow
def test_rankings_of_a_crowd(tmp_path: Path) -> None:
    """Of a simulated crowd the number of dimensions is chosen, of a file it is given."""
    options = ["--people", "80", "--draws", "100", "--sizes", "0", "10", "--out", str(tmp_path)]
    out = run("examples/rankings_of_a_crowd.py", *options)
    assert "latent dimensions: the fewest within one standard error" in out
    table = pd.read_csv(tmp_path / "rankings_of_a_crowd.csv")
    gains = table[table["predictor"] != "everybody alike"].set_index("known")
    assert gains.loc[10, "gain"] > 2 * gains.loc[10, "standard_error"] > 0
    assert gains.loc[10, "gain"] > gains.loc[0, "gain"]
    assert (tmp_path / "rankings_of_a_crowd.png").stat().st_size > 10_000
    path = tmp_path / "rankings.csv"
    ranks = [np.random.default_rng(person).permutation(4) + 1 for person in range(40)]
    pd.DataFrame(ranks, columns=["tea", "cola", "milk", "juice"]).to_csv(path, index=False)
    own = ("--data", str(path), "--ranks", "tea,cola,milk,juice", "--latent-dim", "1")
    options = ("--draws", "50", "--sizes", "0", "2", "--out", str(tmp_path / "own"))
    out = run("examples/rankings_of_a_crowd.py", *own, *options)
    assert re.search(r"items +4 \(0 never compared\)", out)
    assert len(pd.read_csv(tmp_path / "own" / "rankings_of_a_crowd.csv")) == 4


@pytest.mark.slow
def test_rank_of_heterogeneity(tmp_path: Path) -> None:
    options = ["--people", "40", "--most", "2", "--steps", "5", "--draws", "50"]
    out = run("examples/rank_of_heterogeneity.py", *options, "--out", str(tmp_path))
    assert "Eigenvalues of ΛΛᵀ" in out
    assert "dimensions are shown" in out
    assert (tmp_path / "rank_of_heterogeneity.png").stat().st_size > 10_000


@pytest.mark.slow
def test_compare_with_nuts(tmp_path: Path) -> None:
    options = [
        *("--people", "2", "--users", "50", "--steps", "5", "--draws", "100"),
        *("--chains", "2", "--samples", "4", "--warmup", "4", "--processes", "1"),
        *("--cache", str(tmp_path / "cache"), "--out", str(tmp_path)),
    ]
    out = run("examples/compare_with_nuts.py", *options)
    assert "2 chains of 4 + 4 a person" in out
    assert (tmp_path / "compare_with_nuts.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "compare_with_nuts.csv", header=[0, 1], index_col=0)
    assert table.index.tolist() == ["0", "1", "all"]
    assert table["corrected", "rms Δprob"].between(0, 1).all()
    assert len(list((tmp_path / "cache").glob("*.nc"))) == 2


@pytest.mark.slow
def test_score_at_scale(tmp_path: Path) -> None:
    few = ("--people", "40", "--draws", "50", "--workers", "1", "--out", str(tmp_path))
    out = run("examples/score_at_scale.py", *few)
    assert "41 people, 1 of whom have no scores" in out
    assert "item 'yew' is not known to the model" in out
    assert (tmp_path / "scores.parquet").exists()
    assert (tmp_path / "score_at_scale.png").stat().st_size > 10_000
