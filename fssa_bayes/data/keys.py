"""Sorting and counting of rows by whole numbers, in time in proportion to the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

__all__ = [
    "combine_keys",
    "count_keys",
    "count_repeated",
    "distinct_keys",
    "order_by",
    "order_within",
]

_CELLS = 4  # Possible keys for each row up to which a table of all of them is faster than sorting.
_LARGEST = 2**63 - 1


def combine_keys(columns: Sequence[np.ndarray], sizes: Sequence[int]) -> tuple[np.ndarray, int]:
    """Combines columns of whole numbers (R,) to one, equal where all of them are.

    Args:
        columns: Numbers from 0; rows are in the order of the first column, then of the second, ….
        sizes: A number for each column that is larger than all in it.

    Returns:
        The keys, int64 (R,), and a number that is larger than all of them.
    """
    key, size = columns[0].astype(np.int64), int(sizes[0])
    for column, number in zip(columns[1:], sizes[1:], strict=True):
        if size > _LARGEST // number:  # No more than the rows are different.
            distinct, key = np.unique(key, return_inverse=True)
            size = len(distinct)
        key *= number
        key += column
        size *= number
    return key, size


def distinct_keys(key: np.ndarray, size: int) -> np.ndarray:
    """Lists the different keys in order.

    Args:
        key: Whole numbers from 0, with shape (R,).
        size: A number that is larger than all of them.
    """
    if size > _CELLS * len(key):
        ordered = np.sort(key)  # np.unique hashes first, which takes a hundred times as long.
        return ordered[np.diff(ordered, prepend=-1) != 0]
    found = np.zeros(size, dtype=bool)
    found[key] = True
    return np.flatnonzero(found)


def count_keys(
    key: np.ndarray, size: int, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Lists the different keys in order, and how often each occurs; as :func:`distinct_keys`.

    With weights (R,) those of equal keys are added up, where without each has weight 1.
    """
    if weight is not None:
        distinct, place = np.unique(key, return_inverse=True)
        return distinct, np.bincount(place, weight, minlength=len(distinct))
    if size > _CELLS * len(key):
        return np.unique(key, return_counts=True)
    count = np.bincount(key, minlength=size)
    distinct = np.flatnonzero(count)
    return distinct, count[distinct]


def count_repeated(key: np.ndarray) -> int:
    """Counts the rows whose key (R,) an earlier row has."""
    ordered = np.sort(key)
    return int((ordered[1:] == ordered[:-1]).sum())


def order_by(key: np.ndarray, size: int) -> np.ndarray:
    """Returns the positions of rows in the order of their keys, equal ones as they stand.

    Args:
        key: Whole numbers from 0, with shape (R,).
        size: A number that is larger than all of them.
    """
    if (key[1:] >= key[:-1]).all():
        return np.arange(len(key))
    if size > _CELLS * len(key):
        return np.argsort(key, kind="stable")
    # The rows of a sparse matrix become its columns by counting, in linear time.
    places = np.int32 if max(size, len(key)) < 2**31 else np.int64
    each = np.arange(len(key) + 1, dtype=places)
    entries = np.ones(len(key), dtype=bool), key.astype(places), each
    return sparse.csr_array(entries, (len(key), size)).tocsc().indices.astype(np.int64)


def order_within(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Returns the positions of rows by group, then by value, equal ones as they stand.

    Args:
        group: Whole numbers from 0, non-decreasing, with shape (R,).
        value: Whole numbers from 0, (R,).
    """
    sizes = (int(part.max(initial=0)) + 1 for part in (group, value))
    # What is in order but for short stretches is sorted in one pass.
    return np.argsort(combine_keys([group, value], list(sizes))[0], kind="stable")
