"""Feature-wise linear modulation: a latent factor scales and shifts a language model's layers.

Hooks modulate the outputs of decoder layers, outside of what gradient checkpointing recomputes, and
read z from a context variable. Modulation therefore works through `generate`, adapters and wrappers
that take no z, and interleaved calls, in one thread or in several, each keep their own z.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from fssa_bayes.policy.checks import check_factors

__all__ = [
    "FiLM",
    "Traced",
    "decoder_layers",
    "interpolate",
    "modulate",
    "recompute_as_now",
    "steered",
    "surrounding_z",
]


@dataclass(eq=False)
class _Steering:
    """One z, and the modulation computed from it while no gradient is needed."""

    z: Tensor | None
    cache: dict[tuple[nn.Module, int], tuple[list, tuple[Tensor, Tensor]]] = field(
        default_factory=dict
    )


# Blocks may end in another order than they begin, as in generators: each removes its own entry.
_STEERING: ContextVar[tuple[_Steering, ...]] = ContextVar("steering", default=())
_SWITCHED_OFF: ContextVar[tuple[nn.Module, ...]] = ContextVar("switched_off", default=())


@contextlib.contextmanager
def steered(z: Tensor | None) -> Iterator[None]:
    """Steers every model with FiLM by z inside the block, in this thread or task alone.

    Blocks may be nested; the innermost one applies. A thread that starts inside the block is not
    steered.

    Args:
        z: Latent factors with shape (R, K), one a sequence, or one for each group of neighbouring
            sequences of the same size; None leaves the model unmodulated.

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


class Traced:
    """Hands z to the layers through a plain attribute, which PyTorch's compiler can trace.

    The compiler cannot trace context variables: they are read once, before compiled code. Outside
    of compiled code the attribute is ignored.

    Args:
        film: The modulation.
        z: Latent factors (R, K); None for those of the surrounding :func:`steered`.
    """

    def __init__(self, film: FiLM, z: Tensor | None) -> None:
        self.film = film
        self.state = _read(film, z)

    def __enter__(self) -> None:
        self.film._traced = self.state

    def __exit__(self, *_: object) -> None:
        self.film._traced = None


@torch.compiler.disable
def _read(film: FiLM, z: Tensor | None) -> tuple[Tensor | None, bool]:
    steering = _STEERING.get()
    if z is None and steering:
        z = steering[-1].z
    return z, film.is_switched_off


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


class FiLM(nn.Module):
    r"""Scales and shifts the outputs of decoder layers as functions of z.

    .. math:: h_l \leftarrow h_l \circ (1 + s_l(z)) + t_l(z)

    where (s, t) is a linear map, zero at first, of one hidden layer on z. At first, and where z is
    None, outputs stay the same, bit for bit. Arithmetic is in the precision of the parameters
    (float32), whatever the precision of the model, and under autocast as well.

    Args:
        latent_dim: Width K of z.
        hidden_size: Width H of the model's hidden states.
        num_layers: Number L of layers that are modulated.
        hidden_dim: Width of the hidden layer on z.

    References:
        Perez et al. (2018), FiLM: visual reasoning with a general conditioning layer.
    """

    def __init__(
        self, latent_dim: int, hidden_size: int, num_layers: int, hidden_dim: int = 64
    ) -> None:
        super().__init__()
        sizes = {
            "latent_dim": latent_dim,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "hidden_dim": hidden_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self._traced: tuple[Tensor | None, bool] | None = None
        self.latent_dim = latent_dim
        self.hidden_size = hidden_size
        self.trunk = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.SiLU())
        self.heads = nn.ModuleList(
            nn.Linear(hidden_dim, 2 * hidden_size) for _ in range(num_layers)
        )
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scale and shift of all layers, each with shape (L, R, H), for z (R, K)."""
        pairs = [self.modulation(z, layer) for layer in range(len(self.heads))]
        scale, shift = zip(*pairs, strict=True)
        return torch.stack(scale), torch.stack(shift)

    def modulation(self, z: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Returns scale and shift of one layer, each with shape (R, H), for z (R, K)."""
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must have width {self.latent_dim}, got {tuple(z.shape)}")
        weight = self.trunk[0].weight
        with torch.autocast(weight.device.type, enabled=False):
            scale, negative_shift = self.heads[layer](self.trunk(z.to(weight))).chunk(2, -1)
        # Zeros become -0, and adding -0 leaves every number unchanged, -0 included.
        return scale, -negative_shift

    def attach(self, layers: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Modulates the outputs of these layers from now on, wherever :func:`steered` gives a z."""
        if len(layers) != len(self.heads):
            raise ValueError(f"layers must be {len(self.heads)}, got {len(layers)}")
        return [
            layer.register_forward_hook(partial(_modulate_output, self, index))
            for index, layer in enumerate(layers)
        ]

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Switches the modulation off inside the block, in this thread or task alone."""
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

    def current(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Returns scale and shift of a layer by the surrounding z; None where nothing steers."""
        if torch.compiler.is_compiling() and self._traced is not None:
            z, off = self._traced
            return None if off or z is None else self.modulation(z, layer)
        steering = _STEERING.get()
        if not steering or steering[-1].z is None or self.is_switched_off:
            return None
        if torch.is_grad_enabled():
            return self.modulation(steering[-1].z, layer)
        return self._cached(steering[-1], layer)

    def _cached(self, steering: _Steering, layer: int) -> tuple[Tensor, Tensor]:
        """Computes scale and shift once in a block of :func:`steered`, not for every token."""
        before, after = self.trunk[0], self.heads[layer]
        tensors = (steering.z, before.weight, before.bias, after.weight, after.bias)
        if any(tensor.is_inference() for tensor in tensors):  # Such tensors have no version.
            return self.modulation(steering.z, layer)
        state = [(tensor.device, tensor.dtype, tensor._version) for tensor in tensors]
        found = steering.cache.get((self, layer))
        if found is None or found[0] != state:
            found = (state, self.modulation(steering.z, layer))
            steering.cache[self, layer] = found
        return found[1]


def _modulate_output(film: FiLM, layer: int, module: nn.Module, args: Any, output: Any) -> Any:
    current = film.current(layer)
    if current is None:
        return None
    hidden, *others = output if isinstance(output, tuple) else (output,)
    modulated = modulate(hidden, *current)
    return (modulated, *others) if isinstance(output, tuple) else modulated


def modulate(hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Computes h ∘ (1 + scale) + shift in the precision of scale and shift.

    Args:
        hidden: Hidden states h with shape (R, T, H).
        scale: Scales with shape (R, H), or one for each group of neighbouring sequences of the same
            size.
        shift: Shifts with the shape of `scale`.

    Returns:
        Modulated hidden states with the shape and type of `hidden`.

    Raises:
        ValueError: If widths differ, or R is no multiple of the number of scales.
    """
    rows, size = scale.shape
    if hidden.ndim != 3 or hidden.shape[-1] != size:
        raise ValueError(
            f"layers must give hidden states (R, T, {size}), got {tuple(hidden.shape)}"
        )
    if len(hidden) % rows:
        raise ValueError(f"z must have a row for each of {len(hidden)} sequences, got {rows} rows")
    if len(hidden) > rows:
        scale, shift = (t.repeat_interleave(len(hidden) // rows, 0) for t in (scale, shift))
    scale, shift = (t.to(hidden.device).unsqueeze(1) for t in (scale, shift))
    return _Modulation.apply(hidden, scale, shift)


class _Modulation(Function):
    """Computes in the precision of scale and shift, and stores h for backward in the type of h."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, scale)
        dtype = torch.promote_types(hidden.dtype, scale.dtype)
        factor = (1 + scale).to(dtype)
        return torch.addcmul(shift.to(dtype), hidden.to(dtype), factor).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, scale = ctx.saved_tensors
        wide = grad.to(torch.promote_types(grad.dtype, scale.dtype))
        of_hidden = (wide * (1 + scale)).to(hidden.dtype) if ctx.needs_input_grad[0] else None
        of_scale = (wide * hidden).sum(1, keepdim=True).to(scale.dtype)
        return of_hidden, of_scale, wide.sum(1, keepdim=True).to(scale.dtype)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Finds the decoder layers of a causal language model, also inside a PEFT model.

    The decoder layers are the outermost list of as many modules as the configuration has layers.

    Raises:
        ValueError: If the model has an encoder, or no such list, or several.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    if base.config.is_encoder_decoder:
        raise ValueError(f"model must be decoder-only, got {type(base).__name__} with an encoder")
    count = base.config.get_text_config().num_hidden_layers
    stacks = _outermost_stacks(base.get_decoder(), count)
    if len(stacks) != 1:
        raise ValueError(
            f"model must have one recognisable list of {count} decoder layers, got "
            f"{type(base).__name__} with {len(stacks)}"
        )
    return stacks[0]


def _outermost_stacks(module: nn.Module, count: int) -> list[nn.ModuleList]:
    if isinstance(module, nn.ModuleList) and len(module) == count:
        return [module]
    return [stack for child in module.children() for stack in _outermost_stacks(child, count)]


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
