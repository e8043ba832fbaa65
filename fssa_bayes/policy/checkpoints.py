"""Checkpoints of preference optimisation: their files, and whether a run may resume from them.

A folder is finished when the file of settings is in it, which is written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fssa_bayes._files import write_file
from fssa_bayes.policy import storage

if TYPE_CHECKING:
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = [
    "FORMAT_VERSION",
    "SETTINGS",
    "check_settings",
    "digest_guide",
    "load_weights",
    "save_weights",
]

FORMAT_VERSION = 3
"""Version of the checkpoints that this version of the library writes."""

SETTINGS = "steerable_dpo.json"
"""Name of the file of settings."""

_GUIDE = "guide.safetensors"


def check_settings(folder: Path | None, settings: dict[str, Any], output_dir: str) -> None:
    """Checks that a folder is a finished checkpoint of a run with these settings.

    Args:
        folder: The folder, None if there is none.
        settings: Settings of the run that is to resume.
        output_dir: Where the run keeps its checkpoints.

    Raises:
        ValueError: If the checkpoint is missing, not finished, damaged or of other settings.
    """
    if folder is None or not (folder / SETTINGS).is_file():
        raise ValueError(
            "resume_from_checkpoint must be a finished checkpoint of this trainer, or True "
            f"where there is one in {output_dir!r}, got {folder and str(folder)!r}"
        )
    try:
        saved = dict(json.loads((folder / SETTINGS).read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{SETTINGS} in {str(folder)!r} is damaged ({error}): resume from an earlier one"
        ) from error
    other = [name for name in settings if saved.get(name) != settings[name]]
    if other:
        shown = ", ".join(f"{name}: {saved.get(name)} then, {settings[name]} now" for name in other)
        raise ValueError(
            f"resume_from_checkpoint must be of the same settings and data, got {shown}"
        )


def save_weights(folder: Path, policy: SteerablePolicy, guide: nn.Module | None) -> None:
    """Writes the policy, and the parameters of a guide that learns."""
    folder.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(folder / "policy")
    if guide is not None:
        state = guide.state_dict()
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        content = safetensors.torch.save(tensors, {"sha256": _digest_values(guide)})
        write_file(folder / _GUIDE, content)


def load_weights(folder: Path, policy: SteerablePolicy, guide: nn.Module | None) -> None:
    """Reads what :func:`save_weights` wrote into a policy and a guide, in place.

    Raises:
        ValueError: If a file is damaged.
        FileNotFoundError: If a file is missing.
    """
    storage.read_description(folder / "policy")
    storage.load_weights(policy.model, policy.conditioning, folder / "policy")
    if guide is not None:
        _load_guide(guide, folder / _GUIDE)


def _load_guide(guide: nn.Module, path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("sha256")
        guide.load_state_dict(safetensors.torch.load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{str(path)!r} is damaged, or of another guide: {error}") from error
    if expected not in (None, _digest_values(guide)):  # Earlier versions wrote none.
        raise ValueError(
            f"{str(path)!r} is damaged: its values are not those that were written; resume from an "
            "earlier checkpoint"
        )


def digest_guide(posterior: Callable, guide: nn.Module | None) -> str | None:
    """Returns a SHA-256 of the module that draws z, None if the posterior belongs to no module.

    Names and shapes count, and for a module that does not learn, values as well.

    Args:
        posterior: q(z | context), a module or a method of one.
        guide: The module that learns, None if none does.
    """
    owner = getattr(posterior, "__self__", posterior) if guide is None else guide
    if not isinstance(owner, nn.Module):
        return None
    return _digest_values(owner, names_alone=guide is not None)


def _digest_values(module: nn.Module, *, names_alone: bool = False) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        if not names_alone:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
