"""Preference rows of a few words, and a tokenizer of these words."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fssa_bayes.policy import PreferenceRows

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
WORDS = ["red", "green", "blue", "say", "a", "word", "please", "now"]


def make_tokenizer(*, begins: bool = True, ends: bool = False) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of words, with the marks that tokenizers put around a text."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<system>"]
    vocabulary = {token: number for number, token in enumerate(marks + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=("<s> " if begins else "") + "$A" + (" </s>" if ends else ""),
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", chat_template=TEMPLATE,
    )  # fmt: skip


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


RECORDS = [
    {"prompt": "say a word", "chosen": " red", "rejected": " green blue", "user": "ann"},
    {"prompt": "word please", "chosen": " blue", "rejected": " red", "user": "bob"},
    {"prompt": "word please", "chosen": " blue", "rejected": " green", "user": "ann"},
    {"prompt": "now", "chosen": " blue now", "rejected": " green", "user": "ann"},
]


def as_conversations(records: list[dict]) -> list[dict]:
    return [
        {
            "prompt": [user(record["prompt"])],
            "chosen": [assistant(record["chosen"].strip())],
            "rejected": [assistant(record["rejected"].strip())],
            "user": record["user"],
        }
        for record in records
    ]


def many_rows(num_users: int = 5, num_prompts: int = 7, each: int = 12) -> PreferenceRows:
    """Draws rows in which people share prompts and meet a prompt more than once."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(num_users), each)
    order = rng.permutation(len(users))
    prompts = rng.integers(num_prompts, size=len(users))
    return PreferenceRows(
        [f"prompt {prompt}" for prompt in prompts],
        [f" good {number}" for number in range(len(users))],
        [f" bad {number}" for number in range(len(users))],
        [f"u{name}" for name in users[order]],
    )


def lookup(texts: list[str]) -> torch.Tensor:
    """Embeds a text by its number, and by whether it was the better one."""
    return torch.tensor([[float(text.split()[-1]), float("good" in text)] for text in texts])
