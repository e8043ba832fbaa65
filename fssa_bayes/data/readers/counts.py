"""Tables of wins: one row a pair of items, with how often either was preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.readers.columns import Columns
from fssa_bayes.data.readers.pairs import arrange, check_frame, read_count

__all__ = ["read_wins"]

_ANSWERS = {"left_wins": 1.0, "right_wins": 0.0, "ties": 0.5}


def read_wins(
    df: pd.DataFrame,
    columns: Mapping[str, str | None],
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
) -> dict[str, Any]:
    """Reads numbers of wins as the arguments of `Preferences`: see `Preferences.from_counts`.

    Args:
        df: The table.
        columns: Names of the columns `left`, `right`, `left_wins` and `right_wins`; and `ties`,
            `user` and `side`, or None.
        items: Features of the items, or None.
        users: Covariates of the people, or None.
    """
    named = {role: column for role, column in columns.items() if column is not None}
    check_frame(Columns(df), named)
    answers = [role for role in _ANSWERS if role in named]
    count = np.stack([read_count(df, role, named[role]) for role in answers], axis=1)
    rows = np.repeat(np.arange(len(df)), len(answers))  # A row's wins lie beside each other.
    outcome = np.tile(np.float32([_ANSWERS[role] for role in answers]), len(df))
    asked = {role: column for role, column in named.items() if role not in _ANSWERS}
    ties = "keep" if "ties" in named else "half"
    return arrange(Columns(df.iloc[rows]), asked, outcome, count.ravel(), items, users, ties)
