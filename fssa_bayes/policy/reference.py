r"""Log-probabilities of the reference policy, computed once and kept on disk.

The reference :math:`\log \pi_{\mathrm{ref}}(y \mid x)` does not change while a policy is trained. A
folder of safetensors and JSON keeps it by model and by sequence. A matrix product rounds by rows
and padding of its batch, so that a value that is kept differs from one that is computed in
another batch by about 1e-6 of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from fssa_bayes._files import write_file

if TYPE_CHECKING:
    from fssa_bayes.policy.tokens import ResponseBatch

__all__ = ["LengthBuckets", "NonFiniteError", "ReferenceCache", "fingerprint", "hash_weights"]

FORMAT_VERSION = 2
"""Version of the cache folders that this version of the library writes."""

_DESCRIPTION = "cache.json"
_PATTERN = "reference-*.safetensors"
_ROWS_A_FILE = 1024
_DIGEST = hashlib.sha256().digest_size

# Entries of a configuration that do not change what the model computes.
_INCIDENTAL = {"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"}


def fingerprint(model: nn.Module) -> str:
    """Computes the SHA-256 of a model's configuration and of the bytes of all its weights.

    Adapters of peft and modulation are left out: before, during and after training a policy has the
    fingerprint of its base model. Every call reads the weights.

    Args:
        model: A model of transformers, inside a PeftModel or not, or a policy around it. Of a
            quantised model the policy: its weights may change at first use.
    """
    return _hash_model(model)[0]


def hash_weights(model: nn.Module) -> str:
    """Computes the SHA-256 of the weights without the configuration; see :func:`fingerprint`."""
    return _hash_model(model)[1]


def _base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the base model's tensors, by their names without an adapter."""
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        parts = name.split(".")
        if not any(part.startswith("lora_") or part == "modules_to_save" for part in parts):
            wrappers = ("base_layer", "original_module")
            yield ".".join(part for part in parts if part not in wrappers), tensor


def _hash_model(model: nn.Module) -> tuple[str, str]:
    """Returns the SHA-256 of configuration and weights, and that of the weights alone."""
    known = getattr(model, "quantised_weights", None)
    model = getattr(model, "base", model)  # A policy's.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    digest, weights = hashlib.sha256(), hashlib.sha256()
    if hasattr(model, "config"):
        options = {k: v for k, v in model.config.to_dict().items() if k not in _INCIDENTAL}
        options["attention"] = model.config._attn_implementation
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
    if known is not None:  # Of quantised weights before their first use, which may repack them.
        digest.update(known.encode())
        return digest.hexdigest(), known
    for name, tensor in _base_tensors(model):
        content = _bytes(tensor)
        for each in (digest, weights):
            each.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            each.update(content)
    return digest.hexdigest(), weights.hexdigest()


def _bytes(tensor: Tensor) -> np.ndarray:
    """Returns the bytes of a tensor of any type, without a copy on a CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class NonFiniteError(ValueError):
    """A log-probability of the reference policy that is not finite.

    Args:
        value: The log-probability.
        row: Row of the batch.
    """

    def __init__(self, value: float, row: int) -> None:
        self.value, self.row = value, row
        super().__init__(
            f"reference log-probabilities must be finite, got {value} at row {row} of the batch: "
            "look at the base model's precision"
        )


class ReferenceCache:
    """Keeps reference log-probabilities in a folder that belongs to one model.

    Files appear whole, and their names are digests of their content: a killed run loses only what
    was not yet written, several processes may share a folder, and a file whose content is not that
    of its name is passed over with a warning: its values are computed again. The end of a `with`
    block writes the values that are left.

    Args:
        folder: Where to keep the values; made if it does not exist.
        fingerprint: The reference model's :func:`fingerprint`.

    Raises:
        ValueError: If the folder is the cache of another model or of another format version, or
            does not say of which; nothing is changed.
    """

    def __init__(self, folder: str | os.PathLike, fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self._known: dict[bytes, float] = {}
        self._new: dict[bytes, float] = {}
        self._open()

    def __len__(self) -> int:
        """Returns the number of responses whose value is known."""
        return len(self._known)

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def log_prob(self, batch: ResponseBatch, compute: Callable[[ResponseBatch], Tensor]) -> Tensor:
        """Returns the reference log-probabilities of a batch, computing it if one is not known.

        Args:
            batch: R sequences.
            compute: Function that scores a batch by the reference policy, (R,) in nats; best the
                function that scores the policy, with adapter and conditioning off.

        Returns:
            Log-probabilities in nats, with shape (R,), on the device of the batch, no gradient;
            float32, float64 if the function gives it.

        Raises:
            NonFiniteError: If a computed value is not finite; no value of the batch is kept.
        """
        rows = _digests(batch)
        if not all(row in self._known for row in rows):
            with torch.no_grad():
                values = compute(batch).detach()
            self._add(rows, values.cpu())
            return values
        values = [self._known[row] for row in rows]
        return torch.tensor(values, dtype=self._dtype, device=batch.input_ids.device)

    def fill(
        self,
        batches: Iterable[ResponseBatch],
        compute: Callable[[ResponseBatch], Tensor],
        *,
        progress_bar: bool = True,
    ) -> None:
        """Computes and writes the unknown values of many batches; see :meth:`log_prob`."""
        bar = tqdm(batches, desc="reference", disable=not progress_bar, leave=False)
        with self:
            for batch in bar:
                self.log_prob(batch, compute)

    def flush(self) -> None:
        """Writes the values that are not yet in a file."""
        if not self._new:
            return
        joined = np.frombuffer(b"".join(self._new), dtype=np.uint8).copy()
        tensors = {
            "row": torch.from_numpy(joined).reshape(-1, _DIGEST),
            "log_prob": torch.tensor(list(self._new.values()), dtype=torch.float64),
            "single": torch.tensor([self._dtype == torch.float32]),
        }
        content = safetensors.torch.save(tensors)
        write_file(self.folder / _name(content), content)
        self._new = {}

    def _add(self, rows: list[bytes], values: Tensor) -> None:
        if values.shape != (len(rows),):
            raise ValueError(
                f"compute must return a value for each of {len(rows)} rows, got shape "
                f"{tuple(values.shape)}"
            )
        wrong = (~values.isfinite()).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise NonFiniteError(values[row].item(), row)
        self._dtype = values.dtype
        found = dict(zip(rows, values.tolist(), strict=True))
        self._new |= {row: value for row, value in found.items() if row not in self._known}
        self._known |= self._new
        if len(self._new) >= _ROWS_A_FILE:
            self.flush()

    def _open(self) -> None:
        """Makes the folder, or checks that it is this model's and reads its files."""
        path = self.folder / _DESCRIPTION
        description = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint}
        if path.exists():
            _check(path, self.fingerprint)
        elif self.folder.exists() and any(
            # A file that another process is about to rename, or was killed before it could.
            not (file.name.startswith(".") and file.suffix == ".part")
            for file in self.folder.iterdir()
        ):
            raise ValueError(
                f"folder must be new, empty or a cache, got {str(self.folder)!r} without "
                f"{_DESCRIPTION}"
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(description, indent=1).encode())
        for file in sorted(self.folder.glob(_PATTERN)):
            self._read(file)

    def _read(self, file: Path) -> None:
        content = file.read_bytes()
        if file.name != _name(content):
            warnings.warn(
                f"{str(file)!r} is damaged (its {len(content)} bytes are not those of its name) "
                "and passed over: delete it, its values are computed again",
                stacklevel=4,
            )
            return
        tensors = safetensors.torch.load(content)
        rows = [bytes(row) for row in tensors["row"].numpy()]
        self._known |= dict(zip(rows, tensors["log_prob"].tolist(), strict=True))
        self._dtype = torch.float32 if tensors["single"].all() else torch.float64


def _name(content: bytes) -> str:
    """Names the file that holds this content."""
    return _PATTERN.replace("*", hashlib.sha256(content).hexdigest()[:16])


def _check(path: Path, fingerprint: str) -> None:
    try:
        found = json.loads(path.read_bytes())
        version, owner = found["format_version"], found["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r})") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version of {str(path)!r} must be {FORMAT_VERSION}, got {version}")
    if owner != fingerprint:
        raise ValueError(
            f"folder must hold references of the model with fingerprint {fingerprint[:12]}, got "
            f"{str(path.parent)!r} of the model {owner[:12]}: choose another folder; this one is "
            "left as it is"
        )


def _digests(batch: ResponseBatch) -> list[bytes]:
    """Returns a digest of each row: precision, tokens and which of them are scored, no padding."""
    device = batch.input_ids.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    tensors = (batch.input_ids, batch.attention_mask, batch.response_mask)
    digests = []
    for tokens, present, scored in zip(*(t.cpu() for t in tensors), strict=True):
        digest = hashlib.sha256(f"{cast}".encode())
        for tensor in (tokens[present.bool()], scored[present.bool()]):
            digest.update(_bytes(tensor))
        digests.append(digest.digest())
    return digests


class LengthBuckets(Sampler[int]):
    """Puts rows of similar length into the same batch, in an order that changes with the epoch.

    Batches never change: consecutive blocks of `batch_size` rows are the same in every epoch, in
    another order. The first batch of the first epoch holds the longest rows, so that too little
    memory shows at once. A smaller batch, if any, holds the shortest rows and always comes last.

    A DataLoader takes this sampler as its `sampler`, with the same `batch_size`, and processes of
    `accelerate` take the batches in turn.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Rows of a batch.
        seed: Seed of the order, and of the batches of rows of equal length.
        drop_last: Whether to leave out the rows, drawn once, that do not fill a batch.

    Raises:
        ValueError: If `lengths` is not one-dimensional with at least one entry, or `batch_size` is
            not positive.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or not len(lengths):
            raise ValueError(
                f"lengths must have shape (R,) with R of at least 1, got {lengths.shape}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        count = len(lengths) // batch_size * batch_size if drop_last else len(lengths)
        if count == 0:
            raise ValueError(f"lengths must fill a batch of {batch_size}, got {len(lengths)} rows")
        shuffled = np.random.default_rng(seed).permutation(len(lengths))[:count]
        self._order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; a trainer calls this before each epoch."""
        self.epoch = epoch

    def batches(self) -> list[np.ndarray]:
        """Lists the rows of every batch of this epoch, in order."""
        starts = range(0, len(self), self.batch_size)
        blocks = [self._order[start : start + self.batch_size] for start in starts]
        full = len(self) // self.batch_size
        if self.epoch == 0:
            order = np.arange(full)
            order[1:] = 1 + np.random.default_rng([self.seed, 0]).permutation(max(full - 1, 0))
        else:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(full)
        return [blocks[position] for position in order] + blocks[full:]

    def __iter__(self) -> Iterator[int]:
        return iter(np.concatenate(self.batches()).tolist())
