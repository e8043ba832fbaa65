"""A table whose columns of names are read once each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import factorise_names

__all__ = ["Columns"]


class Columns:
    """Holds a table, and the names in its columns as far as these have been read.

    Args:
        df: The table.
    """

    def __init__(self, df: pd.DataFrame) -> None:
        self.df = df
        self._read: dict[object, tuple[np.ndarray, pd.Index]] = {}

    def names(self, argument: str, column: str) -> tuple[np.ndarray, pd.Index]:
        """Reads a column of names as :func:`factorise_names` does.

        Args:
            argument: What the column is, for messages.
            column: Name of the column.

        Returns:
            The position of each row's name, (R,), and the different names in order of appearance.
        """
        if column not in self._read:
            self._read[column] = factorise_names(argument, self.df[column])
        return self._read[column]
