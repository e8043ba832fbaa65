"""Shapes in which a person's numbers do not depend, to the last bit, on who else is there.

On a CPU the last digits of a product depend on the numbers of rows and columns where these are
few, those of some functions on the place in memory, those of a sum on its length. So draws are
padded to whole vectors, items and people to a few, and each part of the people is computed in one
thread. On a GPU the random numbers are the same, and results agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes._threads import run_alone
from fssa_bayes.data import Batch
from fssa_bayes.sampling.draws import Draws

__all__ = [
    "accompany",
    "map_people",
    "pad_draws",
    "pad_items",
    "padded_draws",
    "steady_backend",
]

_LANES = 64  # Draws: whole vectors of every processor.
_LEAST = 8  # Rows of a product: fewer are multiplied by other code.

Part = TypeVar("Part")
Result = TypeVar("Result")


def map_people(
    device: torch.device, work: Callable[[Part], Result], parts: Sequence[Part]
) -> list[Result]:
    """Calls `work` for each part of the people, on a CPU in one thread each."""
    if device.type == "cpu":
        return run_alone(work, parts)
    return [work(part) for part in parts]


def steady_backend(device: torch.device) -> str | None:
    """Returns the backend of the kernels that is fastest for large problems, whatever the size."""
    return "chunked" if device.type == "cpu" else None


def pad_draws(values: Tensor, dim: int = 1, value: float = 0.0) -> Tensor:
    """Pads the axis of draws to whole vectors."""
    after = -values.shape[dim] % _LANES
    if not after:
        return values
    return F.pad(values, (0, 0) * (values.ndim - 1 - dim) + (0, after), value=value)


def padded_draws(draws: Draws, people: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns z (S, u, K) and log-weights (S, u) of some people, with draws of weight 0 added."""
    z = draws.z[:, people].transpose(0, 1).to(device).contiguous()
    log_weights = draws.log_weights[:, people].T.to(device)
    return pad_draws(z).transpose(0, 1), pad_draws(log_weights, value=-math.inf).T


def pad_items(batch: Batch) -> Batch:
    """Adds items that nobody compares where there are few."""
    missing = _LEAST - len(batch.items)
    if missing <= 0 or not len(batch.items):
        return batch
    rows = batch.items[:1].expand(missing, *batch.items.shape[1:])
    return batch.replace(items=torch.cat([batch.items, rows]))


def accompany(batch: Batch) -> Batch:
    """Adds people at the end, each of whom compared the first item, if any, with itself."""
    before, columns = batch.mask.shape
    own = int(len(batch.items) > 0)

    def extend(table: Tensor, value: float) -> Tensor:
        wide = F.pad(table, (0, max(own - columns, 0), 0, _LEAST))
        wide[before:, :own] = value
        return wide

    values = {"left": 0, "right": 0, "choice": 1, "mask": True, "ranking": 0, "side": 0, "count": 1}
    tables = {name: getattr(batch, name) for name in values}
    changes = {n: extend(table, values[n]) for n, table in tables.items() if table is not None}
    if batch.covariates is not None:
        others = batch.covariates[:1].expand(_LEAST, -1)
        changes["covariates"] = torch.cat([batch.covariates, others])
    return batch.replace(**changes)
