r"""How far estimates are from the maximum of the likelihood, and what Monte Carlo adds to them.

With the score g and the information I at the estimates, a Newton step :math:`I^{-1} g` leads to
the maximum. Its g comes from draws that the fit has not seen, so that the step is what is left of
the way, with the error of the fit's own draws and of the fresh ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.population.estimates import Estimates
from fssa_bayes.population.identification import describe_null, find_null
from fssa_bayes.population.information import batch_information, sum_information
from fssa_bayes.population.parameters import free_positions, identify_loading
from fssa_bayes.population.separation import find_separation
from fssa_bayes.population.table import population_estimates

__all__ = ["NewtonStep", "find_newton_step"]

_SHARE = 0.1  # Of a direction's squared length: what belongs to a feature with more is named.


@dataclass(frozen=True, eq=False)
class NewtonStep:
    """Holds the Newton step that fresh draws propose.

    Attributes:
        estimates: The estimates of the population.
        step: Change of each quantity, (Q,).
        noise: Monte-Carlo standard errors of quantities estimated with draws of this number, (Q,).
        gain: Nats that the step promises, half of :math:`g^T I^{-1} g`.
        relative_ess: Effective sample size of each person's draws as a share of their number, (U,).
        flat: Says by name in which directions the data tell nothing.
    """

    estimates: Estimates
    step: np.ndarray
    noise: np.ndarray
    gain: float
    relative_ess: np.ndarray
    flat: tuple[str, ...]


@torch.no_grad()
def find_newton_step(
    model: HeterogeneousBTL, data: Preferences, num_draws: int, num_samples: int, seed: int
) -> NewtonStep:
    """Finds the Newton step from the estimates by two fresh sets of draws.

    The Monte-Carlo covariance of a person's score is half the outer product of its difference
    between the sets; people's draws are independent, so that their sum is that of the score.

    Args:
        model: A fitted model with linear utility, normal prior and a latent factor.
        data: The comparisons the model was fitted to.
        num_draws: Draws of each person's z in the fit.
        num_samples: Draws for the information, to begin with.
        seed: Seed of the draws.
    """
    data = align(model, data)
    estimates = population_estimates(model, data, num_samples=num_samples, seed=seed)
    one, relative_ess = _scores(model, data, num_draws, seed)
    two, _ = _scores(model, data, num_draws, seed + 1)
    inverse, jacobian = estimates.uncertainty.inverse, estimates.jacobian
    score = 0.5 * (one + two).sum(0)
    root = jacobian @ inverse @ (one - two).T / 2**0.5
    return NewtonStep(
        estimates=estimates,
        step=(jacobian @ inverse @ score).numpy(),
        noise=root.norm(dim=1).numpy(),
        gain=0.5 * (score @ inverse @ score).item(),
        relative_ess=relative_ess,
        flat=tuple(_flat(model, data, estimates)),
    )


def _scores(
    model: HeterogeneousBTL, data: Preferences, num_draws: int, seed: int
) -> tuple[Tensor, np.ndarray]:
    """Returns the scores of people by θ (U, P), in any order, and ESS shares in theirs, (U,)."""
    loading, rotation, entries = identify_loading(model)
    others = rotation.shape[1] * model.num_covariates + len(model.answer_parameters())
    free = free_positions(loading, entries, others, len(loading) - model.num_features)
    scores, sizes = [], []

    def keep(*arguments: object) -> tuple[Tensor, Tensor]:
        of_people, information = batch_information(*arguments)
        scores.append(of_people[:, free].cpu())
        weights = arguments[3]
        sizes.append(1 / weights.square().sum(0).cpu() / len(weights))
        return of_people, information

    sum_information(model, data, rotation, num_draws, seed, [keep])
    relative_ess = np.empty(len(data))
    relative_ess[np.argsort(data.counts, kind="stable")] = torch.cat(sizes).numpy()
    return torch.cat(scores), relative_ess


def _flat(model: HeterogeneousBTL, data: Preferences, estimates: Estimates) -> list[str]:
    """Says by name which directions have no information, and why where that is known."""
    said = []
    null = find_null(model, data)
    if null is not None and null.shape[1]:
        said.append(describe_null(null, data) or "items are in separate components")
    separation = find_separation(model, data)
    if separation:
        said.append(f"choices are separated: {separation.message}")
    if said:
        return said
    loading, _, entries = identify_loading(model)
    number, labels = len(loading), [*data.feature_names]
    if model.personal is not None:
        labels += model.personal.labels
    means = model.num_features
    feature = torch.cat([torch.arange(means), entries[0]])
    eigenvalues, vectors = torch.linalg.eigh(estimates.uncertainty.information)
    for vector in vectors[:, eigenvalues <= 1e-9 * eigenvalues[-1]].T:
        squared = vector[: len(feature)].square()
        own = torch.zeros(number, dtype=torch.float64).index_add(0, feature, squared)
        names = ", ".join(repr(labels[i]) for i in np.flatnonzero(own > _SHARE))
        what = "means" if squared[:means].sum() > 0.5 else "the covariance"
        said.append(f"{what} of {names}, as where it is close to one of lower rank")
    return said
