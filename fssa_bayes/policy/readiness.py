"""Whether training can begin: its arguments, the guide, and the width of z."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from fssa_bayes.policy.base import check_steady, check_vocabulary
from fssa_bayes.policy.checks import check_reach
from fssa_bayes.policy.contexts import Contexts, PairsInContext
from fssa_bayes.policy.latents import draw_latents

__all__ = ["check_arguments", "check_guide", "check_model", "check_undivided", "check_width"]


_WHOLE = (
    "adapter and gates are small and are needed whole in every process, so there is nothing to "
    "divide; several GPUs hold a copy of the base model each by torchrun or accelerate launch"
)


def check_undivided(trainer: Trainer) -> None:
    """Refuses FSDP and DeepSpeed where accelerate was configured for them, without arguments."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(f"accelerate must not be configured for FSDP or DeepSpeed: {_WHOLE}")


def check_model(model: PreTrainedModel, sources: Iterable[PairsInContext]) -> None:
    """Checks that a base model can read pairs, and that it is no other function in training."""
    for source in sources:
        check_reach(model, int(source.pairs.lengths.max()), source.name)
        check_vocabulary(model, source.pairs.largest_token, source.name)
    check_steady(model)


def check_arguments(args: TrainingArguments) -> None:
    """Refuses arguments that the trainer cannot follow."""
    strategy = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    rules = {
        f"fsdp or deepspeed: {_WHOLE}": args.fsdp or args.deepspeed,
        "neftune_noise_alpha: with noise on its input no policy starts at a log-ratio of 0": (
            args.neftune_noise_alpha
        ),
        "push_to_hub: the policy's own push_to_hub does it when it is called": args.push_to_hub,
        "label_smoothing_factor": args.label_smoothing_factor,
        "batch_rebalance": strategy == "batch_rebalance",
        "auto_find_batch_size: a run must know the batch of a step": args.auto_find_batch_size,
        "several GPUs in one process: use torchrun, or show it one": args.n_gpu > 1,
    }
    for rule, broken in rules.items():
        if broken:
            raise ValueError(f"args must not ask for {rule}, got {broken}")


def check_guide(posterior: Callable, guide: nn.Module, contexts: Contexts) -> None:
    """Checks that z given a choice depends on the parameters that learn."""
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


def check_width(posterior: Callable, contexts: Contexts, latent_dim: int) -> None:
    """Checks that z has the width of the policy's."""
    z = draw_latents(posterior, contexts, [0], step=0, num_draws=1, seed=0, num_context=0)
    if z.shape != (1, 1, latent_dim):
        raise ValueError(
            f"posterior must give z of the policy's width {latent_dim}, for one person a "
            f"distribution over (1, {latent_dim}), got {tuple(z.shape[1:])}"
        )
