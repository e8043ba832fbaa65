"""Choice sets that come with the package: files of one row an alternative on offer.

`files/NOTICE` tells where they are from, and their licence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pandas as pd

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._choice_sets import read_choice_sets

__all__ = ["read_shipped", "tabulate_shipped"]


@contextmanager
def _find(name: str) -> Iterator[tuple[Path, Path]]:
    """Finds the files of choices and of items of a data set."""
    folder = resources.files("fssa_bayes.datasets") / "files"
    choices, items = folder / f"{name}.csv.gz", folder / f"{name}_items.csv.gz"
    # A package in a zip file has its files unpacked for the time of the reading.
    with resources.as_file(choices) as choices_path, resources.as_file(items) as items_path:
        yield choices_path, items_path


def read_shipped(name: str) -> Preferences:
    """Reads the choices and the items of a data set by its name."""
    with _find(name) as (choices, items):
        return read_choice_sets(choices, items)


def tabulate_shipped(name: str) -> pd.DataFrame:
    """Reads a data set as the table of mlogit and xlogit: one row an alternative on offer.

    Returns:
        Columns `user`, `situation`, `alternative` (1, 2, … in the order on offer), `chosen` (1 or
        0), and the features.
    """
    with _find(name) as (choices, items):
        table, features = pd.read_csv(choices), pd.read_csv(items, index_col="item")
    situation = ["user", "situation"]
    long = table[situation].assign(
        alternative=table.groupby(situation, sort=False).cumcount() + 1,
        chosen=table["rank"].notna().astype(int),
    )
    return long.join(features.loc[table["item"]].reset_index(drop=True))
