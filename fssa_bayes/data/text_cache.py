"""Embeddings of texts on disk, found again by what they depend on.

What is computed goes into a folder shard by shard. Each file is written whole or not at all, so
that a run that was killed continues where it stopped. An embedding is found by a key (the content
of model and tokeniser, the pooling, the largest length) and the text's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fssa_bayes._files import write_file

__all__ = ["TextCache"]

_FORMAT_VERSION = 1


class TextCache:
    """Keeps embeddings in a folder: shards of safetensors, each with its index in JSON.

    Args:
        path: The folder, made if need be.
        key: What embeddings depend on besides the text, as JSON takes it.
        width: Number of entries of an embedding.
    """

    def __init__(self, path: Path, key: dict[str, Any], width: int) -> None:
        self.path, self.width, self.key = path, width, key
        path.mkdir(parents=True, exist_ok=True)
        self._check_width()
        self.folder = path / _sha256(json.dumps(self.key).encode())[:16]
        self.folder.mkdir(exist_ok=True)

    def _check_width(self) -> None:
        config = self.path / "cache.json"
        if not config.exists():
            content = {"format_version": _FORMAT_VERSION, "width": self.width}
            write_file(config, json.dumps(content).encode())
            return
        try:
            found = json.loads(config.read_bytes())
            version, width = found["format_version"], found["width"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(config)!r} is damaged: pass another folder as cache") from error
        if version != _FORMAT_VERSION:
            raise ValueError(
                f"format_version must be {_FORMAT_VERSION}, got {version} in {str(config)!r}: pass "
                "another folder as cache"
            )
        if width != self.width:
            raise ValueError(
                f"cache {str(self.path)!r} holds embeddings of width {width}, but the hidden size "
                f"of this model is {self.width}: pass another folder as cache, or the model that "
                "the others were made by"
            )

    def fill(self, texts: list[str], table: Tensor, known: Tensor) -> None:
        """Fills in the rows of `table` whose texts are in the cache, and marks them in `known`."""
        rows = {_hash_text(text): row for row, text in enumerate(texts)}
        for index in sorted(self.folder.glob("*.json")):
            try:
                content = json.loads(index.read_bytes())
                found = {rows[text]: n for n, text in enumerate(content["texts"]) if text in rows}
                if found:
                    table[list(found)] = self._read(index, content)[list(found.values())]
                    known[list(found)] = True
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(
                    f"the shard {str(index)!r} of the cache is damaged and passed over: {error!r}",
                    stacklevel=4,
                )

    def _read(self, index: Path, content: dict) -> Tensor:
        blob = index.with_suffix(".safetensors").read_bytes()
        if _sha256(blob) != content["sha256"]:
            raise ValueError(f"{len(blob)} bytes whose SHA-256 is not that in the index")
        return safetensors.torch.load(blob)["embedding"]

    def add(self, texts: list[str], table: Tensor) -> None:
        """Writes a shard of embeddings (R, D); the index, written last, makes the shard count."""
        blob = safetensors.torch.save({"embedding": table.contiguous()})
        hashes = [_hash_text(text) for text in texts]
        shard = self.folder / uuid.uuid4().hex
        write_file(shard.with_suffix(".safetensors"), blob)
        index = {**self.key, "sha256": _sha256(blob), "texts": hashes}
        write_file(shard.with_suffix(".json"), json.dumps(index).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _hash_text(text: str) -> str:
    return _sha256(text.encode("utf-8", "surrogatepass"))
