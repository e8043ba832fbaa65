"""Encoders of texts: loaded from a folder or the Hugging Face hub, and told apart by content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "body_of",
    "describe_model",
    "describe_tokenizer",
    "explain_failure",
    "fingerprint",
    "largest_length",
    "load_encoder",
    "locate_model",
]

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".zip", ".tar.gz")


def load_encoder(
    name_or_path: str | os.PathLike,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model without its head, and its tokeniser, from a folder or the Hugging Face hub.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or the name of a model on the hub.
        device: Where to put the model; a GPU if there is one, or else the CPU, if None.
        dtype: Type of the weights; that of the file if None.

    Returns:
        The model in evaluation mode (of an encoder-decoder the encoder) and its tokeniser.

    Raises:
        FileNotFoundError: If a path is given and there is no such folder.
        OSError: If the hub cannot be reached, or there is no such model or no tokeniser with it.
    """
    from transformers import AutoModel, AutoTokenizer

    name, is_local = locate_model(name_or_path)
    if not is_local:
        _ask_hub(name)
    options: dict[str, Any] = {"local_files_only": is_local, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        with torch.random.fork_rng():  # Weights that a file lacks, such as a pooler's, are drawn.
            model = AutoModel.from_pretrained(
                name, dtype="auto" if dtype is None else dtype, **options
            )
    except (OSError, ValueError) as error:
        raise OSError(explain_failure(name, is_local, error)) from error
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def locate_model(name_or_path: str | os.PathLike) -> tuple[str, bool]:
    """Tells folders from names on the hub, which have at most one slash."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path), True
    name = str(name_or_path)
    is_path = not isinstance(name_or_path, str) or name.startswith((".", "~", os.sep))
    is_path = is_path or name.endswith(_SUFFIXES)
    if is_path or name.count("/") > 1 or "\\" in name or path.exists():
        raise FileNotFoundError(
            "name_or_path must be a folder with a saved model (config.json, model.safetensors, "
            f"tokenizer.json) or a name on the Hugging Face hub, got {name!r}, which is no folder"
        )
    return name, False


def _ask_hub(name: str) -> None:
    """Asks the hub once: without a connection its loaders would go on asking for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)
    except (OSError, ValueError):
        pass  # The hub answered, or must not be asked: the loaders say more.
    except Exception as error:  # No connection; the kind of error depends on the client.
        raise OSError(explain_failure(name, False, error)) from error


def explain_failure(name: str, is_local: bool, error: Exception) -> str:
    """Says why a model could not be loaded, and how one gets there without a connection."""
    if is_local:
        return (
            f"name_or_path must be a folder with a model that transformers can read and its "
            f"tokeniser, got {name!r}: {error}"
        )
    return (
        f"{name!r} is no folder here (a path may begin with './'), and could not be loaded from "
        "the Hugging Face hub. Without a connection, fetch the "
        f"model where there is one (hf download {name} --local-dir FOLDER), copy the folder and "
        f"pass its path: load_encoder('FOLDER'). The hub's client said: {error}"
    )


def body_of(model: nn.Module) -> nn.Module:
    """Returns the model without its head: of a model with adapters, the adapted body."""
    if hasattr(model, "get_base_model"):  # peft wraps the model with its head.
        model = model.get_base_model()
    return getattr(model, "base_model", model)


def largest_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the number of tokens that both can take, or None if neither has a limit."""
    limits = [
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None),
    ]
    # 1e30 stands for a tokeniser without a limit.
    limits = [limit for limit in limits if limit is not None and 0 < limit < 1e9]
    return min(limits, default=None)


def fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a SHA-256 of a model's configuration, weights and tokeniser."""
    digest = hashlib.sha256(describe_model(model).encode())
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("pooler."):  # Unused, and drawn at random if the file has none.
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(describe_tokenizer(tokenizer).encode())
    return digest.hexdigest()


def describe_model(model: nn.Module) -> str:
    """Writes down the configuration, without entries that no hidden state depends on."""
    content = model.config.to_dict()
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"):
        content.pop(name, None)
    content["class"] = type(model).__name__
    return json.dumps(content, sort_keys=True, default=str)


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Writes down what decides how a text is cut into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        content = json.loads(backend.to_str())
        # Every call sets both anew, from its options.
        content.pop("truncation", None)
        content.pop("padding", None)
    content["truncation_side"] = tokenizer.truncation_side
    return json.dumps(content, sort_keys=True)
