"""A cache of chains, with a netCDF file for each person."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fssa_bayes._arviz import Group, build, read_group
from fssa_bayes._files import whole_file
from fssa_bayes.model import HeterogeneousBTL

__all__ = [
    "Chains",
    "NutsOptions",
    "cache_folder",
    "digest_of",
    "identity_of",
    "read_chains",
    "write_chains",
]

_CACHE_VERSION = 1  # Raised when the same key would stand for other draws.


@dataclass(frozen=True)
class NutsOptions:
    """Holds the options of :func:`nuts` that a person's draws depend on."""

    num_samples: int
    warmup_steps: int
    num_chains: int
    seed: int
    target_r_hat: float
    max_attempts: int


@dataclass(frozen=True)
class Chains:
    """Holds the chains of a person.

    Attributes:
        z: Draws with shape (C, S, K).
        num_divergences: Divergent transitions of each chain, (C,).
        seconds: Time that each chain took, (C,).
    """

    z: np.ndarray
    num_divergences: np.ndarray
    seconds: np.ndarray


def identity_of(model: HeterogeneousBTL, reference: Tensor, options: NutsOptions) -> str:
    """Digests the model, the reference items and the options."""
    about = [_CACHE_VERSION, model.config, repr(model), asdict(options)]
    tensors = [tensor for _, tensor in sorted(model.state_dict().items())]
    return digest_of(json.dumps(about, sort_keys=True), reference, *tensors)


def digest_of(*parts: str | Tensor) -> str:
    """Returns the SHA-256 of texts and of tensors with their types and shapes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = np.ascontiguousarray(part.detach().cpu().numpy())
            digest.update(f"{array.dtype} {array.shape}".encode())
            part = array.tobytes()
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()


def cache_folder(cache: str | os.PathLike) -> Path:
    """Makes the folder of a cache; raises a ValueError where there is a file in its place."""
    folder = Path(cache)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cache must be a folder, got the file {str(folder)!r}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_chains(path: Path, key: str, chains: Chains) -> None:
    """Writes a person's chains, with the key that stands for model, context and options."""
    noted = {
        "num_divergences": (("chain",), chains.num_divergences),
        "seconds": (("chain",), chains.seconds),
    }
    counts = {"chain": chains.z.shape[0], "draw": chains.z.shape[1], "latent": chains.z.shape[2]}
    coords = {name: ((name,), np.arange(count)) for name, count in counts.items()}
    groups = {
        "posterior": Group({"z": (tuple(counts), chains.z)}, coords),
        "sample_stats": Group(noted, coords),
    }
    content = build(
        groups, {"key": key, "sha256": digest_of(*map(torch.from_numpy, astuple(chains)))}
    )
    with whole_file(path) as part:
        content.to_netcdf(str(part))


def read_chains(
    path: Path, key: str, model: HeterogeneousBTL, options: NutsOptions
) -> Chains | None:
    """Reads a person's chains; returns None where the file is missing or damaged.

    Warns:
        UserWarning: If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        posterior, attributes = read_group(path, "posterior")
        noted, _ = read_group(path, "sample_stats")
        chains = Chains(posterior["z"], noted["num_divergences"], noted["seconds"])
        shape = (options.num_chains, options.num_samples, model.latent_dim)
        whole = digest_of(*map(torch.from_numpy, astuple(chains)))
        if (attributes["key"], attributes["sha256"], chains.z.shape) != (key, whole, shape):
            raise ValueError("its content is not what was written")
    except Exception as error:  # What a damaged HDF5 file raises is not documented.
        warnings.warn(
            f"the cached draws in {str(path)!r} are damaged ({error}) and are sampled again",
            stacklevel=5,
        )
        return None
    return chains
