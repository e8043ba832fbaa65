"""Utilities of items to people, centred over the items."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fssa_bayes.model import HeterogeneousBTL

__all__ = ["centred_utilities"]


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
