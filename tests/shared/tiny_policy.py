"""A language model of a few thousand parameters, people of two types, and their training.

    python tests/shared/tiny_policy.py FOLDER

Trains in processes of its own, forks so that libraries are imported once: one that is killed and
resumed, and two at a time as `torchrun` starts them, undisturbed or killed and resumed. Prints what
came of each, as JSON. Run by test_checkpoints.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
)

from fssa_bayes.data import Batch
from fssa_bayes.policy import Contexts, PreferenceRows, SteerableDPOTrainer, SteerablePolicy

COLOURS = ("red", "blue")
PROMPTS = [f"say p{number}" for number in range(8)]
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 9}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of the words of this problem."""
    marks = ["<pad>", "<s>", "</s>", "say", "now"]
    words = [*marks, *COLOURS, *(prompt.split()[1] for prompt in PROMPTS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_rows(num_users: int = 4) -> PreferenceRows:
    """People alternate between preferring red and blue; responses have several lengths."""
    records = []
    for person in range(num_users):
        for number, prompt in enumerate(PROMPTS):
            words = [f" {colour}" * (1 + number % 3) for colour in COLOURS]
            chosen, rejected = words if person % 2 == 0 else words[::-1]
            records.append(
                {"prompt": prompt, "chosen": chosen, "rejected": rejected, "user": person}
            )
    return PreferenceRows.from_records(records)


def colour_features(texts: list[str]) -> torch.Tensor:
    """Describes a text by whether it is red and whether it is blue."""
    return torch.tensor([[float(colour in text) for colour in COLOURS] for text in texts])


def make_contexts(rows: PreferenceRows, **options: Any) -> Contexts:
    return Contexts(rows, rows.to_preferences(colour_features), **options)


def make_base() -> LlamaForCausalLM:
    """Returns a language model, always the same."""
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()), hidden_size=16, intermediate_size=24,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def make_policy() -> SteerablePolicy:
    """Returns a new policy, always the same, with two latent dimensions."""
    return SteerablePolicy.from_model(make_base(), make_tokenizer(), latent_dim=2, lora_rank=2)


class ColourGuide(nn.Module):
    """Finds z by the colours that a person chose, its first entry being positive for red."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        self.log_scale = nn.Parameter(torch.zeros(2))

    def posterior(self, batch: Batch) -> torch.distributions.Distribution:
        """Returns a normal distribution, the standard one for an empty context."""
        left, right = batch.items[batch.left], batch.items[batch.right]
        sign = (2 * batch.choice - 1).unsqueeze(-1)
        seen = (sign * (left - right)).masked_fill(~batch.mask.unsqueeze(-1), 0.0).sum(1)
        count = batch.mask.sum(-1, keepdim=True).float()
        loc = 0.5 * seen @ self.weight.T / (1 + count)
        scale = (self.log_scale - 2 * count / (1 + count)).exp()
        return torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)


def make_arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {
        "use_cpu": True, "disable_tqdm": True, "learning_rate": 3e-3, "save_strategy": "no",
        "logging_steps": 1, "per_device_train_batch_size": 8, "max_steps": 6, "log_level": "error",
        "lr_scheduler_type": "constant", "seed": 5,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**defaults, **options})


def make_trainer(
    folder: Path, *, joint: bool = False, arguments: dict | None = None, **options: Any
) -> SteerableDPOTrainer:
    """Returns a trainer of a new policy on people of both types."""
    rows, guide = make_rows(), ColourGuide()
    return SteerableDPOTrainer(
        make_policy(),
        make_arguments(folder, **(arguments or {})),
        rows.tokenise(make_tokenizer()),
        make_contexts(rows, max_context=4, seed=1),
        guide.posterior,
        guide=guide if joint else None,
        **{"num_draws": 2, "beta": 0.5, "loss_type": "sigmoid", **options},
    )


def parameters(trainer: SteerableDPOTrainer) -> dict[str, torch.Tensor]:
    """Returns everything that learns."""
    named = trainer.model.named_parameters()
    return {name: value.detach() for name, value in named if value.requires_grad}


def history(trainer: SteerableDPOTrainer, name: str = "loss") -> list[float]:
    """Lists what a trainer logged under a name."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def digest(trainer: SteerableDPOTrainer) -> str:
    """Returns a SHA-256 of everything that learns."""
    found = hashlib.sha256()
    for name, value in parameters(trainer).items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


class Kill(TrainerCallback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, processes: int, kill_at: int | None) -> None:
    """Trains as one of several processes, and goes on from where an earlier run was killed."""
    arguments = {
        "max_steps": 9, "per_device_train_batch_size": 8 // processes,
        "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1,
        "ddp_backend": "gloo" if processes > 1 else None,
    }  # fmt: skip
    resume = folder.exists()
    trainer = make_trainer(folder, joint=True, arguments=arguments, callbacks=[Kill(kill_at)])
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        document = {"entries": entries, "digest": digest(trainer)}
        folder.with_suffix(".json").write_text(json.dumps(document))


def attempt(folder: Path, processes: int, kill_at: int | None = None) -> dict:
    """Forks the processes of a run and reports how they ended and what they left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if processes > 1:
                    os.environ |= {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    }  # fmt: skip
                train(folder, processes, kill_at)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    left = sorted(path.name for path in folder.iterdir())
    result = folder.with_suffix(".json")
    found = json.loads(result.read_text()) if result.exists() else {}
    return {"ends": ends, "left": left, **found}


def main(folder: Path) -> None:
    """Runs all the attempts."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        results = {
            "killed": attempt(folder / "one", 1, kill_at=7),
            "resumed": attempt(folder / "one", 1),
            "two": attempt(folder / "two", 2),
            "two_killed": attempt(folder / "two_broken", 2, kill_at=7),
            "two_resumed": attempt(folder / "two_broken", 2),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
