"""A step of preference optimisation by TRL's trainer, on the batches of :mod:`benchmarks.policy`.

TRL trains a plain adapter on the same base model, with the base model as its reference. It is
measured where `trl` is installed; nothing else of the benchmarks needs it.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from benchmarks.policy import Problem

__all__ = ["TrlStep", "has_trl"]


def has_trl() -> bool:
    """Tells whether TRL and what its trainer needs are installed."""
    return all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


class TrlStep:
    """Runs steps of TRL's `DPOTrainer` on the pairs of a problem.

    Args:
        problem: The pairs, whose adapter is copied.
        beta: Strength of the pull towards the reference.
    """

    def __init__(self, problem: Problem, beta: float) -> None:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        self.problem = problem
        words = ["<pad>", "<end>", "a", "b"]
        tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
        )
        rank = problem.policy.config.lora_rank
        lora = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        # The step reads its own tensors, not this row.
        row = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["a"]})
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            arguments = DPOConfig(
                folder, beta=beta, report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
                gradient_checkpointing=problem.case.checkpointing, max_length=None,
            )  # fmt: skip
            model = problem.case.model()
            self.trainer = DPOTrainer(
                model, args=arguments, train_dataset=row, processing_class=fast, peft_config=lora
            )
        own = {k: v for k, v in problem.policy.model.state_dict().items() if "lora_" in k}
        state = self.trainer.model.state_dict()
        assert own.keys() <= state.keys()
        with torch.no_grad():
            for name, value in own.items():
                state[name].copy_(value)
        self.trainer.model.train()

    def __call__(self) -> float:
        """Accumulates the gradient of the mean loss of all pairs, and returns the loss."""
        from benchmarks.policy import WAYS

        self.trainer.model.zero_grad(set_to_none=True)
        ours, total = WAYS["ours"], 0.0
        for pairs in self.problem.batches(ours):
            batch = self.problem.batch(ours, pairs)
            inputs = {
                "input_ids": batch.input_ids,
                "attention_mask": batch.attention_mask,
                "completion_mask": batch.response_mask.long(),
            }
            share = len(pairs) / self.problem.case.pairs
            loss = share * self.trainer.compute_loss(self.trainer.model, inputs)
            loss.backward()
            total += loss.item()
        return total

    def gradient(self) -> Tensor:
        """Returns the gradients of the adapter of the last step, one after the other."""
        named = sorted(self.trainer.model.named_parameters())
        parts = [p.grad.flatten().float() for name, p in named if "lora_" in name]
        return torch.cat(parts)
