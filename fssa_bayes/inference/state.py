"""The state of a fit, as a checkpoint holds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference.objectives import Objective
from fssa_bayes.inference.processes import Processes
from fssa_bayes.io import flatten, unflatten
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["FitState", "describe_fit", "meet", "prefixed", "random_state"]

_COMPARED = 1000  # People whose comparisons are compared between processes.


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


def describe_fit(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    stages: list[Objective],
    rates: tuple[float, float],
    validation: float | None,
    refit: bool,
    seed: int,
) -> dict[str, object]:
    """Describes a fit, so that it does not go on from the checkpoint of another fit.

    Arguments are those of :func:`fssa_bayes.fit`; `rates` holds both learning rates.
    """
    return {
        "model": model.config,
        "guide": None if guide is None else guide.config,
        "parameters": {name: list(v.shape) for name, v in flatten(model, guide).items()},
        "data": data.digest(),
        "objective": [stage.config for stage in stages],
        "learning_rate": rates[0],
        "population_learning_rate": rates[1],
        "validation": validation,
        "refit": refit,
        "seed": seed,
    }


def meet(
    processes: Processes,
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *options: object,
) -> None:
    """Gives all processes of a fit the first one's parameters, after a look whether they agree.

    Arguments are those of :func:`describe_fit`. Of the data their size and the first people are
    looked at.

    Raises:
        ValueError: If the processes are about to make different fits, or outnumber the people.
    """
    if len(data) < processes.size:
        raise ValueError(
            f"data must have a person for each of the {processes.size} processes, got {len(data)}"
        )
    first = data.subset(range(min(len(data), _COMPARED)))
    about = describe_fit(model, guide, first, *options)
    size = {"people": len(data), "comparisons": data.num_comparisons}
    processes.check_equal(about | size)
    unflatten(processes.agree(flatten(model, guide)), model, guide)
