"""Populations drawn from the normal approximation of their estimates."""

from __future__ import annotations

import copy

import torch

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.population.parameters import estimate_parameters
from fssa_bayes.posterior import PopulationDraws

__all__ = ["population_draws"]


def population_draws(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    num: int = 50,
    num_samples: int = 1024,
    seed: int = 0,
) -> PopulationDraws:
    """Draws w0, Λ and B of the linear utility from the normal approximation of their estimates.

    The covariance is the sandwich, with people as clusters, corrected where people are few as
    :class:`fssa_bayes.population.Estimates` says; or the inverse of the observed information, where
    people are no more than parameters. Only ΛΛᵀ is identified: its triangular
    factor is drawn and rotated back, so that z means in every draw what it means in the model.
    Directions that the data say nothing about stay at their estimates.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide; None if `latent_dim` is 0. Every draw keeps it, as a proposal.
        data: The comparisons the model was fitted to.
        num: Number of populations.
        num_samples: Draws of each training person's z, for the information.
        seed: Seed of the draws.

    Returns:
        The populations.

    Raises:
        ValueError: If the utility is not linear, the prior not normal, or there are too many
            parameters for a dense information matrix.

    Warns:
        UserWarning: If people are no more than parameters, or the information lacks rank.

    References:
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    if not isinstance(num, int) or num < 2:
        raise ValueError(f"num must be an integer of at least 2, got {num!r}")
    data = align(model, data)
    estimate = estimate_parameters(model, data, num_samples, seed, "population_draws()")
    kind = estimate.uncertainty.choose(None)
    if kind != "sandwich":
        estimate.uncertainty.warn_of_few_people()
    root = estimate.uncertainty.root(torch.eye(len(estimate.theta)).double(), kind)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, root.shape[1], generator=generator, dtype=root.dtype)
    members = []
    for theta in estimate.theta + noise @ root.T:
        twin, twin_guide = copy.deepcopy((model, guide))
        estimate.assign(twin, theta)
        members.append((twin, twin_guide))
    return PopulationDraws(tuple(members), f"normal approximation with the {kind} covariance")
