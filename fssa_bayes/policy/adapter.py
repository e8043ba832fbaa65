"""Low-rank adapters of a base model: switched off with the modulation, removed after a failure."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from fssa_bayes.policy.film import FiLM

__all__ = ["adapters", "follow_switch", "peft_warnings_ignored", "removed_on_failure"]


def adapters(model: nn.Module) -> list[BaseTunerLayer]:
    """Lists the layers of a model that have an adapter."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def follow_switch(model: PeftModel, film: FiLM) -> None:
    """Switches adapters off where the modulation is off; peft's own switch acts on all threads."""
    for layer in adapters(model):
        layer.forward = partial(_forward_adapted, layer, film)


def _forward_adapted(layer: BaseTunerLayer, film: FiLM, *args: Any, **kwargs: Any) -> Any:
    if film.is_switched_off:
        return layer.get_base_layer()(*args, **kwargs)
    return type(layer).forward(layer, *args, **kwargs)


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
