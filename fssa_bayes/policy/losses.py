r"""Losses of preference optimisation under draws of z, by the names that TRL 1.16 gives them.

With :math:`ρ_c, ρ_r` the log-ratios :math:`\log π(y \mid x, z) - \log π_0(y \mid x)` of the chosen
and the rejected response, of :math:`T_c, T_r` tokens, the reference π₀ being the policy itself with
adapter and conditioning off:

| name | loss of a pair and a draw |
|---|---|
| `sigmoid` | :math:`-\log σ(β (ρ_c - ρ_r))` |
| `sigmoid_norm` | :math:`-\log σ(β (ρ_c / T_c - ρ_r / T_r))` |
| `ipo` | :math:`(ρ_c / T_c - ρ_r / T_r - 1 / (2β))^2` |
| `robust` | `sigmoid`, unbiased where a share ε (`label_smoothing`) of choices is reversed |
| `sft` | :math:`-\log π(y_c \mid x, z) / T_c`, the supervised term |

`sigmoid` alone on answers that the model would not write lowers the probability of chosen answers
too, as long as that of rejected ones falls faster; `sft` holds it up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssa_bayes.policy.checks import check_positive
from fssa_bayes.policy.reference import ReferenceCache
from fssa_bayes.policy.shared_prompt import pair_log_prob
from fssa_bayes.policy.tokens import ResponseBatch

__all__ = [
    "LOSSES",
    "PairScorer",
    "PairScores",
    "PreferenceLoss",
    "dpo_loss",
]


class PairScores(NamedTuple):
    """Holds log-probabilities of 2 P responses, the chosen ones of P pairs first.

    Attributes:
        log_prob: Of every draw under the policy, in nats with shape (S, 2 P).
        reference: Under the reference policy, in nats with shape (2 P,).
        tokens: Number of scored tokens of each response, with shape (2 P,).
    """

    log_prob: Tensor
    reference: Tensor
    tokens: Tensor

    def ratios(self, *, each_token: bool = False) -> tuple[Tensor, Tensor]:
        """Returns the log-ratios of chosen and rejected responses, each (S, P), or by token."""
        ratio = self.log_prob - self.reference
        return (ratio / self.tokens if each_token else ratio).chunk(2, -1)


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


def _sigmoid(scores: PairScores, options: PreferenceLoss) -> Tensor:
    chosen, rejected = scores.ratios()
    return dpo_loss(chosen - rejected, beta=options.beta, marginal=options.marginal)


def _sigmoid_norm(scores: PairScores, options: PreferenceLoss) -> Tensor:
    chosen, rejected = scores.ratios(each_token=True)
    return dpo_loss(chosen - rejected, beta=options.beta)


def _ipo(scores: PairScores, options: PreferenceLoss) -> Tensor:
    chosen, rejected = scores.ratios(each_token=True)
    return (chosen - rejected - 1 / (2 * options.beta)).square().mean(0)


def _robust(scores: PairScores, options: PreferenceLoss) -> Tensor:
    chosen, rejected = scores.ratios()
    right, reversed_ = (dpo_loss(sign * (chosen - rejected), beta=options.beta) for sign in (1, -1))
    share = options.label_smoothing
    return ((1 - share) * right - share * reversed_) / (1 - 2 * share)


def _sft(scores: PairScores, options: PreferenceLoss) -> Tensor:
    return -(scores.log_prob / scores.tokens).chunk(2, -1)[0].mean(0)


LOSSES: dict[str, Callable[[PairScores, PreferenceLoss], Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "ipo": _ipo,
    "robust": _robust,
    "sft": _sft,
}
"""Losses (P,) by name, as functions of scores and options."""


class PreferenceLoss:
    """A weighted sum of losses of pairs, each averaged over draws of z.

    `sft` averages over the tokens of each answer and then over pairs, so that a batch may be
    divided into parts; TRL averages over all tokens of a batch.

    Args:
        loss_type: One or several of :data:`LOSSES`.
        loss_weights: Their weights; None for 1 each.
        beta: Strength of the pull towards the reference.
        label_smoothing: Share ε of choices that `robust` takes to be reversed.
        marginal: Whether `sigmoid` is that of the mixture of draws; see :func:`dpo_loss`.

    Raises:
        ValueError: If a name is unknown or twice there, weights are not positive and one a loss,
            ε is not in (0, ½) with `robust` or not 0 without it, or `marginal` comes without
            `sigmoid`.

    References:
        Rafailov et al. (2023), arXiv 2305.18290 (`sigmoid`); Azar et al. (2023), arXiv 2310.12036
        (`ipo`); Chowdhury et al. (2024), arXiv 2403.00409 (`robust`); Pang et al. (2024), arXiv
        2404.19733 (the supervised term).
    """

    def __init__(
        self,
        loss_type: str | Sequence[str] = ("sigmoid", "sft"),
        loss_weights: Sequence[float] | None = None,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        marginal: bool = False,
    ) -> None:
        check_positive(beta=beta)
        self.names = (loss_type,) if isinstance(loss_type, str) else tuple(loss_type)
        if not self.names or not set(self.names) <= set(LOSSES):
            raise ValueError(f"loss_type must name some of {list(LOSSES)}, got {loss_type!r}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"loss_type must name each loss once, got {loss_type!r}")
        self.weights = tuple([1.0] * len(self.names) if loss_weights is None else loss_weights)
        if len(self.weights) != len(self.names) or not all(w > 0 for w in self.weights):
            raise ValueError(
                f"loss_weights must be {len(self.names)} positive numbers, one for each of "
                f"{list(self.names)}, got {loss_weights}"
            )
        if "robust" in self.names and not 0 < label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing must lie between 0 and 0.5 for 'robust', got {label_smoothing}"
            )
        if "robust" not in self.names and label_smoothing != 0:
            raise ValueError(
                f"label_smoothing must be 0 without 'robust' in loss_type, got {label_smoothing}"
            )
        if marginal and "sigmoid" not in self.names:
            raise ValueError(f"marginal needs 'sigmoid' in loss_type, got {loss_type!r}")
        self.beta, self.label_smoothing, self.marginal = beta, label_smoothing, marginal

    def __call__(self, scores: PairScores) -> Tensor:
        """Evaluates the loss of each pair, with shape (P,), at least float32."""
        precision = torch.promote_types(scores.log_prob.dtype, torch.float32)
        scores = scores._replace(log_prob=scores.log_prob.to(precision))
        losses = [LOSSES[name](scores, self) for name in self.names]
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))

    def settings(self) -> dict[str, Any]:
        """Returns the options, as JSON keeps them."""
        return {
            "loss_type": list(self.names),
            "loss_weights": list(self.weights),
            "beta": self.beta,
            "label_smoothing": self.label_smoothing,
            "marginal": self.marginal,
        }


class PairScorer(nn.Module):
    """Scores pairs by the policy and the reference, as the one module that a trainer runs.

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

    def forward(self, batch: ResponseBatch, draw: Callable[[], Tensor]) -> PairScores:
        """Returns the scores of P pairs.

        Args:
            batch: 2 P sequences, the chosen ones first.
            draw: Function that draws z with shape (S, P, K).
        """
        device = batch.input_ids.device
        with torch.autocast(device.type, enabled=False):
            z = draw().to(device)
        reference = self.reference_log_prob(batch)  # Before activations are kept for the gradient.
        return PairScores(self._score(batch, z), reference, batch.response_mask.sum(-1))

    def reference_log_prob(self, batch: ResponseBatch) -> Tensor:
        """Returns the log-probabilities of the reference policy, from the cache if there is one."""
        with torch.no_grad(), self.policy.reference():
            if self.reference is None:
                return self._score(batch, None)
            return self.reference.log_prob(batch, lambda batch: self._score(batch, None))

    def _score(self, batch: ResponseBatch, z: Tensor | None) -> Tensor:
        return pair_log_prob(self.policy, batch, z, chunk_size=self.chunk_size)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recomputes decoder layers in backward; `Trainer` calls it where its arguments say so."""
        self.policy.enable_gradient_checkpointing()

    gradient_checkpointing_enable = activation_checkpointing_enable
