"""Covariances of estimates, where information may lack full rank and people may be few."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fssa_bayes.population.clusters import Factor, Leverage, PersonMoments, correct_scores
from fssa_bayes.population.divergence import Divergence
from fssa_bayes.population.identification import in_null
from fssa_bayes.population.separation import Limit

__all__ = ["KINDS", "UNSETTLED", "Uncertainty", "find_unidentified", "invert_information"]

KINDS = ("hessian", "outer_product", "sandwich")
"""Covariances: by the information, by the outer products of people's scores, by both."""


UNSETTLED = 0.15
"""Relative difference of a standard error between two sets of draws that is too large."""

_DEGENERATE = 0.01  # Share of the classical variance: by chance 8 % for 2 people, .02 % for 5.
_LOST = 1e-3  # Share of a quantity's squared derivative that one set of draws may leave out.
_SILENT = 1e-6  # Share of the information that scores have where they do not vary.


@dataclass(frozen=True)
class Uncertainty:
    """Holds what is known of the errors of estimates θ, the one source of all their tables.

    Attributes:
        information: Observed information, with shape (P, P).
        outer: Sum of the outer products of people's scores, (P, P).
        num_people: Number G of people with comparisons.
        people: Returns the moments of the people whose scores :class:`Leverage` corrects, once they
            are needed; None where the model is heterogeneous or a mixture, for :class:`Factor`.
        expected_null: Number of directions that no data could identify; None for no warnings.
        advice: What to say where the information lacks rank in more directions.
        share: Share of the squared length of a quantity's derivative in directions without
            information from which the quantity is not identified.
        limit: Which quantities are at infinity, where choices are separated or a fit with lapses
            ran off; else None.
        null: Directions of θ that no comparison tells, (P, n), by
            :func:`fssa_bayes.population.identification.find_null`; or None.
        weight: Σ w² / Σ w over the weights w of people, by which the classical covariance is
            multiplied where it takes the place of the sandwich, so that it does not depend on the
            unit of weights (Kish 1965, Survey sampling); None without weights.
        sets: Of each of two sets of draws the outer products and the information, of which `outer`
            and `information` are the means; empty where nothing is drawn.
    """

    information: Tensor
    outer: Tensor
    num_people: int
    people: Callable[[], Sequence[PersonMoments]] | None
    expected_null: int | None
    advice: str
    share: float = 0.05
    limit: Limit | Divergence | None = None
    null: Tensor | None = None
    weight: float | None = None
    sets: tuple[tuple[Tensor, Tensor], ...] = ()

    @cached_property
    def inverse(self) -> Tensor:
        """Inverse of the information, without the directions of which nothing is known, (P, P)."""
        return invert_information(self.information, self.expected_null, self.advice)

    @cached_property
    def _classical(self) -> Tensor:
        """Covariance (P, P) in place of the sandwich, if choices are independent of weights."""
        return self.inverse if self.weight is None else self.weight * self.inverse

    @cached_property
    def num_parameters(self) -> int:
        """Number of directions of which something is known."""
        return int(torch.linalg.matrix_rank(self.information, rtol=1e-9, hermitian=True))

    @cached_property
    def correction(self) -> Factor | Leverage:
        """What is made of the scores of few people."""
        # With weights the covariance of a score is not the information, which CR2 needs.
        if self.people is None or self.weight is not None:
            return Factor(self.num_people, self.outer)
        return correct_scores(self.people(), self.outer, self.inverse, self.num_people)

    def has(self, kind: str) -> bool:
        """Tells whether people are enough for a covariance, and have no weights it cannot take.

        The scores of G people sum to zero, so that they span G − 1 directions at most. Their outer
        product can be inverted, and the sandwich of a heterogeneous model be believed, only where
        these are no fewer than parameters; the sandwich of a homogeneous model holds for every
        quantity by itself. With weights w the outer products are Σ w² s sᵀ, the middle of the
        sandwich: by themselves they estimate no information.
        """
        if kind == "outer_product" and self.weight is not None:
            return False
        needs = kind == "outer_product" or (kind == "sandwich" and self.people is None)
        return not needs or self.num_people > self.num_parameters

    def choose(self, kind: str | None) -> str:
        """Returns the kind of covariance asked for; if None, the sandwich where it can be had.

        Where a prior alone keeps some estimates finite, it cannot, and None is `"hessian"`.

        Raises:
            ValueError: If there is no such kind.
        """
        if kind is None:
            by_prior = self.limit is not None and self.limit.is_penalised
            return "sandwich" if self.has("sandwich") and not by_prior else "hessian"
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)} or None, got {kind!r}")
        return kind

    def covariance(self, kind: str) -> Tensor:
        """Returns the covariance of θ, (P, P); NaN where people are too few for it."""
        if kind == "hessian":
            return self.inverse
        if not self.has(kind):
            return torch.full_like(self.inverse, torch.nan)
        if kind == "outer_product":
            return self._inverse_outer
        return self.inverse @ self.correction.meat @ self.inverse

    @cached_property
    def _inverse_outer(self) -> Tensor:
        """Inverse of the outer product, without the directions in which no score varies, (P, P)."""
        # In units of the information, in which no direction is small by itself.
        eigenvalues, vectors = torch.linalg.eigh(self.inverse)
        seen = eigenvalues > 1e-12 * eigenvalues[-1]
        root = vectors[:, seen] * eigenvalues[seen].sqrt()
        eigenvalues, vectors = torch.linalg.eigh(root.T @ self.outer @ root)
        varies = eigenvalues > _SILENT
        if varies.all():
            return invert_information(self.outer)
        root = root @ vectors[:, varies]
        return root / eigenvalues[varies] @ root.T

    def root(self, jacobian: Tensor, kind: str) -> Tensor:
        """Returns a square root of the covariance of quantities, whatever its rank, (Q, ·).

        It is zero where there is no covariance to be had.
        """
        root = jacobian @ _square_root(self.covariance(kind).nan_to_num())
        degenerate = self.degenerate(jacobian, kind)
        if not degenerate.any():
            return root
        classical = jacobian @ _square_root(self._classical)
        here = degenerate[:, None]
        return torch.cat([root.masked_fill(here, 0.0), classical.masked_fill(~here, 0.0)], -1)

    def degenerate(self, jacobian: Tensor, kind: str = "sandwich") -> Tensor:
        """Tells of which quantities people's scores vary too little for a sandwich, (Q,).

        Its variance is below a hundredth of the classical one there, as where people give the same
        answers, or each person's answers cancel. The classical one takes its place in homogeneous
        models.
        """
        if kind != "sandwich" or self.people is None:
            return torch.zeros(len(jacobian), dtype=torch.bool)
        variance = _variances(jacobian, self.covariance(kind))
        classical = _variances(jacobian, self._classical)
        # A variance that is NaN, as of one person, is no less degenerate.
        return ~(variance >= _DEGENERATE * classical) & self.known_by(jacobian, kind)

    def singular(self, jacobian: Tensor) -> Tensor:
        """Tells of which quantities of a heterogeneous model people's scores say nothing, (Q,).

        The sandwich variance is below a hundredth of the classical one. A standard deviation
        estimated at 0 is the reason: there everybody's score of it is 0, whatever the data.
        """
        if self.people is not None or not self.has("sandwich"):
            return torch.zeros(len(jacobian), dtype=torch.bool)
        variance = _variances(jacobian, self.covariance("sandwich"))
        return variance < _DEGENERATE * _variances(jacobian, self._classical)

    def covariance_of(self, jacobian: Tensor, kind: str) -> Tensor:
        """Returns the covariance of quantities (Q, Q), NaN where data do not identify them.

        Args:
            jacobian: Derivatives of the quantities by θ, with shape (Q, P).
            kind: One of :data:`KINDS`.
        """
        covariance = jacobian @ self.covariance(kind) @ jacobian.T
        degenerate = self.degenerate(jacobian, kind)
        if degenerate.any():
            other = degenerate[:, None] | degenerate
            both = degenerate[:, None] & degenerate
            classical = jacobian @ self._classical @ jacobian.T
            covariance = torch.where(both, classical, covariance.masked_fill(other, 0.0))
        unknown = ~self.known_by(jacobian, kind)
        return covariance.masked_fill(unknown | unknown[:, None], torch.nan)

    def standard_errors(self, jacobian: Tensor, kind: str) -> Tensor:
        """Returns the standard errors of quantities (Q,), NaN where data do not identify them."""
        variance = _variances(jacobian, self.covariance(kind))
        degenerate = self.degenerate(jacobian, kind)
        if degenerate.any():
            variance = torch.where(degenerate, _variances(jacobian, self._classical), variance)
        return variance.clamp(min=0).masked_fill(~self.known_by(jacobian, kind), torch.nan).sqrt()

    def degrees_of_freedom(self, jacobian: Tensor, kind: str) -> Tensor:
        """Returns the degrees of freedom of quantities' standard errors, (Q,)."""
        if kind != "sandwich":
            return torch.full((len(jacobian),), torch.inf, dtype=torch.float64)
        degrees = self.correction.degrees_of_freedom(jacobian)
        return degrees.masked_fill(self.degenerate(jacobian), torch.inf)

    def share_alone(self, jacobian: Tensor) -> Tensor:
        """Returns the share of a sandwich variance that rests on single people, (Q,)."""
        share = self.correction.share_alone(jacobian)
        if self.limit is None:
            return share
        return share.masked_fill(~self.limit.estimable(jacobian), 0.0)

    def identified(self, jacobian: Tensor) -> Tensor:
        """Tells which quantities the data identify, with shape (Q,)."""
        known = ~find_unidentified(jacobian, self.inverse, self.information, self.share)
        known &= self.told(jacobian)
        if self.limit is None or self.limit.is_penalised:
            return known
        return known & self.limit.estimable(jacobian)

    def told(self, jacobian: Tensor) -> Tensor:
        """Tells which quantities rest on no direction that no comparison tells, (Q,)."""
        if self.null is None:
            return torch.ones(len(jacobian), dtype=torch.bool)
        return ~in_null(jacobian, self.null)

    def known_by(self, jacobian: Tensor, kind: str) -> Tensor:
        """Tells which quantities have an error of a kind, with shape (Q,)."""
        known = self.identified(jacobian) & self.settled(jacobian, kind)
        if kind != "hessian":
            known = known & ~self.singular(jacobian)
        if kind == "outer_product" and self.people is not None and self.has(kind):
            inverse = self._inverse_outer
            known = known & ~find_unidentified(jacobian, inverse, self.outer, self.share)
        if kind == "hessian" or self.limit is None:
            return known
        return known & self.limit.estimable(jacobian)

    def settled(self, jacobian: Tensor, kind: str) -> Tensor:
        """Tells of which quantities both sets of draws give the same error within 15 %, (Q,)."""
        if not self.sets or not self.has(kind):
            return torch.ones(len(jacobian), dtype=torch.bool)
        one, two = (
            _variances(jacobian, twin.covariance(kind)).clamp(min=0).sqrt() for twin in self._twins
        )
        agree = (one - two).abs() <= UNSETTLED * 0.5 * (one + two)
        seen = jacobian @ self.inverse @ self.information
        for twin in self._twins:  # What one set leaves out, it does not confirm.
            lost = seen - jacobian @ twin.inverse @ twin.information
            agree &= lost.square().sum(-1) <= _LOST * jacobian.square().sum(-1)
        return agree

    @cached_property
    def _twins(self) -> list[Uncertainty]:
        """What each set of draws alone would say."""
        return [
            replace(self, information=information, outer=outer, expected_null=None, sets=())
            for outer, information in self.sets
        ]

    def warn_of_few_people(self) -> None:
        """Warns where errors from the scores of people cannot be had, or are rough."""
        if self.num_people >= 2 * self.num_parameters:
            return
        errors, verb = "se_outer_product, which takes", "is"
        if self.people is None:
            errors, verb = "se_sandwich and se_outer_product, which take", "are"
        few = f"{verb} rough (compare se_hessian)"
        if self.num_people <= self.num_parameters:
            few = f"cannot be had and {verb} NaN"
        warnings.warn(
            f"{errors} people for clusters, {few}: {self.num_people} people with comparisons for "
            f"{self.num_parameters} parameters",
            stacklevel=4,
        )


def _variances(jacobian: Tensor, covariance: Tensor) -> Tensor:
    """Returns the variances of quantities with derivatives (Q, P), with shape (Q,)."""
    return torch.einsum("pi,ij,pj->p", jacobian, covariance, jacobian)


def _square_root(covariance: Tensor) -> Tensor:
    """Returns R with R Rᵀ a positive semidefinite matrix, whatever its rank."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return vectors * eigenvalues.clamp(min=0).sqrt()


def invert_information(
    matrix: Tensor, expected_null: int | None = None, advice: str = ""
) -> Tensor:
    """Inverts an information matrix, leaving out directions the data say nothing about.

    Args:
        matrix: Information with shape (P, P).
        expected_null: Number of directions without information above which there is a warning;
            None for no warning.
        advice: Ends the warning, with what the cause may be and what may help.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    informative = eigenvalues > 1e-9 * eigenvalues[-1]
    null = int((~informative).sum())
    if expected_null is not None and null > expected_null:
        warnings.warn(
            f"the information on the population is not positive in {null - expected_null} of "
            f"{len(matrix)} directions, {advice}",
            stacklevel=4,
        )
    vectors = vectors[:, informative]
    return vectors / eigenvalues[informative] @ vectors.T


def find_unidentified(
    jacobian: Tensor, inverse: Tensor, information: Tensor, share: float = 0.05
) -> Tensor:
    """Tells which quantities depend on directions without information by more than a share.

    Args:
        jacobian: Derivatives of the quantities by the parameters, with shape (Q, P).
        inverse: Inverse of the information, by :func:`invert_information`, (P, P).
        information: The information, (P, P).
        share: Share of the squared length of a quantity's derivative.

    Returns:
        True where a quantity is not identified, with shape (Q,).
    """
    seen = torch.einsum("pi,ij,jk->pk", jacobian, inverse, information)
    return (jacobian - seen).square().sum(-1) > share * jacobian.square().sum(-1)
