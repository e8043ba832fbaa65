"""Choice sets that come with the package: files of one row an alternative on offer.

`files/NOTICE` tells where they are from, and their licence.
"""

from __future__ import annotations

from importlib import resources

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._choice_sets import read_choice_sets

__all__ = ["read_shipped"]


def read_shipped(name: str) -> Preferences:
    """Reads the choices and the items of a data set by its name."""
    folder = resources.files("fssa_bayes.datasets") / "files"
    choices, items = folder / f"{name}.csv.gz", folder / f"{name}_items.csv.gz"
    # A package in a zip file has its files unpacked for the time of the reading.
    with resources.as_file(choices) as choices_path, resources.as_file(items) as items_path:
        return read_choice_sets(choices_path, items_path)
