"""Information on a population from two sets of draws, as many as the standard errors need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.complete_data import has_density, information_by_density
from fssa_bayes.population.information import (
    batch_information,
    population_information,
    sum_information,
)

__all__ = ["SETTLED", "Settled", "settle"]

SETTLED = 0.05
"""Relative difference of a standard error between two sets of draws that is small."""

_DOUBLINGS = 3
_LEFT_OUT = 0.05  # Share of a quantity in directions without information: more, and no error.
_POSITIVE = 1e-9  # Eigenvalue, by the largest, above which information is positive.
_APART = 0.5  # Relative difference of the information on a direction from which it is noise.


@dataclass(frozen=True)
class Settled:
    """Holds the information on parameters by two sets of draws.

    Attributes:
        sets: Of each set the outer products of scores and the information, both (P, P); one set
            where nothing is drawn. Directions in which the information of the sets differs by half
            are noise, and have 0.
    """

    sets: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, sets: list[tuple[Tensor, Tensor]]) -> Settled:
        """Leaves out the directions in which two sets of draws tell nothing."""
        (outer, one), (other_outer, two) = sets
        _, vectors = torch.linalg.eigh(one + two)
        each = torch.stack([((matrix @ vectors) * vectors).sum(0) for matrix in (one, two)])
        told = vectors[:, (each[0] - each[1]).abs() <= _APART * each.abs().amax(0)]
        one, two = (told @ (told.T @ matrix @ told) @ told.T for matrix in (one, two))
        return cls(((outer, one), (other_outer, two)))

    @property
    def outer(self) -> Tensor:
        """Outer products of scores, the mean of the sets."""
        return sum(outer for outer, _ in self.sets) / len(self.sets)

    @property
    def information(self) -> Tensor:
        """The information, the mean of the sets."""
        return sum(information for _, information in self.sets) / len(self.sets)

    @cached_property
    def lacking(self) -> Tensor:
        """Directions in which the information is not positive, orthonormal, (P, n)."""
        eigenvalues, vectors = torch.linalg.eigh(self.information)
        return vectors[:, eigenvalues <= _POSITIVE * eigenvalues[-1]]

    def gap(self, contrasts: Tensor, tolerance: Tensor) -> float:
        """Returns the largest relative difference of a standard error, by what is tolerated.

        Args:
            contrasts: Derivatives of quantities by the parameters, (Q, P). Those with more than
                5 % of their squared length in `lacking` have no errors, and do not count.
            tolerance: Tolerated relative differences, (Q,).
        """
        inside = (contrasts @ self.lacking).square().sum(-1)
        known = inside <= _LEFT_OUT * contrasts.square().sum(-1)
        if not known.any():
            return 0.0
        one, two = (_errors(contrasts[known], *matrices) for matrices in self.sets)
        difference = (one - two).abs() / (0.5 * (one + two)).clamp(min=1e-300)
        return (difference / tolerance[known]).max().item()


def settle(
    model: HeterogeneousBTL,
    data: Preferences,
    rotation: Tensor,
    free: Tensor,
    quantities: tuple[Tensor, Tensor],
    num_samples: int,
    seed: int,
    *,
    may_lack_rank: bool = False,
) -> Settled:
    """Sums the information with as many draws as the standard errors need.

    Two sets of draws are taken, and doubled until the standard errors of some quantities agree
    between the sets, or the draws have been doubled three times.

    Scores come by the margins (:mod:`fssa_bayes.population.information`) or, where coefficients
    have a density, by that (:mod:`fssa_bayes.population.complete_data`). Both are exact in the
    limit. By the margins there is less noise where a person's choices tell little, or Λ is close to
    singular; by the density nothing grows as exp(η) does. Both are evaluated from the same
    draws, and the one is taken whose information is positive in more directions; of equals, the one
    whose sets agree better. Where people have weights, scores come by the margins.

    Args:
        model: A model with linear utility and normal prior.
        data: The comparisons.
        rotation: R with shape (K, R). Parameters are those of the model of Rᵀz.
        free: Positions of the free parameters, (P,), among those of
            :func:`fssa_bayes.population.information.population_information`.
        quantities: Derivatives of the quantities by the free parameters, (Q, P), and by how much
            their errors may differ between the sets, (Q,).
        num_samples: Draws of each person's z in each set, to begin with.
        seed: Seed of the draws.
        may_lack_rank: Whether some parameters are not identified, as of constant features; scores
            come by the margins then, which have no noise in their directions.
    """
    if model.latent_dim == 0:
        outer, information = population_information(model, data, rotation, 1, seed)
        return Settled(((outer[free][:, free], information[free][:, free]),))
    ways = [batch_information]
    if has_density(model) and not may_lack_rank and data.weights is None:
        ways.append(information_by_density)
    for doubling in range(_DOUBLINGS + 1):
        sets = []
        for number in range(2):
            own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            draws = num_samples * 2**doubling
            matrices = sum_information(model, data, rotation, draws, own, ways)
            sets.append([tuple(m[free][:, free] for m in of_way) for of_way in matrices])
        found = [Settled.of(list(of_way)) for of_way in zip(*sets, strict=True)]
        gaps = [one.gap(*quantities) for one in found]
        best = min(range(len(found)), key=lambda i: (found[i].lacking.shape[1], gaps[i]))
        if gaps[best] <= 1:
            break
    return found[best]


def _errors(contrasts: Tensor, outer: Tensor, information: Tensor) -> Tensor:
    """Returns quantities' standard errors by the information and by the sandwich, (2, Q).

    Directions without information are left out.
    """
    eigenvalues, vectors = torch.linalg.eigh(information)
    seen = eigenvalues > _POSITIVE * eigenvalues[-1]
    root = contrasts @ vectors[:, seen]
    scaled = root / eigenvalues[seen] @ vectors[:, seen].T
    sandwich = torch.einsum("qi,ij,qj->q", scaled, outer, scaled)
    hessian = (root.square() / eigenvalues[seen]).sum(-1)
    return torch.stack([hessian, sandwich]).clamp(min=0).sqrt()
