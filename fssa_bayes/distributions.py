"""The distribution of a person's choices, one event per person."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from fssa_bayes.kernels.reference import pairwise_log_prob

__all__ = ["BradleyTerry"]

_NO_SHAPE = Size()


class _HalfWins(constraints.Constraint):
    """Values 0, ½ and 1."""

    is_discrete = True
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return (value == 0) | (value == 0.5) | (value == 1)


class BradleyTerry(TorchDistribution):
    r"""Represents all choices of a person as one event,
    :math:`p(y_1, …, y_N) = \prod_n \sigma(m_n)^{y_n} \sigma(-m_n)^{1 - y_n}`.

    The mask is part of the distribution: masked choices have log-probability 0 and are drawn as 0.
    Keeping the comparisons in the event lets one fused operation sum their log-probabilities, and
    leaves a Pyro model with a single plate, that of the users.

    Args:
        pairwise: One of the operations of :mod:`fssa_bayes.kernels` with all inputs bound but
            `choice` and `output`, see :meth:`from_margin` for an explicit margin.
        mask: True where there is a comparison, with shape (U, N).
        batch_shape: Shape (*, U) of the people and of the draws of their latent factors.

    References:
        Bradley & Terry (1952), Rank analysis of incomplete block designs.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(_HalfWins(), 1)
    has_rsample = False

    def __init__(
        self,
        pairwise: Callable[..., Tensor],
        mask: Tensor,
        batch_shape: Size,
        validate_args: bool | None = None,
    ) -> None:
        self.pairwise = pairwise
        self.mask_ = mask
        super().__init__(Size(batch_shape), mask.shape[-1:], validate_args=validate_args)

    @classmethod
    def from_margin(cls, margin: Tensor, mask: Tensor | None = None) -> BradleyTerry:
        """Builds the distribution from margins in nats with shape (*, U, N)."""
        mask = torch.ones_like(margin[..., :1, :], dtype=torch.bool) if mask is None else mask
        margin = margin.masked_fill(~mask, 0.0)

        def pairwise(choice: Tensor | None = None, output: str = "log_prob") -> Tensor:
            if output == "margin":
                return margin
            return _sum_log_prob(margin, choice, mask)

        return cls(pairwise, mask, margin.shape[:-1])

    @property
    def margin(self) -> Tensor:
        """Utility of left minus utility of right, in nats, with shape (*, U, N); 0 if masked."""
        return self.pairwise(output="margin").expand(self.batch_shape + self.event_shape)

    @property
    def mean(self) -> Tensor:
        """Probability that left is preferred, with shape (*, U, N)."""
        return torch.sigmoid(self.margin)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sums the log-probabilities of the choices (*, U, N) to shape (*, U), in nats."""
        if value.shape[-2:] != self.mask_.shape[-2:]:
            raise ValueError(
                f"choices must have shape (*, {', '.join(map(str, self.mask_.shape[-2:]))}), "
                f"got {tuple(value.shape)}"
            )
        if self._validate_args:
            self._validate_sample(value.masked_fill(~self.mask_, 0.0))
        if value.ndim == 2:  # The same choices under every draw: the fused operation.
            return self.pairwise(choice=value).expand(self.batch_shape)
        return _sum_log_prob(self.margin, value, self.mask_)

    def sample(self, sample_shape: Size = _NO_SHAPE) -> Tensor:
        """Draws choices 0 or 1 with shape (*sample_shape, *, U, N)."""
        with torch.no_grad():
            prob = self.mean.expand(Size(sample_shape) + self.batch_shape + self.event_shape)
            return torch.bernoulli(prob) * self.mask_

    def expand(self, batch_shape: Size, _instance: BradleyTerry | None = None) -> BradleyTerry:
        """Expands the people and draws to `batch_shape`, which ends in U."""
        return BradleyTerry(self.pairwise, self.mask_, Size(batch_shape), self._validate_args)


def _sum_log_prob(margin: Tensor, choice: Tensor, mask: Tensor) -> Tensor:
    log_prob = pairwise_log_prob(margin, choice.masked_fill(~mask, 0.0))
    return log_prob.masked_fill(~mask, 0.0).sum(-1)
