r"""Direct preference optimisation: the loss and the log-ratios of pairs.

A pair of responses (y⁺, y⁻) to a prompt x, by a person with context C, has for a latent factor z
the log-ratio

.. math:: ρ(z) = \log\frac{π(y^+ \mid x, z)}{π_0(y^+ \mid x)}
    - \log\frac{π(y^- \mid x, z)}{π_0(y^- \mid x)},

and βρ is its margin under the policy's implicit reward. The reference π₀ is the policy itself with
adapter and modulation off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssa_bayes.policy.checks import check_positive
from fssa_bayes.policy.reference import ReferenceCache
from fssa_bayes.policy.shared_prompt import pair_log_prob
from fssa_bayes.policy.tokens import ResponseBatch

__all__ = ["LogRatio", "dpo_loss", "mean_probability", "share_correct"]


def dpo_loss(log_ratio: Tensor, *, beta: float, marginal: bool = False) -> Tensor:
    r"""Evaluates the loss of each pair, averaged over draws of z.

    .. math:: -\tfrac{1}{S}\textstyle\sum_s \log σ(β ρ_s) \quad\text{or, marginal,}\quad
        -\log \tfrac{1}{S}\textstyle\sum_s σ(β ρ_s)

    The first requires that every draw explains the pair, the second that the mixture of the draws
    does. By Jensen's inequality the second is never larger.

    Args:
        log_ratio: ρ of every draw and pair, in nats, with shape (S, P).
        beta: Strength of the pull towards the reference; margins are β ρ.
        marginal: Whether the loss is the second, that of the mixture.

    Returns:
        Losses in nats with shape (P,); float64 if `log_ratio` is, else float32.

    References:
        Rafailov et al. (2023), Direct preference optimization, arXiv 2305.18290.
        Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998.
    """
    if log_ratio.ndim != 2 or 0 in log_ratio.shape:
        raise ValueError(
            f"log_ratio must have shape (S, P), both at least 1, got {tuple(log_ratio.shape)}"
        )
    check_positive(beta=beta)
    precision = torch.promote_types(log_ratio.dtype, torch.float32)
    log_prob = F.logsigmoid(beta * log_ratio.to(precision))
    if not marginal:
        return -log_prob.mean(0)
    largest = log_prob.detach().amax(
        0
    )  # By hand: logsumexp differentiates to exp of a difference that is rounded to 1e-3 at -1e4.
    return -largest - (log_prob - largest).exp().mean(0).log()


class LogRatio(nn.Module):
    """Computes log-ratios of pairs, as the one module that a trainer runs and wraps.

    Args:
        policy: The policy.
        guide: The module whose parameters learn with the policy, None for none.
        reference: Where log-probabilities of the reference policy are kept, None to compute them.
        chunk_size: Logits held at a time, None for the device's default.
    """

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
        """Returns the log-ratios ρ of every draw and pair, in nats, with shape (S, P).

        Args:
            batch: 2 P sequences, the chosen ones first.
            draw: Function that draws z with shape (S, P, K).
        """
        device = batch.input_ids.device
        with torch.autocast(device.type, enabled=False):
            z = draw().to(device)
        reference = self.reference_log_prob(batch)  # Before activations are kept for the gradient.
        chosen, rejected = (self._score(batch, z) - reference).chunk(2, -1)
        return chosen - rejected

    def reference_log_prob(self, batch: ResponseBatch) -> Tensor:
        """Returns the log-probabilities of the reference policy, from the cache if there is one."""
        with torch.no_grad(), self.policy.reference():
            if self.reference is None:
                return self._score(batch, None)
            way = f"dpo {self.chunk_size}"  # The size of chunks changes how sums are rounded.
            return self.reference.log_prob(batch, lambda batch: self._score(batch, None), way=way)

    def _score(self, batch: ResponseBatch, z: Tensor | None) -> Tensor:
        return pair_log_prob(self.policy, batch, z, chunk_size=self.chunk_size)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recomputes decoder layers in backward; `Trainer` calls it where its arguments say so."""
        self.policy.enable_gradient_checkpointing()

    gradient_checkpointing_enable = activation_checkpointing_enable


def mean_probability(margin: Tensor) -> Tensor:
    """Averages the probability of the chosen response over draws, from margins (S, P)."""
    return margin.sigmoid().mean(0)


def share_correct(probability: Tensor) -> Tensor:
    """Returns the share of pairs with a probability above ½; a probability of ½ counts half."""
    return ((probability > 0.5).float() + 0.5 * (probability == 0.5).float()).mean()
