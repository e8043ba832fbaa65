"""Random utilities of items, drawn anew for each judgement: distributional preference learning."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fssa_bayes.model.distributions import bind_margin
from fssa_bayes.model.nn import ItemLinear, tower
from fssa_bayes.model.utilities import Utility

__all__ = ["DistributionalUtility", "LinearDistributionalUtility", "probit_logit"]

# Without a bound, σ goes to 0 and slopes to infinity where people agree; μ is free, so that any
# probability is still possible.
_LARGEST_LOG_SD = 3.0
_FAR = 30.0  # Standard deviations from which the series is exact to the digits of a float32.


class DistributionalUtility(Utility):
    r"""Gives items normal utilities, N(μ(x), σ²(x)), the same for everybody.

    A judgement draws the utilities of both items, so that

    .. math:: p(y) = \Phi\!\left(\frac{\mu(x_l) - \mu(x_r)}
        {\sqrt{\sigma^2(x_l) + \sigma^2(x_r)}}\right).

    With the logit of p for a margin, a homogeneous model is fitted and scored as with any other
    utility.

    Args:
        num_features: Number of item features D.
        latent_dim: Number of latent dimensions, 0.
        hidden_dim: Width of the network; None for a linear map that starts at 0.

    Raises:
        ValueError: If `latent_dim` is not 0.

    References:
        Siththaranjan, Laidlaw & Hadfield-Menell (2024), Distributional preference learning,
        arXiv 2312.08358.
    """

    options = ("hidden_dim",)
    is_random = True

    def __init__(self, num_features: int, latent_dim: int = 0, hidden_dim: int | None = 64) -> None:
        super().__init__()
        if latent_dim:
            raise ValueError(
                "latent_dim must be 0 for a distributional utility, which is the same for "
                f"everybody, got {latent_dim}"
            )
        if hidden_dim is None:
            self.net = ItemLinear(num_features, 2)
            nn.init.zeros_(self.net.weight)
            nn.init.zeros_(self.net.bias)
        else:
            self.net = tower(num_features, hidden_dim, hidden_dim, 2)

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns the mean utilities, which are the same for all z: (*, U, M)."""
        mean, _ = self.moments(items)
        return mean.expand(*z.shape[:-1], len(mean))

    def moments(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Returns μ and log σ, each with shape (M,)."""
        mean, raw = self.net(items).unbind(-1)
        return mean, _LARGEST_LOG_SD * torch.tanh(raw / _LARGEST_LOG_SD)

    def pairwise(self, items: Tensor, factors: Tensor | None, z: Tensor) -> Callable[..., Tensor]:
        """Binds the operation on margins logit Φ(…) = log Φ(t) − log Φ(−t), exact in both tails."""
        mean, log_sd = self.moments(items)

        def pairwise(
            left: Tensor, right: Tensor, choice: Tensor | None, mask: Tensor, **options
        ) -> Tensor:
            left, right = left.masked_fill(~mask, 0), right.masked_fill(~mask, 0)
            log_scale = torch.logaddexp(2 * log_sd[left], 2 * log_sd[right]) / 2
            margin = probit_logit((mean[left] - mean[right]) * torch.exp(-log_scale))
            return bind_margin(margin.expand(len(z), *margin.shape), mask)(choice, **options)

        return pairwise


class LinearDistributionalUtility(DistributionalUtility):
    """Gives items normal utilities whose μ and log σ, before it is bounded, are linear in x.

    Args:
        num_features: Number of item features D.
        latent_dim: Number of latent dimensions, 0.
    """

    options = ()

    def __init__(self, num_features: int, latent_dim: int = 0) -> None:
        super().__init__(num_features, latent_dim, None)


def probit_logit(t: Tensor) -> Tensor:
    """Evaluates logit Φ(t), exact in both tails, with gradients that are.

    For large t, log Φ(−t) is −t²/2 − log t − log √(2π) − 1/t² + …, and log Φ(t) is 0.
    """
    far = t.abs() > _FAR
    near = t.masked_fill(far, 0.0)  # Both forms stay finite, so that no gradient is 0 · ∞.
    size = t.abs().masked_fill(~far, 1.0)
    tail = size.square() / 2 + size.log() + math.log(2 * math.pi) / 2 + size.square().reciprocal()
    inner = torch.special.log_ndtr(near) - torch.special.log_ndtr(-near)
    return torch.where(far, t.sign() * tail, inner)
