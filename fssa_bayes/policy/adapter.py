"""Low-rank adapters of a base model: switched off with the conditioning, and written for one z."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from fssa_bayes._files import whole_folder
from fssa_bayes.policy.conditioning import Conditioning

__all__ = [
    "adapters",
    "follow_switch",
    "peft_warnings_ignored",
    "removed_on_failure",
    "write_adapter",
]

_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def adapters(model: nn.Module) -> list[BaseTunerLayer]:
    """Lists the layers of a model that have an adapter."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def follow_switch(model: PeftModel, conditioning: Conditioning) -> None:
    """Switches adapters off with the conditioning; peft's own switch acts on all threads."""
    for layer in adapters(model):
        layer.forward = partial(_forward_adapted, layer, conditioning)


def _forward_adapted(
    layer: BaseTunerLayer, conditioning: Conditioning, *args: Any, **kwargs: Any
) -> Any:
    if conditioning.is_switched_off:
        return layer.get_base_layer()(*args, **kwargs)
    if layer.merged:
        raise ValueError(
            "adapter must not be merged into the base model, where z could not change it: unmerge "
            "it first, or merge what adapter_for writes"
        )
    return type(layer).forward(layer, *args, **kwargs)


def write_adapter(model: PeftModel, gates: Tensor, folder: Path) -> None:
    """Writes adapters whose ranks have these weights as an ordinary adapter, in peft's format.

    Args:
        model: The adapted model, which stays as it is.
        gates: Weights of the ranks with shape (L, r), adapters in the order of :func:`adapters`.
        folder: Where to write; replaced as a whole, or not at all.

    Raises:
        FileExistsError: If the folder holds anything but an adapter.
    """
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held - _FILES or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(
            f"folder must be new, empty or hold an adapter alone, got {str(folder)!r} with "
            f"{', '.join(sorted(held - _FILES)[:5]) or 'a file in its place'}"
        )
    state = dict(model.state_dict())
    layers = [name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, gate in zip(layers, gates, strict=True):
        key = f"{name}.lora_B.default.weight"
        state[key] = state[key] * gate.to(state[key])
    with whole_folder(folder) as part:
        model.save_pretrained(str(part), state_dict=state, save_embedding_layers=False)


@contextlib.contextmanager
def removed_on_failure(model: PreTrainedModel) -> Iterator[None]:
    """Removes adapters if the block fails, so that the model may be used with other options."""
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    try:
        yield
    except BaseException:
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                model.set_submodule(name, module.get_base_layer())
        vars(model).pop("peft_config", None)
        for name, value in model.named_parameters():
            value.requires_grad_(name in trained)
        raise


@contextlib.contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """Ignores peft's warnings of names that transformers drops and of options that peft sets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield
