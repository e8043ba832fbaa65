"""A table whose columns are read once each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import canonical_names, factorise_names, find_distinct

__all__ = ["Columns"]


class Columns:
    """Holds a table, and what its columns hold as far as these have been read.

    Args:
        df: The table.
    """

    def __init__(self, df: pd.DataFrame) -> None:
        self.df = df
        self._values: dict[object, tuple[np.ndarray, Any]] = {}
        self._names: dict[object, pd.Index] = {}

    def values(self, column: str) -> tuple[np.ndarray, Any]:
        """Reads the values of a column as :func:`find_distinct` does.

        Args:
            column: Name of the column.

        Returns:
            The position of each row's value, (R,), and the different values in order of appearance.
            Values without a hash count as different.
        """
        if column not in self._values:
            try:
                self._values[column] = find_distinct(self.df[column])
            except TypeError:
                rows = np.arange(len(self.df))
                self._values[column] = rows, self.df[column].to_numpy(dtype=object)
        return self._values[column]

    def missing(self, column: str) -> np.ndarray:
        """Lists the rows without a value in a column."""
        if self.df[column].dtype != object:
            return np.flatnonzero(self.df[column].isna())
        code, values = self.values(column)
        return np.flatnonzero(pd.isna(values)[code])

    def names(self, argument: str, column: str) -> tuple[np.ndarray, pd.Index]:
        """Reads a column of names as :func:`factorise_names` does.

        Args:
            argument: What the column is, for messages.
            column: Name of the column.

        Returns:
            The position of each row's name, (R,), and the different names in order of appearance.
        """
        code, values = self.values(column)
        if column not in self._names:
            if len(values) == len(code):  # Perhaps values without a hash.
                return factorise_names(argument, self.df[column])
            self._names[column] = canonical_names(argument, values)
        return code, self._names[column]
