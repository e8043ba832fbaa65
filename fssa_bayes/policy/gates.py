r"""Gated adapters: a latent factor weighs the ranks of every low-rank adapter.

An adapted linear layer computes

.. math:: W x + \tfrac{\alpha}{r}\, B \operatorname{diag}(g(z))\, A x, \qquad g(z) = b + G z,

with G and b of its own. For a fixed z that is an ordinary low-rank adapter (LoRA) with the columns
of B times g(z), which can be written to a folder, merged or served by other programs. The residual
stream is not touched, and sequences of one batch may have different z.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fssa_bayes.policy.conditioning import Conditioning

__all__ = ["Gates"]


class Gates(Conditioning):
    r"""Computes the gates :math:`g_l(z) = b_l + G_l \operatorname{clip}(z)` of L adapters.

    G and b are random at first, G with entries of variance 1/K, so that b and Gz have the same size
    for a standard normal z: B is 0 at first, and a gate of 0 would leave B without a gradient. As
    g is linear, z is clipped: a z longer than :math:`\sqrt K + 2`, which hardly a standard normal z
    is, becomes shorter. Where nothing steers, z is 0, the mean of the prior.

    Args:
        latent_dim: Width K of z.
        rank: Rank r of the adapters.
        num_layers: Number L of adapters.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(self, latent_dim: int, rank: int, num_layers: int) -> None:
        super().__init__(latent_dim)
        for name, size in {
            "latent_dim": latent_dim,
            "rank": rank,
            "num_layers": num_layers,
        }.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.limit = latent_dim**0.5 + 2
        self.weight = nn.Parameter(torch.randn(num_layers, rank, latent_dim) / latent_dim**0.5)
        self.bias = nn.Parameter(torch.randn(num_layers, rank))

    def forward(self, z: Tensor) -> Tensor:
        """Returns the gates of all layers, with shape (L, R, r), for z (R, K)."""
        return torch.stack([self.modulation(z, layer) for layer in range(len(self.bias))])

    def modulation(self, z: Tensor, layer: int) -> Tensor:
        """Returns the gates of one layer, with shape (R, r), for z (R, K)."""
        self.check_width(z)
        weight = self.weight[layer]
        with torch.autocast(weight.device.type, enabled=False):
            return F.linear(self.clip(z.to(weight)), weight, self.bias[layer])

    def clip(self, z: Tensor) -> Tensor:
        """Shortens each z (R, K) that is longer than the limit, in its own direction."""
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z * (self.limit / length.clamp(min=self.limit))

    def tensors_of(self, layer: int) -> tuple[Tensor, ...]:
        """Lists the parameters, which all layers share."""
        return self.weight, self.bias

    def attach(self, model: nn.Module) -> None:
        """Gates the adapters of a model from now on, in the order of its modules.

        Raises:
            ValueError: If there are not L adapters, or one is not of a linear layer that every
                token of a sequence passes.
        """
        named = [(n, part) for n, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
        if len(named) != len(self.bias):
            raise ValueError(f"model must have {len(self.bias)} adapters, got {len(named)}")
        for name, layer in named:
            down = getattr(layer, "lora_A", {})
            linear = "default" in down and isinstance(down["default"], nn.Linear)
            if not linear or "experts" in name.split("."):  # Experts see tokens without their row.
                raise ValueError(
                    "target_modules must name linear layers outside of experts for "
                    f"conditioning='gated', got {name!r} of type "
                    f"{type(layer.get_base_layer()).__name__}"
                )
        for index, (_, layer) in enumerate(named):
            layer.lora_A["default"].register_forward_hook(partial(_gate, self, index))


def _gate(gates: Gates, layer: int, module: nn.Module, args: Any, hidden: Tensor) -> Tensor:
    """Multiplies A x, with shape (R, T, r) or flat (R T, r), by the gates of each sequence."""
    gate = gates.current(layer)
    if gate is None:
        return hidden * gates.bias[layer].to(hidden)
    if len(hidden) % len(gate):
        raise ValueError(f"z must have a row for each of {len(hidden)} sequences, got {len(gate)}")
    gate = gate.repeat_interleave(len(hidden) // len(gate), 0).to(hidden)
    return hidden * gate.view(len(gate), *[1] * (hidden.ndim - 2), -1)
