"""The interface of the baselines, and what several baselines share.

Every baseline has `fit(data, *, seed, progress_bar)`, which returns the baseline itself, and
`predict(context)`, which returns an object with `choice_prob(target)` and `log_score(target)`, as a
:class:`fssa_bayes.Posterior` has. A baseline that is a model of all choices of a person has
`log_evidence(data)` as well, so that :func:`fssa_bayes.comparison.leave_users_out` can score it
beside a heterogeneous model.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, user_batches
from fssa_bayes.model import HeterogeneousBTL, align, check_same_people
from fssa_bayes.posterior import (
    ChoiceProbability,
    Likelihoods,
    PopulationMixture,
    Predictor,
    describe_alternatives,
    describe_choices,
    score_choices,
    tabulate_alternatives,
)

__all__ = ["Baseline", "Predictions", "check_preferences", "log_prob_of_people"]


class Baseline(ABC):
    """Fits to the choices of some people and predicts the choices of others."""

    @abstractmethod
    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits to the comparisons of the training people and returns itself.

        Args:
            data: The comparisons.
            seed: Seed of initial weights and of all other random numbers.
            progress_bar: Whether to show progress, of a fit of more than a second.
        """

    @abstractmethod
    def predict(self, context: Preferences) -> Predictor:
        """Returns predictions for people of whom `context` is known.

        Args:
            context: The people and their known choices; empty contexts are allowed.
        """

    def fitted(self, attribute: str) -> object:
        """Returns an attribute that :meth:`fit` sets.

        Raises:
            ValueError: If the baseline was never fitted.
        """
        if not hasattr(self, attribute):
            raise ValueError(f"{type(self).__name__} must be fitted first: call fit(data)")
        return getattr(self, attribute)


class Predictions:
    """Predicts a person's unseen choices by the weighted mean over a few points z.

    Args:
        model: The model that evaluates choices at a point.
        context: The people.
        z: Points with shape (S, U, K).
        log_weights: Normalised log-weights of each person's points, (S, U).
    """

    def __init__(
        self,
        model: HeterogeneousBTL | PopulationMixture,
        context: Preferences,
        z: Tensor,
        log_weights: Tensor,
    ) -> None:
        self.model, self.context, self.z, self.log_weights = model, context, z, log_weights

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Describes each person's probability of preferring left, as `Posterior.choice_prob`."""
        return describe_choices(self.likelihoods(target), target)

    def log_score(self, target: Preferences) -> Tensor:
        """Scores each person's unseen choices, (U,), in nats, as `Posterior.log_score`."""
        return score_choices(self.likelihoods(target))

    def alternative_prob(self, target: Preferences, *, level: float = 0.9) -> pd.DataFrame:
        """Tabulates the probability of each alternative, as `Posterior.alternative_prob`."""
        describe, target = describe_alternatives(level), self._align(target)
        return tabulate_alternatives(list(map(describe, self.likelihoods(target))), target)

    def _align(self, target: Preferences) -> Preferences:
        first = self.model.models[0] if isinstance(self.model, PopulationMixture) else self.model
        return align(first, target)

    def likelihoods(self, target: Preferences) -> Iterator[Likelihoods]:
        """Iterates over the target, a few people at a time, as `Posterior.likelihoods`."""
        target = self._align(target)
        check_same_people(self.context, target)
        for people, batch in user_batches(target, len(self.z), self.model.device):
            z, log_weights = self.z[:, people], self.log_weights[:, people]
            yield people, batch, self.model.choice(batch, z), log_weights


def check_preferences(data: object) -> None:
    """Raises a TypeError unless `data` are Preferences."""
    if not isinstance(data, Preferences):
        raise TypeError(f"data must be Preferences, got {type(data).__name__}")


@torch.no_grad()
def log_prob_of_people(model: HeterogeneousBTL, data: Preferences) -> Tensor:
    """Evaluates log p(choices of a person) under a homogeneous model, in double precision.

    Args:
        model: A fitted model with `latent_dim=0`.
        data: The comparisons.

    Returns:
        The log-probability of all choices of each person, in nats, with shape (U,).
    """
    data = align(model, data)
    twin, parts = copy.deepcopy(model).double(), []
    for _, batch in user_batches(data, 1, model.device):
        items = batch.items if data.items is None else batch.items.double()
        batch = batch.replace(items=items, choice=batch.choice.double())
        z = batch.choice.new_zeros(batch.num_users, 0)
        parts.append(twin.choice(batch, z).log_prob(batch.choice).cpu())
    return torch.cat(parts)
