"""Models on disk: saved, loaded, and kept while a fit runs.

A saved model is a folder with `config.json` and `model.safetensors`; nothing is ever pickled. A
folder is written under another name, synchronised, and then renamed, so that a reader sees the
whole folder or none. `config.json` holds the SHA-256 of the tensors, to detect damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Hashable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from fssa_bayes._files import previous_folder, remove_folder, whole_folder
from fssa_bayes.data import names_from_json, names_to_json
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL

__all__ = [
    "FORMAT_VERSION",
    "Checkpoints",
    "flatten",
    "load",
    "read_folder",
    "save",
    "unflatten",
    "write_folder",
]

FORMAT_VERSION = 3
"""Version of the files that this version of the library writes."""

# Version 1 has neither ties, bias nor lapses; 1 and 2 have means and scales in single precision.
_READABLE = (1, 2, FORMAT_VERSION)
_KEPT = 2  # States of a fit: the last one, and the one before in case a disk damages the last.

_LOCK = ".lock"
_CONFIG = "config.json"
_TENSORS = "model.safetensors"
_PACKAGES = ("fssa_bayes", "torch", "pyro-ppl")


def save(
    path: str | os.PathLike,
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Saves a model and its guide in a folder.

    Args:
        path: The folder to make.
        model: The model, fitted or not.
        guide: Its guide, or None.
        overwrite: Whether the folder may be replaced if it holds a saved model. Other files in the
            folder are lost.

    Raises:
        FileExistsError: If the folder exists, unless `overwrite` is set and it holds a saved model.
        ValueError: If the guide belongs to another model.
        TypeError: If the model is not a HeterogeneousBTL itself.
        OSError: If the folder cannot be written; its earlier content stays.
    """
    path = Path(path)
    if type(model) is not HeterogeneousBTL:  # A subclass would be loaded as its base class.
        raise TypeError(f"model must be a HeterogeneousBTL, got {type(model).__name__}")
    if guide is not None and guide.model is not model:
        raise ValueError("guide must be the guide of this model, got one of another model")
    if path.exists() and not (overwrite and (path / _CONFIG).is_file()):
        rule = "hold a saved model to be overwritten" if overwrite else "not exist yet"
        hint = "" if overwrite else ": pass overwrite=True to replace a saved model"
        raise FileExistsError(f"path must {rule}, got {str(path)!r}{hint}")
    config = {
        "model": model.config,
        "guide": None if guide is None else guide.config,
        "objectives": None if guide is None else guide.objectives,
        "feature_names": _written(model.feature_names),
        "standardisation": {
            "mean": model.feature_mean.tolist(),
            "scale": model.feature_scale.tolist(),
        },
    }
    if model.covariate_names is not None:
        config["covariate_names"] = _written(model.covariate_names)
    for entry in ("feature_levels", "covariate_levels"):
        if levels := getattr(model, entry):
            rows = [(name, *own) for name, own in levels.items()]
            config[entry] = [names_to_json(pd.Index(row, dtype=object)) for row in rows]
    write_folder(path, config, flatten(model, guide))


def load(
    path: str | os.PathLike,
    *,
    device: torch.device | str = "cpu",
    utility: nn.Module | None = None,
) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
    """Loads a model and its guide, whose draws of a seed are those of the saved ones.

    Args:
        path: The folder that :func:`save` wrote.
        device: Where to put the parameters, whatever their device was.
        utility: For a model whose utility is a module of the caller's, a module of the same shape,
            whose parameters are overwritten.

    Returns:
        The model and its guide, in evaluation mode; the guide is None if none was saved.

    Raises:
        FileNotFoundError: If there is no saved model.
        ValueError: If the folder is damaged, incomplete or of another format version, the model
            needs `utility`, or the guide has an encoder other than `"deep_set"`.
    """
    path = Path(path)
    config, tensors = read_folder(path, ("model", "guide", "objectives", "feature_names"))
    try:
        model, guide = _build(config, utility)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be loaded: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be loaded, as {_CONFIG} was edited or is damaged ({error!r}): "
            "save the model again"
        ) from error
    for module in filter(None, (model, guide)):
        module.to(device=device, dtype=tensors["model._origin"].dtype).eval()
    try:
        unflatten(tensors, model, guide)
    except RuntimeError as error:
        raise ValueError(
            f"the tensors in {str(path)!r} do not fit its {_CONFIG}, or utility= is a module of "
            f"another shape: {error}"
        ) from error
    return model, guide


def _build(
    config: Mapping, utility: nn.Module | None
) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
    """Builds model and guide as the entries of `config.json` describe them."""
    options = dict(config["model"])
    if options["utility"] == "module":
        if utility is None:
            raise ValueError(
                "utility must be given: the model was built with a module of your own, which is "
                "not saved"
            )
        options["utility"] = utility
    elif utility is not None:
        raise ValueError(f"utility must be None for a {options['utility']!r} utility, got a module")
    guide_options = dict(config["guide"] or {})
    encoder = guide_options.pop("encoder", "deep_set")
    if encoder != "deep_set":
        raise ValueError(
            f"the guide's encoder in {_CONFIG} must be 'deep_set', got {encoder!r}: fit a guide "
            "again, or load it with an older fssa_bayes (it was written by "
            f"{config.get('versions')})"
        )
    # Initial weights are overwritten: drawing them must not advance the caller's generator.
    with torch.random.fork_rng(devices=[]):
        model = HeterogeneousBTL(**options)
        guide = NeuralProcessGuide(model, **guide_options) if guide_options else None
    if guide is not None:
        guide.objectives = list(config["objectives"])
    model.feature_names = _read_names(config, "feature_names", model.num_features)
    model.covariate_names = _read_names(config, "covariate_names", model.num_covariates)
    model.feature_levels = _read_levels(config, "feature_levels")
    model.covariate_levels = _read_levels(config, "covariate_levels")
    return model, guide


def _written(names: pd.Index | None) -> list | None:
    return None if names is None else names_to_json(names)


def _read_names(config: Mapping[str, object], entry: str, number: int) -> pd.Index | None:
    """Reads the names of `number` features or covariates, or None where none were saved."""
    if config.get(entry) is None:
        return None
    names = names_from_json(f"{entry} in {_CONFIG}", config[entry])
    if len(names) != number or not names.is_unique:
        raise ValueError(f"{entry} in {_CONFIG} must be {number} different names, got {len(names)}")
    return names


def _read_levels(config: Mapping[str, Any], entry: str) -> dict[Hashable, tuple]:
    """Reads the levels of categorical columns, none where none were saved."""
    argument = f"{entry} in {_CONFIG}"
    rows = [names_from_json(argument, row).tolist() for row in config.get(entry, ())]
    return {name: tuple(levels) for name, *levels in rows}


def flatten(model: HeterogeneousBTL, guide: NeuralProcessGuide | None) -> dict[str, Tensor]:
    """Lists the parameters and buffers of model and guide, by `model.NAME` and `guide.NAME`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if guide is not None:
        tensors |= {f"guide.{name}": value for name, value in guide.state_dict().items()}
    return tensors


def unflatten(
    tensors: Mapping[str, Tensor], model: HeterogeneousBTL, guide: NeuralProcessGuide | None
) -> None:
    """Puts parameters and buffers that :func:`flatten` listed into model and guide."""
    for prefix, module in (("model.", model), ("guide.", guide)):
        if module is not None:
            mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(mine)


class Checkpoints:
    """Keeps the last states of one fit in a folder, which belongs to it within a `with` block.

    The folder is locked by the operating system, which unlocks it when the process ends, however it
    ends. A state that cannot be written, for example as the disk is full, is left out with a
    warning: the states before it stay.

    Args:
        path: The folder to make. One fit at a time may use it.
        about: What distinguishes the fit from others, as JSON can hold it.

    Attributes:
        found: Tensors and values of the last state that is not damaged, or None. A warning names
            damaged states.

    Raises:
        ValueError: If the folder holds states of another fit.
        FileExistsError: If the path is a file, or another fit is using the folder.
        OSError: If the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike, about: Mapping[str, object]) -> None:
        self.path = Path(path)
        self.about = json.loads(json.dumps(about))
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / _LOCK, timeout=0)
        self._acquire()
        try:
            for stale in self.path.glob(".*.part"):  # Left by a process that was killed.
                shutil.rmtree(stale, ignore_errors=True)
            self.found = self._latest()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def write(self, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
        """Adds a state and removes states older than the one before it.

        Warns:
            UserWarning: If the state cannot be written.
        """
        states = self._states()
        number = 1 + (int(states[-1].name.removeprefix("state-")) if states else 0)
        config = {"about": self.about, "values": values}
        try:
            write_folder(self.path / f"state-{number:08d}", config, tensors)
        except OSError as error:
            warnings.warn(
                f"a checkpoint could not be written, and the fit goes on without it: {error}",
                stacklevel=2,
            )
            return
        for old in states[: len(states) + 1 - _KEPT]:
            remove_folder(old)

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise FileExistsError(
                f"checkpoint must belong to one fit at a time, and another fit is using "
                f"{str(self.path)!r}"
            ) from None
        except (OSError, NotImplementedError) as error:  # Read-only, or a system without locks.
            warnings.warn(
                f"checkpoint {str(self.path)!r} cannot be locked against other fits: {error}",
                stacklevel=4,
            )

    def _latest(self) -> tuple[dict[str, Tensor], dict] | None:
        for state in reversed(self._states()):
            try:
                config, tensors = read_folder(state, ("about", "values"))
            except (ValueError, OSError) as error:
                warnings.warn(f"a checkpoint is passed over: {error}", stacklevel=4)
                continue
            about = config["about"]
            different = [name for name in self.about if about.get(name) != self.about[name]]
            if different:
                shown = "; ".join(
                    f"{name} was {_shorten(about.get(name))}, is {_shorten(self.about[name])}"
                    for name in different[:3]
                )
                raise ValueError(
                    f"checkpoint must be empty or hold a state of this fit, got one in "
                    f"{str(self.path)!r} whose {', '.join(different)} differ: {shown}. Choose "
                    "another folder, or go on with the same data, model and options"
                )
            return tensors, config["values"]
        return None

    def _states(self) -> list[Path]:
        return sorted(self.path.glob("state-" + 8 * "[0-9]"))


def write_folder(path: Path, config: dict, tensors: Mapping[str, Tensor]) -> None:
    """Writes a folder with `config.json` and `model.safetensors`, both or none.

    Args:
        path: The folder.
        config: Entries of `config.json`, beside versions and checksum.
        tensors: The tensors.
    """
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    blob = safetensors.torch.save(plain)
    document = {
        "format_version": FORMAT_VERSION,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "sha256": hashlib.sha256(blob).hexdigest(),
        **config,
    }
    text = json.dumps(document, indent=1).encode()
    with whole_folder(path) as part:
        (part / _TENSORS).write_bytes(blob)
        (part / _CONFIG).write_bytes(text)


def read_folder(path: Path, entries: Sequence[str] = ()) -> tuple[dict, dict[str, Tensor]]:
    """Reads what :func:`write_folder` wrote: entries and tensors.

    Args:
        path: The folder.
        entries: Entries that `config.json` must have, beside versions and checksum.

    Raises:
        FileNotFoundError: If the folder or a file is missing.
        ValueError: If a file is damaged or of another format version, or an entry is missing.
    """
    where = str(path)
    if not path.is_dir():
        previous = previous_folder(path)
        found = f"; the model that stood there is whole in {str(previous)!r}"
        hint = found if previous.is_dir() else ""
        raise FileNotFoundError(f"path must be a folder with a saved model, got {where!r}{hint}")
    missing = [name for name in (_CONFIG, _TENSORS) if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"path must be a folder with {_CONFIG} and {_TENSORS}, got {where!r} without "
            f"{' and '.join(missing)}: copy the whole folder, or save the model again"
        )
    try:
        config = json.loads((path / _CONFIG).read_bytes())
        version = config["format_version"]
        missing = [entry for entry in ("sha256", *entries) if entry not in config]
        if missing or not isinstance(version, int):
            raise ValueError(f"{', '.join(missing)} missing" if missing else f"version {version!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{_CONFIG} in {where!r} is damaged ({error!r}): save the model again"
        ) from error
    if version not in _READABLE:
        better = "a newer" if version > FORMAT_VERSION else "an older"
        raise ValueError(
            f"format_version must be one of {_READABLE}, got {version} in {where!r}: load it with "
            f"{better} fssa_bayes (it was written by {config.get('versions')})"
        )
    blob = (path / _TENSORS).read_bytes()
    if hashlib.sha256(blob).hexdigest() != config["sha256"]:
        raise ValueError(
            f"{_TENSORS} in {where!r} is damaged or truncated ({len(blob)} bytes, whose SHA-256 is "
            f"not that in {_CONFIG}): copy it or save the model again"
        )
    return config, safetensors.torch.load(blob)


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
