"""The published neural process, which has one point z for each person."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import nn

from fssa_bayes._random import seeded
from fssa_bayes.baselines.base import Baseline, Predictions, check_preferences
from fssa_bayes.data import Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import FitResult, PredictiveLikelihood, fit
from fssa_bayes.model import HeterogeneousBTL, align

__all__ = ["DeterministicNeuralProcess"]


class DeterministicNeuralProcess(Baseline):
    """Trains utility and encoder to predict at one point z a context, as published.

    The objective is `PredictiveLikelihood(deterministic=True)` alone: there is no prior, no draw
    and no `Sleep`. The encoder maps a context to z, the guide's location. Predictions are those of
    a person with this z, however few choices are known; there is no posterior.

    Args:
        latent_dim: Number of latent dimensions K.
        utility: As in :class:`HeterogeneousBTL`.
        hidden_dim: Width of all networks.
        steps: Number of optimisation steps; None for the objective's default.
        learning_rate: Peak learning rate.

    Attributes:
        model: The fitted model.
        guide: The fitted encoder.
        result: The result of the fit.

    References:
        Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998.
        Garnelo et al. (2018), Conditional neural processes, arXiv 1807.01613.
    """

    model: HeterogeneousBTL
    guide: NeuralProcessGuide
    result: FitResult

    def __init__(
        self,
        latent_dim: int = 2,
        utility: str | nn.Module = "mlp",
        hidden_dim: int = 64,
        *,
        steps: int | None = None,
        learning_rate: float = 3e-3,
    ) -> None:
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise ValueError(f"latent_dim must be an integer of at least 1, got {latent_dim!r}")
        self.objective = PredictiveLikelihood(deterministic=True, steps=steps)
        with seeded(0):
            HeterogeneousBTL(1, latent_dim, utility, hidden_dim=hidden_dim)
        self.latent_dim, self.utility, self.hidden_dim = latent_dim, utility, hidden_dim
        self.learning_rate = learning_rate

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits for a fixed number of steps, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If the data do not fit the model, such as ties.
        """
        check_preferences(data)
        with seeded(seed):
            utility = copy.deepcopy(self.utility)
            model = HeterogeneousBTL(
                data.num_features, self.latent_dim, utility, hidden_dim=self.hidden_dim
            )
            guide = NeuralProcessGuide(model, "normal", self.hidden_dim)
        result = fit(
            model,
            guide,
            data,
            objective=self.objective,
            learning_rate=self.learning_rate,
            validation=None,
            seed=seed,
            progress_bar=progress_bar,
        )
        self.model, self.guide, self.result = model, guide, result
        return self

    @torch.no_grad()
    def predict(self, context: Preferences) -> Predictions:
        """Returns predictions with each person's z at the guide's location."""
        model = self.fitted("model")
        context = align(model, context)
        batches = user_batches(context, 1, model.device)
        z = torch.cat([self.guide.location(batch.clean()) for _, batch in batches]).unsqueeze(0)
        return Predictions(model, context, z, z.new_zeros(z.shape[:2]))
