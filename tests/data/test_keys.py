"""Sorting and counting by whole numbers, against NumPy's general functions."""

from __future__ import annotations

import numpy as np
import pytest

from fssa_bayes.data.keys import (
    combine_keys,
    count_keys,
    count_repeated,
    distinct_keys,
    order_by,
    order_within,
)


@pytest.mark.parametrize("size", [1, 7, 300, 70_000, 2**33, 2**61])
@pytest.mark.parametrize("number", [0, 1, 500])
def test_keys_are_ordered_and_counted(number: int, size: int) -> None:
    key = np.random.default_rng(number).integers(size, size=number)
    key[number // 2 :] = key[: number - number // 2]
    distinct, count = np.unique(key, return_counts=True)
    np.testing.assert_array_equal(distinct_keys(key, size), distinct)
    found = count_keys(key, size)
    np.testing.assert_array_equal(found[0], distinct)
    np.testing.assert_array_equal(found[1], count)
    assert count_repeated(key) == (count - 1).sum()
    np.testing.assert_array_equal(order_by(key, size), np.argsort(key, kind="stable"))
    ordered = np.sort(key)
    np.testing.assert_array_equal(order_by(ordered, size), np.arange(number))


@pytest.mark.parametrize("largest", [5, 2**31, 2**45])
def test_combined_keys_have_the_order_of_their_columns(largest: int) -> None:
    """Three columns of 45 bits do not fit into one number as they are."""
    rng = np.random.default_rng(0)
    values = np.append(rng.integers(largest, size=20), largest - 1)
    columns = [rng.choice(values, size=300) for _ in range(3)]
    key, size = combine_keys(columns, [largest] * 3)
    assert key.min() >= 0
    assert key.max() < size
    np.testing.assert_array_equal(np.argsort(key, kind="stable"), np.lexsort(columns[::-1]))
    _, place = np.unique(np.stack(columns), axis=1, return_inverse=True)
    np.testing.assert_array_equal(np.unique(key, return_inverse=True)[1], place)


def test_rows_are_ordered_within_their_groups() -> None:
    rng = np.random.default_rng(0)
    group, value = np.sort(rng.integers(40, size=200)), rng.integers(3, size=200)
    np.testing.assert_array_equal(order_within(group, value), np.lexsort((value, group)))
    assert order_within(group[:0], value[:0]).tolist() == []
