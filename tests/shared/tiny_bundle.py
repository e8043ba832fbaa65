"""A bundle of a language model of a few thousand parameters, people of two tastes, their files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_models import save_encoder
from tiny_texts import assistant, make_tokenizer, user
from transformers import LlamaConfig, LlamaForCausalLM

ASKS = [
    "say a word",
    "word please",
    "now",
    "say now",
    "please say",
    "a word",
    "say a",
    "now please",
]
WORDS = ["user:", "assistant:", "red", "green", "blue", "say", "a", "word", "please", "now"]
FAST = (
    *("--steps", "25", "--reward-steps", "60", "--learning-rate", "0.03", "--components", "4"),
    *("--min-context", "3", "--max-context", "5", "--loss", "sigmoid"),
)


def choice(ask: str, colour: str) -> dict:
    """Returns the choice of one colour over the other."""
    other = {"red": "green", "green": "red"}[colour]
    return {
        "prompt": [user(ask)],
        "chosen": [assistant(colour)],
        "rejected": [assistant(other)],
    }


def records(num_users: int = 8) -> list[dict]:
    """People who prefer red and people who prefer green, in turn."""
    return [
        choice(ask, ("red", "green")[person % 2]) | {"user": f"u{person}"}
        for person in range(num_users)
        for ask in ASKS
    ]


def write_files(folder: Path) -> Path:
    """Writes `base`, `encoder` and `prefs.jsonl` to a folder."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3,
        eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "base")
        save_encoder(folder / "encoder", "bert", WORDS)
    text = "\n".join(json.dumps(record) for record in records())
    (folder / "prefs.jsonl").write_text(text)
    return folder
