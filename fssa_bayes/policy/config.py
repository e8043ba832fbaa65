"""What a policy adds to its base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from fssa_bayes.policy.conditioning import Conditioning
from fssa_bayes.policy.film import FiLM
from fssa_bayes.policy.gates import Gates

__all__ = ["CONDITIONINGS", "PolicyConfig", "chosen_layers", "new_conditioning", "read_config"]

CONDITIONINGS = ("gated", "film")
"""Ways in which z changes a model: gates inside the adapter, or modulation of layers' outputs."""


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy adds to its base model.

    Args:
        latent_dim: Width K of z.
        lora_rank: Rank of the adapter.
        film_layers: Positions of the decoder layers that FiLM modulates, from 0; none without it.
        film_dim: Width of the hidden layer of FiLM.
        target_modules: Modules that get an adapter, as peft knows them.
        base_model: Name or path of the base model; empty if it has none.
        conditioning: `"gated"` or `"film"`; FiLM in folders of earlier versions, which do not say.
        lora_alpha: What the adapter's effect is multiplied by, over the rank; None for twice it.
        base_options: How the base model is loaded, beside its name.
    """

    latent_dim: int
    lora_rank: int
    film_layers: tuple[int, ...]
    film_dim: int
    target_modules: str | tuple[str, ...]
    base_model: str
    conditioning: str = "film"
    lora_alpha: float | None = None
    base_options: dict[str, Any] = field(default_factory=dict)


def chosen_layers(conditioning: str, chosen: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Returns the positions of the decoder layers that FiLM modulates, in order; none for gates.

    Args:
        conditioning: `"gated"` or `"film"`.
        chosen: Positions from 0; None for the last third.
        count: Number of decoder layers.

    Raises:
        ValueError: If the conditioning is unknown or takes no layers, there are no positions, some
            are the same, or one is out of range.
    """
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"conditioning must be one of {CONDITIONINGS}, got {conditioning!r}")
    if conditioning == "gated":
        if chosen is not None:
            raise ValueError(
                f"film_layers must be None for conditioning='gated', got {list(chosen)}"
            )
        return ()
    if chosen is None:
        return tuple(range(count - -(-count // 3), count))
    layers = tuple(chosen)
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(count)):
        raise ValueError(
            f"film_layers must be distinct positions from 0 to {count - 1}, got {list(layers)}"
        )
    return tuple(sorted(layers))


def new_conditioning(
    config: PolicyConfig, model: PreTrainedModel, adapters: Sequence[BaseTunerLayer]
) -> Conditioning:
    """Makes the conditioning of a base model and its adapters, on the model's device."""
    if config.conditioning == "gated":
        made = Gates(config.latent_dim, config.lora_rank, len(adapters))
    else:
        width = model.config.get_text_config().hidden_size
        made = FiLM(config.latent_dim, width, len(config.film_layers), config.film_dim)
    return made.to(model.device)


def read_config(saved: Any, folder: Path) -> PolicyConfig:
    """Reads the options of a saved policy.

    Args:
        saved: The options, as JSON returns them.
        folder: The policy's folder, for messages.

    Raises:
        ValueError: If options are missing or unknown.
    """
    try:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        config = PolicyConfig(**options)
        if config.conditioning not in CONDITIONINGS:
            raise TypeError(f"conditioning {config.conditioning!r}")
        return config
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"policy.json in {str(folder)!r} is damaged, or of another version ({error})"
        ) from error
