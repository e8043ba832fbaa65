"""The importance-corrected posterior as a function of a batch of contexts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fssa_bayes.data import Batch
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling import Streams, check_draws, pareto_smooth, propose

__all__ = ["CorrectedPosterior", "WeightedDraws", "corrected"]


class WeightedDraws:
    """Holds draws of U people's posteriors, from which others are drawn by their weights.

    Args:
        z: Draws with shape (N, U, K).
        log_weights: Normalised log-weights with shape (N, U).

    Attributes:
        mean: Weighted mean of the draws, with shape (U, K).
    """

    has_rsample = False  # No gradient passes through a choice among draws.

    def __init__(self, z: Tensor, log_weights: Tensor) -> None:
        self.z, self.weights = z, log_weights.exp()
        self.mean = (self.weights.to(z).unsqueeze(-1) * z).sum(0)

    def sample(self, sample_shape: tuple[int] = ()) -> Tensor:
        """Draws with replacement, by PyTorch's random numbers, with shape (*sample_shape, U, K)."""
        count = int(torch.Size(sample_shape).numel())
        index = torch.multinomial(self.weights.T, count, replacement=True).T
        drawn = self.z.gather(0, index.unsqueeze(-1).expand(-1, -1, self.z.shape[-1]))
        return drawn.view(*sample_shape, *self.z.shape[1:])


class CorrectedPosterior(nn.Module):
    """Draws z given a batch of contexts as :class:`Posterior` does, by weighted proposals.

    A guide's own q(z | context) differs from the posterior that is served to people. A policy is
    trained on draws of the same posterior that serves it:
    `SteerableDPOTrainer(…, posterior=corrected(model, guide))`.

    Args:
        model: The model.
        guide: Its guide; None for a linear utility with a normal prior.
        num_samples: Number of proposals for each person.

    Raises:
        ValueError: If there is no positive number of proposals, or the model has no z.
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None = None,
        num_samples: int = 200,
    ) -> None:
        super().__init__()
        check_draws(model, num_samples, "psis")
        if not model.latent_dim:
            raise ValueError("model must have latent_dim of at least 1 to draw z, got 0")
        self.model, self.guide, self.num_samples = model, guide, num_samples

    def forward(self, batch: Batch) -> WeightedDraws:
        """Returns the posteriors of the people of a batch of contexts."""
        streams = Streams(int(torch.randint(2**31, ())), "corrected")
        drawn = propose(self.model, self.guide, batch, self.num_samples, streams=streams)
        log_weights, _ = pareto_smooth(drawn.log_weights.double().T.cpu().numpy())
        return WeightedDraws(drawn.z.cpu(), torch.from_numpy(log_weights).T)


def corrected(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None = None, num_samples: int = 200
) -> CorrectedPosterior:
    """Returns the posterior of a model as a function of contexts; see :class:`CorrectedPosterior`.

    Draws follow PyTorch's random state: the same seed gives the same draws.
    """
    return CorrectedPosterior(model, guide, num_samples)
