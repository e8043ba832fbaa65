"""What steers a policy: the z of a block, and modules that turn z into a change of layers.

Layers read z from a context variable. Conditioning therefore works through `generate`, adapters and
wrappers that take no z, and interleaved calls, in one thread or in several, each keep their own z.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fssa_bayes.policy.checks import check_factors

__all__ = [
    "Conditioning",
    "Traced",
    "interpolate",
    "is_decided",
    "recompute_as_now",
    "steered",
    "surrounding_z",
]


@dataclass(eq=False)
class _Steering:
    """One z, and what layers computed from it while no gradient is needed."""

    z: Tensor | None
    cache: dict[tuple[nn.Module, int], tuple[list, Any]] = field(default_factory=dict)


# Blocks may end in another order than they begin, as in generators: each removes its own entry.
_STEERING: ContextVar[tuple[_Steering, ...]] = ContextVar("steering", default=())
_SWITCHED_OFF: ContextVar[tuple[nn.Module, ...]] = ContextVar("switched_off", default=())


@contextlib.contextmanager
def steered(z: Tensor | None) -> Iterator[None]:
    """Steers every policy by z inside the block, in this thread or task alone.

    Blocks may be nested; the innermost one applies. A thread that starts inside the block is not
    steered: `policy.stream` carries z into its thread, and a base model's own `generate` refuses to
    run in a thread of which nothing says what steers it.

    Args:
        z: Latent factors with shape (R, K), one a sequence, or one for each group of neighbouring
            sequences of the same size; None steers by nothing.

    Raises:
        ValueError: If z is not of shape (R, K) with R ≥ 1.
        TypeError: If z is not a floating-point tensor.
    """
    if z is not None:
        check_factors("z", z)
        if z.ndim != 2 or len(z) == 0:
            raise ValueError(f"z must have shape (R, K) with R >= 1, got {tuple(z.shape)}")
    entry = _Steering(z)
    _STEERING.set((*_STEERING.get(), entry))
    try:
        yield
    finally:
        _STEERING.set(tuple(other for other in _STEERING.get() if other is not entry))


def surrounding_z(rows: int) -> Tensor | None:
    """Returns z of the innermost :func:`steered`, one for each of R sequences in their order.

    A caller that scores or writes sequences in another order must reorder z with them.

    Args:
        rows: Number of sequences R.

    Returns:
        Latent factors with shape (R, K), None outside of any block or in one that does not steer.

    Raises:
        ValueError: If R is no multiple of the block's number of rows.
    """
    steering = _STEERING.get()
    z = steering[-1].z if steering else None
    if z is None:
        return None
    if rows % len(z):
        raise ValueError(f"z must have a row for each of {rows} sequences, got {len(z)} rows")
    return z.repeat_interleave(rows // len(z), 0)


def is_decided() -> bool:
    """Whether a block says what steers this thread or task, be it nothing."""
    return bool(_STEERING.get() or _SWITCHED_OFF.get())


class Conditioning(nn.Module, abc.ABC):
    """A map from z to what changes each of L layers of a language model.

    Arithmetic is in the precision of the parameters (float32), whatever the precision of the model,
    and under autocast as well.

    Args:
        latent_dim: Width K of z.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self._traced: tuple[Tensor | None, bool] | None = None

    @abc.abstractmethod
    def modulation(self, z: Tensor, layer: int) -> Any:
        """Returns what changes one layer, for z (R, K)."""

    @abc.abstractmethod
    def tensors_of(self, layer: int) -> tuple[Tensor, ...]:
        """Lists the parameters that :meth:`modulation` of a layer reads."""

    def check_width(self, z: Tensor) -> None:
        """Raises ValueError if z is not K wide."""
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must have width {self.latent_dim}, got {tuple(z.shape)}")

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Switches the conditioning off inside the block, in this thread or task alone."""
        entry = _SWITCHED_OFF.get()
        _SWITCHED_OFF.set((*entry, self))
        try:
            yield
        finally:
            remaining = list(_SWITCHED_OFF.get())
            if self in remaining:
                remaining.remove(self)
            _SWITCHED_OFF.set(tuple(remaining))

    @property
    def is_switched_off(self) -> bool:
        """Whether the caller runs inside :meth:`switched_off`."""
        if torch.compiler.is_compiling() and self._traced is not None:
            return self._traced[1]
        return any(module is self for module in _SWITCHED_OFF.get())

    def current(self, layer: int) -> Any | None:
        """Returns what changes a layer by the surrounding z; None where nothing steers."""
        if torch.compiler.is_compiling() and self._traced is not None:
            z, off = self._traced
            return None if off or z is None else self.modulation(z, layer)
        steering = _STEERING.get()
        if not steering or steering[-1].z is None or self.is_switched_off:
            return None
        if torch.is_grad_enabled():
            return self.modulation(steering[-1].z, layer)
        return self._cached(steering[-1], layer)

    def _cached(self, steering: _Steering, layer: int) -> Any:
        """Computes a modulation once in a block of :func:`steered`, not for every token."""
        tensors = (steering.z, *self.tensors_of(layer))
        if any(tensor.is_inference() for tensor in tensors):  # Such tensors have no version.
            return self.modulation(steering.z, layer)
        state = [(tensor.device, tensor.dtype, tensor._version) for tensor in tensors]
        found = steering.cache.get((self, layer))
        if found is None or found[0] != state:
            found = (state, self.modulation(steering.z, layer))
            steering.cache[self, layer] = found
        return found[1]


class Traced:
    """Hands z to the layers through a plain attribute, which PyTorch's compiler can trace.

    The compiler cannot trace context variables: they are read once, before compiled code. Outside
    of compiled code the attribute is ignored.

    Args:
        conditioning: The conditioning.
        z: Latent factors (R, K); None for those of the surrounding :func:`steered`.
    """

    def __init__(self, conditioning: Conditioning, z: Tensor | None) -> None:
        self.conditioning = conditioning
        self.state = _read(conditioning, z)

    def __enter__(self) -> None:
        self.conditioning._traced = self.state

    def __exit__(self, *_: object) -> None:
        self.conditioning._traced = None


@torch.compiler.disable
def _read(conditioning: Conditioning, z: Tensor | None) -> tuple[Tensor | None, bool]:
    steering = _STEERING.get()
    if z is None and steering:
        z = steering[-1].z
    return z, conditioning.is_switched_off


def recompute_as_now() -> tuple[
    contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]
]:
    """Returns the contexts of checkpointing: none for forward, the present z for recomputing."""
    return contextlib.nullcontext(), _restored(_STEERING.get(), _SWITCHED_OFF.get())


@contextlib.contextmanager
def _restored(
    steering: tuple[_Steering, ...], switched_off: tuple[nn.Module, ...]
) -> Iterator[None]:
    tokens = _STEERING.set(steering), _SWITCHED_OFF.set(switched_off)
    try:
        yield
    finally:
        _STEERING.reset(tokens[0])
        _SWITCHED_OFF.reset(tokens[1])


def interpolate(z_from: Tensor, z_to: Tensor, steps: int) -> Tensor:
    """Returns z with shape (steps, K) on the line between two points (K,), both included.

    Raises:
        ValueError: If the points are not two vectors of one width, or there are fewer than 2 steps.
        TypeError: If a point is not a floating-point tensor.
    """
    check_factors("z_from", z_from)
    check_factors("z_to", z_to)
    if z_from.ndim != 1 or z_from.shape != z_to.shape:
        raise ValueError(
            f"z_from and z_to must have one shape (K,), got {tuple(z_from.shape)} and "
            f"{tuple(z_to.shape)}"
        )
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    weight = torch.linspace(0, 1, steps, dtype=z_from.dtype, device=z_from.device)
    return torch.lerp(z_from, z_to, weight.unsqueeze(-1))
