"""Files of interviews: JSON, with digests of what they do not hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fssa_bayes._files import write_file

__all__ = ["damaged", "digest_modules", "digest_text", "read_interview", "write_interview"]

_FORMAT, _VERSION = "fssa_bayes interview", 1
_PARTS = {
    "settings": {"user", "kind", "stop", "num_samples", "seed", "allow_repeat"},
    "digests": {"model", "context", "pool", "items", "goal", "population"},
}


def write_interview(path: Path, content: dict[str, Any]) -> None:
    """Writes settings, digests and events as JSON; the file appears whole or not at all."""
    content = {"format": _FORMAT, "version": _VERSION} | content
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read_interview(path: Path) -> dict[str, Any]:
    """Reads what :func:`write_interview` wrote.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it holds something else, or an interview of a later version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # Of text and of JSON.
        raise ValueError(f"path must be a saved interview, got {str(path)!r}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"path must be a saved interview, got {str(path)!r}, which is none")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"path must be an interview of version {_VERSION}, got {str(path)!r} of version "
            f"{content.get('version')!r}"
        )
    for part, names in _PARTS.items():
        if not isinstance(content.get(part), dict):
            raise damaged(path, f"it has no {part!r}")
        if content[part].keys() != names:
            other = sorted(content[part].keys() ^ names)[0]
            raise damaged(path, f"{other!r} is missing in {part!r} or foreign to it")
    if not isinstance(content.get("events"), list):
        raise damaged(path, "it has no 'events'")
    return content


def damaged(path: Path, why: str) -> ValueError:
    """Returns the error of a file that is an interview, but not a whole one."""
    return ValueError(f"path must be a saved interview, got {str(path)!r}, which is damaged: {why}")


def digest_modules(modules: Sequence[nn.Module]) -> str:
    """Returns a SHA-256 of the parameters and buffers of modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def digest_text(text: str) -> str:
    """Returns a SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
