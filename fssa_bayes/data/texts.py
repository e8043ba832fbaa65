r"""Texts as features: embeddings by any Hugging Face encoder or causal language model.

A text becomes one vector :math:`x \in \mathbb{R}^D`, pooled from the last hidden states
:math:`h_1, \dots, h_T` of its tokens: their mean, the last (what causal models are read at) or the
first (BERT's `[CLS]`). Padding takes no part in any of them.

A cache is a folder. What is computed goes there shard by shard, each written under another name and
then renamed, so that a run that was killed goes on where it stopped. An embedding is found again by
the model's and tokeniser's content, the pooling, the largest length and the text's SHA-256.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["embed_texts", "fingerprint", "load_encoder", "pool"]

_FORMAT_VERSION = 1
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".zip", ".tar.gz")
_BATCHES_PER_SHARD = 16


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

    name, is_local = _locate(name_or_path)
    if not is_local:
        _check_connection(name)
    options: dict[str, Any] = {"local_files_only": is_local, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        with torch.random.fork_rng():  # Weights that a file lacks, such as a pooler's, are drawn.
            model = AutoModel.from_pretrained(
                name, dtype="auto" if dtype is None else dtype, **options
            )
    except (OSError, ValueError) as error:
        raise OSError(_advice(name, is_local, error)) from error
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model.to(_default_device() if device is None else device).eval(), tokenizer


def embed_texts(
    texts: Sequence[str],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: str = "mean",
    batch_size: int = 32,
    max_length: int | None = None,
    cache: str | os.PathLike | None = None,
    device: torch.device | str | None = None,
    progress_bar: bool = True,
    normalise: bool = False,
) -> Tensor:
    """Embeds texts, the longest first, each distinct one once.

    Args:
        texts: The texts, R of them.
        model: A model as :func:`load_encoder` returns it; of one with a head the body is used.
        tokenizer: Its tokeniser.
        pooling: `"mean"` of the tokens, the `"last"` token or the first, `"cls"`; special tokens
            are tokens.
        batch_size: Texts in one forward pass.
        max_length: Tokens after which a text is cut; what model and tokeniser can take if None.
        cache: A folder in which embeddings are kept, made if need be, or None.
        device: Where to compute; the model is moved there. None leaves it where it is.
        progress_bar: Whether to show progress.
        normalise: Whether to scale every embedding to length 1.

    Returns:
        Embeddings in the order of `texts`, float32 on the CPU with shape (R, D).

    Raises:
        TypeError: If `texts` is one string or holds something else than strings.
        ValueError: If `texts` is empty, an option is out of range, a text has no tokens, an
            embedding is not finite, or the cache holds embeddings of another width.

    Warns:
        UserWarning: If texts reach `max_length`, with their number; if a damaged shard of the cache
            is passed over.
    """
    texts = _check(texts, pooling, batch_size, max_length, cache)
    body = _body(model) if device is None else _body(model).to(device)
    length = _max_length(body, tokenizer) if max_length is None else max_length
    was_training = body.training
    body.eval()
    try:
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encode = _Encoder(body, tokenizer, pooling, batch_size, length)
        table = _embed_distinct(list(distinct), encode, cache, progress_bar)
    finally:
        body.train(was_training)
    rows = table[torch.tensor([distinct[text] for text in texts])]
    return nn.functional.normalize(rows, dim=-1) if normalise else rows


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pools hidden states, whichever side is padded.

    Args:
        hidden: Hidden states with shape (R, T, D).
        mask: 1 or True for tokens, 0 or False for padding, with shape (R, T).
        pooling: `"mean"`, `"last"` or `"cls"`.

    Returns:
        One vector a row in single precision, with shape (R, D).
    """
    mask = mask.bool()
    if pooling == "mean":
        kept = hidden.float().masked_fill(~mask[..., None], 0.0)
        return kept.sum(1) / mask.sum(1, keepdim=True)
    position = torch.arange(mask.shape[1], device=mask.device)
    if pooling == "last":
        chosen = torch.where(mask, position, -1).amax(1)
    else:
        chosen = torch.where(mask, position, mask.shape[1]).amin(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen].float()


def fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a SHA-256 of a model's configuration, weights and tokeniser."""
    digest = hashlib.sha256(_describe_model(model).encode())
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("pooler."):  # Not used, and drawn at random where a file has none.
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(_describe_tokenizer(tokenizer).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------- checks


def _locate(name_or_path: str | os.PathLike) -> tuple[str, bool]:
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


def _check_connection(name: str) -> None:
    """Asks the hub once, whose loaders ask for a minute where nobody answers."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)
    except (OSError, ValueError):
        pass  # The hub answered, or is not to be asked: the loaders say more.
    except Exception as error:  # No connection; of which kind depends on the client's version.
        raise OSError(_advice(name, False, error)) from error


def _advice(name: str, is_local: bool, error: Exception) -> str:
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


def _check(
    texts: Sequence[str],
    pooling: str,
    batch_size: int,
    max_length: int | None,
    cache: str | os.PathLike | None,
) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, got one string")
    texts = list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts must be strings, got {type(text).__name__} at position {row}")
    if not texts:
        raise ValueError("texts must hold at least one text, got none")
    if pooling not in ("mean", "last", "cls"):
        raise ValueError(f"pooling must be 'mean', 'last' or 'cls', got {pooling!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
        raise ValueError(f"max_length must be an integer of at least 1 or None, got {max_length!r}")
    if cache is not None and Path(cache).exists() and not Path(cache).is_dir():
        raise ValueError(f"cache must be a folder, got the file {str(cache)!r}")
    return texts


def _default_device() -> torch.device:
    """Returns the GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _body(model: nn.Module) -> nn.Module:
    """Returns the model without its head: the adapted body where adapters were put on it."""
    if hasattr(model, "get_base_model"):  # peft wraps the whole model, head and all
        model = model.get_base_model()
    return getattr(model, "base_model", model)


def _max_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the number of tokens that both can take, or None where neither says."""
    limits = [
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None),
    ]
    # Tokenisers without a limit say 1e30.
    limits = [limit for limit in limits if limit is not None and 0 < limit < 1e9]
    return min(limits, default=None)


def _describe_model(model: nn.Module) -> str:
    """Writes down the configuration, less what no hidden state depends on."""
    content = model.config.to_dict()
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"):
        content.pop(name, None)
    content["class"] = type(model).__name__
    return json.dumps(content, sort_keys=True, default=str)


def _describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Writes down what decides how a text is cut into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        content = json.loads(backend.to_str())
        # Both are rewritten by every call, as its options say.
        content.pop("truncation", None)
        content.pop("padding", None)
    content["truncation_side"] = tokenizer.truncation_side
    return json.dumps(content, sort_keys=True)


# ---------------------------------------------------------------------- computing


class _Encoder:
    """Embeds a list of texts on one device: a model, its tokeniser and how they are used."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str,
        batch_size: int,
        max_length: int | None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.batch_size, self.max_length = pooling, batch_size, max_length
        self.device = next(model.parameters()).device
        # A causal model would keep keys and values of every layer for tokens to come.
        has_cache = "use_cache" in inspect.signature(model.forward).parameters
        self.options = {"use_cache": False} if has_cache else {}
        self.width = self._embed([[0]]).shape[-1]
        self.num_cut = 0

    def __call__(self, texts: list[str], report: Callable[[int], object]) -> Tensor:
        """Embeds texts in batches of similar length and reports how many are done."""
        tokens = self._tokenise(texts)
        order = sorted(range(len(texts)), key=lambda row: -len(tokens[row]))
        table = torch.empty(len(texts), self.width)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            table[rows] = self._embed([tokens[row] for row in rows])
            report(len(rows))
        bad = (~torch.isfinite(table).all(-1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"embeddings must be finite, got another for {_short(texts[bad[0]])} ({len(bad)} "
                "such texts): load the model with dtype=torch.float32 or torch.bfloat16"
            )
        return table

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        tokens = self.tokenizer(
            texts,
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for text, row in zip(texts, tokens, strict=True):
            if not row:
                raise ValueError(
                    f"texts must have at least one token each, {_short(text)} has none"
                )
        if self.max_length is not None:
            self.num_cut += sum(len(row) >= self.max_length for row in tokens)
        return tokens

    @torch.no_grad()
    def _embed(self, tokens: list[list[int]]) -> Tensor:
        # Padded on the right whatever the tokeniser prefers: positions count from the left, so
        # that on the left it would shift those of models with absolute positions.
        width = max(map(len, tokens))
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])
        padding = self.tokenizer.pad_token_id or 0
        padded = torch.tensor([row + [padding] * (width - len(row)) for row in tokens])
        mask = mask.to(self.device)
        try:
            output = self.model(padded.to(self.device), attention_mask=mask, **self.options)
        except torch.OutOfMemoryError as error:
            error.add_note(f"{len(tokens)} texts of {width} tokens: lower batch_size or max_length")
            raise
        return pool(output.last_hidden_state, mask, self.pooling).cpu()


def _embed_distinct(
    texts: list[str], encode: _Encoder, cache: str | os.PathLike | None, progress_bar: bool
) -> Tensor:
    """Embeds what the cache does not hold, block by block."""
    store = None if cache is None else _Cache(Path(cache), encode)
    table = torch.zeros(len(texts), encode.width)
    known = torch.zeros(len(texts), dtype=torch.bool)
    if store is not None:
        store.fill(texts, table, known)
    # The longest come first, so that what does not fit into memory shows at once.
    pending = sorted((~known).nonzero().flatten().tolist(), key=lambda row: -len(texts[row]))
    size = _BATCHES_PER_SHARD * encode.batch_size
    done = len(texts) - len(pending)
    with tqdm(total=len(texts), initial=done, unit="text", disable=not progress_bar) as bar:
        for start in range(0, len(pending), size):
            rows = pending[start : start + size]
            block = [texts[row] for row in rows]
            table[rows] = encode(block, bar.update)
            if store is not None:
                store.add(block, table[rows])
    if encode.num_cut:
        warnings.warn(
            f"{encode.num_cut} texts reach max_length={encode.max_length} tokens; what lies beyond "
            "is not embedded",
            stacklevel=3,
        )
    return table


# ---------------------------------------------------------------------- the cache


class _Cache:
    """Keeps embeddings in a folder: shards of safetensors, each with its index in JSON."""

    def __init__(self, path: Path, encode: _Encoder) -> None:
        self.path, self.width = path, encode.width
        self.key = {
            "fingerprint": fingerprint(encode.model, encode.tokenizer),
            "pooling": encode.pooling,
            "max_length": encode.max_length,
        }
        path.mkdir(parents=True, exist_ok=True)
        self._check_width()
        self.folder = path / _sha256(json.dumps(self.key).encode())[:16]
        self.folder.mkdir(exist_ok=True)

    def _check_width(self) -> None:
        config = self.path / "cache.json"
        if not config.exists():
            content = {"format_version": _FORMAT_VERSION, "width": self.width}
            _write(config, json.dumps(content).encode())
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
        """Fills in the rows whose texts are in the cache."""
        rows = {_sha256(_bytes(text)): row for row, text in enumerate(texts)}
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
        """Writes a shard; it counts once its index is there."""
        blob = safetensors.torch.save({"embedding": table.contiguous()})
        hashes = [_sha256(_bytes(text)) for text in texts]
        shard = self.folder / uuid.uuid4().hex
        _write(shard.with_suffix(".safetensors"), blob)
        index = {**self.key, "sha256": _sha256(blob), "texts": hashes}
        _write(shard.with_suffix(".json"), json.dumps(index).encode())


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
