"""Conversion and checks of what the diagnostics are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "LEAST_USERS",
    "Comparisons",
    "as_array",
    "as_tensor",
    "check_level",
    "check_number",
    "check_pit",
    "comparisons",
    "flatten",
    "group_index",
    "normalised_weights",
    "quantity_names",
    "require",
    "user_weights",
]

LEAST_USERS = 20  # With fewer users a band is so wide that next to nothing can be rejected.


def as_array(name: str, values: ArrayLike) -> np.ndarray:
    """Converts numbers of any kind to a float64 array on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {values!r:.60}") from error


def as_tensor(
    name: str, values: ArrayLike, shape: tuple[int | str, ...], *, finite: bool = True
) -> Tensor:
    """Converts to a tensor without gradient and checks its shape, in which a letter is any size."""
    if not isinstance(values, Tensor):
        values = torch.from_numpy(as_array(name, values).copy())
    values = values.detach()
    if not values.is_floating_point():
        values = values.double()
    fits = values.dim() == len(shape) and all(
        size > 0 and (isinstance(wanted, str) or size == wanted)
        for size, wanted in zip(values.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(
            f"{name} must have shape ({wanted}) and not be empty, got {tuple(values.shape)}"
        )
    if finite:
        require(name, values, torch.isfinite(values), "be finite")
    return values


def require(name: str, values: np.ndarray | Tensor, good: np.ndarray | Tensor, rule: str) -> None:
    """Raises for the first value that is not good."""
    if good.all():
        return
    bad = np.argwhere(~np.asarray(good.cpu() if isinstance(good, Tensor) else good))[0]
    where = tuple(int(i) for i in bad)
    place = where[0] if len(where) == 1 else where
    raise ValueError(f"{name} must {rule}, got {float(values[where])} at {place}")


def check_level(name: str, level: float) -> None:
    """Raises unless a level is a probability strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {level}")


def check_number(name: str, number: int, least: int, of_what: str = "") -> None:
    """Raises if there are fewer than the least number."""
    if number < least:
        raise ValueError(f"{name} must be at least {least}{of_what}, got {number}")


def normalised_weights(log_weights: ArrayLike | None, draws: int, users: int) -> Tensor:
    """Returns weights (S, U) that sum to 1 over the draws, in float64; equal ones if None."""
    if log_weights is None:
        return torch.full((draws, users), 1 / draws, dtype=torch.float64)
    log_weights = as_tensor("log_weights", log_weights, (draws, users), finite=False).cpu().double()
    # Minus infinity is a draw of weight zero.
    require("log_weights", log_weights, log_weights < torch.inf, "be below infinity and not NaN")
    largest = log_weights.amax(0)
    require("the largest of each user's log_weights", largest, largest > -torch.inf, "be finite")
    return log_weights.softmax(0)


def group_index(groups: ArrayLike | None, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted distinct groups, none too small, and the group number of each user."""
    if groups is None:
        labels, index = np.array(["all"], dtype=object), np.zeros(users, dtype=int)
    else:
        groups = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
        if groups.shape != (users,):
            raise ValueError(f"groups must have shape ({users},), one a user, got {groups.shape}")
        if groups.dtype.kind == "f":
            require("groups", groups, ~np.isnan(groups), "not be NaN")
        labels, index = np.unique(groups, return_inverse=True)
    for label, count in zip(labels, np.bincount(index), strict=True):
        check_number(f"the number of users in group {label}", int(count), LEAST_USERS)
    return labels, index


def check_pit(pit: ArrayLike) -> np.ndarray:
    """Converts transforms (U, Q) and checks that they are probabilities."""
    pit = as_array("pit", pit)
    if pit.ndim != 2 or pit.size == 0:
        raise ValueError(f"pit must have shape (U, Q) and not be empty, got {pit.shape}")
    require("pit", pit, (pit >= 0) & (pit <= 1), "lie between 0 and 1")
    return pit


def quantity_names(names: Sequence[str] | None, size: int) -> list:
    """Returns the names of the quantities; their numbers if None."""
    if names is None:
        return list(range(size))
    if isinstance(names, str) or len(names) != size:
        raise ValueError(f"names must have length {size}, one a quantity, got {names!r}")
    return list(names)


@dataclass(frozen=True)
class Comparisons:
    """Holds the real comparisons of a table or a list, one after another.

    Attributes:
        prob: Probability that left is preferred, (n,).
        choice: 1, ½ or 0, (n,).
        user: Number of the person, 0 to num_users − 1, (n,).
        weight: Weight of each comparison in an average, (n,), summing to 1.
        num_users: Number of people with at least one comparison.
    """

    prob: np.ndarray
    choice: np.ndarray
    user: np.ndarray
    weight: np.ndarray
    num_users: int


def comparisons(
    prob: ArrayLike,
    choice: ArrayLike,
    user: ArrayLike | None,
    mask: ArrayLike | None,
    average: str,
    least_users: int,
) -> Comparisons:
    """Checks probabilities and choices and drops the padding."""
    prob, choice, user = flatten({"prob": prob, "choice": choice}, user, mask)
    require("prob", prob, (prob >= 0) & (prob <= 1), "lie between 0 and 1")
    require("choice", choice, np.isin(choice, (0, 0.5, 1)), "be 0, 0.5 or 1")
    index, weight, num_users = user_weights(user, average, least_users)
    return Comparisons(prob, choice, index, weight, num_users)


def flatten(
    tables: dict[str, ArrayLike], user: ArrayLike | None, mask: ArrayLike | None
) -> list[np.ndarray]:
    """Lists the real comparisons of tables (U, N) or vectors (n,), and the person of each.

    In a table padding is where `mask` is False or, without a mask, where the first table is NaN.
    """
    name, *_ = tables
    arrays = {key: as_array(key, values) for key, values in tables.items()}
    first = arrays[name]
    if first.ndim not in (1, 2) or first.size == 0:
        raise ValueError(
            f"{name} must have shape (U, N) or (n,) and not be empty, got {first.shape}"
        )
    for key, values in arrays.items():
        if values.shape != first.shape:
            raise ValueError(f"{key} must have {name}'s shape {first.shape}, got {values.shape}")
    if first.ndim == 2:
        if user is not None:
            raise ValueError("user must be None for a table, whose rows are the people")
        user = np.broadcast_to(np.arange(len(first))[:, None], first.shape)
    else:
        if user is None:
            raise ValueError(f"user must name the person of every comparison of the list {name}")
        user = user.cpu().numpy() if isinstance(user, Tensor) else np.asarray(user)
        if user.shape != first.shape:
            raise ValueError(f"user must have {name}'s shape {first.shape}, got {user.shape}")
    if mask is not None:
        mask = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
        if mask.shape != first.shape or mask.dtype != bool:
            raise ValueError(
                f"mask must be Boolean with {name}'s shape {first.shape}, got {mask.dtype} "
                f"{mask.shape}"
            )
    elif first.ndim == 2:
        mask = ~np.isnan(first)
    else:
        mask = np.ones(first.shape, dtype=bool)
    if not mask.any():
        raise ValueError(f"{name} must hold at least one comparison, got padding alone")
    return [values[mask] for values in arrays.values()] + [user[mask]]


def user_weights(
    user: np.ndarray, average: str, least_users: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers the people and weighs their comparisons; the weights sum to 1."""
    if average not in ("user", "comparison"):
        raise ValueError(f"average must be 'user' or 'comparison', got {average!r}")
    _, index, counts = np.unique(user, return_inverse=True, return_counts=True)
    if len(counts) < least_users:
        raise ValueError(f"the users must be at least {least_users}, got {len(counts)}")
    weight = 1 / counts[index] if average == "user" else np.ones(len(index))
    return index, weight / weight.sum(), len(counts)
