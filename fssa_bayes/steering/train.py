"""From rows of preferences to a bundle: features, preference model, policy."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import fit
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.policy import Contexts, PreferenceRows, SteerableDPOTrainer, SteerablePolicy
from fssa_bayes.posterior import corrected
from fssa_bayes.steering.bundle import Bundle
from fssa_bayes.steering.features import TextFeatures

__all__ = ["Training", "train_bundle"]

_FEWEST = 10  # People of whom `fit` holds some out.


@dataclass(frozen=True)
class Training:
    """Options of :func:`train_bundle`.

    Args:
        latent_dim: Width K of z.
        components: Principal components of the embeddings; 0 for the embeddings themselves.
        reward_steps: Steps of each stage of the fit of the preference model; None for its own.
        steps: Steps of the policy.
        batch_size: Pairs of a step.
        learning_rate: Peak learning rate of the policy.
        beta: Strength of the pull towards the base model.
        loss_type: Losses by TRL's names.
        lora_rank: Rank of the adapter.
        conditioning: `"gated"` or `"film"`.
        max_length: Largest number of tokens of prompt and response; None for any.
        min_context: Smallest number of choices that a context holds, where a person has as many.
        max_context: Largest number.
        test_size: Share of the prompts that are held out to measure the policy; 0 for none.
        bf16: Whether to train in mixed precision.
        gradient_accumulation: Parts in which a step is computed.
        seed: Seed of all that is drawn.
        model_options: As for `AutoModelForCausalLM.from_pretrained`.
    """

    latent_dim: int = 2
    components: int = 16
    reward_steps: int | None = None
    steps: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-3
    beta: float = 0.1
    loss_type: tuple[str, ...] = ("sigmoid", "sft")
    lora_rank: int = 8
    conditioning: str = "gated"
    max_length: int | None = None
    min_context: int = 0
    max_context: int = 10
    test_size: float = 0.1
    bf16: bool = False
    gradient_accumulation: int = 1
    seed: int = 0
    model_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.test_size < 1:
            raise ValueError(f"test_size must lie in [0, 1), got {self.test_size}")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"gradient_accumulation must divide batch_size={self.batch_size}, got "
                f"{self.gradient_accumulation}"
            )


def train_bundle(
    rows: PreferenceRows,
    model: str | os.PathLike,
    encoder: str | os.PathLike,
    training: Training | None = None,
    *,
    work: str | os.PathLike | None = None,
) -> tuple[Bundle, dict[str, float]]:
    """Trains all parts of a bundle.

    Args:
        rows: The choices.
        model: Base model: a folder, or a name on the hub.
        encoder: Text encoder: a folder, or a name on the hub.
        training: The options; defaults if None.
        work: Folder in which checkpoints are kept: the same call goes on from them after an
            interruption. None keeps none.

    Returns:
        The bundle; and figures on held-out prompts of the same people by name, such as
        `rewards/accuracies`, the share of pairs whose chosen response the policy makes more
        probable, relative to the base model.

    Raises:
        ValueError: If an option is out of its range or does not fit the rows.

    Warns:
        UserWarning: If there are too few people for some to be held out to end the fit of the
            preference model.
    """
    options = Training() if training is None else training
    train, test = rows, None
    if options.test_size and rows.prompt.max():
        train, test = rows.split_prompts(options.test_size, seed=options.seed)
    if options.reward_steps is None and not _has_enough(train):
        warnings.warn(
            f"{len(train.user_names)} people are fewer than {_FEWEST}: none are held out to end "
            "the fit of the preference model, which takes all of its steps",
            stacklevel=2,
        )
    with ExitStack() as stack:
        kept = work is not None
        work = Path(work or stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        stack.callback(_remove_empty, work)
        policy = SteerablePolicy.from_pretrained(
            model, latent_dim=options.latent_dim, lora_rank=options.lora_rank,
            conditioning=options.conditioning, seed=options.seed, **options.model_options,
        )  # fmt: skip
        tokenizer = policy.tokenizer
        pairs = train.tokenise(tokenizer, options.max_length)
        features = TextFeatures(encoder).reduce(train.item_texts(), options.components)
        preferences = train.to_preferences(features, seed=options.seed)
        validation = "auto" if options.reward_steps is None and _has_enough(train) else None
        reward, guide = _fit_reward(
            preferences, options, validation, work / "fit" if kept else None
        )
        posterior = corrected(reward, guide)
        sizes = {
            "min_context": options.min_context,
            "max_context": options.max_context,
            "seed": options.seed,
        }
        held_out = {}
        if test is not None:
            held_out = {
                "eval_dataset": test.tokenise(tokenizer, options.max_length),
                "eval_contexts": Contexts(
                    test, test.to_preferences(features, seed=options.seed), **sizes
                ),
            }
        trainer = SteerableDPOTrainer(
            policy,
            _arguments(options, work / "policy", kept=kept, size=len(pairs)),
            pairs,
            Contexts(train, preferences, **sizes),
            posterior,
            loss_type=options.loss_type,
            beta=options.beta,
            **held_out,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=True if trainer.last_checkpoint() else None)
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        figures = {"loss": log[-1]["loss"]} if log else {}
        if held_out:
            found = trainer.evaluate()
            figures |= {k.removeprefix("eval_"): v for k, v in found.items() if "reward" in k}
        return Bundle(policy.eval(), reward, guide, features, seed=options.seed), figures


def _has_enough(rows: PreferenceRows) -> bool:
    """Whether there are enough people for some to be held out of the preference model's fit."""
    return len(rows.user_names) >= _FEWEST


def _remove_empty(folder: Path) -> None:
    """Removes a folder that holds no file, from which nothing could go on."""
    if not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def _fit_reward(
    preferences: Any, options: Training, validation: str | None, checkpoint: Path | None
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    model = HeterogeneousBTL.for_data(preferences, options.latent_dim, seed=options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        guide = NeuralProcessGuide(model, "multivariate_normal")
    fit(
        model, guide, preferences, steps=options.reward_steps, seed=options.seed,
        progress_bar=False, checkpoint=checkpoint, validation=validation,
    )  # fmt: skip
    return model, guide


def _arguments(options: Training, folder: Path, *, kept: bool, size: int) -> TrainingArguments:
    batch = min(options.batch_size, size)
    parts = options.gradient_accumulation if batch == options.batch_size else 1
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=batch // parts,
        gradient_accumulation_steps=parts,
        per_device_eval_batch_size=batch // parts,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, options.steps // 2),
        logging_steps=max(options.steps // 10, 1),
        save_strategy="steps" if kept else "no",
        save_steps=max(options.steps // 10, 1),
        save_total_limit=1,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        bf16=options.bf16,
        seed=options.seed,
    )
