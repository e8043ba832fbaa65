"""What is said of coefficients' distributions: means, spreads, signs and correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.model import CoefficientMap, HeterogeneousBTL

__all__ = ["Moments", "PersonalMoments"]


@dataclass(frozen=True)
class Moments:
    """Computes moments of coefficients g(η) from location and covariance of the normal η.

    With exp(η) log-normal, η ~ N(μ, σ²), its mean is exp(μ + σ²/2), its median exp(μ) and its
    variance mean² (exp(σ²) − 1). In willingness-to-pay space the quantities are those of the
    willingness to pay, and of the price's coefficient.

    Attributes:
        map: g, with D coefficients.
        rank: Rank R of η's covariance; 0 where nobody differs.
        has_features: Whether coefficients are those of features, whose signs mean something.
        are_correlated: Whether coefficients may be correlated.
    """

    map: CoefficientMap
    rank: int
    has_features: bool = False
    are_correlated: bool = True

    @classmethod
    def of(cls, model: HeterogeneousBTL, rank: int, *, has_features: bool) -> Moments:
        """Describes the coefficients of a model with linear utility."""
        utility = model.utility
        return cls(utility.map, rank, has_features, not utility.is_uncorrelated)

    @property
    def random(self) -> list[int]:
        """Positions of the coefficients that differ between people."""
        return [i for i, is_random in enumerate(self.map.is_random) if is_random and self.rank]

    @property
    def logged(self) -> list[int]:
        """Positions of the coefficients that are log-normal, or the negative of one."""
        return [i for i in self.random if "lognormal" in self.map.kinds[i]]

    @property
    def signed(self) -> list[int]:
        """Positions of the coefficients that people of both signs have."""
        normal = [i for i in self.random if i not in self.logged]
        return normal if self.has_features else []

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Lists pairs of positions of coefficients that may be correlated, the later one first."""
        if not self.are_correlated:
            return []
        return [(i, j) for place, i in enumerate(self.random) for j in self.random[:place]]

    def labels(self, names: Sequence) -> list[tuple[str, object]]:
        """Names the rows of :meth:`values`, (`quantity`, `term`), given the features' names."""
        return [
            *(("mean", name) for name in names),
            *(("sd", names[i]) for i in self.random),
            *(("correlation", f"{names[i]}, {names[j]}") for i, j in self.pairs),
            *(("median", names[i]) for i in self.logged),
            *(("location of log", names[i]) for i in self.logged),
            *(("sd of log", names[i]) for i in self.logged),
            *(("share positive", names[i]) for i in self.signed),
        ]

    def select(self, known: np.ndarray) -> np.ndarray:
        """Tells which rows of :meth:`values` are of coefficients all marked (D,), (Q,)."""
        row, column = np.array(self.pairs, dtype=np.int64).reshape(-1, 2).T
        parts = [
            known,
            known[self.random],
            known[row] & known[column],
            *[known[self.logged]] * 3,
            known[self.signed],
        ]
        return np.concatenate(parts)

    def values(self, location: Tensor, loading: Tensor, add: Tensor | None = None) -> Tensor:
        """Computes the quantities, differentiably, with shape (Q,).

        Args:
            location: Location of η with shape (D,).
            loading: Its loading with shape (D, R), so that its covariance is the loading's product
                with itself.
            add: What is added to the variances before roots are taken, and subtracted from the
                roots, with shape (D,), 1 where there is no spread and 0 elsewhere; None for
                nothing.
        """
        if self.rank == 0:
            return location
        add = torch.zeros_like(location) if add is None else add
        covariance = loading @ loading.T
        variance = covariance.diagonal() + add
        sign = self.map.sign(location)
        random, logged, signed = self.random, self.logged, self.signed
        mean = location.clone()
        mean[logged] = sign[logged] * (location[logged] + 0.5 * variance[logged]).exp()
        spread, scale = torch.ones_like(location), torch.ones_like(location)
        scale[random] = spread[random] = variance[random].sqrt()
        scale[logged] = variance[logged].expm1().sqrt()  # The coefficient of variation.
        spread[logged] = mean[logged].abs() * scale[logged]
        row, column = torch.tensor(self.pairs, dtype=torch.int64).reshape(-1, 2).T
        pair, is_log = covariance[row, column], sign != 0
        pair = torch.where(is_log[row] & is_log[column], pair.expm1(), pair)
        direction = torch.where(is_log, sign, torch.ones_like(sign))
        return torch.cat(
            [
                mean,
                (spread - add)[random],
                pair * (direction / scale)[row] * (direction / scale)[column],
                sign[logged] * location[logged].exp(),
                location[logged],
                variance[logged].sqrt(),
                _normal_cdf(location[signed] / variance[signed].sqrt()),
            ]
        )


@dataclass(frozen=True)
class PersonalMoments:
    """Computes deviations and correlations of what differs between people beside tastes.

    Attributes:
        names: Names of the A parameters of the answers that differ.
        num_correlated: How many of them, the first, are correlated with each other and with
            coefficients.
    """

    names: tuple[str, ...] = ()
    num_correlated: int = 0

    @classmethod
    def of(cls, model: HeterogeneousBTL) -> PersonalMoments:
        """Describes what differs between the people of a model."""
        if model.personal is None:
            return cls()
        return cls(tuple(model.personal.labels), model.personal.num_correlated)

    def labels(self, features: Sequence, random: Sequence[int]) -> list[tuple[str, str]]:
        """Names the rows of :meth:`values`, given the features and which of them differ."""
        rows = [("answer sd", name) for name in self.names]
        for place, name in enumerate(self.names[: self.num_correlated]):
            others = [*(features[i] for i in random), *self.names[:place]]
            rows += [("answer correlation", f"{name}, {other}") for other in others]
        return rows

    def values(self, tastes: Tensor, own: Tensor, add: Tensor) -> Tensor:
        """Computes the quantities, differentiably, with shape (Q,).

        Args:
            tastes: Loading (D', R) of the coefficients' η that differ.
            own: Loading (A, R) of the parameters.
            add: What is added to the variances of η before roots are taken, (D',).
        """
        spread = own.square().sum(-1).sqrt()
        own = own[: self.num_correlated]
        scale = torch.cat([(tastes.square().sum(-1) + add).sqrt(), spread[: len(own)]])
        table = own @ torch.cat([tastes, own]).T / (spread[: len(own)].unsqueeze(-1) * scale)
        parts = [row[: len(tastes) + place] for place, row in enumerate(table)]
        return torch.cat([spread, *parts])


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2))
