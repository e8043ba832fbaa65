"""What is logged of pairs beside their loss, by the names of TRL."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import EvalPrediction

from fssa_bayes.policy.losses import PairScores

__all__ = ["MEASURES", "average_measures", "measure_pairs", "summarise"]

MEASURES = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)
"""Names of what :func:`summarise` returns, those of TRL."""


@torch.no_grad()
def measure_pairs(scores: PairScores, beta: float) -> Tensor:
    """Returns rewards, then log-probabilities, of chosen and rejected responses, (P, S, 4)."""
    chosen, rejected = scores.ratios()
    log_probs = scores.log_prob.chunk(2, -1)
    return torch.stack([beta * chosen, beta * rejected, *log_probs], -1).float().transpose(0, 1)


def summarise(measures: Tensor) -> dict[str, Tensor]:
    """Averages :func:`measure_pairs` over pairs and draws, with the share ordered correctly."""
    chosen, rejected, *log_probs = measures.unbind(-1)
    correct = share_correct(mean_probability((chosen - rejected).T))
    values = [chosen.mean(), rejected.mean(), (chosen - rejected).mean(), correct]
    return dict(zip(MEASURES, values + [part.mean() for part in log_probs], strict=True))


def average_measures(prediction: EvalPrediction) -> dict[str, float]:
    """Computes the metrics of an evaluation."""
    measures = summarise(torch.from_numpy(prediction.predictions))
    return {name: value.item() for name, value in measures.items()}


def mean_probability(margin: Tensor) -> Tensor:
    """Averages the probability of the chosen response over draws, from margins (S, P)."""
    return margin.sigmoid().mean(0)


def share_correct(probability: Tensor) -> Tensor:
    """Returns the share of pairs with a probability above ½; a probability of ½ counts half."""
    return ((probability > 0.5).float() + 0.5 * (probability == 0.5).float()).mean()
