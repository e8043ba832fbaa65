"""Small data and helpers that several test files share, handed out as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor, nn

from fssa_bayes.data import Batch, Preferences

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seeds every test, and keeps its draws and its Pyro parameters to itself."""
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Preferences]:
    """Returns a factory of random comparisons."""
    return _make_data


def _make_data(
    counts: Sequence[int] = (3, 1, 5, 0, 2),
    *,
    num_items: int = 6,
    num_features: int | None = 3,
    half_wins: bool = False,
    seed: int = 0,
) -> Preferences:
    """Draws pairs and choices for people with the given numbers of comparisons.

    `num_features=None` gives items without features; otherwise each has a unit of its own.
    """
    rng = np.random.default_rng(seed)
    total = sum(counts)
    left = rng.integers(num_items, size=total)
    right = (left + rng.integers(1, num_items, size=total)) % num_items
    choice = rng.integers(3, size=total) / 2 if half_wins else rng.integers(2, size=total)
    items = None
    if num_features is not None:
        columns = np.arange(num_features)
        items = rng.normal(columns, 1 + columns, size=(num_items, num_features))
        items = items.astype(np.float32)  # The models' precision: formulas of tests take both.
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Preferences(left, right, choice, offsets, items=items, num_items=num_items)


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """Returns a function that moves parameters away from where they start."""

    def add_noise(module: nn.Module, scale: float = 0.3) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
        return module

    return add_noise


@pytest.fixture(scope="session")
def soil() -> Callable[[Batch], Batch]:
    """Returns a function that puts NaN and positions out of range under the mask."""

    def add_garbage(batch: Batch) -> Batch:
        assert not batch.mask.all()
        return batch.replace(
            left=batch.left.masked_fill(~batch.mask, 10**9),
            right=batch.right.masked_fill(~batch.mask, -7),
            choice=batch.choice.masked_fill(~batch.mask, torch.nan),
        )

    return add_garbage


@pytest.fixture(scope="session")
def widen() -> Callable[[Batch], Batch]:
    """Returns a function that adds three columns of padding."""

    def add_padding(batch: Batch) -> Batch:
        def pad(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor.new_zeros(len(tensor), 3)], -1)

        return batch.replace(
            left=pad(batch.left),
            right=pad(batch.right),
            choice=pad(batch.choice),
            mask=pad(batch.mask),
        )

    return add_padding


@pytest.fixture(scope="session")
def grid() -> Callable[..., tuple[Tensor, float]]:
    """Returns a factory of grids of z (G, K), with the volume of a cell."""

    def make_grid(latent_dim: int, bound: float, num: int) -> tuple[Tensor, float]:
        axis = torch.linspace(-bound, bound, num)
        cell = (axis[1] - axis[0]).item() ** latent_dim
        return torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim), cell

    return make_grid


@pytest.fixture(scope="session")
def train_choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of the train-choice format with price, time, change and comfort traded off."""
    rng = np.random.default_rng(0)
    rows = 240
    table = pd.DataFrame({"id": np.repeat(np.arange(30), 8)})
    cost = np.zeros((2, rows))
    for side in (1, 2):
        table[f"price{side}"] = rng.integers(20, 50, rows) * 100
        table[f"time{side}"] = rng.integers(90, 180, rows)
        table[f"change{side}"] = rng.integers(0, 3, rows)
        table[f"comfort{side}"] = rng.integers(0, 3, rows)
        cost[side - 1] = table[f"price{side}"] / 500 + table[f"time{side}"] / 20
    noise = rng.logistic(size=rows)
    table["choice"] = np.where(cost[0] + noise < cost[1], "choice1", "choice2")
    path = tmp_path_factory.mktemp("data") / "choices.csv"
    table.to_csv(path, index=False)
    return path


TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TINY_MODELS = {
    "llama": TINY,
    "qwen2": TINY,
    "qwen3": TINY | {"head_dim": 8},
    "gpt2": TINY,
    "gemma": TINY | {"head_dim": 8},
    "gemma2": TINY | {"head_dim": 8, "final_logit_softcapping": 3.0},
    "phi": TINY,
    "granite": TINY | {"logits_scaling": 13.0},
    "cohere": TINY | {"logit_scale": 0.3},
}


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., nn.Module]:
    """Returns a factory of small language models with random weights, by architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def build(name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Of the size that trained weights have, so that errors are not lost in rounding.
            config = AutoConfig.for_model(name, **TINY_MODELS[name], initializer_range=0.2)
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    return build


@pytest.fixture
def word_tokenizer():
    """Returns a tokenizer of the words w3, w4, …, with a padding and an end-of-text token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(3, TINY["vocab_size"]))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
