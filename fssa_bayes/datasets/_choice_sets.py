"""Files of choice sets: one row an alternative on offer, of rank 1 where it was chosen."""

from __future__ import annotations

import os
from pathlib import Path

from fssa_bayes.data import Preferences
from fssa_bayes.datasets import table

__all__ = ["beside", "read_choice_sets"]


def read_choice_sets(path: str | os.PathLike[str], items: str | os.PathLike[str]) -> Preferences:
    """Reads columns `user`, `situation`, `item` and `rank`, and the features of `items`."""
    columns = {"user": "user", "ranking": "situation", "item": "item", "rank": "rank"}
    return table.read(path, items=items, **columns).data


def beside(path: str | os.PathLike[str], name: str) -> Path:
    """Returns the path of another file in the folder of a file."""
    return Path(path).parent / name
