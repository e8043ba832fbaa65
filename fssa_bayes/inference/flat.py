"""Parameters side by side in one tensor, for an optimiser that takes as long as one parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["FlatParameters"]


class FlatParameters:
    """Lays parameters of one device and dtype side by side, and their gradients too.

    A network of this package has some fifty small parameters. A call of PyTorch for each takes
    longer than what it computes.

    Args:
        parameters: The parameters. Within :meth:`shared` they are parts of `values`, and their
            gradients parts of the gradient of `values`.

    Attributes:
        values: All parameters in order, a leaf with a gradient, with shape (P,).
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.values = torch.cat([p.detach().flatten() for p in self.parameters])
        self.values.requires_grad_()
        self.values.grad = torch.zeros_like(self.values)
        self.gradients = self.split(self.values.grad)

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter]) -> list[FlatParameters]:
        """Lays parameters of each device and dtype side by side; most fits have one of each."""
        kinds: dict[tuple, list[nn.Parameter]] = {}
        for parameter in parameters:
            kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        return [cls(kind) for kind in kinds.values()]

    def split(self, values: Tensor) -> list[Tensor]:
        """Returns the parts of a tensor (P,) that belong to the parameters, in their shapes."""
        parts = values.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Keeps the parameters in `values` within a block, and in memory of their own after it."""
        parts = self.split(self.values.detach())
        for parameter, part in zip(self.parameters, parts, strict=True):
            part.copy_(parameter.detach())
            parameter.data = part
        self.clear()
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.data = parameter.data.clone()
                parameter.grad = None

    def clear(self) -> None:
        """Sets all gradients to 0."""
        self.values.grad.zero_()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def norm(self) -> float:
        """Returns the Euclidean norm of the gradient."""
        return torch.linalg.vector_norm(self.values.grad).item()

    def collect(self) -> None:
        """Takes over gradients that an objective has put elsewhere; None is a gradient of 0."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            elif parameter.grad is not gradient:
                gradient.copy_(parameter.grad)
