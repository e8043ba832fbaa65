"""Tiny language models with random weights, and files that they can learn from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

NAMES = ("[CLS]", "[SEP]", "[UNK]", "[PAD]")


def make_tokenizer(kind: str, words: Iterable[str]):
    """Cuts at spaces; BERT's adds [CLS] and [SEP], the others have no padding token."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {name: number for number, name in enumerate([*NAMES, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind != "bert":
        return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    )


def make_model(kind: str, *, width: int = 16, with_head: bool = False) -> torch.nn.Module:
    """Builds a model of two layers for a vocabulary of 30."""
    import transformers

    size = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "bert": lambda: transformers.BertConfig(**size, vocab_size=30, intermediate_size=32),
        "llama": lambda: transformers.LlamaConfig(**size, vocab_size=30, intermediate_size=32),
        "gpt2": lambda: transformers.GPT2Config(
            **size, vocab_size=30, bos_token_id=0, eos_token_id=1
        ),
    }
    auto = transformers.AutoModelForCausalLM if with_head else transformers.AutoModel
    torch.manual_seed(width)
    model = auto.from_config(configs[kind]())
    for parameter in model.parameters():  # As they start, norms and positions hardly matter.
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def save_encoder(folder: Path, kind: str, words: Iterable[str]) -> Path:
    """Saves a model and its tokeniser."""
    make_tokenizer(kind, words).save_pretrained(folder)
    make_model(kind).save_pretrained(folder)
    return folder


WORDS = ("Human:", "Assistant:", "ask", "much", "perhaps", "cite")


def write_ultrafeedback(path: Path, num_prompts: int) -> Path:
    """Writes answers in which words count: "much" is helpful, "perhaps" honest, "cite" truthful."""
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        for number in range(num_prompts):
            completions = []
            for ratings in rng.integers(1, 6, size=(3, 3)):
                words = np.repeat(["much", "perhaps", "cite"], ratings)
                names = ("helpfulness", "honesty", "truthfulness")
                notes = {n: {"Rating": str(r)} for n, r in zip(names, ratings, strict=True)}
                completions.append({"response": " ".join(words), "annotations": notes})
            record = {"instruction": f"ask {number}", "completions": completions}
            file.write(json.dumps(record) + "\n")
    return path
