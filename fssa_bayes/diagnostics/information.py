"""What more choices of a person would teach about the next one, and what they would not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fssa_bayes.diagnostics._checks import as_tensor, normalised_weights, require

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Information", "choice_information", "outcome_information"]

_SLACK = 1e-4  # Probabilities computed in float32 sum to 1 up to this.


@dataclass(frozen=True)
class Information:
    """Holds the parts of what is not known about a choice: total = epistemic + aleatoric.

    Attributes:
        total: Entropy of the choice under the posterior predictive distribution, in nats.
        epistemic: Mutual information of the choice and z, in nats: what is not known because z is
            not.
        aleatoric: Expected entropy of the choice given z, in nats: what would remain if z were
            known.
    """

    total: Tensor
    epistemic: Tensor
    aleatoric: Tensor


def choice_information(margin: Tensor, log_weights: ArrayLike | None = None) -> Information:
    r"""Splits the entropy of a two-way choice, from posterior draws of its log-odds.

    .. math::
        \underbrace{H\bigl(E[p]\bigr)}_{total} =
        \underbrace{E\bigl[KL(p \,\|\, E[p])\bigr]}_{epistemic} +
        \underbrace{E\bigl[H(p)\bigr]}_{aleatoric}, \qquad p = \sigma(m)

    Entropies are computed from the margins, and are exact where a probability rounds to 0 or 1.

    Args:
        margin: Draws of the margins m in nats, with shape (S, U, N).
        log_weights: Log-weights with shape (S, U), normalised or not; None for equal ones.

    Returns:
        Three tables with shape (U, N) in the precision and on the device of the margins.

    Raises:
        ValueError: If a shape does not fit or a margin is NaN.

    References:
        Houlsby et al. (2011), Bayesian active learning for classification and preference learning,
        arXiv 1112.5745.
        Depeweg et al. (2018), Decomposition of uncertainty in Bayesian deep learning, ICML.

    Example:
        >>> import torch
        >>> certain_either_way = torch.tensor([[[50.0]], [[-50.0]]])
        >>> round(choice_information(certain_either_way).epistemic.item(), 4)  # log 2
        0.6931
    """
    margin = as_tensor("margin", margin, ("S", "U", "N"), finite=False)
    require("margin", margin, ~torch.isnan(margin), "not be NaN")
    weights = normalised_weights(log_weights, *margin.shape[:2]).to(margin).unsqueeze(-1)
    mean = (weights * torch.sigmoid(margin)).sum(0)
    other = (weights * torch.sigmoid(-margin)).sum(0)  # 1 − mean would round to 0.
    aleatoric = (weights * _entropy(margin)).sum(0)
    total = torch.special.entr(mean) + torch.special.entr(other)
    return _split(total, aleatoric)


def _entropy(margin: Tensor) -> Tensor:
    """Computes the entropy of a choice with these log-odds, in nats, exact at both ends."""
    size = margin.abs()
    tail = torch.where(size < torch.inf, size * torch.sigmoid(-size), 0.0)
    return torch.log1p(torch.exp(-size)) + tail


def outcome_information(prob: ArrayLike, log_weights: ArrayLike | None = None) -> Information:
    """Splits the entropy of a choice with any number of outcomes, such as left, right and tie.

    Args:
        prob: Draws of the probabilities of the O outcomes, with shape (S, U, N, O), each summing
            to 1 over the last axis.
        log_weights: Log-weights with shape (S, U), normalised or not; None for equal ones.

    Returns:
        Three tables with shape (U, N) in the precision and on the device of the probabilities.

    Raises:
        ValueError: If a shape does not fit, a value is no probability or a sum is not 1.

    References:
        As for :func:`choice_information`.
    """
    prob = as_tensor("prob", prob, ("S", "U", "N", "O"))
    require("prob", prob, (prob >= 0) & (prob <= 1 + _SLACK), "lie between 0 and 1")
    sums = prob.sum(-1)
    require("the sums of prob over the outcomes", sums, (sums - 1).abs() <= _SLACK, "be 1")
    weights = normalised_weights(log_weights, *prob.shape[:2]).to(prob)[..., None, None]
    mean = (weights * prob).sum(0)
    aleatoric = (weights * torch.special.entr(prob)).sum(0).sum(-1)
    total = torch.special.entr(mean).sum(-1)
    return _split(total, aleatoric)


def _split(total: Tensor, aleatoric: Tensor) -> Information:
    """Subtracts; where nothing is to be learned, rounding alone would make it negative."""
    return Information(total, (total - aleatoric).clamp(min=0), aleatoric)
