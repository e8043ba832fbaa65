"""Data sets of choice sets: those that come with the package, and the readers of others."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import HeterogeneousBTL, fit
from fssa_bayes.data import Preferences
from fssa_bayes.datasets import cars_us, electricity, swiss_route, yogurt

ROOT = Path(__file__).parents[2]
FILES = resources.files("fssa_bayes.datasets") / "files"


@pytest.fixture(scope="module", params=[electricity, yogurt], ids=["electricity", "yogurt"])
def shipped(request: pytest.FixtureRequest) -> tuple[ModuleType, Preferences]:
    return request.param, request.param.read()


# People and choices, choices of one person, features: as the sources state them.
SIZES = {
    electricity: (361, 4308, 8, 12, ["pf", "cl", "loc", "wk", "tod", "seas"]),
    yogurt: (100, 2412, 4, 185, ["price", "feat", "hiland", "weight", "yoplait"]),
}


def test_shipped_data_have_the_sizes_of_their_sources(
    shipped: tuple[ModuleType, Preferences],
) -> None:
    module, data = shipped
    people, choices, fewest, most, features = SIZES[module]
    assert (len(data), data.num_judgements) == (people, choices)
    assert (data.judgement_counts.min(), data.judgement_counts.max()) == (fewest, most)
    assert list(data.feature_names) == features
    assert list(data.user_names) == [str(number) for number in range(1, people + 1)]


def log_likelihood(value: np.ndarray, group: np.ndarray, chosen: np.ndarray) -> float:
    """Returns the log-likelihood of choices among alternatives with these utilities."""
    total = pd.Series(np.exp(value)).groupby(group).sum()
    return float(value[chosen].sum() - np.log(total).sum())


def test_the_long_table_has_the_choices_of_the_data(
    shipped: tuple[ModuleType, Preferences],
) -> None:
    """Under coefficients drawn at random."""
    module, data = shipped
    table, features = module.table(), list(data.feature_names)
    beta = np.random.default_rng(0).normal(size=len(features)) / 5
    situation = table.groupby(["user", "situation"]).ngroup().to_numpy()
    value = table[features].to_numpy() @ beta
    found = log_likelihood(value, situation, table["chosen"].to_numpy() == 1)
    slots, _ = data.judgements.list_slots(data.left, data.right, data.choice)
    value = data.items.double().numpy()[slots.item] @ beta
    assert found == pytest.approx(log_likelihood(value, slots.ranking, slots.place == 1))
    assert table["alternative"].value_counts().tolist() == [data.num_judgements] * 4


def test_logits_of_shipped_data_have_the_published_log_likelihood(
    shipped: tuple[ModuleType, Preferences],
) -> None:
    module, data = shipped
    model = HeterogeneousBTL(data.items.shape[1], latent_dim=0, utility="linear")
    result = fit(model, None, data, progress_bar=False)
    value = result.log_marginal_likelihood().value
    assert round(value, 3) == module.LOG_LIKELIHOOD["homogeneous"]


def test_market_shares_of_yogurt_are_those_of_the_source() -> None:
    choices = pd.read_csv(FILES / "yogurt.csv.gz")
    items = pd.read_csv(FILES / "yogurt_items.csv.gz", index_col="item")
    bought = items.loc[choices["item"][choices["rank"] == 1], ["yoplait", "weight", "hiland"]]
    # logitr's manual: Yoplait, Weight Watchers and Hiland 34, 23 and 3 %, Dannon the others.
    np.testing.assert_allclose(bought.mean(), [0.34, 0.23, 0.03], atol=0.005)


def test_notice_names_the_holder_and_every_file() -> None:
    text = (FILES / "NOTICE").read_text()
    assert "Copyright (c) 2014-2026 John Paul Helveston" in text
    assert "MIT License" in text
    assert "https://github.com/jhelvy/logitr" in text
    data = [file.name for file in FILES.iterdir() if file.name != "NOTICE"]
    assert len(data) == 4
    assert all(name in text for name in data)


@pytest.mark.slow
def test_wheel_holds_data_pages_and_notice(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="it builds the wheel")
    assert setuptools
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "fssa_bayes"):
        os.symlink(ROOT / name, source / name)
    # The backend writes its own folders where it runs, among them none of the source's.
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = FILES.parents[1]
    data = [file for folder in (FILES, package / "serve" / "static") for file in folder.iterdir()]
    data += [package / "py.typed", *(package / "serve" / "templates").iterdir()]
    assert {str(file.relative_to(package.parent)) for file in data} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fssa_bayes"}
    assert any(name.endswith("licenses/fssa_bayes/datasets/files/NOTICE") for name in names)


def test_licence_of_the_distribution_names_that_of_the_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0 AND MIT"


# Files that are read in place.


def test_cars_are_read_with_features_beside_them(tmp_path: Path) -> None:
    path = tmp_path / cars_us.FILE
    rows = {"user": [1, 1, 1, 1, 2, 2], "situation": [1, 1, 2, 2, 1, 1]}
    rows |= {"item": ["a", "b", "a", "c", "c", "b"], "rank": [1, None, None, 1, 1, None]}
    pd.DataFrame(rows).to_csv(path, index=False)
    features = pd.DataFrame({"item": ["a", "b", "c"], "price": [15, 18, 32], "hev": [0, 1, 0]})
    features.to_csv(tmp_path / cars_us.ITEMS, index=False)
    data = cars_us.read(path)
    assert data.judgement_counts.tolist() == [2, 1]
    left, right = (data.item_names[side] for side in (data.left, data.right))
    chosen = np.where(data.choice == 1, left, right)
    assert list(chosen) == ["a", "c", "c"]
    np.testing.assert_array_equal(data.items[:, 0], [15, 18, 32])
    other = tmp_path / "other.csv"
    features.assign(price=1.5 * features["price"]).to_csv(other, index=False)
    np.testing.assert_array_equal(cars_us.read(path, other).items[:, 0], [22.5, 27, 48])


def test_routes_are_read_with_features_and_covariates_beside_them(tmp_path: Path) -> None:
    path = tmp_path / swiss_route.FILE
    rows = {"user": [24, 24, 31], "left": ["r0", "r1", "r2"], "right": ["r1", "r2", "r0"]}
    pd.DataFrame(rows | {"choice": [0, 1, 1]}).to_csv(path, index=False)
    features = pd.DataFrame({"item": ["r0", "r1", "r2"], "tt": [58, 30, 20], "tc": [7, 8, 9]})
    features.to_csv(tmp_path / swiss_route.ITEMS, index=False)
    (tmp_path / swiss_route.USERS).write_text("user,income\n31,50000\n24,10000\n")
    data = swiss_route.read(path)
    assert list(data.user_names) == ["24", "31"]
    assert data.choice.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(data.items[data.left], [[58, 7], [30, 8], [20, 9]])
    np.testing.assert_array_equal(data.covariates[:, 0], [10000, 50000])


@pytest.mark.parametrize("module", [cars_us, swiss_route], ids=["cars_us", "swiss_route"])
def test_missing_files_are_named(module: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=module.ITEMS):
        module.read(tmp_path / module.FILE)
