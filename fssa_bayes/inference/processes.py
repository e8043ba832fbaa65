"""A fit divided among processes: each takes some of the people, and sums are those of all people.

All processes hold the same data and the same parameters and make the same random choices. They
evaluate different people, and add up losses and gradients by :mod:`torch.distributed`, so that they
take the same steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Processes", "find_processes"]


@dataclass(frozen=True)
class Processes:
    """Describes the processes of a fit, and exchanges numbers between them.

    Attributes:
        rank: Number of this process.
        size: Number of processes; with 1 nothing is exchanged.
        group: Their group, with the backend gloo; None for the default one.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, number: int) -> slice:
        """Returns which of a number of things are this process's, one after another."""
        ends = [number * rank // self.size for rank in (self.rank, self.rank + 1)]
        return slice(*ends)

    def add_up(self, values: Tensor) -> Tensor:
        """Adds the values of all processes, in place; each gets the same bits."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def least(self, value: float) -> float:
        """Returns the smallest of all processes' values."""
        if self.size == 1:
            return value
        return self._reduce(torch.tensor(value, dtype=torch.float64), dist.ReduceOp.MIN).item()

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds the gradients of all processes, in place; None is a gradient of 0."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        total = self.add_up(torch.cat([p.grad.flatten() for p in parameters]))
        for parameter, part in zip(
            parameters, total.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad.copy_(part.view_as(parameter))

    def _reduce(self, values: Tensor, how: dist.ReduceOp) -> Tensor:
        if self.size > 1:
            with _explained():
                dist.all_reduce(values, how, self.group)
        return values

    def agree(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the first process's tensors in all processes, on the CPU; names too are its."""
        if self.size == 1:
            return dict(values)
        blob = b""
        if self.is_first:
            blob = safetensors.torch.save({n: v.cpu().contiguous() for n, v in values.items()})
        return safetensors.torch.load(self._hand_on(blob))

    def agree_on(self, value: float) -> float:
        """Returns the first process's number in all processes."""
        return self.agree({"value": torch.tensor(value, dtype=torch.float64)})["value"].item()

    def agree_on_text(self, text: str) -> str:
        """Returns the first process's text in all processes."""
        return self._hand_on(text.encode()).decode() if self.size > 1 else text

    def _hand_on(self, blob: bytes) -> bytes:
        length = torch.tensor([len(blob)])
        with _explained():
            dist.broadcast(length, 0, self.group)
            content = torch.zeros(int(length), dtype=torch.uint8)
            if self.is_first and len(blob):
                content = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
            dist.broadcast(content, 0, self.group)
        return content.numpy().tobytes()

    def check_equal(self, about: Mapping[str, object]) -> None:
        """Raises a ValueError in all processes unless each has the same values, as JSON."""
        own = json.loads(json.dumps(about))
        first = json.loads(self.agree_on_text(json.dumps(about)))
        if self.least(float(own == first)) == 0:
            different = [name for name in own if own[name] != first.get(name)]
            found = f"another {' and another '.join(different)}" if different else "no difference"
            raise ValueError(
                "all processes of a fit must have the same data, model, options and seeds, got "
                f"{found} in process {self.rank} of {self.size}"
            )


def find_processes() -> Processes:
    """Finds the processes that fit together: those of `torchrun`, or of an initialised group.

    In a process that `torchrun` has started the group is initialised, with the backend gloo, unless
    the program has done so.
    """
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Processes()
        store, rank, size = next(dist.rendezvous("env://"))
        # `torchrun` may start processes again, which must not look for those before them.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    # Tensors of the CPU, too, are exchanged, which a backend of GPUs alone cannot.
    group = None if "gloo" in dist.get_backend() else dist.new_group(backend="gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), group)


@contextmanager
def _explained() -> Iterator[None]:
    """Says what it means that an exchange fails."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of the fit has ended or cannot be reached, and this one ends too: "
            f"start all of them again, with the same checkpoint= they go on from there ({error})"
        ) from error
