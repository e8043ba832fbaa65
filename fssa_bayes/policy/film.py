"""Feature-wise linear modulation: a latent factor scales and shifts a language model's layers.

Hooks modulate the outputs of decoder layers, outside of what gradient checkpointing recomputes. The
residual stream is modulated with them, so that one person's policy is no set of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from fssa_bayes.policy.conditioning import Conditioning

__all__ = ["FiLM", "decoder_layers", "modulate"]


class FiLM(Conditioning):
    r"""Scales and shifts the outputs of decoder layers as functions of z.

    .. math:: h_l \leftarrow h_l \circ (1 + s_l(z)) + t_l(z)

    where (s, t) is a linear map, zero at first, of one hidden layer on z. At first, and where z is
    None, outputs stay the same, bit for bit.

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
        super().__init__(latent_dim)
        sizes = {
            "latent_dim": latent_dim,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "hidden_dim": hidden_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
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
        self.check_width(z)
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

    def tensors_of(self, layer: int) -> tuple[Tensor, ...]:
        """Lists the parameters of the hidden layer and of one layer's head."""
        return (*self.trunk.parameters(), *self.heads[layer].parameters())


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
