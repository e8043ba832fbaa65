r"""Texts as features: embeddings by any Hugging Face encoder or causal language model.

A text becomes one vector :math:`x \in \mathbb{R}^D`, pooled from the last hidden states
:math:`h_1, \dots, h_T` of its tokens: their mean, the last (what causal models are read at) or the
first (BERT's `[CLS]`). No pooling reads padding. `encoders.py` loads models, and `text_cache.py`
keeps embeddings in a folder.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fssa_bayes.data.encoders import body_of, fingerprint, largest_length, load_encoder
from fssa_bayes.data.text_cache import TextCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEncoder", "embed_texts", "fingerprint", "load_encoder", "pool"]


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
    batches_per_shard: int = 16,
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
        batches_per_shard: Batches after which what was computed is written to the cache.

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
    texts = _check_options(texts, pooling, batch_size, max_length, cache)
    body = body_of(model) if device is None else body_of(model).to(device)
    length = largest_length(body, tokenizer) if max_length is None else max_length
    was_training = body.training
    body.eval()
    try:
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encode = TextEncoder(body, tokenizer, pooling, batch_size, length)
        table = _embed_distinct(list(distinct), encode, cache, batches_per_shard, progress_bar)
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


def _check_options(
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


class TextEncoder:
    """Embeds texts on the device of a model, whose tokeniser and options are given."""

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
        # A causal model would keep keys and values of every layer for later tokens.
        has_cache = "use_cache" in inspect.signature(model.forward).parameters
        self.options = {"use_cache": False} if has_cache else {}
        self.width = self._embed([[0]]).shape[-1]
        self.num_cut = 0

    def describe(self) -> dict[str, Any]:
        """Describes what embeddings depend on besides the text."""
        return {
            "fingerprint": fingerprint(self.model, self.tokenizer),
            "pooling": self.pooling,
            "max_length": self.max_length,
        }

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
                f"embeddings must be finite, got another for {_shown(texts[bad[0]])} ({len(bad)} "
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
                    f"texts must have at least one token each, {_shown(text)} has none"
                )
        if self.max_length is not None:
            self.num_cut += sum(len(row) >= self.max_length for row in tokens)
        return tokens

    @torch.no_grad()
    def _embed(self, tokens: list[list[int]]) -> Tensor:
        # Padding stands on the right, whatever the tokeniser prefers: on the left it would shift
        # the positions of models with absolute ones.
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
    texts: list[str],
    encode: TextEncoder,
    cache: str | os.PathLike | None,
    batches_per_shard: int,
    progress_bar: bool,
) -> Tensor:
    """Embeds what the cache does not hold, block by block."""
    store = None if cache is None else TextCache(Path(cache), encode.describe(), encode.width)
    table = torch.zeros(len(texts), encode.width)
    known = torch.zeros(len(texts), dtype=torch.bool)
    if store is not None:
        store.fill(texts, table, known)
    # The longest first, so that a lack of memory shows at once.
    pending = sorted((~known).nonzero().flatten().tolist(), key=lambda row: -len(texts[row]))
    size = batches_per_shard * encode.batch_size
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


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
