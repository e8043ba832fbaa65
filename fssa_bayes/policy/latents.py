"""Latent factors z ~ q(z | context) of preference rows.

Every draw of a context and of z is a function of (seed, step, rows): how a step is divided among
processes and accumulation steps, and how often a run was killed, changes no draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch
from fssa_bayes.policy.contexts import Contexts

__all__ = ["device_of", "draw_latents"]


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
        seed: Seed of z; `contexts` has a seed of its own.
        num_context: Size of the contexts, None for random sizes.

    Returns:
        Draws with shape (S, P, K), with gradients to the posterior's parameters.
    """
    context = contexts.batch(rows, step, num_context).to(device_of(posterior))
    entropy = np.random.SeedSequence([seed, step])
    with seeded(int(entropy.generate_state(1)[0])):
        found = posterior(context)
        # A posterior that does not learn may have no reparameterised draws.
        draw = found.rsample if getattr(found, "has_rsample", True) else found.sample
        return draw((num_draws,))


def device_of(posterior: Callable) -> torch.device:
    """Returns the device of the module that a function is, or is a method of."""
    owner = getattr(posterior, "__self__", posterior)
    parameter = next(owner.parameters(), None) if isinstance(owner, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
