"""Base models of policies: loaded, found again and checked."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fssa_bayes._random import seeded
from fssa_bayes.policy.adapter import adapters

__all__ = [
    "check_plain",
    "check_steady",
    "check_vocabulary",
    "find_base",
    "load_base",
    "of_tokenizer",
    "remove_dropout",
    "to_remember",
]


_OF_TOKENIZERS = {
    *("cache_dir", "force_download", "gguf_file", "local_files_only", "proxies", "revision"),
    *("subfolder", "token", "trust_remote_code"),
}
# How a model is fetched and held, not which function it is; whoever loads a policy says it anew. Of
# what changes weights, precision and configuration, `check_base` finds out whether it is the same.
_OF_THE_MACHINE = {
    *("cache_dir", "force_download", "local_files_only", "proxies", "token", "use_auth_token"),
    *(
        "trust_remote_code",
        "device_map",
        "max_memory",
        "offload_folder",
        "offload_buffers",
        "offload_state_dict",
    ),
    *("low_cpu_mem_usage", "tp_plan", "tp_size", "device_mesh", "distributed_config"),
    *("dtype", "torch_dtype", "weights_only", "use_safetensors", "state_dict", "key_mapping"),
    *("config", "generation_config", "adapter_kwargs", "use_kernels", "kernel_config"),
}


def load_base(
    name_or_path: str | os.PathLike, dtype: torch.dtype | str | None, **options: Any
) -> PreTrainedModel:
    """Loads a causal language model, in the precision of its files if none is given.

    Args:
        name_or_path: A folder, or a name on the model hub.
        dtype: Precision of the model.
        **options: As for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: If an option is unknown.
    """
    kind = AutoModelForCausalLM
    with seeded(0):
        try:
            return kind.from_pretrained(name_or_path, dtype=dtype or "auto", **options)
        except TypeError as error:  # The model's own constructor gets what is left.
            if not options:
                raise
            raise ValueError(
                f"options must be those of from_pretrained, got {sorted(options)}: {error}"
            ) from error


def of_tokenizer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those options that a tokenizer is loaded by as well."""
    return {name: value for name, value in options.items() if name in _OF_TOKENIZERS}


def to_remember(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options by which a base model is found again, as JSON keeps them.

    Among them is what stands in place of the model's own configuration, such as `rms_norm_eps`.

    Raises:
        ValueError: If one of them cannot be kept.
    """
    kept = {name: options[name] for name in sorted(options.keys() - _OF_THE_MACHINE)}
    config = kept.get("quantization_config")
    if hasattr(config, "to_dict"):
        kept["quantization_config"] = config.to_dict()
    try:
        return json.loads(json.dumps(kept))
    except TypeError as error:
        raise ValueError(
            f"options must be what JSON can keep with the policy, got {kept}: {error}"
        ) from error


def find_base(
    given: str | os.PathLike | PreTrainedModel | None,
    saved: str,
    dtype: str,
    **options: Any,
) -> PreTrainedModel:
    """Returns the base model of a saved policy.

    Args:
        given: The model, or its name or path; None for where it was when the policy was saved.
        saved: Name or path of the model when the policy was saved; empty if it had none.
        dtype: Precision in which to load it.
        **options: As for :func:`load_base`.

    Raises:
        ValueError: If there is neither a model nor a name, or a model and options.
        OSError: If there is no such model.
    """
    if isinstance(given, PreTrainedModel):
        return given
    if given is None and not saved:
        raise ValueError("base_model must be given: the policy was built around a model of no name")
    if given is None and os.path.isabs(saved) and not os.path.isdir(saved):
        raise FileNotFoundError(
            f"base_model must be given: {saved!r}, where it was when the policy was saved, is no "
            "folder here"
        )
    return load_base(given or saved, dtype, **options)


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


_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps", "neftune_noise_alpha")


def remove_dropout(model: nn.Module) -> None:
    """Removes what is random in training: dropout, jitter and noise, which some layers hold.

    Rates are modules, numbers that layers hold, or entries of the configuration that a layer reads
    each time; such a layer gets a configuration of its own, so that the model's stays what it was.
    Routers that draw experts in training stay in evaluation mode.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("drop" in name and isinstance(value, float)) or (name in _NOISE and value):
                setattr(module, name, 0.0)
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and not isinstance(module, PreTrainedModel):
            rates = {k: v for k, v in vars(config).items() if "drop" in k and _is_rate(v)}
            if rates:
                module.config = copy.copy(config)
                for name in rates:
                    setattr(module.config, name, 0.0)
        if hasattr(module, "router_jitter_noise"):  # PhiMoE's, which draws by `training`.
            module.eval()
            module.train = partial(_stay_evaluating, module)


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _stay_evaluating(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


@torch.no_grad()
def check_steady(model: PreTrainedModel) -> None:
    """Checks that a model gives the same hidden states twice in training mode, but for rounding.

    Raises:
        ValueError: If it does not: a policy would not start at a log-ratio of 0.
    """
    training = [part for part in model.modules() if part.training]
    tokens = (
        torch.arange(8, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    )
    try:
        model.train()
        first, second = (
            model.base_model(input_ids=tokens, use_cache=False).last_hidden_state for _ in range(2)
        )
    finally:
        model.eval()
        for part in training:
            part.training = True
    apart = torch.linalg.vector_norm((first - second).float())
    if apart > 1e-3 * torch.linalg.vector_norm(first.float()):  # Some kernels sum in any order.
        raise ValueError(
            f"model must be the same function in training twice, got {type(model).__name__}, which "
            "draws random numbers beside dropout"
        )


def check_vocabulary(model: PreTrainedModel, token: int, name: str) -> None:
    """Checks that tokens lie within a model's embedding.

    Args:
        model: The language model.
        token: The largest token.
        name: What the tokens are.

    Raises:
        ValueError: If the token lies outside.
    """
    size = model.get_input_embeddings().weight.shape[0]
    if token >= size:
        raise ValueError(
            f"{name} must lie within the model's embedding of {size} tokens, got token {token}: a "
            "token that was added to the tokenizer, for padding say, needs "
            "model.resize_token_embeddings(len(tokenizer)), or take tokenizer.pad_token = "
            "tokenizer.eos_token"
        )
