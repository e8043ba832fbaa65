"""Base models of policies: loaded, found again and checked."""

from __future__ import annotations

import os

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fssa_bayes._random import seeded
from fssa_bayes.policy.adapter import adapters

__all__ = ["check_plain", "find_base", "load_base", "remove_dropout"]


def load_base(name_or_path: str | os.PathLike, dtype: torch.dtype | str | None) -> PreTrainedModel:
    """Loads a causal language model, in the precision of its files if none is given."""
    with seeded(0):
        return AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype or "auto")


def find_base(
    given: str | os.PathLike | PreTrainedModel | None, saved: str, dtype: str
) -> PreTrainedModel:
    """Returns the base model of a saved policy.

    Args:
        given: The model, or its name or path; None for where it was when the policy was saved.
        saved: Name or path of the model when the policy was saved; empty if it had none.
        dtype: Precision in which to load it.

    Raises:
        ValueError: If there is neither a model nor a name.
    """
    if isinstance(given, PreTrainedModel):
        return given
    if given is None and not saved:
        raise ValueError("base_model must be given: the policy was built around a model of no name")
    return load_base(given or saved, dtype)


def check_plain(model: PreTrainedModel) -> None:
    """Checks that a policy can be built around a model.

    Raises:
        TypeError: If the model is not a model of transformers.
        ValueError: If the model has adapters, or no output layer.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    if adapters(model):
        raise ValueError(
            "model must have no adapters, got one that is part of a policy or a PEFT model: load "
            "it again, or copy.deepcopy it first"
        )
    if model.get_output_embeddings() is None:
        raise ValueError(f"model must have an output layer, got {type(model).__name__}")


def remove_dropout(model: nn.Module) -> None:
    """Sets dropout to 0, in modules and in rates that layers hold as numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
