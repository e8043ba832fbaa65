"""The problem that every rival solves: many people's posteriors under one model that is fixed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, Sleep, fit
from fssa_bayes.checks import ask, draw_model

__all__ = [
    "Choices",
    "Draws",
    "Estimate",
    "Problem",
    "TaughtModel",
    "make_problem",
    "signed_choices",
    "teach",
]

_ITEMS, _POOL = 100, 50  # Items, and pairs of them whose choice probabilities are judged.
_MEMORY = 2**27  # Bytes of utilities that are held at once.


class Draws(NamedTuple):
    """Holds draws z with shape (S, U, K) and their log-weights (S, U), None where all are equal."""

    z: Tensor
    log_weights: Tensor | None = None


class Choices(NamedTuple):
    """Holds the choices of a linear utility's people as a logistic regression on z.

    Attributes:
        design: Signed differences of the items' loadings, with shape (U, N, K): minus those of a
            choice of the right item.
        offset: Signed margins at z = 0, with shape (U, N). The log-likelihood is the sum of
            log σ(offset + design z).
    """

    design: np.ndarray
    offset: np.ndarray


class Estimate(NamedTuple):
    """Holds choice probabilities (U, P), and their standard errors were the draws independent."""

    prob: Tensor
    error: Tensor


class TaughtModel(NamedTuple):
    """Holds a model, its guide, the items (M, D), and the CPU seconds that teaching took."""

    model: HeterogeneousBTL
    guide: NeuralProcessGuide
    items: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Problem:
    """Holds people with equally many choices each, and the pairs that are asked about.

    Attributes:
        taught: The model, and the guide that knows it.
        context: The people's choices.
        pairs: Positions of the items of the pool's pairs, with shape (P, 2).
    """

    taught: TaughtModel
    context: Preferences
    pairs: Tensor

    @property
    def model(self) -> HeterogeneousBTL:
        return self.taught.model

    @property
    def size(self) -> int:
        """Number of choices N of each person."""
        return int(self.context.counts[0])

    def choices(self) -> Choices:
        """Writes the choices as a logistic regression on z, for a linear utility."""
        return signed_choices(self.model, self.context)

    @torch.no_grad()
    def choice_prob(self, draws: Draws) -> Estimate:
        """Averages the probability that left is preferred over draws."""
        z, log_weights = draws
        people = max(1, _MEMORY // (16 * len(z) * len(self.pairs)))
        margin = self._bind_margin()
        parts = []
        for start in range(0, z.shape[1], people):
            some = slice(start, start + people)
            prob = margin(z[:, some].float()).sigmoid()
            if log_weights is None:
                weights = prob.new_full(prob.shape[:2], 1 / len(z))
            else:
                weights = log_weights[:, some].double().softmax(0).float()
            mean = torch.einsum("su,sup->up", weights, prob)
            variance = torch.einsum("su,sup->up", weights.square(), (prob - mean).square())
            parts.append((mean.double(), variance.double().sqrt()))
        return Estimate(*map(torch.cat, zip(*parts, strict=True)))

    def _bind_margin(self) -> Callable[[Tensor], Tensor]:
        """Returns the map from z (S, U, K) to margins (S, U, P) of the pool's pairs."""
        utility, items = self.model.utility, self.model.standardise(self.context.items)
        left, right = self.pairs.unbind(-1)
        if utility.is_linear:  # The margin is the utility of a difference.
            return partial(utility, items[left] - items[right])
        factors = utility.item_factors(items)
        factors = factors[left] - factors[right]
        return lambda z: utility.user_tower(z) @ factors.T


def signed_choices(model: HeterogeneousBTL, data: Preferences) -> Choices:
    """Writes the choices of people with equally many each as a logistic regression on z."""
    utility = model.utility
    items = model.standardise(data.items).double()
    left, right, choice = map(torch.as_tensor, (data.left, data.right, data.choice))
    signed = (items[left] - items[right]) * (2 * choice.double() - 1).unsqueeze(-1)
    offset = signed @ utility.mean.detach().double()
    design = signed @ utility.loading.detach().double()
    shape = len(data), int(data.counts[0])
    return Choices(design.reshape(*shape, -1).numpy(), offset.reshape(shape).numpy())


def teach(utility: str, latent_dim: int, *, people: int, steps: int, seed: int) -> TaughtModel:
    """Draws a model of people who differ by two nats, and teaches a guide on its simulations.

    The model's parameters are taken as known, as they are after a fit: posteriors of people do not
    depend on where they come from. A linear utility has as many features as latent dimensions, that
    is a mixed logit with a full covariance.
    """
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(_ITEMS, latent_dim if utility == "linear" else 5))
    pairs = ask(items, people, 30, rng)
    model = draw_model(pairs.items, latent_dim, utility, spread=2.0, seed=seed).eval()
    data, _ = model.simulate(pairs, seed=seed)
    # The families that the README recommends for either utility.
    family = "multivariate_normal" if utility == "linear" else "flow"
    torch.manual_seed(seed)
    start = time.process_time()
    guide = NeuralProcessGuide(model, family)
    objective = [Sleep(16, steps=steps)]
    options = {"validation": None, "seed": seed, "progress_bar": False}
    fit(model, guide, data, objective=objective, **options)
    return TaughtModel(model.eval(), guide.eval(), items, time.process_time() - start)


def make_problem(taught: TaughtModel, people: int, size: int, *, seed: int) -> Problem:
    """Draws people of the model and their choices between the same items, and a pool of pairs."""
    rng = np.random.default_rng([seed, size])
    context, _ = taught.model.simulate(ask(taught.items, people, size, rng), seed=seed + 1)
    pool = ask(taught.items, 1, _POOL, rng)
    pairs = torch.from_numpy(np.stack([pool.left, pool.right], 1))
    return Problem(taught, context, pairs)
