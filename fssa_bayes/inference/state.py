"""The state of a fit, as a checkpoint holds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FitState", "prefixed", "random_state"]


@dataclass(frozen=True)
class FitState:
    """Holds what a checkpoint holds.

    Attributes:
        tensors: Tensors by names with prefixes, such as `now.model.utility.mean`.
        values: All else, as JSON can hold it.
    """

    tensors: dict[str, Tensor]
    values: dict

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors whose names begin with a prefix, without the prefix."""
        start = prefix + "."
        return {
            name.removeprefix(start): value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }

    def set_random_state(self, device: torch.device) -> None:
        """Puts PyTorch's generators where they were."""
        torch.set_rng_state(self.tensors["rng.torch"])
        if device.type == "cuda" and "rng.cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["rng.cuda"], device)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts a prefix before the names of tensors; :meth:`FitState.part` takes it off."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Returns the states of PyTorch's generators, on the CPU and on the device."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    return tensors
