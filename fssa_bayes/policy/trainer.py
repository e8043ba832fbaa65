"""Training of a policy steered by z ~ q(z | context), by direct preference optimisation.

Every draw, of contexts, of z and of the order of rows, is a function of (seed, step, row): how a
step is divided among processes and accumulation steps, and how often a run was killed, changes no
draw.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import (
    PredictionOutput,
    SaveStrategy,
    TrainOutput,
    rotate_checkpoints,
    sort_checkpoints,
)

from fssa_bayes._files import write_file
from fssa_bayes.data import Batch
from fssa_bayes.policy.checkpoints import (
    FORMAT_VERSION,
    SETTINGS,
    check_settings,
    digest_guide,
    load_weights,
    save_weights,
)
from fssa_bayes.policy.checks import check_positive
from fssa_bayes.policy.contexts import Contexts, PairsInContext
from fssa_bayes.policy.epochs import EpochSampler
from fssa_bayes.policy.film import FiLM
from fssa_bayes.policy.fluency import LanguageProbe
from fssa_bayes.policy.latents import draw_latents
from fssa_bayes.policy.losses import (
    PairScorer,
    PairScores,
    PreferenceLoss,
)
from fssa_bayes.policy.measures import (
    MEASURES,
    average_measures,
    measure_pairs,
    summarise,
)
from fssa_bayes.policy.readiness import (
    check_arguments,
    check_guide,
    check_model,
    check_undivided,
    check_width,
)
from fssa_bayes.policy.reference import NonFiniteError, ReferenceCache, fingerprint
from fssa_bayes.policy.tokens import ResponseBatch, TokenisedPairs

__all__ = ["SteerableDPOTrainer"]

_FALL = 1.0  # Nats by which the log-probability of chosen responses may fall.
_FILM_RATE = 0.1  # Learning rate of FiLM in terms of the adapter's.
_CHUNK = 256  # Pairs of an evaluation whose z is drawn at a time.


class SteerableDPOTrainer(Trainer):
    r"""Trains a policy by preference optimisation under z ~ q(z | context).

    It is the `Trainer` of transformers, whose `TrainingArguments` give steps, batches (of pairs),
    rates, mixed precision, logging and checkpoints; `accelerate` and `torchrun` run it on several
    processes. An epoch meets every row once, in a new order and with a new context, except for the
    rows that do not fill a last batch, which differ from epoch to epoch. With
    `train_sampling_strategy="group_by_length"` the rows of a batch are of similar length.

    The logs have TRL's names: `rewards/chosen`, `rewards/rejected`, `rewards/margins`,
    `rewards/accuracies`, `logps/chosen`, `logps/rejected`, means over pairs and draws, and with a
    probe what its `measure` returns. To stop early on held-out pairs, give the
    `EarlyStoppingCallback` of transformers with `metric_for_best_model="eval_loss"`.

    Without `guide`, q(z | context) is known, from a reward model, and does not change. With it, the
    parameters of `guide` learn with the policy.

    A checkpoint `checkpoint-STEP` holds `policy`, which `SteerablePolicy.load` reads, the guide's
    parameters if they learn, and the optimiser's state. A run does not resume from a checkpoint
    that was not finished when the run was killed.

    Args:
        policy: The policy, trained in place.
        args: How to train; `per_device_train_batch_size` counts pairs.
        train_dataset: The pairs.
        contexts: Contexts of `train_dataset.rows`.
        posterior: q(z | context) as a function of a batch of contexts, such as `guide.posterior`;
            a module that it belongs to must be on the training device.
        guide: The module whose parameters learn with the policy, None for none.
        loss_type: One or several losses, see :class:`PreferenceLoss`. The supervised term keeps
            answers fluent; without it even their own probability may fall, of which a warning is
            given.
        loss_weights: Weights of the losses, None for 1 each.
        beta: Strength of the pull towards the reference.
        label_smoothing: Share of choices that the loss `"robust"` takes to be reversed.
        num_draws: Draws S of z for each pair and step.
        marginal: Whether `"sigmoid"` is that of the mixture of draws; see :func:`dpo_loss`.
        conditioning_learning_rate: Learning rate of what z does to the policy; None for that of
            `args`, or under FiLM, whose steps change every hidden state, for a tenth of it.
        guide_learning_rate: Learning rate of the guide, None for that of `args`.
        eval_dataset: Pairs to evaluate on, with the same contexts and draws every time.
        eval_contexts: Contexts of `eval_dataset.rows`.
        reference: Where log-probabilities of the reference policy are kept, None to compute them
            in every step. Values from a cache differ by rounding, about 1e-6 of themselves.
        probe: Texts of the reference policy on which the policy's language is measured whenever
            the loss is logged, None for none.
        kl_budget: Divergence `language/kl` from the reference, in nats a token, above which
            training stops; None for any.
        chunk_size: Logits held at a time, None for the device's default.
        callbacks: Further callbacks.
        optimizers: Optimiser and schedule in place of those of `args`.

    Raises:
        ValueError: If an option is out of its range, contexts belong to other rows or `reference`
            to another model, z has not the width of the policy's or does not depend on `guide`, a
            pair is longer than the model's positions, there are fewer pairs than in a batch, or
            `kl_budget` comes without a probe.
        FloatingPointError: From `train`, if a loss or gradient is not finite, before parameters
            change; the last checkpoint is kept.

    Warns:
        UserWarning: Once, if the log-probability of chosen responses has fallen by a nat.
    """

    def __init__(
        self,
        policy: nn.Module,
        args: TrainingArguments,
        train_dataset: TokenisedPairs,
        contexts: Contexts,
        posterior: Callable[[Batch], torch.distributions.Distribution],
        *,
        guide: nn.Module | None = None,
        loss_type: str | Sequence[str] = ("sigmoid", "sft"),
        loss_weights: Sequence[float] | None = None,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        num_draws: int = 1,
        marginal: bool = False,
        conditioning_learning_rate: float | None = None,
        guide_learning_rate: float | None = None,
        eval_dataset: TokenisedPairs | None = None,
        eval_contexts: Contexts | None = None,
        reference: ReferenceCache | None = None,
        probe: LanguageProbe | None = None,
        kl_budget: float | None = None,
        chunk_size: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ) -> None:
        self.loss = PreferenceLoss(
            loss_type,
            loss_weights,
            beta=beta,
            label_smoothing=label_smoothing,
            marginal=marginal,
        )
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        if kl_budget is not None:
            check_positive(kl_budget=kl_budget)
            if probe is None:
                raise ValueError(f"kl_budget needs a probe that measures it, got {kl_budget}")
        check_arguments(args)
        if reference is not None and reference.fingerprint != fingerprint(policy):
            raise ValueError(
                "reference must be the cache of the policy's base model, got that of another in "
                f"{str(reference.folder)!r}"
            )
        self.train_pairs = PairsInContext(train_dataset, contexts, "train_dataset", "contexts")
        self.eval_pairs: PairsInContext | None = None
        if eval_dataset is not None:
            self.eval_pairs = PairsInContext(
                eval_dataset, eval_contexts, "eval_dataset", "eval_contexts"
            )
        self.policy, self.guide, self.posterior = policy, guide, posterior
        self.num_draws, self.reference = num_draws, reference
        self.probe, self.kl_budget = probe, kl_budget
        self.guide_learning_rate = guide_learning_rate
        self.conditioning_learning_rate = conditioning_learning_rate
        check_width(posterior, contexts, policy.latent_dim)
        check_model(policy.base, filter(None, (self.train_pairs, self.eval_pairs)))
        if guide is not None:
            check_guide(posterior, guide, contexts)
        self._logged: list[Tensor] = []
        self._warned = False
        self._latents: tuple[tuple, Tensor] | None = None
        self._eval_latents: Tensor | None = None
        if args.device.type == "cpu":
            args.dataloader_pin_memory = False  # Without a GPU PyTorch warns of it.
        with random_state_kept():
            super().__init__(
                PairScorer(policy, guide, reference, chunk_size),
                args,
                data_collator=collate,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                compute_metrics=average_measures,
                callbacks=[StopAtNaN(), *(callbacks or [])],
                optimizers=optimizers,
            )
        self.label_names = []
        check_undivided(self)
        if len(train_dataset) < self.global_batch_size:
            raise ValueError(
                f"train_dataset must have at least the {self.global_batch_size} pairs of a batch "
                f"over all processes and accumulation steps, got {len(train_dataset)}"
            )
        self.sampler = EpochSampler(
            train_dataset.lengths,
            self.global_batch_size,
            args.train_sampling_strategy,
            args.seed if args.data_seed is None else args.data_seed,
            lambda: self.state.global_step,
        )

    @property
    def global_batch_size(self) -> int:
        """Number of pairs of a step, over all processes and accumulation steps."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Computes the mean loss of a batch of pairs, in nats.

        Raises:
            FloatingPointError: If a pair's loss is not finite.
        """
        source = self.train_pairs if model.training else self.eval_pairs
        scores = self._score(model, inputs, source)
        losses = self.loss(scores)
        measures = measure_pairs(scores, self.loss.beta)
        wrong = (~torch.isfinite(losses.detach())).nonzero()
        if len(wrong):
            first = int(wrong[0])
            shown = source.describe(int(inputs["pair"][first]))
            raise FloatingPointError(
                f"loss must be finite, got {losses[first].item()} at step {self.state.global_step} "
                f"in {shown}, and {len(wrong)} such pairs of {len(losses)}; "
                f"{self._describe_last_checkpoint()}"
            )
        if model.training:
            self._logged.append(torch.stack(list(summarise(measures).values())))
        loss = losses.mean()
        return (loss, measures) if return_outputs else loss

    def _score(
        self, model: nn.Module, inputs: dict[str, Tensor], source: PairsInContext
    ) -> PairScores:
        pairs = inputs["pair"].cpu().numpy()
        latents = self.training_latents if model.training else self.evaluation_latents
        names = ("input_ids", "attention_mask", "response_mask")
        batch = ResponseBatch(*(inputs[name] for name in names))
        try:
            return PairScores(*model(batch, functools.partial(latents, pairs)))
        except NonFiniteError as error:
            shown = source.describe(int(pairs[error.row % len(pairs)]))
            raise FloatingPointError(
                f"reference log-probabilities must be finite, got {error.value} at step "
                f"{self.state.global_step} in {shown}: look at the base model's precision; "
                f"{self._describe_last_checkpoint()}"
            ) from error

    def training_latents(self, pairs: np.ndarray) -> Tensor:
        """Returns z of some pairs of the present step, with shape (S, pairs, K).

        z is drawn for the whole step, over all processes and accumulation steps, and then selected.
        """
        step = self.state.global_step
        group = self.sampler.pairs_of_step(step)
        if not np.isin(pairs, group).all():  # The batch is not one of a run.
            group = pairs
        order = np.argsort(group)
        place = order[np.searchsorted(group[order], pairs)]
        if self.guide is not None:
            return self._draw(self.train_pairs, group, step)[:, place]
        key = (step, group.tobytes())
        if self._latents is None or self._latents[0] != key:  # Once for all parts of a step.
            with torch.no_grad():
                self._latents = (key, self._draw(self.train_pairs, group, step))
        return self._latents[1][:, place]

    def evaluation_latents(self, pairs: np.ndarray) -> Tensor:
        """Returns z of some pairs to evaluate, with shape (S, pairs, K).

        The first call of an evaluation draws z of all pairs, which later calls select from.
        """
        if self._eval_latents is None:
            every = np.arange(len(self.eval_pairs.pairs))
            chunks = np.split(every, every[_CHUNK::_CHUNK])
            with torch.no_grad():
                drawn = [
                    self._draw(self.eval_pairs, chunk, step) for step, chunk in enumerate(chunks)
                ]
            self._eval_latents = torch.cat(drawn, 1)
        return self._eval_latents[:, pairs]

    def _draw(self, source: PairsInContext, pairs: np.ndarray, step: int) -> Tensor:
        return draw_latents(
            self.posterior,
            source.contexts,
            source.pairs.row[pairs],
            step=step,
            num_draws=self.num_draws,
            seed=self.args.seed,
        )

    def _describe_last_checkpoint(self) -> str:
        last = self.last_checkpoint()
        return f"the last checkpoint is {str(last)!r}" if last else "there is no checkpoint yet"

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns the loss of a batch and, in place of logits, :func:`measure_pairs` (P, S, 4)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, measures = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, measures, torch.ones_like(measures[:, 0, 0])

    def evaluation_loop(self, *given: Any, **options: Any) -> Any:
        """Evaluates with the same contexts and draws every time."""
        self._eval_latents = None
        with random_state_kept():
            return super().evaluation_loop(*given, **options)

    def evaluate(
        self,
        eval_dataset: TokenisedPairs | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measures loss, rewards and log-probabilities on the pairs given to evaluate.

        Args:
            eval_dataset: The pairs that the trainer was given, or None; other pairs would need
                contexts of their own.
            ignore_keys: As in `Trainer.evaluate`.
            metric_key_prefix: As in `Trainer.evaluate`.

        Raises:
            ValueError: If the trainer has no `eval_dataset`, or was given another.
            FloatingPointError: If a loss is not finite.
        """
        self._check_evaluated(eval_dataset)
        return super().evaluate(None, ignore_keys, metric_key_prefix)

    def predict(
        self,
        test_dataset: TokenisedPairs | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Returns :func:`measure_pairs` and metrics; see :meth:`evaluate`."""
        self._check_evaluated(test_dataset)
        return super().predict(self.eval_pairs.pairs, ignore_keys, metric_key_prefix)

    def _check_evaluated(self, pairs: TokenisedPairs | None) -> None:
        if self.eval_pairs is None:
            raise ValueError(
                "eval_dataset and eval_contexts must be given to the trainer to evaluate, got none"
            )
        if pairs is not None and pairs is not self.eval_pairs.pairs:
            raise ValueError(
                "eval_dataset must be the one that the trainer was given, whose contexts it has, "
                "or None, got another: make a trainer for it"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds rewards and log-probabilities to the logs, and what the probe measures."""
        if "loss" in logs and self._logged:
            local = torch.stack(self._logged).mean(0)
            means = self.accelerator.gather(local[None]).mean(0).tolist()
            logs |= dict(zip(MEASURES, means, strict=True))
            self._logged.clear()
            self._warn_of_falling(logs["rewards/chosen"] / self.loss.beta)
            if self.probe is not None:
                logs |= self.probe.measure(self.policy)
                if self.kl_budget is not None and logs["language/kl"] > self.kl_budget:
                    self.control.should_training_stop = True
        super().log(logs, start_time)

    def _warn_of_falling(self, log_ratio: float) -> None:
        """Warns once if chosen responses are less probable than under the reference policy."""
        if log_ratio < -_FALL and not self._warned:
            self._warned = True
            warnings.warn(
                f"the log-probability of chosen responses has fallen by {-log_ratio:.1f} nats "
                f"below the reference's at step {self.state.global_step}, with "
                f"loss_type={list(self.loss.names)}: text will lose its fluency; add 'sft' to "
                "loss_type, raise its weight or lower the learning rate",
                stacklevel=2,
            )

    def _get_train_sampler(self, train_dataset: TokenisedPairs | None = None) -> Sampler:
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimiser of the arguments, with groups for conditioning and guide."""
        if self.optimizer is None:
            super().create_optimizer(self.policy)
            self._separate_conditioning()
            if self.guide is not None:
                rate = self.guide_learning_rate
                self.optimizer.add_param_group(
                    {
                        "params": [p for p in self.guide.parameters() if p.requires_grad],
                        "lr": self.args.learning_rate if rate is None else rate,
                        "weight_decay": 0.0,
                    }
                )
        return self.optimizer

    def _separate_conditioning(self) -> None:
        """Moves the parameters of the conditioning to a group with a learning rate of its own."""
        rate, film = self.conditioning_learning_rate, isinstance(self.policy.conditioning, FiLM)
        if rate is None and not film:
            return
        own = {id(parameter) for parameter in self.policy.conditioning.parameters()}
        moved = []
        for group in self.optimizer.param_groups:
            moved += [p for p in group["params"] if id(p) in own]
            group["params"] = [p for p in group["params"] if id(p) not in own]
        rate = self.args.learning_rate * _FILM_RATE if rate is None else rate
        self.optimizer.add_param_group({"params": moved, "lr": rate, "weight_decay": 0.0})

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains from the start, or from a checkpoint to the result of an uninterrupted run.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True for the last one in
                `args.output_dir`; None for none.
            trial: As in `Trainer.train`.
            ignore_keys_for_eval: As in `Trainer.train`.

        Raises:
            ValueError: If the checkpoint is missing, not finished, or of other settings or data, or
                if a run from the start finds checkpoints in `args.output_dir`.
        """
        folder = None
        if resume_from_checkpoint:
            asked = resume_from_checkpoint
            folder = self.last_checkpoint() if asked is True else Path(asked)
            check_settings(folder, self.settings(), self.args.output_dir)
        elif self.args.save_strategy != SaveStrategy.NO and self.last_checkpoint():
            raise ValueError(
                f"args.output_dir must hold no checkpoints of another run, got "
                f"{str(self.last_checkpoint())!r}; resume_from_checkpoint=True goes on"
            )
        self._logged.clear()
        # An empty cache has length 0 and would count as false.
        cache = contextlib.nullcontext() if self.reference is None else self.reference
        with random_state_kept(), cache:
            return super().train(
                None if folder is None else str(folder), trial, ignore_keys_for_eval
            )

    def last_checkpoint(self) -> Path | None:
        """Returns the folder of the last finished checkpoint, None if there is none."""
        folders = map(Path, sort_checkpoints(self.args.output_dir))
        finished = [folder for folder in folders if (folder / SETTINGS).is_file()]
        return finished[-1] if finished else None

    @functools.cached_property
    def base_fingerprint(self) -> str:
        """The :func:`fingerprint` of the base model, whose weights no step changes."""
        return fingerprint(self.policy)

    def settings(self) -> dict[str, Any]:
        """Returns what must be the same for a run to resume from a checkpoint."""
        options = json.loads(json.dumps(asdict(self.policy.config)))  # Tuples become lists.
        del options["base_model"]  # The folder may move.
        return {
            "format": FORMAT_VERSION,
            **self.loss.settings(),
            "num_draws": self.num_draws,
            "joint": self.guide is not None,
            "seed": self.args.seed,
            "data_seed": self.args.data_seed,
            "sampling": str(self.args.train_sampling_strategy),
            "global_batch_size": self.global_batch_size,
            "context_seed": self.train_pairs.contexts.seed,
            "max_context": self.train_pairs.contexts.max_context,
            "min_context": self.train_pairs.contexts.min_context,
            "data": self.train_pairs.digest(),
            "base": self.base_fingerprint,
            "policy": options,
            "guide": digest_guide(self.posterior, self.guide),
        }

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # A folder without settings is not finished.
            (folder / SETTINGS).unlink(missing_ok=True)
        # Older checkpoints are removed when this one is finished, not before.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.reference is not None:
            self.reference.flush()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            document = json.dumps(self.settings(), indent=2) + "\n"
            write_file(folder / SETTINGS, document.encode())  # The checkpoint is finished.
            rotate_checkpoints(
                str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:  # All processes call this, one writes.
            folder = self.args.output_dir if output_dir is None else output_dir
            save_weights(Path(folder), self.policy, self.guide)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_weights(Path(resume_from_checkpoint), self.policy, self.guide)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class StopAtNaN(TrainerCallback):
    """Stops before a gradient that is not finite reaches the parameters."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: Any, control: Any, **given: Any
    ) -> None:
        """Checks the gradients, except in half precision, where a scaled loss may overflow."""
        if args.fp16:
            return
        gradients = [p.grad for p in given["model"].parameters() if p.grad is not None]
        if not all(torch.isfinite(norm) for norm in torch._foreach_norm(gradients)):
            raise FloatingPointError(
                f"gradients must be finite, got others at step {state.global_step}, where the loss "
                "is finite; parameters and checkpoints are those of the step before"
            )


def collate(items: list[tuple[TokenisedPairs, int]]) -> dict[str, Tensor]:
    """Gathers pairs to a batch; `pair` comes first, by which `Trainer` counts the pairs."""
    pairs = [pair for _, pair in items]
    batch = items[0][0].batch(pairs)
    return {
        "pair": torch.tensor(pairs),
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "response_mask": batch.response_mask,
    }


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the random states that `Trainer` seeds: those of PyTorch, NumPy and Python."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
