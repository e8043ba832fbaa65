"""A bundle: all that is needed to steer a language model by a new person's choices, in a folder.

bundle.json         versions, format of texts, digest
policy/             adapter, gates, tokenizer; the base model by name
preference_model/   the preference model and its guide
features/           the text encoder by name, and principal components
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from transformers import PreTrainedModel

from fssa_bayes._files import previous_folder, whole_folder
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.io import flatten, load, save
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.policy import PreferenceRows, SteerablePolicy
from fssa_bayes.steering.features import TextFeatures
from fssa_bayes.steering.person import Person
from fssa_bayes.steering.records import list_records

__all__ = ["FORMAT_VERSION", "TEXT_FORMAT", "Bundle"]

FORMAT_VERSION = 1
"""Version of the folders that this version of the library writes."""

TEXT_FORMAT = "prompt and response joined; of conversations a line `role: content` a message"
"""How prompt and response become the text that the encoder reads."""

_DESCRIPTION = "bundle.json"
_PARTS = ("policy", "preference_model", "features")
_PACKAGES = ("fssa_bayes", "torch", "transformers", "peft")


class Bundle:
    """Holds a policy, the preference model and guide that find z, and how texts are described.

    Args:
        policy: The policy.
        model: The preference model.
        guide: Its guide; None where `Posterior` allows it.
        features: How texts become the model's features.
        num_samples: Number of draws of each person's posterior.
        seed: Seed of these draws.

    Raises:
        ValueError: If the widths of z, or of the features, differ.
    """

    def __init__(
        self,
        policy: SteerablePolicy,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        features: TextFeatures,
        *,
        num_samples: int = 1000,
        seed: int = 0,
    ) -> None:
        if policy.latent_dim != model.latent_dim:
            raise ValueError(
                f"policy and model must have one width of z, got {policy.latent_dim} and "
                f"{model.latent_dim}"
            )
        self.policy, self.model, self.guide, self.features = policy, model, guide, features
        self.num_samples, self.seed = num_samples, seed

    def person(self, choices: PreferenceRows | Iterable[Mapping[str, Any]] = ()) -> Person:
        """Returns somebody's posterior and policy.

        Args:
            choices: Their choices: rows, or records with `prompt`, `chosen` and `rejected`. None of
                them for somebody of whom nothing is known.

        Raises:
            ValueError: If a choice is none between two answers, or choices are of several people.
            TypeError: If choices are neither rows nor records.
        """
        if not isinstance(choices, PreferenceRows):
            choices = list_records("choices", choices)
            if not choices:
                return Person(self, None)
            choices = self.read(choices)
        if len(choices.user_names) != 1:
            raise ValueError(
                f"choices must be of one person, got {choices.user_names.tolist()[:5]}"
            )
        return Person(self, choices)

    @staticmethod
    def read(choices: Iterable[Mapping[str, Any]]) -> PreferenceRows:
        """Reads a person's choices, who need not be named."""
        return PreferenceRows.from_records([{"user": "person", **record} for record in choices])

    def empty(self) -> Preferences:
        """Returns the data of a person without choices."""
        nothing = np.zeros(0, dtype=np.int64)
        return Preferences(
            nothing, nothing, np.zeros(0, dtype=np.float32), np.zeros(2, dtype=np.int64),
            items=torch.zeros(2, self.model.num_features), item_names=["", " "],
            user_names=["person"],
        )  # fmt: skip

    def digest(self) -> str:
        """Returns a SHA-256 of what decides how a person is served, the base model's name aside."""
        digest = hashlib.sha256()
        trained = {
            f"policy.{number}": value.detach().cpu().contiguous()
            for number, value in enumerate(self.policy.trainable_parameters())
        }
        tensors = trained | flatten(self.model, self.guide) | self.features.tensors()
        digest.update(safetensors.torch.save(dict(sorted(tensors.items()))))
        digest.update(f"{self.features.fingerprint} {TEXT_FORMAT} {self.seed}".encode())
        digest.update(f"{self.num_samples}".encode())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the bundle; the folder is replaced as a whole, or not at all.

        Raises:
            FileExistsError: If the folder holds anything but a bundle.
            OSError: If the folder cannot be written; its earlier content stays.
        """
        folder = Path(folder).absolute()
        check_replaceable(folder)
        with whole_folder(folder) as part:
            self.policy.save_pretrained(part / _PARTS[0])
            save(part / _PARTS[1], self.model, self.guide)
            self.features.save(part / _PARTS[2])
            document = {
                "format_version": FORMAT_VERSION,
                "versions": {name: metadata.version(name) for name in _PACKAGES},
                "text_format": TEXT_FORMAT,
                "num_samples": self.num_samples,
                "seed": self.seed,
                "digest": self.digest(),
            }
            (part / _DESCRIPTION).write_text(json.dumps(document, indent=1))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        *,
        base_model: str | os.PathLike | PreTrainedModel | None = None,
        encoder: str | os.PathLike | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a bundle, its base model and its encoder.

        Args:
            folder: The folder that :meth:`save` wrote.
            base_model: The base model, or where it is; None for where it was.
            encoder: Where the encoder is; None for where it was.
            device: Where to put the policy; the encoder and the preference model stay on the CPU.
            **options: How to load the base model; see `SteerablePolicy.load`.

        Raises:
            FileNotFoundError: If there is no bundle, or a part of it is missing.
            ValueError: If the folder is damaged or of another format, or base model or encoder are
                others.
        """
        folder = Path(folder).absolute()
        document = read_description(folder)
        model, guide = load(folder / _PARTS[1])
        features = TextFeatures.load(folder / _PARTS[2], encoder)
        policy = SteerablePolicy.load(
            folder / _PARTS[0], base_model=base_model, device=device, **options
        )
        own = {name: document[name] for name in ("num_samples", "seed")}
        made = cls(policy, model, guide, features, **own)
        if made.digest() != document["digest"]:
            raise ValueError(
                f"{str(folder)!r} is damaged: its parts are not those that were saved together"
            )
        return made


def read_description(folder: Path) -> dict[str, Any]:
    """Reads `bundle.json`.

    Raises:
        FileNotFoundError: If there is no bundle, or a part of it is missing.
        ValueError: If the file is damaged or of another format.
    """
    path = folder / _DESCRIPTION
    if not path.is_file():
        previous = previous_folder(folder)
        hint = f"; the one that stood there is whole in {str(previous)!r}"
        raise FileNotFoundError(
            f"folder must hold a bundle, got {str(folder)!r} without {_DESCRIPTION}"
            f"{hint if previous.is_dir() else ''}"
        )
    try:
        document = json.loads(path.read_bytes())
        version, text_format = document["format_version"], document["text_format"]
        missing = {"num_samples", "seed", "digest"} - set(document)
        if missing:
            raise KeyError(*missing)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r})") from error
    if version != FORMAT_VERSION or text_format != TEXT_FORMAT:
        raise ValueError(
            f"format of {str(folder)!r} must be {FORMAT_VERSION}, got {version}: it was written by "
            f"{document.get('versions')}"
        )
    for part in _PARTS:
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"a bundle must hold {part}, got {str(folder)!r} without it")
    return document


def check_replaceable(folder: Path) -> None:
    """Checks that a folder does not exist, is empty, or holds a bundle and nothing else.

    Raises:
        FileExistsError: If the folder holds anything else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"folder must not be a file, got {str(folder)!r}")
    held = {path.name for path in folder.iterdir()}
    own = {_DESCRIPTION, *_PARTS} if _DESCRIPTION in held else set()
    if held - own:
        raise FileExistsError(
            f"folder must be new, empty or hold a bundle alone, got {str(folder)!r} with "
            f"{', '.join(sorted(held - own)[:5])}"
        )
