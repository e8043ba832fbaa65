"""The arrays that data are made of, checked one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data.ids import canonical_names
from fssa_bayes.data.precision import LARGEST, storage_type, usable_numbers

__all__ = [
    "check_alternatives",
    "check_choices",
    "check_covariates",
    "check_names",
    "check_offsets",
    "check_pairs",
    "check_people",
    "check_positions",
    "check_sides",
    "check_table",
]


def check_offsets(offsets: np.ndarray) -> np.ndarray:
    """Returns offsets as int64, or refuses those that divide comparisons among no people."""
    offsets = np.asarray(offsets, dtype=np.int64)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(
            "offsets must be non-decreasing, start at 0 and have one entry more than there are "
            f"people (at least one), got shape {offsets.shape}"
        )
    return offsets


def check_names(argument: str, names: Sequence | pd.Index | None, length: int) -> pd.Index:
    """Returns names as an index, positions if None; refuses a wrong number and repeated names."""
    names = pd.RangeIndex(length) if names is None else canonical_names(argument, names)
    if len(names) != length:
        raise ValueError(f"{argument} must have {length} entries, got {len(names)}")
    if not names.is_unique:
        repeated = names[names.duplicated()].tolist()[0]
        raise ValueError(f"{argument} must be unique, got {repeated!r} more than once")
    return names


def check_alternatives(
    alternatives: pd.Categorical | Sequence | None, num_items: int
) -> pd.Categorical | None:
    """Returns the name of the alternative that each item is, or refuses a wrong number of names."""
    if alternatives is None:
        return None
    alternatives = pd.Categorical(alternatives)
    if len(alternatives) != num_items or (alternatives.codes < 0).any():
        raise ValueError(
            f"alternatives must name the alternative of each of the {num_items} items, got "
            f"{int((alternatives.codes >= 0).sum())} names"
        )
    return alternatives


def check_table(argument: str, table: np.ndarray | Tensor, least_columns: int = 1) -> Tensor:
    """Copies a table of finite numbers, or refuses another array.

    Floats of single precision or less are stored in single precision, other numbers in double.
    """
    if isinstance(table, Tensor) and table.dtype == torch.bfloat16:  # NumPy has no such type.
        table = table.float()
    values = np.asarray(table)
    # A copy: a DataFrame may hand out memory that is not to be written to.
    table = torch.from_numpy(np.array(values, dtype=storage_type([values.dtype])))
    if table.ndim != 2 or not len(table) or table.shape[1] < least_columns:
        raise ValueError(
            f"{argument} must be a table with at least one row and one column, "
            f"got shape {tuple(table.shape)}"
        )
    bad = np.argwhere(~usable_numbers(table.numpy()))
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{argument} must be finite, got {table[row, column].item()} in row {row}, column "
            f"{column} ({len(bad)} such entries); the largest size is {LARGEST:g}"
        )
    return table


def check_covariates(
    covariates: np.ndarray | Tensor | None, num_users: int, least_columns: int = 1
) -> Tensor | None:
    """Copies a table with a row of covariates a person, or refuses another number of rows."""
    if covariates is None:
        return None
    table = check_table("covariates", covariates, least_columns)
    if len(table) != num_users:
        raise ValueError(
            f"covariates must have one row per person: {num_users} people, {len(table)} rows"
        )
    return table


def check_positions(
    argument: str, positions: np.ndarray, length: int, num_items: int
) -> np.ndarray:
    """Copies positions of items as int32, or refuses a wrong number and positions of no item."""
    positions = np.asarray(positions)
    if positions.shape != (length,) or not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(
            f"{argument} must be integers with shape ({length},), got {positions.dtype} with "
            f"shape {positions.shape}"
        )
    if length and not (positions.min() >= 0 and positions.max() < num_items):
        wrong = np.flatnonzero((positions < 0) | (positions >= num_items))[0]
        raise ValueError(
            f"{argument} must lie in 0 … {num_items - 1}, got {positions[wrong]} in comparison "
            f"{wrong}"
        )
    return positions.astype(np.int32)


def check_pairs(left: np.ndarray, right: np.ndarray) -> None:
    """Refuses comparisons of an item with itself."""
    same = np.flatnonzero(left == right)
    if len(same):
        raise ValueError(
            f"an item cannot be compared with itself: left = right = {left[same[0]]} in "
            f"comparison {same[0]} ({len(same)} such comparisons)"
        )


def check_choices(choice: np.ndarray, length: int, ranked: np.ndarray | None = None) -> np.ndarray:
    """Returns choices in single precision, or refuses a wrong number and what is no choice.

    Args:
        choice: The choices.
        length: How many there must be.
        ranked: Whether a row may be one of a ranking, whose choices are multiples of ½, (R,).
    """
    choice = np.asarray(choice, dtype=np.float32)
    if choice.shape != (length,):
        raise ValueError(f"choice must have shape ({length},), got {choice.shape}")
    is_choice = np.isin(choice, (0, 0.5, 1))
    if ranked is not None:
        is_choice |= ranked & np.isfinite(choice) & (np.rint(2 * choice) == 2 * choice)
    wrong = np.flatnonzero(~is_choice)
    if len(wrong):
        raise ValueError(
            f"choice must be 0, 0.5 or 1, got {choice[wrong[0]]} in comparison {wrong[0]}"
        )
    return choice


def check_sides(side: np.ndarray | None, length: int) -> np.ndarray | None:
    """Returns sides in single precision, or refuses a wrong number and what is no side."""
    if side is None:
        return None
    side = np.asarray(side, dtype=np.float32)
    if side.shape != (length,):
        raise ValueError(f"side must have shape ({length},), got {side.shape}")
    wrong = np.flatnonzero(~(np.isin(side, (-1, 0, 1)) | np.isnan(side)))
    if len(wrong):
        raise ValueError(
            f"side must be 1 (left), 0 (neither), -1 (right) or NaN (not known), got "
            f"{side[wrong[0]]} in comparison {wrong[0]}"
        )
    return side


def check_people(people: np.ndarray | Sequence[int], num_users: int) -> np.ndarray:
    """Returns positions of people, given as such or as a Boolean mask, or refuses others."""
    people = np.asarray(people)
    if people.dtype == bool:
        if people.shape != (num_users,):
            raise ValueError(
                f"a Boolean people mask must have shape ({num_users},), got {people.shape}"
            )
        return np.flatnonzero(people)
    if people.ndim != 1 or (people.size and not np.issubdtype(people.dtype, np.integer)):
        raise ValueError(
            "people must be a Boolean mask or positions with one dimension, got "
            f"{people.dtype} with shape {people.shape}"
        )
    if people.size and not (people.min() >= 0 and people.max() < num_users):
        raise ValueError(
            f"people must lie in 0 … {num_users - 1}, got {people.min()} … {people.max()}"
        )
    return people.astype(np.int64)
