"""Names of people, items and features in a message."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["check_column", "first_names", "show_cell", "show_value"]


def first_names(names: pd.Index) -> str:
    """Lists at most five names for a message, and counts the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5].tolist()) + more


def show_value(value: object) -> str:
    """Shows the value of a cell without the type that a table gave it."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def check_column(argument: str, column: object) -> None:
    """Raises a TypeError for what cannot be the name of a column, such as the column itself."""
    if not pd.api.types.is_hashable(column):
        raise TypeError(
            f"{argument} must be the name of a column, got {type(column).__name__}: give "
            f"{argument}={getattr(column, 'name', None) or 'name'!r}"
        )


def show_cell(column: pd.Series, row: int) -> str:
    """Shows the cell in a row, counted from 0, of a column."""
    return show_value(column.iloc[row])
