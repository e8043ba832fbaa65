"""What a policy adds to its base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fssa_bayes.policy.film import FiLM

__all__ = ["PolicyConfig", "chosen_layers", "new_film", "read_config"]


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy adds to its base model.

    Args:
        latent_dim: Width K of z.
        lora_rank: Rank of the adapter.
        film_layers: Positions of the modulated decoder layers, from 0.
        film_dim: Width of the modulation's hidden layer.
        target_modules: Modules that get an adapter, as peft knows them.
        base_model: Name or path of the base model; empty if it has none.
    """

    latent_dim: int
    lora_rank: int
    film_layers: tuple[int, ...]
    film_dim: int
    target_modules: str | tuple[str, ...]
    base_model: str


def chosen_layers(chosen: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Returns the positions of the decoder layers to modulate, in order.

    Args:
        chosen: Positions from 0; None for all.
        count: Number of decoder layers.

    Raises:
        ValueError: If there are no positions, some are the same, or one is out of range.
    """
    if chosen is None:
        return tuple(range(count))
    layers = tuple(chosen)
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(count)):
        raise ValueError(
            f"film_layers must be distinct positions from 0 to {count - 1}, got {list(layers)}"
        )
    return tuple(sorted(layers))


def new_film(config: PolicyConfig, model: PreTrainedModel) -> FiLM:
    """Makes the modulation of a base model, on the model's device."""
    width = model.config.get_text_config().hidden_size
    film = FiLM(config.latent_dim, width, len(config.film_layers), config.film_dim)
    return film.to(model.device)


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
        return PolicyConfig(**options)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"policy.json in {str(folder)!r} is damaged, or of another version ({error})"
        ) from error
