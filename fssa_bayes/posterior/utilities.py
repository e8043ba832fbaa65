"""Utilities of items to people, centred over the items, and the items that a caller names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL, positions, select_features
from fssa_bayes.sampling import Draws

__all__ = [
    "centred_utilities",
    "check_size",
    "check_utilities",
    "difference_table",
    "rank_table",
    "read_items",
]

_MAX_BYTES = 4 * 2**30  # Largest table that a method returns.
_CHUNK = 2**24  # 64 MB in float32.


@torch.no_grad()
def centred_utilities(
    model: HeterogeneousBTL,
    z: Tensor,
    table: Tensor,
    people: Tensor,
    *,
    chunk: int = _CHUNK,
) -> Iterator[tuple[slice, Tensor]]:
    """Yields utilities (S, u, M), centred over the items, of a few people at a time.

    Args:
        model: The model.
        z: Draws with shape (S, U, K).
        table: Features (M, D) or positions (M,) of the items.
        people: Positions of the people wanted.
        chunk: Largest number of utilities of several people that are held at once.
    """
    size = max(1, chunk // (len(z) * len(table)))
    table = table.to(model.device)
    for start in range(0, len(people), size):
        where = slice(start, start + size)
        utility = model.item_utility(table, z[:, people[where]].to(model.device))
        yield where, utility - utility.mean(-1, keepdim=True)


def difference_table(
    model: HeterogeneousBTL, z: Tensor, table: Tensor, people: Tensor
) -> dict[str, np.ndarray]:
    """Compares each person's centred utilities with the average of these people.

    Args:
        model: The model.
        z: Equally weighted draws with shape (S, U, K).
        table: Features (M, D) or positions (M,) of the items.
        people: Positions of the people, u of them.

    Returns:
        The columns of :meth:`Posterior.differences` that tell direction and scale, each (u,).
    """
    total = torch.zeros(len(table), device=model.device)
    for _, utility in centred_utilities(model, z, table, people):
        total += utility.mean(0).sum(0)
    average = total / total.norm()
    direction, scale = [], []
    for _, utility in centred_utilities(model, z, table, people):
        size = utility.norm(dim=-1)
        direction.append((utility @ average / size).cpu())
        scale.append((size / math.sqrt(len(table))).cpu())
    columns, level = {}, torch.tensor([0.5, 0.05, 0.95])
    for name, values in (("direction", direction), ("scale", scale)):
        quantiles = torch.cat(values, 1).quantile(level, 0).numpy()
        columns |= dict(zip((name, f"{name}_lower", f"{name}_upper"), quantiles, strict=True))
    return columns


def read_items(
    model: HeterogeneousBTL, data: Preferences, items: Sequence | Tensor | None
) -> Tensor:
    """Finds the items that a caller means: features with shape (M, D), or positions (M,).

    Args:
        model: The model.
        data: The comparisons, with the items' names and features.
        items: Names of items, or features of new ones; None for all items of the data.

    Raises:
        ValueError: If a name is unknown, features have another shape or are not finite, or items
            are unique to a person and no common set is named.
    """
    if isinstance(items, pd.DataFrame):
        items = select_features(model, items).to_numpy()
    if isinstance(items, np.ndarray) and items.ndim == 2:
        items = torch.from_numpy(np.array(items, dtype=np.float64))
    if isinstance(items, Tensor):
        expected = (model.num_features,)
        if data.items is None or items.shape[1:] != expected or len(items) == 0:
            raise ValueError(
                f"items must be names, or features with shape (M, {expected[0]}) where items "
                f"have features, got shape {tuple(items.shape)}"
            )
        if not torch.isfinite(items).all():
            raise ValueError("items must be finite, got NaN or infinity")
        return items if items.is_floating_point() else items.double()
    if items is None:
        if data.items is not None and not data.items_are_shared:
            raise ValueError(
                "items must name a common set: every item of the table belongs to one person "
                "only, so its utilities cannot be centred over a set common to people"
            )
        index = torch.arange(data.num_items)
    else:
        index = positions("items", items, data.item_names)
    return index if data.items is None else data.items[index]


def rank_table(model: HeterogeneousBTL, draws: Draws, table: Tensor, people: Tensor) -> Tensor:
    """Computes the posterior probability that an item has a rank, as `Posterior.rank_prob` says.

    Args:
        model: The model.
        draws: Weighted draws of z.
        table: Features (M, D) or positions (M,) of the items.
        people: Positions of the people, u of them.

    Returns:
        Probabilities with shape (u, M, M).
    """
    out = torch.zeros(len(people), len(table), len(table))
    weights = draws.log_weights.exp()
    for where, utility in centred_utilities(model, draws.z, table, people):
        rank = utility.argsort(-1, descending=True).argsort(-1).permute(1, 2, 0).cpu()
        weight = weights[:, people[where]].T.unsqueeze(1).expand_as(rank)
        out[where].scatter_add_(-1, rank, weight)
    return out


def check_utilities(model: HeterogeneousBTL, what: str) -> None:
    """Raises a ValueError where a model knows the utilities of items by distribution alone."""
    if model.utility.is_random:
        raise ValueError(
            f"{what} of a DistributionalBTL would take the mean utilities for the utilities, "
            "which it does not know: see item_table(data) for means and standard deviations, "
            "choice_prob(target) for pairs"
        )


def check_size(what: str, shape: tuple[int, int, int]) -> None:
    """Raises a ValueError if a table of this shape would take more memory than is allowed."""
    size = 4 * math.prod(shape)
    if size > _MAX_BYTES:
        raise ValueError(
            f"{what} would need {size / 2**30:.1f} GiB for a table of shape {shape}, more than "
            f"{_MAX_BYTES / 2**30:.0f} GiB: name fewer items= or users=, or take fewer draws"
        )
