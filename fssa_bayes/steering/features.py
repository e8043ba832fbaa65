"""How texts become features: an encoder by name, its pooling, and principal components."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fssa_bayes.data.texts import embed_texts, fingerprint, load_encoder

__all__ = ["TextFeatures"]

_FILE = "components.safetensors"
_DESCRIPTION = "features.json"


class TextFeatures:
    """Describes texts by the embeddings of an encoder, or by principal components of them.

    Args:
        encoder: A folder, or a name on the model hub; kept by name alone.
        pooling: As for `embed_texts`.
        max_length: Tokens after which a text is cut; what the encoder can take if None.
        device: Where the encoder runs.

    Attributes:
        name: Name or path of the encoder.
        fingerprint: SHA-256 of the encoder, by which it is recognised.

    Raises:
        FileNotFoundError: If there is no such folder.
        OSError: If the encoder cannot be loaded.
    """

    def __init__(
        self,
        encoder: str | os.PathLike,
        *,
        pooling: str = "mean",
        max_length: int | None = None,
        device: torch.device | str | None = "cpu",
    ) -> None:
        self.name = str(Path(encoder).absolute()) if Path(encoder).is_dir() else str(encoder)
        self.pooling, self.max_length = pooling, max_length
        self._encoder, self._tokenizer = load_encoder(encoder, device=device)
        self.fingerprint = fingerprint(self._encoder, self._tokenizer)
        self._mean: Tensor | None = None
        self._axes: Tensor | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns the features of M texts, with shape (M, D)."""
        embedded = self.embed(texts)
        return embedded if self._axes is None else (embedded - self._mean) @ self._axes

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns the embeddings of M texts, each of length 1."""
        return embed_texts(
            list(texts), self._encoder, self._tokenizer, pooling=self.pooling,
            max_length=self.max_length, progress_bar=False, normalise=True,
        )  # fmt: skip

    def reduce(self, texts: Sequence[str], components: int) -> Self:
        """Takes the principal components of texts, as many as there are if these are fewer.

        Args:
            texts: Texts of training.
            components: Number of components D; 0 for the embeddings themselves.

        Raises:
            ValueError: If the number is negative.
        """
        if components < 0:
            raise ValueError(f"components must be at least 0, got {components}")
        self._mean = self._axes = None
        if components:
            embedded = self.embed(texts).double()
            mean = embedded.mean(0)
            _, size, axes = torch.linalg.svd(embedded - mean, full_matrices=False)
            rank = max(1, int((size > 1e-6 * size[0]).sum()))
            axes = axes[: min(components, rank)]
            largest = axes.abs().argmax(-1, keepdim=True)  # The sign is arbitrary: fixed by it.
            axes = axes * axes.gather(1, largest).sign()
            self._mean, self._axes = mean.float(), axes.T.float().contiguous()
        return self

    def save(self, folder: Path) -> None:
        """Writes the description, and the components if there are any."""
        document = {
            "encoder": self.name,
            "fingerprint": self.fingerprint,
            "pooling": self.pooling,
            "max_length": self.max_length,
            "components": None if self._axes is None else self._axes.shape[1],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _DESCRIPTION).write_text(json.dumps(document, indent=1))
        if self._axes is not None:
            tensors = {"mean": self._mean, "axes": self._axes}
            safetensors.torch.save_file(tensors, folder / _FILE)

    @classmethod
    def load(
        cls,
        folder: Path,
        encoder: str | os.PathLike | None = None,
        device: torch.device | str | None = "cpu",
    ) -> Self:
        """Reads what :meth:`save` wrote, and loads the encoder.

        Args:
            folder: The folder.
            encoder: Where the encoder is; None for where it was.
            device: Where the encoder runs.

        Raises:
            FileNotFoundError: If a file or the encoder is missing.
            ValueError: If the folder is damaged, or the encoder another one.
        """
        try:
            document: dict[str, Any] = json.loads((folder / _DESCRIPTION).read_bytes())
            options = {name: document[name] for name in ("pooling", "max_length")}
            known, components = document["fingerprint"], document["components"]
            saved = document["encoder"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{_DESCRIPTION} in {str(folder)!r} is damaged ({error!r})") from error
        try:
            made = cls(encoder or saved, device=device, **options)
        except OSError as error:
            if encoder is None:
                error.add_note(
                    f"{saved!r} is where the encoder was when the bundle was saved: say where it "
                    "is now by encoder="
                )
            raise
        if made.fingerprint != known:
            raise ValueError(
                "encoder must be the one that the bundle was trained with, got another one: "
                f"{made.name!r}"
            )
        if components is not None:
            try:
                tensors = safetensors.torch.load_file(folder / _FILE)
                made._mean, made._axes = tensors["mean"], tensors["axes"]
            except (SafetensorError, KeyError) as error:
                raise ValueError(f"{_FILE} in {str(folder)!r} is damaged ({error!r})") from error
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Returns the components by name."""
        return {} if self._axes is None else {"mean": self._mean, "axes": self._axes}
