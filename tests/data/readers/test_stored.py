"""Comparisons on disk are those of the same table in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fssa_bayes.data.readers.stored as module
from fssa_bayes import ELBO, HeterogeneousBTL, MaximumLikelihood, NeuralProcessGuide, Preferences
from fssa_bayes import fit as fit_model

COLUMNS = {"user": "who", "left": "a", "right": "b", "choice": "won"}


@pytest.fixture
def df() -> pd.DataFrame:
    """Comparisons of 40 people, some of them with one comparison or with ties alone."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 8, size=40)
    who = np.repeat([f"u{number:02}" for number in range(40)], counts)
    left = rng.integers(8, size=len(who))
    right = (left + 1 + np.arange(len(who)) % 7) % 8
    won = rng.choice(["left", "right", "tie"], size=len(who), p=[0.5, 0.4, 0.1])
    names = np.array(["h", "g", "f", "e", "d", "c", "b", "a"])
    table = pd.DataFrame({"who": who, "a": names[left], "b": names[right], "won": won})
    table.loc[table["who"] == "u05", "won"] = "tie"
    return table


def write(df: pd.DataFrame, path: Path, rows: int = 1000) -> Path:
    pq.write_table(pa.Table.from_pandas(df, preserve_index=False), path, row_group_size=rows)
    return path


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads 11 rows at a time, so that people are divided between reads."""
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 11)


@pytest.mark.filterwarnings("ignore:.*people have only ties")
@pytest.mark.filterwarnings("ignore:.*rows repeat an earlier row")
@pytest.mark.parametrize("ties", ["drop", "half", "keep"])
@pytest.mark.parametrize("kind", ["names", "numbers", "features", "folder"])
def test_the_data_are_those_of_the_table(
    df: pd.DataFrame, few_rows: None, tmp_path: Path, kind: str, ties: str
) -> None:
    items, path = None, tmp_path / "people.parquet"
    if kind == "numbers":
        df["who"] = df["who"].str[1:].astype(int) - 7
        df["won"] = df["won"].map({"left": 1.0, "right": 0.0, "tie": 0.5})
    if kind == "features":
        index = sorted(df["a"].unique())
        items = pd.DataFrame({"x": np.arange(8.0), "kind": list("ppqqrrpp")}, index=index)
    if kind == "folder":
        (tmp_path / "people.parquet" / "2").mkdir(parents=True)
        write(df[:50], path / "1.parquet")
        write(df[50:], path / "2" / "1.parquet", rows=9)
    else:
        write(df, path, rows=17)
    expected = Preferences.from_dataframe(df, **COLUMNS, items=items, ties=ties)
    data = Preferences.from_parquet(path, **COLUMNS, items=items, ties=ties)
    assert data.digest() == expected.digest()
    assert data.summary() == expected.summary() or str(data.summary()) == str(expected.summary())
    assert data.user_names.equals(expected.user_names)
    assert data.item_names.equals(expected.item_names)
    assert data.dropped_ties == expected.dropped_ties
    assert data.ties == expected.ties
    np.testing.assert_array_equal(data.keys, expected.keys)
    for people in (None, [7, 3, 30]):
        one, other = data.batch(people), expected.batch(people)
        assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("left", "choice"))
    one, other = (each.split_users(0.3, seed=1)[1] for each in (data, expected))
    assert one.digest() == other.digest()


def test_columns_stay_on_disk(df: pd.DataFrame, tmp_path: Path) -> None:
    data = Preferences.from_parquet(write(df, tmp_path / "p.parquet"), **COLUMNS)
    assert all(isinstance(getattr(data, name), np.memmap) for name in ("left", "right", "choice"))
    assert not data.left.flags.writeable


@pytest.mark.parametrize("utility", ["linear", "bilinear"])
def test_a_fit_takes_the_same_path(df: pd.DataFrame, tmp_path: Path, utility: str) -> None:
    path = write(df[df["won"] != "tie"].drop_duplicates(), tmp_path / "p.parquet")
    ends = []
    for data in (
        Preferences.from_parquet(path, **COLUMNS),
        Preferences.from_dataframe(pd.read_parquet(path), **COLUMNS),
    ):
        torch.manual_seed(0)
        model = HeterogeneousBTL.for_data(data, latent_dim=2, utility=utility)
        guide = NeuralProcessGuide(model, hidden_dim=8)
        objective = [ELBO(steps=5, batch_size=8)]
        if utility == "linear":
            objective = [MaximumLikelihood(32), *objective]
        options = {"validation": None, "progress_bar": False}
        history = fit_model(model, guide, data, objective=objective, **options).history
        ends.append(history["loss"].tolist())
    assert ends[0] == ends[1]


def test_a_store_is_made_once(
    df: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = write(df, tmp_path / "p.parquet"), tmp_path / "store"
    first = Preferences.from_parquet(path, **COLUMNS, store=store)
    monkeypatch.setattr(module, "decode_choices", None)  # It would be called to read rows again.
    again = Preferences.from_parquet(path, **COLUMNS, store=store)
    assert again.digest() == first.digest()
    with pytest.raises(FileExistsError, match="store must be a new folder"):
        Preferences.from_parquet(path, **COLUMNS, store=store, ties="half")
    write(df[:30], path)
    with pytest.raises(FileExistsError, match="store must be a new folder"):
        Preferences.from_parquet(path, **COLUMNS, store=store)
    with pytest.raises(FileExistsError, match="store must be a new folder"):
        Preferences.from_parquet(path, **COLUMNS, store=path)


def test_a_damaged_store_is_named(df: pd.DataFrame, tmp_path: Path) -> None:
    path, store = write(df, tmp_path / "p.parquet"), tmp_path / "store"
    Preferences.from_parquet(path, **COLUMNS, store=store)
    with open(store / "left.bin", "ab") as file:
        file.write(b"1")
    with pytest.raises(ValueError, match="left.bin' must have .* bytes, got"):
        Preferences.from_parquet(path, **COLUMNS, store=store)


@pytest.mark.parametrize("distance", [3, 60])
def test_people_in_several_places_are_refused(
    df: pd.DataFrame, few_rows: None, tmp_path: Path, distance: int
) -> None:
    """Within the rows that are read at once, and beyond them."""
    place = df.index[(df["who"] != df["who"].shift()) & (df.index >= distance)][0]
    one = df[:1].assign(who="twice")
    path = write(pd.concat([one, df[:place], one, df[place:]]), tmp_path / "p.parquet")
    store = tmp_path / "store"
    with pytest.raises(ValueError, match="must lie together, got those of user 'twice'"):
        Preferences.from_parquet(path, **COLUMNS, store=store)
    assert not store.exists()


def test_what_is_wrong_is_named(df: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"

    def refuse(changed: pd.DataFrame, message: str, **options: object) -> None:
        store = tmp_path / "store"
        with pytest.raises(ValueError, match=message):
            Preferences.from_parquet(write(changed, path), **COLUMNS | options, store=store)
        assert not store.exists()

    refuse(df.drop(columns="b"), "right='b' is not a column of .*p.parquet")
    refuse(df, "must be different columns", left="b")
    refuse(df, "ties must be one of", ties="lose")
    refuse(df.assign(b=df["a"]), "cannot be compared with itself")
    refuse(df.assign(won="perhaps"), "choice must be 1 / 0 / 0.5")
    refuse(df.assign(won="tie"), "path must hold a comparison, got .* ties")
    refuse(df[:0], "path must hold a comparison")
    refuse(df.assign(who=1.5), "must hold text or whole numbers")
    refuse(df.assign(a=[None, *df["a"][1:]]), "left='a' must have no missing values")
    refuse(df.assign(who=[None, *df["who"][1:]]), "user='who' must have no missing values")
    items = pd.DataFrame({"x": [1.0, 2.0]}, index=["a", "b"])
    refuse(df, "unknown item", items=items)
    content = write(df, path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is no whole Parquet file"):
        Preferences.from_parquet(path, **COLUMNS)
    with pytest.raises(FileNotFoundError, match="path must be a Parquet file"):
        Preferences.from_parquet(tmp_path / "none.parquet", **COLUMNS)
