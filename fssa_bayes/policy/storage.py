"""Steerable policies on disk: the files of a folder, and checks of its base model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import safetensors.torch
import torch
from peft import (
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from fssa_bayes._files import previous_folder
from fssa_bayes.policy.conditioning import Conditioning
from fssa_bayes.policy.reference import hash_weights

__all__ = [
    "FORMAT_VERSION",
    "check_base",
    "check_replaceable",
    "describe_base",
    "load_weights",
    "read_description",
    "save_weights",
    "upload_folder",
    "write_description",
]

FORMAT_VERSION = 2
"""Version of the folders that this version of the library writes; it reads version 1 too."""

_DESCRIPTION = "policy.json"
_WEIGHTS = "policy.safetensors"
_FILM = "film.safetensors"  # Of format version 1.
_PACKAGES = ("fssa_bayes", "torch", "transformers", "peft")
_SAMPLED_TENSORS, _SAMPLED_VALUES = 16, 8
# Entries of a model's configuration that change none of its logits, or that are checked otherwise.
_IDLE = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "name_or_path"),
    *("attn_implementation", "experts_implementation", "quantization_config", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"),
    *("chunk_size_feed_forward", "initializer_range", "router_aux_loss_coef", "vocab_size"),
}


def describe_base(model: PreTrainedModel) -> dict[str, object]:
    """Describes a model by its shapes and a few of its weights, to recognise the model by.

    Quantised weights are described whole: kernels may put them in another order at first use.
    """
    parameters = [parameter.detach() for parameter in model.parameters()]
    shapes = sorted(list(parameter.shape) for parameter in parameters)
    quantised = {}
    if getattr(model, "is_quantized", False):
        quantised = {
            "quantised": True,
            "weights": None if _is_repacked(model) else hash_weights(model),
            "device": model.device.type,
        }
    return {
        **quantised,
        "model_type": model.config.model_type,
        "shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": _deciding(json.loads(model.config.to_json_string(use_diff=False))),
        "sample": [
            [float(value) for value in _spread(parameter.flatten(), _SAMPLED_VALUES)]
            for parameter in _spread(parameters, _SAMPLED_TENSORS)
        ],
    }


def _deciding(config: Mapping[str, object]) -> dict[str, object]:
    """Returns what of a configuration decides the function; dropout and jitter are removed anyway.

    Nested configurations are read in the same way.
    """
    return {
        key: _deciding(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _IDLE
        and not key.startswith("_")
        and not any(noise in key for noise in ("drop", "jitter", "noise"))
    }


def _difference(found: object, expected: object, name: str = "") -> str | None:
    """Names the first entry in which two configurations differ; None if there is none.

    An entry that one of them lacks is passed over: versions of transformers add entries.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() & expected.keys()):
            told = _difference(found[key], expected[key], f"{name}.{key}" if name else key)
            if told:
                return told
        return None
    return None if found == expected else f"{name} must be {expected!r}, got {found!r}"


def _is_repacked(model: PreTrainedModel) -> bool:
    """Whether bitsandbytes has put 4-bit weights in the order of a CPU, with rounded scales."""
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def _spread(values: list[Tensor] | Tensor, count: int) -> Iterable[Tensor]:
    """Takes up to `count` values, evenly spaced."""
    last = len(values) - 1
    return [values[last * index // max(count - 1, 1)] for index in range(min(count, len(values)))]


def check_base(model: PreTrainedModel, expected: dict[str, object]) -> None:
    """Checks that a base model is the one that a policy was trained on.

    Raises:
        ValueError: If architecture or weights differ. Weights of another precision may differ by a
            percent.
    """
    found = describe_base(model)
    if found.get("quantised", False) != expected.get("quantised", False):
        raise ValueError(
            "base_model must be quantised as it was when the policy was trained, got one that is "
            f"{'' if found.get('quantised') else 'not '}quantised"
        )
    for name in ("model_type", "num_parameters", "shapes"):
        if found[name] != expected[name]:
            raise ValueError(
                f"base_model must be the one that the policy was trained on: its {name} must be "
                f"{expected[name]!r}, got {found[name]!r}"
            )
    # Policies of earlier versions do not hold it.
    told = _difference(found["config"], expected.get("config", {}))
    if told:
        raise ValueError(
            f"base_model must be configured as it was when the policy was trained: {told}"
        )
    same = found["dtype"] == expected["dtype"]
    known = expected.get("weights")
    if same and known and not _has_weights(model, known, found, expected.get("device")):
        raise ValueError(
            "base_model must be the one that the policy was trained on: it has the same shape but "
            "other weights, by their SHA-256"
        )
    tolerance = 0.0 if same else 1e-2
    pairs = zip(found["sample"], expected["sample"], strict=True)
    for mine, theirs in pairs:
        close = torch.isclose(
            torch.tensor(mine), torch.tensor(theirs), rtol=tolerance, atol=1e-4 * tolerance
        )
        if not close.all():
            raise ValueError(
                "base_model must be the one that the policy was trained on: it has the same shape "
                f"but other weights, such as {mine[0]:.6g} in place of {theirs[0]:.6g}"
            )


def _has_weights(
    model: PreTrainedModel, known: str, found: dict[str, object], device: object
) -> bool:
    """Whether a model's weights have a hash; weights quantised elsewhere may round differently."""
    if found.get("quantised"):  # The hash of repacked weights is not known.
        return found["weights"] in (None, known) or found["device"] != device
    return hash_weights(model) == known


def upload_folder(
    folder: Path, repo_id: str, private: bool, token: str | None, message: str
) -> str:
    """Uploads a folder to the hub, and returns the address of the commit."""
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    hub.create_repo(repo_id, private=private, exist_ok=True)
    return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))


def check_replaceable(folder: Path) -> None:
    """Checks that a folder does not exist, is empty, or holds a saved policy and nothing else.

    Raises:
        FileExistsError: If the folder holds anything else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"folder must not be a file, got {str(folder)!r}")
    mine: set[str] = set()
    if (folder / _DESCRIPTION).is_file():
        mine = {_DESCRIPTION}
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # If it is damaged.
            mine |= set(json.loads((folder / _DESCRIPTION).read_bytes()).get("files", []))
    others = sorted({path.name for path in folder.iterdir()} - mine)
    if others:
        raise FileExistsError(
            f"folder must be new, empty or hold a saved policy alone, got {str(folder)!r} with "
            f"{', '.join(others[:5])}"
        )


def write_description(folder: Path, description: dict[str, object]) -> None:
    """Writes `policy.json`, with the SHA-256 of the tensors that are already in the folder."""
    document = {
        "format_version": FORMAT_VERSION,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "sha256": {path.name: _sha256(path) for path in sorted(folder.glob("*.safetensors"))},
        "files": sorted(path.name for path in folder.iterdir()),
        **description,
    }
    (folder / _DESCRIPTION).write_bytes(json.dumps(document, indent=1).encode())


def read_description(folder: Path) -> dict[str, object]:
    """Reads `policy.json` and checks the folder against it.

    Raises:
        FileNotFoundError: If there is no saved policy, or a part of it is missing.
        ValueError: If the folder is damaged or of another format version.
    """
    where = str(folder)
    if not (folder / _DESCRIPTION).is_file():
        previous = previous_folder(folder)
        hint = f"; the policy that stood there is whole in {str(previous)!r}"
        raise FileNotFoundError(
            f"folder must hold a saved policy, got {where!r} without one"
            f"{hint if previous.is_dir() else ''}"
        )
    try:
        document = json.loads((folder / _DESCRIPTION).read_bytes())
        version, sums = document["format_version"], dict(document["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_DESCRIPTION} in {where!r} is damaged ({error!r})") from error
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"format_version must be {FORMAT_VERSION} or less, got {version} in {where!r}: "
            f"it was written by {document.get('versions')}"
        )
    missing = {"policy", "base", "tokenizer"} - set(document)
    if missing:
        raise ValueError(
            f"{_DESCRIPTION} in {where!r} is damaged: it lacks {', '.join(sorted(missing))}"
        )
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder must hold {name}, got {where!r} without it")
        if _sha256(folder / name) != expected:
            raise ValueError(f"{name} in {where!r} is damaged or was changed")
    return document


def save_weights(model: PeftModel, conditioning: Conditioning, folder: Path) -> None:
    """Writes adapter and conditioning into a folder, as one file that peft alone does not read."""
    parts = {
        "adapter": get_peft_model_state_dict(model, save_embedding_layers=False),
        "conditioning": conditioning.state_dict(),
    }
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, state in parts.items()
        for name, value in state.items()
    }
    safetensors.torch.save_file(tensors, folder / _WEIGHTS)


def load_weights(model: PeftModel, conditioning: Conditioning, folder: Path) -> None:
    """Reads adapter and conditioning of a folder, in place.

    Raises:
        ValueError: If a file does not fit the policy.
    """
    try:
        if (folder / _WEIGHTS).is_file():
            tensors = safetensors.torch.load_file(folder / _WEIGHTS)
            adapter, state = (
                {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
                for part in ("adapter.", "conditioning.")
            )
        else:  # Of format version 1.
            adapter = load_peft_weights(str(folder), device="cpu")
            state = safetensors.torch.load_file(folder / _FILM)
        conditioning.load_state_dict(state)
        found = set_peft_model_state_dict(model, adapter)
    except (RuntimeError, SafetensorError, KeyError) as error:
        raise ValueError(f"weights in {str(folder)!r} do not fit policy.json: {error}") from error
    missing = [name for name in found.missing_keys if ".lora_" in name]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"weights in {str(folder)!r} do not fit policy.json: "
            f"{(missing or found.unexpected_keys)[0]!r}"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
