"""Tables of numbers in the precision they are given in, and what their columns vary by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import Preferences
from fssa_bayes.data import coarse_columns, column_moments, constant_columns

PAIRS = ([0, 1], [1, 0], [1, 0], [0, 1, 2])
FRAME = pd.DataFrame({"u": ["x", "y"], "l": ["a", "b"], "r": ["b", "a"], "c": [1, 0]})


@pytest.mark.parametrize(
    ("table", "dtype"),
    [
        (np.array([[1.0], [2.0]]), torch.float64),
        ([[1], [2]], torch.float64),
        (np.array([[True], [False]]), torch.float64),
        (torch.tensor([[1], [2**53]]), torch.float64),
        (np.array([[1.0], [2.0]], dtype=np.float32), torch.float32),
        (np.array([[1.0], [2.0]], dtype=np.float16), torch.float32),
        (torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16), torch.float32),
        (torch.tensor([[1.0], [2.0]]), torch.float32),
        (torch.tensor([[1.0], [2.0]]).double(), torch.float64),
    ],
)
def test_arrays_are_stored_in_the_precision_given(table: Any, dtype: torch.dtype) -> None:
    data = Preferences(*PAIRS, items=table, covariates=table)
    expected = torch.as_tensor(table).to(dtype)
    for stored in (data.items, data.covariates, data.batch().items, data.batch().covariates):
        assert stored.dtype == dtype
        assert torch.equal(stored, expected)


@pytest.mark.parametrize(
    ("types", "dtype"),
    [
        (["float64", "float32"], torch.float64),
        (["int64", "float32"], torch.float64),
        (["Float64", "boolean"], torch.float64),
        (["double[pyarrow]", "int64[pyarrow]"], torch.float64),
        (["float32", "float32"], torch.float32),
        (["Float32", "float16"], torch.float32),
        (["float[pyarrow]", "float32"], torch.float32),
    ],
)
def test_tables_are_stored_in_the_precision_given(types: list[str], dtype: torch.dtype) -> None:
    table = pd.DataFrame({"p": [1, 0], "q": [1, 1]}, index=["b", "a"])
    table = table.astype(dict(zip(table, types, strict=True)))
    data = Preferences.from_dataframe(
        FRAME,
        user="u",
        left="l",
        right="r",
        choice="c",
        items=table,
        users=table.set_axis(["x", "y"]),
    )
    assert (data.items.dtype, data.covariates.dtype) == (dtype, dtype)
    assert data.items.tolist() == data.covariates.tolist() == [[1, 1], [0, 1]]
    rankings = Preferences.from_rankings([["a", "b"]], items=table)
    assert rankings.items.dtype == dtype


def test_numbers_beyond_single_precision_are_features() -> None:
    table = np.array([[1e39, 1.7e18], [3e39, 1.7e18 + 256]])
    assert torch.equal(Preferences(*PAIRS, items=table).items, torch.from_numpy(table))
    for wrong in (1e151, -1e200, np.inf):
        table = np.array([[wrong], [1.0]])
        with pytest.raises(
            ValueError, match=r"items must be finite, got .* largest size is 1e\+150"
        ):
            Preferences(*PAIRS, items=table)
        with pytest.raises(ValueError, match=r"items must be finite, got .* for 'a', column 'p'"):
            Preferences.from_dataframe(
                *(FRAME,), user="u", left="l", right="r", choice="c",
                items=pd.DataFrame(table, index=["a", "b"], columns=["p"]),
            )  # fmt: skip


def test_digest_sees_what_single_precision_rounds(make_data: Callable[..., Preferences]) -> None:
    """Data that single precision holds have the digest that they had when it held all data."""
    whole = np.array([[1.5], [2.0]])
    digests = {
        Preferences(*PAIRS, items=table).digest() for table in (whole, whole.astype(np.float32))
    }
    assert digests == {"fd2f55a134fead3e4024fe1dfefdbad3b99e9df3f638e5e7fd512c60d45ca74a"}
    shifted = [Preferences(*PAIRS, items=whole + shift).digest() for shift in (1.7e9, 1.7e9 + 1)]
    assert len(digests.union(shifted)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_exact_arithmetic(dtype: torch.dtype) -> None:
    """Times of a minute around an offset that double, not single precision, tells apart."""
    seconds = torch.arange(601, dtype=torch.float64)[:, None] * torch.ones(300)
    offset = 1.7e9 if dtype == torch.float64 else 4096.0
    mean, scale = column_moments((offset + seconds).to(dtype))
    assert mean.dtype == scale.dtype == torch.float64
    np.testing.assert_allclose(mean, offset + 300, rtol=1e-15)
    np.testing.assert_allclose(scale, np.sqrt((601**2 - 1) / 12), rtol=1e-12)
    mean, scale = column_moments(torch.full((7, 1), 0.1, dtype=dtype))
    assert (mean.item(), scale.item()) == (torch.tensor(0.1, dtype=dtype).item(), 0.0)


def test_constant_and_coarse_columns_are_told_apart() -> None:
    steps = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    table = torch.stack([1.7e9 + 60 * steps, 1e8 + 0 * steps, 1e12 + steps, steps, 2020 + steps], 1)
    assert constant_columns(table).tolist() == [False, True, False, False, False]
    assert coarse_columns(table).tolist() == [False, False, True, False, False]
    narrow = table.float()
    assert constant_columns(narrow).tolist() == [False, True, True, False, False]
    assert coarse_columns(narrow).tolist() == [True, False, False, False, False]
