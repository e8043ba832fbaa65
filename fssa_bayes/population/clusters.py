r"""What the scores of few people say of their covariance: corrections of the sandwich.

The scores of G people that are evaluated at the maximum of the likelihood vary less than those at
the truth, as the maximum follows them. So the sandwich is too small, and it varies itself.

References:
    Bell & McCaffrey (2002), Bias reduction in standard errors for linear regression with
    multi-stage samples, Survey Methodology 28(2).
    Pustejovsky & Tipton (2018), Small-sample methods for cluster-robust variance estimation and
    hypothesis testing in fixed effects models, JBES 36(4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.information import batch_information, feature_differences

__all__ = ["FEW", "Factor", "Leverage", "PersonMoments", "few_people_moments"]

FEW = 100
"""Number of people below whom errors are corrected: the factor G / (G − 1) of 100 is 1.005 ** 2."""

_ALONE = 1 - 1e-6  # Share of the information on a direction at which one person has all of it.
_ENTRIES = 2**24  # Numbers held at once: 128 MB.


@dataclass(frozen=True)
class PersonMoments:
    """Holds the score and the information of one person of a homogeneous model.

    Attributes:
        support: Positions of the parameters on which the person's choices depend, with shape (m,).
        score: Derivatives of the person's log-likelihood by these parameters, (m,).
        information: Observed information of the person's choices, (m, m).
    """

    support: Tensor
    score: Tensor
    information: Tensor


@torch.no_grad()
def few_people_moments(model: HeterogeneousBTL, data: Preferences) -> list[PersonMoments]:
    """Lists the moments of the people who compared an item that fewer than 100 people compared.

    Of everybody, where items have features and there are fewer than 100 people: then all bear on
    every coefficient.

    Args:
        model: A fitted model with linear utility and `latent_dim=0`.
        data: The comparisons the model was fitted to.
    """
    rotation = torch.zeros(0, 0, dtype=torch.float64)
    found = []
    for user in _touching_few(data):
        batch = data.subset([user]).batch().to(model.device)
        z = torch.zeros(1, 1, 0, device=model.device, dtype=model.dtype)
        support, difference = torch.arange(model.num_features), feature_differences(model, batch)
        if data.items is None:
            support = batch.items.cpu()
            eye = torch.eye(len(support), device=model.device)
            difference = eye[batch.left] - eye[batch.right]
        answers = model.num_features + torch.arange(len(model.answer_parameters()))
        weights = torch.ones(1, 1, dtype=torch.float64, device=model.device)
        score, information = batch_information(model, batch, z, weights, rotation, difference)
        found.append(
            PersonMoments(torch.cat([support, answers]), score.squeeze(0).cpu(), information.cpu())
        )
    return found


def _touching_few(data: Preferences) -> np.ndarray:
    """Returns the positions of the people on whom a parameter depends together with few others."""
    people = np.flatnonzero(data.counts)
    if data.items is not None or len(people) < FEW:
        return people if len(people) < FEW else people[:0]
    item = np.concatenate([data.left, data.right]).astype(np.int64)
    pairs = pd.unique(np.tile(data.person, 2) * data.num_items + item)
    user, item = np.divmod(pairs, data.num_items)
    few = np.bincount(item, minlength=data.num_items) < FEW
    return np.unique(user[few[item]])


@dataclass(frozen=True)
class Factor:
    """Enlarges the sandwich by G / (G − 1) and takes Student's t with G − 1 degrees: CR1.

    From 100 people on nothing is changed.

    Attributes:
        num_people: Number G of people with comparisons.
        outer: Sum of the outer products of their scores, with shape (P, P).
    """

    num_people: int
    outer: Tensor

    @property
    def meat(self) -> Tensor:
        """Estimate of the covariance of the summed score, with shape (P, P)."""
        if self.num_people >= FEW:
            return self.outer
        factor = self.num_people / (self.num_people - 1) if self.num_people > 1 else math.nan
        return self.outer * factor

    def degrees_of_freedom(self, jacobian: Tensor) -> Tensor:
        """Returns G − 1, or infinity from 100 people on, for quantities (Q, P), with shape (Q,)."""
        df = self.num_people - 1 if self.num_people < FEW else math.inf
        return torch.full((len(jacobian),), df, dtype=torch.float64)

    def share_alone(self, jacobian: Tensor) -> Tensor:
        """Returns zeros (Q,): what one person alone informs is not known."""
        return torch.zeros(len(jacobian), dtype=torch.float64)


class Leverage:
    r"""Corrects each person's score by the person's share of the information: CR2.

    With information :math:`I_g` of a person and M the inverse of everybody's, the covariance of a
    score at the maximum is :math:`I_g - I_g M I_g` where the model holds and choices are
    independent, so that the outer product of :math:`(1 - I_g M)^{-1/2} s_g` has expectation
    :math:`I_g`. This is the correction of Bell & McCaffrey, whose residuals it needs in the space
    of the parameters alone. Degrees of freedom are Satterthwaite's under the same model. What one
    person alone informs has no variation between people: there the information itself, which takes
    choices for independent, replaces the outer product, and the degrees of freedom are infinite.
    With one person that is everything, and the error is the classical one.

    Args:
        people: Moments of the people whose scores are corrected.
        outer: Sum of the outer products of everybody's scores, with shape (P, P).
        inverse: M, with shape (P, P).
        num_people: Number of people with comparisons; scores of those not in `people` stay.

    Attributes:
        meat: Estimate of the covariance of the summed score, with shape (P, P).
    """

    def __init__(
        self, people: Sequence[PersonMoments], outer: Tensor, inverse: Tensor, num_people: int
    ) -> None:
        self.inverse, self.num_people = inverse, num_people
        self.meat, self.people = outer.clone(), []
        for person in people:
            support = person.support
            local = inverse[support][:, support]
            basis, leverage = _share_of_information(person.information, local)
            alone = leverage > _ALONE
            factor = (1 - leverage).rsqrt().masked_fill(alone, 0.0)
            # (1 − I M)^−½ s = s + B h(λ) Bᵀ M s, where I = B Bᵀ and Bᵀ M B = diag(λ).
            bend = (factor - 1) / leverage
            score = person.score + basis @ (bend * (basis.T @ (local @ person.score)))
            classical = basis[:, alone] @ basis[:, alone].T
            change = score.outer(score) - person.score.outer(person.score) + classical
            self.meat[support[:, None], support] += change
            self.people.append((support, basis, factor, alone))

    def degrees_of_freedom(self, jacobian: Tensor) -> Tensor:
        """Returns Satterthwaite's degrees of freedom of quantities.

        Between people who are fewer than 100 all covariances count. Otherwise those between people
        are left out, which changes d degrees by about one, and people whose scores are not
        corrected share evenly what the others leave of the variance.

        Args:
            jacobian: Derivatives of the quantities by the parameters, with shape (Q, P).

        Returns:
            Degrees of freedom with shape (Q,); infinite where nobody's score is corrected.
        """
        if not self.people:
            return torch.full((len(jacobian),), math.inf, dtype=torch.float64)
        everybody = len(self.people) == self.num_people < FEW
        rows = len(jacobian)
        if everybody:
            rows = max(1, _ENTRIES // (len(self.people) * jacobian.shape[1]))
        return torch.cat([self._degrees(part, everybody) for part in jacobian.split(rows)])

    def _degrees(self, jacobian: Tensor, everybody: bool) -> Tensor:
        direction = jacobian @ self.inverse
        total = (direction * jacobian).sum(-1)
        rest, squares = total.clone(), torch.zeros_like(total)
        moves = []
        for (support, basis, factor, alone), part in self._informed(direction):
            own = part.square().masked_fill(alone, 0.0).sum(-1)
            squares += own.square()
            rest -= part.square().sum(-1)
            if everybody:
                move = direction.new_zeros(direction.shape)
                move[:, support] = (part * factor) @ basis.T
                moves.append(move)
        if everybody:
            move = torch.stack(moves, 1)  # (Q, G, P)
            between = move @ self.inverse @ move.mT
            between.diagonal(dim1=-2, dim2=-1).zero_()
            squares += between.square().sum((-2, -1))
        elif len(self.people) < self.num_people:
            squares += rest.clamp(min=0).square() / (self.num_people - len(self.people))
        df = total.square() / squares
        return df.masked_fill(squares <= 1e-12 * total.square(), math.inf)

    def share_alone(self, jacobian: Tensor) -> Tensor:
        """Returns which share of the variance of quantities (Q, P) one person alone informs."""
        direction = jacobian @ self.inverse
        total, alone_part = (direction * jacobian).sum(-1), torch.zeros(len(jacobian)).double()
        for (_, _, _, alone), part in self._informed(direction):
            alone_part += part[:, alone].square().sum(-1)
        return alone_part / total

    def _informed(self, direction: Tensor) -> Iterator[tuple[tuple, Tensor]]:
        """Yields every person's shape, and root of information along directions, (Q, m)."""
        for person in self.people:
            support, basis, *_ = person
            yield person, direction[:, support] @ basis


def _share_of_information(information: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Factors I = B Bᵀ so that Bᵀ M B is diagonal; returns B (m, r) and the diagonal (r,)."""
    values, vectors = torch.linalg.eigh(information)
    known = values > 1e-10 * values[-1].clamp(min=1e-300)
    root = vectors[:, known] * values[known].sqrt()
    leverage, turn = torch.linalg.eigh(root.T @ inverse @ root)
    seen = leverage > 1e-12
    return root @ turn[:, seen], leverage[seen].clamp(max=1.0)
