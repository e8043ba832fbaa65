r"""Direct preference optimisation of a policy steered by z ~ q(z | context).

A pair of responses (y⁺, y⁻) to a prompt x, by a person with context C, has for a latent factor z
the log-ratio

.. math:: ρ(z) = \log\frac{π(y^+ \mid x, z)}{π_0(y^+ \mid x)}
    - \log\frac{π(y^- \mid x, z)}{π_0(y^- \mid x)},

and βρ is its margin under the policy's implicit reward. The reference π₀ is the policy itself with
adapter and modulation off.

Every draw, of contexts, of z and of the order of rows, is a function of (seed, step, row): not of
how a step is divided among processes and accumulation steps, nor of how often a run was killed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from peft import load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import (
    PredictionOutput,
    SaveStrategy,
    TrainOutput,
    rotate_checkpoints,
    sort_checkpoints,
)

from fssa_bayes._files import write_file
from fssa_bayes._random import seeded
from fssa_bayes.data import Batch
from fssa_bayes.policy._common import check_positive, check_reach, device_of
from fssa_bayes.policy.data import Contexts, ResponseBatch, TokenisedPairs
from fssa_bayes.policy.reference import (
    LengthBuckets,
    NonFiniteError,
    ReferenceCache,
    fingerprint,
)
from fssa_bayes.policy.shared_prompt import pair_log_prob
from fssa_bayes.policy.storage import read_description

if TYPE_CHECKING:
    from fssa_bayes.policy.model import PolicyConfig

__all__ = ["SteerableDPOTrainer", "dpo_loss", "draw_latents"]

_SETTINGS = "steerable_dpo.json"
_GUIDE = "guide.safetensors"
_FORMAT = 2
_CHUNK = 256  # Rows of an evaluation that the posterior is asked about at once.
_SHOWN = 60  # Characters of a prompt in an error.


def dpo_loss(log_ratio: Tensor, *, beta: float, marginal: bool = False) -> Tensor:
    r"""Evaluates the loss of each pair, averaged over draws of z.

    .. math:: -\tfrac{1}{S}\textstyle\sum_s \log σ(β ρ_s) \quad\text{or, marginal,}\quad
        -\log \tfrac{1}{S}\textstyle\sum_s σ(β ρ_s)

    The first asks every draw to explain the pair, the second that their mixture does; by Jensen's
    inequality the second is never larger.

    Args:
        log_ratio: ρ of every draw and pair, in nats, with shape (S, P).
        beta: Strength of the pull towards the reference; margins are β ρ.
        marginal: Which of the two.

    Returns:
        Losses in nats with shape (P,); float64 if `log_ratio` is, else float32.

    References:
        Rafailov et al. (2023), Direct preference optimization, arXiv 2305.18290.
        Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998.
    """
    _check_log_ratio(log_ratio)
    check_positive(beta=beta)
    precision = torch.promote_types(log_ratio.dtype, torch.float32)
    log_prob = F.logsigmoid(beta * log_ratio.to(precision))
    if not marginal:
        return -log_prob.mean(0)
    largest = log_prob.detach().amax(0)  # logsumexp would divide by e to a number rounded to 1e-3.
    return -largest - (log_prob - largest).exp().mean(0).log()


def draw_latents(
    posterior: Callable[[Batch], torch.distributions.Distribution],
    contexts: Contexts,
    rows: Sequence[int] | np.ndarray,
    *,
    step: int,
    num_draws: int,
    seed: int,
    num_context: int | None = None,
) -> Tensor:
    """Draws a context for each row, and z given the context, as functions of (seed, step, rows).

    Args:
        posterior: q(z | context), for example `guide.posterior`.
        contexts: Where contexts come from.
        rows: Positions of P rows.
        step: Number of the draw.
        num_draws: Number of draws S.
        seed: Seed of z; that of the contexts is their own.
        num_context: Size of the contexts, None for random sizes.

    Returns:
        Draws with shape (S, P, K), with gradients to the posterior's parameters.
    """
    context = contexts.batch(rows, step, num_context).to(device_of(posterior))
    entropy = np.random.SeedSequence([seed, step])
    with seeded(int(entropy.generate_state(1)[0])):
        found = posterior(context)
        # A posterior that does not learn need not tell how its draws move.
        draw = found.rsample if getattr(found, "has_rsample", True) else found.sample
        return draw((num_draws,))


class SteerableDPOTrainer(Trainer):
    r"""Trains a policy by preference optimisation under z ~ q(z | context).

    It is the `Trainer` of transformers, whose `TrainingArguments` give steps, batches (of pairs),
    rates, mixed precision, logging and checkpoints; `accelerate` and `torchrun` run it on several
    processes. In an epoch every row is met once, in a new order and with a new context, except for
    rows left over when the rows do not fill the last batch: another epoch leaves out others. With
    `train_sampling_strategy="group_by_length"` batches are of rows of similar length and the same
    in every epoch, in another order; this is what a cache of exact references needs.

    Two stages: q(z | context) is known, from a reward model, and stays what it is. Jointly, with
    `guide`: its parameters learn with the policy.

    A checkpoint `checkpoint-STEP` holds `policy`, which `SteerablePolicy.load` reads, the guide's
    parameters if they learn, and the optimiser's state. One that was not finished when the run was
    killed is not taken for one.

    Args:
        policy: The policy, trained in place.
        args: How to train; `per_device_train_batch_size` counts pairs.
        train_dataset: The pairs.
        contexts: Contexts of `train_dataset.rows`.
        posterior: q(z | context) as a function of a batch of contexts, such as `guide.posterior`;
            where that belongs to a module, this and its model are on the training device.
        guide: The module whose parameters learn with the policy, None for none.
        beta: Strength of the pull towards the reference.
        num_draws: Draws S of z for each pair and step.
        marginal: Whether the loss is that of the mixture of draws; see :func:`dpo_loss`.
        guide_learning_rate: Learning rate of the guide, None for that of `args`.
        eval_dataset: Pairs to evaluate on, with the same contexts and draws every time.
        eval_contexts: Contexts of `eval_dataset.rows`.
        reference: Where log-probabilities of the reference policy are kept, None to compute them
            in every step. An exact cache needs `train_sampling_strategy="group_by_length"`.
        chunk_size: Logits held at a time, None for the device's default.
        callbacks: Further callbacks.
        optimizers: Optimiser and schedule in place of those of `args`.

    Raises:
        ValueError: If an option is out of its range, contexts belong to other rows or `reference`
            to another model, z has not the width of the policy's or does not depend on `guide`, a
            pair is longer than the model's positions, or there are fewer pairs than in a batch.
        FloatingPointError: From `train`, if a loss or gradient is not finite, before it does harm;
            the last checkpoint is kept.
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
        beta: float = 0.1,
        num_draws: int = 1,
        marginal: bool = False,
        guide_learning_rate: float | None = None,
        eval_dataset: TokenisedPairs | None = None,
        eval_contexts: Contexts | None = None,
        reference: ReferenceCache | None = None,
        chunk_size: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ) -> None:
        check_positive(beta=beta)
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        _check_arguments(args)
        if reference is not None and reference.fingerprint != fingerprint(policy):
            raise ValueError(
                "reference must be the cache of the policy's base model, got that of another in "
                f"{str(reference.folder)!r}"
            )
        _check_sampling(reference, args)
        self._train = _Source(train_dataset, contexts, "train_dataset", "contexts")
        self._eval = None
        if eval_dataset is not None:
            self._eval = _Source(eval_dataset, eval_contexts, "eval_dataset", "eval_contexts")
        self.policy, self.guide, self.posterior = policy, guide, posterior
        self.beta, self.num_draws, self.marginal = beta, num_draws, marginal
        self.guide_learning_rate, self.reference = guide_learning_rate, reference
        _check_width(posterior, contexts, policy.latent_dim)
        for source in filter(None, (self._train, self._eval)):
            check_reach(policy.base, int(source.pairs.lengths.max()), source.name)
        if guide is not None:
            _check_guide(posterior, guide, contexts)
        self._logged: list[Tensor] = []
        self._latents: tuple[tuple, Tensor] | None = None
        self._eval_latents: Tensor | None = None
        if args.device.type == "cpu":
            args.dataloader_pin_memory = False  # There is nothing to pin for, and PyTorch warns.
        with _random_state_kept():
            super().__init__(
                _SteeredPairs(policy, guide, reference, chunk_size),
                args,
                data_collator=_collate,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                compute_metrics=_accuracy_and_margin,
                callbacks=[_StopAtNaN(), *(callbacks or [])],
                optimizers=optimizers,
            )
        self.label_names = []
        if len(train_dataset) < self.global_batch_size:
            raise ValueError(
                f"train_dataset must have at least the {self.global_batch_size} pairs of a batch "
                f"over all processes and accumulation steps, got {len(train_dataset)}"
            )
        self._sampler = _EpochSampler(
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

    # ------------------------------------------------------------------ the loss

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
        source = self._train if model.training else self._eval
        log_ratio = self._log_ratio(model, inputs, source)
        losses = dpo_loss(log_ratio, beta=self.beta, marginal=self.marginal)
        margin = self.beta * log_ratio.detach().float()
        self._check_finite(losses.detach(), inputs["pair"], source)
        if model.training:
            correct = _mean_probability(margin)
            self._logged.append(torch.stack([_share_correct(correct), margin.mean()]))
        loss = losses.mean()
        return (loss, margin) if return_outputs else loss

    def _log_ratio(self, model: nn.Module, inputs: dict[str, Tensor], source: _Source) -> Tensor:
        pairs = inputs["pair"].cpu().numpy()
        latents = self._training_latents if model.training else self._evaluation_latents
        names = ("input_ids", "attention_mask", "response_mask")
        batch = ResponseBatch(*(inputs[name] for name in names))
        try:
            return model(batch, functools.partial(latents, source, pairs))
        except NonFiniteError as error:
            shown = source.describe(int(pairs[error.row % len(pairs)]))
            raise FloatingPointError(
                f"reference log-probabilities must be finite, got {error.value} at step "
                f"{self.state.global_step} in {shown}: look at the base model's precision; "
                f"{self._describe_last_checkpoint()}"
            ) from error

    def _training_latents(self, source: _Source, pairs: np.ndarray) -> Tensor:
        """Draws z of the whole step, all processes' and accumulated parts', and selects pairs."""
        step = self.state.global_step
        group = self._sampler.pairs_of_step(step)
        if not np.isin(pairs, group).all():  # Not within a run: a batch that somebody made.
            group = pairs
        order = np.argsort(group)
        place = order[np.searchsorted(group[order], pairs)]
        if self.guide is not None:
            return self._draw(source, group, step)[:, place]
        key = (step, group.tobytes())
        if self._latents is None or self._latents[0] != key:  # Once for all parts of a step.
            with torch.no_grad():
                self._latents = (key, self._draw(source, group, step))
        return self._latents[1][:, place]

    def _evaluation_latents(self, source: _Source, pairs: np.ndarray) -> Tensor:
        """Selects z of some pairs, after drawing that of all when the first are asked for."""
        if self._eval_latents is None:
            everyone = np.arange(len(source.pairs))
            chunks = np.split(everyone, everyone[_CHUNK::_CHUNK])
            with torch.no_grad():
                drawn = [self._draw(source, chunk, step) for step, chunk in enumerate(chunks)]
            self._eval_latents = torch.cat(drawn, 1)
        return self._eval_latents[:, pairs]

    def _draw(self, source: _Source, pairs: np.ndarray, step: int) -> Tensor:
        return draw_latents(
            self.posterior,
            source.contexts,
            source.pairs.row[pairs],
            step=step,
            num_draws=self.num_draws,
            seed=self.args.seed,
        )

    def _check_finite(self, losses: Tensor, pairs: Tensor, source: _Source) -> None:
        wrong = (~torch.isfinite(losses)).nonzero()
        if len(wrong):
            first = int(wrong[0])
            shown = source.describe(int(pairs[first]))
            raise FloatingPointError(
                f"loss must be finite, got {losses[first].item()} at step {self.state.global_step} "
                f"in {shown}, and {len(wrong)} such pairs of {len(losses)}; "
                f"{self._describe_last_checkpoint()}"
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
        """Returns the loss of a batch and the margins (P, S) in place of logits."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, margin = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        margin = margin.T.contiguous()
        return loss, margin, torch.ones_like(margin[:, 0])

    def evaluation_loop(self, *given: Any, **options: Any) -> Any:
        """Evaluates with the same contexts and noise as any time before."""
        self._eval_latents = None
        with _random_state_kept():
            return super().evaluation_loop(*given, **options)

    def evaluate(
        self,
        eval_dataset: TokenisedPairs | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measures loss, accuracy and margin on the pairs that the trainer was given to evaluate.

        Args:
            eval_dataset: These very pairs or None: others would need contexts of their own.
            ignore_keys: As in `Trainer.evaluate`.
            metric_key_prefix: As in `Trainer.evaluate`.

        Raises:
            ValueError: If the trainer has no `eval_dataset`, or another is asked for.
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
        """Returns margins (P, S) and metrics of the pairs to evaluate; see :meth:`evaluate`."""
        self._check_evaluated(test_dataset)
        return super().predict(self._eval.pairs, ignore_keys, metric_key_prefix)

    def _check_evaluated(self, pairs: TokenisedPairs | None) -> None:
        if self._eval is None:
            raise ValueError(
                "eval_dataset and eval_contexts must be given to the trainer to evaluate, got none"
            )
        if pairs is not None and pairs is not self._eval.pairs:
            raise ValueError(
                "eval_dataset must be the one that the trainer was given, whose contexts it has, "
                "or None, got another: make a trainer for it"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the share of pairs ordered rightly, and their mean margin in nats, to the logs."""
        if "loss" in logs and self._logged:
            local = torch.stack(self._logged).mean(0)
            accuracy, margin = self.accelerator.gather(local[None]).mean(0).tolist()
            logs |= {"accuracy": accuracy, "margin": margin}
            self._logged.clear()
        super().log(logs, start_time)

    # ------------------------------------------------------------------ data and optimiser

    def _get_train_sampler(self, train_dataset: TokenisedPairs | None = None) -> Sampler:
        return self._sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimiser of the arguments, with a group of its own for the guide."""
        if self.optimizer is None:
            super().create_optimizer(self.policy)
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

    # ------------------------------------------------------------------ checkpoints

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains from the start, or from a checkpoint to the result of a run without a break.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True for the last one in
                `args.output_dir`; None for none.
            trial: As in `Trainer.train`.
            ignore_keys_for_eval: As in `Trainer.train`.

        Raises:
            ValueError: If there is no finished checkpoint, it is one of other settings or data, or,
                without one, `args.output_dir` already holds checkpoints that would be overwritten.
        """
        folder = None
        if resume_from_checkpoint:
            asked = resume_from_checkpoint
            folder = self.last_checkpoint() if asked is True else Path(asked)
            self._check_checkpoint(folder)
        elif self.args.save_strategy != SaveStrategy.NO and self.last_checkpoint():
            raise ValueError(
                f"args.output_dir must hold no checkpoints of another run, got "
                f"{str(self.last_checkpoint())!r}; resume_from_checkpoint=True goes on"
            )
        self._logged.clear()
        # An empty cache is false.
        cache = contextlib.nullcontext() if self.reference is None else self.reference
        with _random_state_kept(), cache:
            return super().train(
                None if folder is None else str(folder), trial, ignore_keys_for_eval
            )

    def last_checkpoint(self) -> Path | None:
        """Returns the folder of the last finished checkpoint, None if there is none."""
        folders = map(Path, sort_checkpoints(self.args.output_dir))
        finished = [folder for folder in folders if (folder / _SETTINGS).is_file()]
        return finished[-1] if finished else None

    def settings(self) -> dict[str, Any]:
        """Returns what must be the same for a run to go on from a checkpoint."""
        return {
            "format": _FORMAT,
            "beta": self.beta,
            "num_draws": self.num_draws,
            "marginal": self.marginal,
            "joint": self.guide is not None,
            "seed": self.args.seed,
            "data_seed": self.args.data_seed,
            "sampling": str(self.args.train_sampling_strategy),
            "global_batch_size": self.global_batch_size,
            "context_seed": self._train.contexts.seed,
            "max_context": self._train.contexts.max_context,
            "min_context": self._train.contexts.min_context,
            "data": self._train.digest(),
            "base": fingerprint(self.policy),
            "policy": _plain_config(self.policy.config),
            "guide": _digest_guide(self.posterior, self.guide),
        }

    def _check_checkpoint(self, folder: Path | None) -> None:
        if folder is None or not (folder / _SETTINGS).is_file():
            raise ValueError(
                "resume_from_checkpoint must be a finished checkpoint of this trainer, or True "
                f"where there is one in {self.args.output_dir!r}, got {folder and str(folder)!r}"
            )
        try:
            saved = dict(json.loads((folder / _SETTINGS).read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{_SETTINGS} in {str(folder)!r} is damaged ({error}): resume from an earlier one"
            ) from error
        now = self.settings()
        other = [name for name in now if saved.get(name) != now[name]]
        if other:
            shown = ", ".join(f"{name}: {saved.get(name)} then, {now[name]} now" for name in other)
            raise ValueError(
                f"resume_from_checkpoint must be of the same settings and data, got {shown}"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / _SETTINGS).unlink(missing_ok=True)  # Not finished until it is there again.
        # Older ones go when this one is finished, not before.
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
            write_file(folder / _SETTINGS, document.encode())
            rotate_checkpoints(
                str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:  # One process writes, though all get here.
            return
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.save_pretrained(folder / "policy")
        if self.guide is not None:
            state = self.guide.state_dict()
            tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            write_file(folder / _GUIDE, safetensors.torch.save(tensors))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        read_description(folder / "policy")  # Raises where a file is missing or damaged.
        adapter = load_peft_weights(str(folder / "policy"), device="cpu")
        set_peft_model_state_dict(self.policy.model, adapter)
        film = safetensors.torch.load_file(folder / "policy" / "film.safetensors")
        self.policy.film.load_state_dict(film)
        if self.guide is not None:
            self.guide.load_state_dict(safetensors.torch.load_file(folder / _GUIDE))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _SteeredPairs(nn.Module):
    """Computes log-ratios of pairs: what is run, and wrapped, as one module."""

    def __init__(
        self,
        policy: nn.Module,
        guide: nn.Module | None,
        reference: ReferenceCache | None,
        chunk_size: int | None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.guide = guide
        self.reference = reference
        self.chunk_size = chunk_size

    def forward(self, batch: ResponseBatch, draw: Callable[[], Tensor]) -> Tensor:
        """Returns log-ratios (S, P) of 2 P sequences, the chosen ones first."""
        device = batch.input_ids.device
        with torch.autocast(device.type, enabled=False):
            z = draw().to(device)
        reference = self._reference(batch)  # Before activations are kept for the gradient.
        chosen, rejected = (self._score(batch, z) - reference).chunk(2, -1)
        return chosen - rejected

    def _reference(self, batch: ResponseBatch) -> Tensor:
        with torch.no_grad(), self.policy.reference():
            if self.reference is None:
                return self._score(batch, None)
            way = f"dpo {self.chunk_size}"  # The size of chunks changes how sums are rounded.
            return self.reference.log_prob(batch, lambda batch: self._score(batch, None), way=way)

    def _score(self, batch: ResponseBatch, z: Tensor | None) -> Tensor:
        return pair_log_prob(self.policy, batch, z, chunk_size=self.chunk_size)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recomputes decoder layers in backward, as `TrainingArguments` may ask for."""
        self.policy.enable_gradient_checkpointing()

    gradient_checkpointing_enable = activation_checkpointing_enable


@dataclass(frozen=True)
class _Source:
    """Pairs and contexts that belong together."""

    pairs: TokenisedPairs
    contexts: Contexts
    name: str
    context_name: str

    def __post_init__(self) -> None:
        if self.contexts is None or self.contexts.rows is not self.pairs.rows:
            raise ValueError(f"{self.context_name} must be of the rows of {self.name}, got others")

    def describe(self, pair: int) -> str:
        """Names the row of a pair."""
        row, rows = int(self.pairs.row[pair]), self.pairs.rows
        prompt = rows.prompts[row]
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        return f"row {row} of {self.name} (user {rows.users[row]!r}, prompt {text!r})"

    def digest(self) -> str:
        """Returns a SHA-256 of tokens and contexts."""
        digest = hashlib.sha256(self.pairs.digest().encode())
        digest.update(self.contexts.preferences.digest().encode())
        return digest.hexdigest()


class _EpochSampler(Sampler[int]):
    """Orders the rows of an epoch by (seed, epoch), as many as fill whole batches of a step.

    Within a batch they are ordered by length, so that its parts are padded less.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        strategy: str,
        seed: int,
        step: Callable[[], int],
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.strategy, self.step = str(getattr(strategy, "value", strategy)), step
        self._known: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Returns the number of rows of an epoch."""
        return len(self.lengths) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        # Asked for the step, it needs nobody to tell it the epoch after a run was resumed.
        epoch = self.step() // (len(self) // self.batch_size)
        yield from self.order(epoch).tolist()

    def pairs_of_step(self, step: int) -> np.ndarray:
        """Returns the positions of the pairs of a step, of all processes."""
        epoch, batch = divmod(step, len(self) // self.batch_size)
        return self.order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def order(self, epoch: int) -> np.ndarray:
        """Returns the positions of the pairs of an epoch."""
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, self._arrange(epoch))
        return self._known[1]

    def _arrange(self, epoch: int) -> np.ndarray:
        if self.strategy == "sequential":
            return np.arange(len(self))
        if self.strategy == "group_by_length":
            buckets = LengthBuckets(self.lengths, self.batch_size, seed=self.seed, drop_last=True)
            buckets.set_epoch(epoch)
            return np.concatenate(buckets.batches())
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        batches = order[: len(self)].reshape(-1, self.batch_size)
        by_length = np.argsort(-self.lengths[batches], axis=1, kind="stable")
        return np.take_along_axis(batches, by_length, axis=1).ravel()


class _StopAtNaN(TrainerCallback):
    """Stops before a gradient that is not finite reaches the parameters."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: Any, control: Any, **given: Any
    ) -> None:
        """Looks at the gradients; those of a scaled loss in half precision may overflow."""
        if args.fp16:
            return
        gradients = [p.grad for p in given["model"].parameters() if p.grad is not None]
        if not all(torch.isfinite(norm) for norm in torch._foreach_norm(gradients)):
            raise FloatingPointError(
                f"gradients must be finite, got others at step {state.global_step}, where the loss "
                "is finite; parameters and checkpoints are those of the step before"
            )


# ---------------------------------------------------------------------- metrics


def _mean_probability(margin: Tensor) -> Tensor:
    """Averages the probability of the chosen response over draws (S, P)."""
    return margin.sigmoid().mean(0)


def _share_correct(probability: Tensor) -> Tensor:
    """Counts the pairs ordered rightly, those left open as half."""
    return ((probability > 0.5).float() + 0.5 * (probability == 0.5).float()).mean()


def _accuracy_and_margin(prediction: EvalPrediction) -> dict[str, float]:
    margin = torch.from_numpy(prediction.predictions).T
    correct = _share_correct(_mean_probability(margin))
    return {"accuracy": correct.item(), "margin": margin.mean().item()}


# ---------------------------------------------------------------------- helpers


def _collate(items: list[tuple[TokenisedPairs, int]]) -> dict[str, Tensor]:
    """Gathers pairs to a batch; `pair` comes first, by which their number is recognised."""
    pairs = [pair for _, pair in items]
    batch = items[0][0].batch(pairs)
    return {
        "pair": torch.tensor(pairs),
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "response_mask": batch.response_mask,
    }


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restores the random states that the trainer seeds: PyTorch's, NumPy's and Python's."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _plain_config(config: PolicyConfig) -> dict[str, Any]:
    """Returns a policy's options as JSON gives them back, without where the base model lies."""
    options = json.loads(json.dumps(asdict(config)))
    del options["base_model"]
    return options


def _digest_guide(posterior: Callable, guide: nn.Module | None) -> str | None:
    """Returns a SHA-256 of the guide: names and shapes of what learns, the values of what does not.

    None where z comes from a function that is no module's: nothing is known of it then.
    """
    owner = getattr(posterior, "__self__", posterior) if guide is None else guide
    if not isinstance(owner, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(owner.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        if guide is None:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_log_ratio(log_ratio: Tensor) -> None:
    if log_ratio.ndim != 2 or 0 in log_ratio.shape:
        raise ValueError(
            f"log_ratio must have shape (S, P), both at least 1, got {tuple(log_ratio.shape)}"
        )


def _check_arguments(args: TrainingArguments) -> None:
    strategy = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    rules = {
        "fsdp or deepspeed: adapters are small, use torchrun": args.fsdp or args.deepspeed,
        "label_smoothing_factor": args.label_smoothing_factor,
        "batch_rebalance": strategy == "batch_rebalance",
        "auto_find_batch_size: a run must know the batch of a step": args.auto_find_batch_size,
        "several GPUs in one process: use torchrun, or show it one": args.n_gpu > 1,
    }
    for rule, broken in rules.items():
        if broken:
            raise ValueError(f"args must not ask for {rule}, got {broken}")


def _check_sampling(reference: ReferenceCache | None, args: TrainingArguments) -> None:
    strategy = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    if reference is not None and reference.exact and strategy == "random":
        raise ValueError(
            "reference must not be an exact cache with train_sampling_strategy='random', whose "
            "batches never come again: train with 'group_by_length', or make the cache with "
            "exact=False"
        )


def _check_guide(posterior: Callable, guide: nn.Module, contexts: Contexts) -> None:
    """Checks that z after a choice depends on what is to learn."""
    parameters = [parameter for parameter in guide.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("guide must have parameters that require a gradient, got none")
    rows = range(len(contexts.rows)) if contexts.max_context else ()
    row = next((row for row in rows if len(contexts.available(row))), None)
    if row is None:
        return
    z = draw_latents(posterior, contexts, [row], step=0, num_draws=1, seed=0, num_context=1)
    gradients = [None]
    if z.requires_grad:
        gradients = torch.autograd.grad(z.sum(), parameters, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "guide must be what posterior draws z by, got a module on which its draws do not "
            "depend, such as a copy, or a posterior without a gradient"
        )


def _check_width(posterior: Callable, contexts: Contexts, latent_dim: int) -> None:
    z = draw_latents(posterior, contexts, [0], step=0, num_draws=1, seed=0, num_context=0)
    if z.shape != (1, 1, latent_dim):
        raise ValueError(
            f"posterior must give z of the policy's width {latent_dim}, for one person a "
            f"distribution over (1, {latent_dim}), got {tuple(z.shape[1:])}"
        )
