"""Tables of numbers: how precisely they are stored, and what their columns vary by.

A table is stored as it is given, in single or in double precision, and centred and scaled in double
precision: a column of times around 1.7e9 seconds varies by less than single precision keeps there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = [
    "LARGEST",
    "coarse_columns",
    "column_moments",
    "constant_columns",
    "digest_parts",
    "storage_type",
    "table_values",
    "usable_numbers",
]

LARGEST = 1e150
"""Numbers of a larger size are refused, as their squares have no finite sum."""

_COLUMNS_AT_ONCE = 256  # A double-precision copy of a whole table of embeddings may not fit.
_LEAST_SPREAD = {torch.float32: 1e-4, torch.float64: 1e-10}


def storage_type(types: Iterable[object]) -> type[np.floating]:
    """Returns single precision where all types are floats of at most that, else double."""
    for dtype in types:
        dtype = getattr(dtype, "numpy_dtype", dtype)  # Of pandas' nullable types.
        is_short = isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize <= 4
        if not is_short:
            return np.float64
    return np.float32


def usable_numbers(values: np.ndarray) -> np.ndarray:
    """Tells which numbers are finite, and of a size whose square is."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(values) & (np.abs(values) <= np.float64(LARGEST))


def table_values(table: pd.DataFrame) -> np.ndarray:
    """Returns the numbers of a table, missing ones as NaN, in the precision that it has."""
    return table.to_numpy(dtype=storage_type(table.dtypes), na_value=np.nan)


def constant_columns(table: Tensor) -> Tensor:
    """Tells which columns of a table (M, D) have one value, (D,)."""
    return table.amin(0) == table.amax(0)


def coarse_columns(table: Tensor) -> Tensor:
    """Tells which columns of a table (M, D) vary by little more than their storage rounds, (D,).

    Such a column spreads, in relation to its largest value, over less than 1e-4 in single
    precision, or 1e-10 in double precision.
    """
    low, high = table.amin(0).double(), table.amax(0).double()
    largest = torch.maximum(low.abs(), high.abs())
    return (low < high) & (high - low < _LEAST_SPREAD[table.dtype] * largest)


def column_moments(table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of the columns of a table (M, D), each double (D,).

    The standard deviation has divisor M. A constant column has exactly its value as the mean, and 0
    as the standard deviation.
    """
    means, deviations = [], []
    for block in table.split(_COLUMNS_AT_ONCE, dim=1):
        wide = block.double()
        constant = constant_columns(wide)
        means.append(torch.where(constant, wide[0], wide.mean(0)))
        deviations.append(wide.std(0, unbiased=False).masked_fill(constant, 0.0))
    return torch.cat(means), torch.cat(deviations)


def digest_parts(table: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns a table in single precision and, where this rounds a number, the table itself."""
    if table is None:
        return ()
    narrow = table.float()
    return (narrow,) if torch.equal(narrow.to(table.dtype), table) else (narrow, table)
