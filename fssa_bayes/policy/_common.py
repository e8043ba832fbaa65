"""Checks and look-ups that several modules of the policy share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["check_positive", "check_reach", "device_of"]


def check_positive(**numbers: float) -> None:
    """Checks that numbers, given by name, are positive and finite.

    Raises:
        ValueError: If one is not.
    """
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_reach(model: PreTrainedModel, longest: int, name: str, room: int = 0) -> None:
    """Checks that sequences fit into a model's positions.

    Args:
        model: The language model.
        longest: Number of tokens of the longest sequence.
        name: What the sequences are.
        room: Number of tokens that are to follow.

    Raises:
        ValueError: If they do not.
    """
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if reach is not None and longest + room > reach:
        rule = f"leave room for max_new_tokens={room} in" if room else "fit into"
        raise ValueError(
            f"{name} must {rule} the model's {reach} positions, got one of {longest} tokens"
        )


def device_of(posterior: Callable) -> torch.device:
    """Returns the device of the module that a function is, or is a method of."""
    owner = getattr(posterior, "__self__", posterior)
    parameter = next(owner.parameters(), None) if isinstance(owner, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
