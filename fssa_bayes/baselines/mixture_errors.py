"""What is known of the errors of a mixture's parameters, and its coefficients and shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad

from fssa_bayes.baselines.membership import (
    ClassMembership,
    find_separated_classes,
    log_shares,
    membership_information,
    null_of_design,
)
from fssa_bayes.data import Preferences, user_batches
from fssa_bayes.model import HeterogeneousBTL, require_linear
from fssa_bayes.population import (
    Divergence,
    Estimates,
    Moments,
    Uncertainty,
    answer_estimates,
    batch_information,
    check_num_parameters,
    label_parameters,
)

__all__ = ["MixtureParameters", "class_estimates", "mixture_moments", "mixture_parameters"]

_ADVICE = (
    "as where a class has few people or its choices are separated; standard errors leave these "
    "out. Fewer classes may do"
)


@dataclass(frozen=True)
class MixtureParameters:
    """Holds the free parameters of a mixture and what is known of their errors.

    Attributes:
        theta: The estimates: coefficients and answers' parameters of the classes, one class after
            another, then γ of classes 2 to C, with shape (P,).
        num_classes: Number of classes C.
        each: Number of parameters of a class.
        uncertainty: What is known of the errors of θ.
        design: Ones and standardised covariates of the people of the fit, (U, 1 + W).
    """

    theta: Tensor
    num_classes: int
    each: int
    uncertainty: Uncertainty
    design: Tensor

    def unpack(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Takes θ (P,) apart: parameters of the classes (C, ·), and γ (C, 1 + W)."""
        own, rest = theta.split([self.num_classes * self.each, self.num_membership])
        membership = rest.reshape(self.num_classes - 1, self.design.shape[1])
        return own.reshape(self.num_classes, self.each), pad(membership, (0, 0, 1, 0))

    @property
    def num_membership(self) -> int:
        """Number of coefficients γ."""
        return (self.num_classes - 1) * self.design.shape[1]


def mixture_parameters(
    models: Sequence[HeterogeneousBTL],
    membership: ClassMembership,
    responsibility: Tensor,
    data: Preferences,
    what: str,
) -> MixtureParameters:
    """Collects the estimates of a mixture and the information on them.

    By Louis' identity the observed information is the mean of the complete-data information less
    the covariance of the complete-data score. Mean and covariance are over the classes a person may
    belong to.

    Args:
        models: The classes' fitted models, with linear utility and `latent_dim=0`.
        membership: The shares of the classes.
        responsibility: Probability of every person's class given all their choices, (U, C).
        data: The comparisons to which the mixture was fitted.
        what: Who asks, for messages.

    Raises:
        ValueError: If a utility is not linear, or there are too many parameters for a dense
            information matrix.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    for model in models:
        require_linear(model, what)
    first, classes = models[0], len(models)
    each = first.num_features + len(answer_estimates(first))
    design = membership.table.design(membership.table.select(data))
    size = classes * each + (classes - 1) * design.shape[1]
    check_num_parameters(what, size)
    gamma = membership.coefficients
    outer, information = mixture_moments(models, design, gamma, responsibility.double(), data)
    null = torch.kron(torch.eye(classes - 1, dtype=torch.float64), null_of_design(design))
    means = [model.utility.mean.detach().double().cpu() for model in models]
    answers = [
        torch.tensor(list(answer_estimates(m).values()), dtype=torch.float64) for m in models
    ]
    own = [part for pair in zip(means, answers, strict=True) for part in pair]
    theta = torch.cat([*own, gamma[1:].flatten()])
    limit = find_separated_classes(design, gamma) if len(membership.table) else None
    if limit is not None:
        above = size - len(limit.point)
        limit = Divergence(pad(limit.directions, (0, 0, above, 0)), theta, far=limit.far)
        information = limit.remove(information)
    uncertainty = Uncertainty(
        information,
        outer,
        num_people=int((data.counts > 0).sum()),
        people=None,
        expected_null=(
            (classes if data.items is None else 0)
            + null.shape[1]
            + (0 if limit is None else limit.directions.shape[1])
        ),
        advice=_ADVICE,
        limit=limit,
        null=pad(null, (0, 0, classes * each, 0)) if null.shape[1] else None,
    )
    return MixtureParameters(theta, classes, each, uncertainty, design)


def class_estimates(
    parameters: MixtureParameters, models: Sequence[HeterogeneousBTL], data: Preferences
) -> Estimates:
    """Estimates the coefficients of the classes, and their shares averaged over people.

    Args:
        parameters: The parameters of the mixture.
        models: The classes' fitted models.
        data: The comparisons to which the mixture was fitted.

    Returns:
        Each class's coefficients, in units of the features given (items without features are
        centred over all items), parameters of the answers, and `share`, named (`class`, from 1,
        `term`).
    """
    first, size = models[0], models[0].num_features
    scale = first.feature_scale.double().cpu()

    def quantities(theta: Tensor) -> Tensor:
        classes, gamma = parameters.unpack(theta)
        share, rows = log_shares(parameters.design, gamma).exp().mean(0), []
        for number, own in enumerate(classes):
            mean = own[:size] / scale
            mean = mean - mean.mean() if data.items is None else mean
            rate = [] if first.lapse_logit is None else [own[-1:].sigmoid()]
            rows += [mean, own[size:], *rate, share[number : number + 1]]
        return torch.cat(rows)

    moments = Moments(first.utility.map, rank=0)
    labels = label_parameters(data, moments, [], answer_estimates(first))
    terms = [*labels.get_level_values("term"), "share"]
    index = [(number + 1, term) for number in range(len(models)) for term in terms]
    names = pd.MultiIndex.from_tuples(index, names=["class", "term"])
    return Estimates.of(names, quantities, parameters.theta, parameters.uncertainty)


@torch.no_grad()
def mixture_moments(
    models: Sequence[HeterogeneousBTL],
    design: Tensor,
    gamma: Tensor,
    responsibility: Tensor,
    data: Preferences,
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and people's observed information.

    Args:
        models: The classes' fitted models.
        design: Ones and standardised covariates, with shape (U, 1 + W).
        gamma: Coefficients of the shares, (C, 1 + W), those of the first class 0.
        responsibility: Probability of every person's class given all their choices, (U, C).
        data: The comparisons.

    Returns:
        Two matrices (P, P) over the parameters of :class:`MixtureParameters`.
    """
    each, width = models[0].num_features + len(answer_estimates(models[0])), design.shape[1]
    start = len(models) * each
    size = start + (len(models) - 1) * width
    outer, information = torch.zeros(2, size, size, dtype=torch.float64)
    of_shares, eye = slice(start, size), torch.eye(len(models), dtype=torch.float64)
    no_rotation = torch.zeros(0, 0, dtype=torch.float64, device=models[0].device)
    for people, batch in user_batches(data, max(4, size), models[0].device):
        prob, covariates = responsibility[people], design[people]
        pi = log_shares(covariates, gamma).exp()
        mean_score = torch.zeros(batch.num_users, size, dtype=torch.float64)
        z = torch.zeros(1, batch.num_users, 0, dtype=models[0].dtype, device=models[0].device)
        for number, model in enumerate(models):
            own, belongs = slice(number * each, (number + 1) * each), prob[:, number]
            # The score times the probability of the class, and the information on the class:
            # Σ (s p)(s p)ᵀ − Σ p s sᵀ + the mean complete-data information.
            weights = belongs.to(z.device)[None]
            score, inside = batch_information(model, batch, z, weights, no_rotation)
            score = score.cpu()
            mean_score[:, own] = score
            information[own, own] += inside.cpu() - score.T @ score
            is_class = (eye[number] - pi)[:, 1:]
            score_of_share = torch.einsum("uc,uw->ucw", is_class, covariates).flatten(1)
            between = score.T @ score_of_share
            information[own, of_shares] -= between
            information[of_shares, own] -= between.T
            weighted = belongs[:, None] * score_of_share
            information[of_shares, of_shares] -= score_of_share.T @ weighted
            mean_score[:, of_shares] += weighted
        information[of_shares, of_shares] += membership_information(covariates, pi)
        outer_here = mean_score.T @ mean_score
        outer += outer_here
        information += outer_here
    return outer, information
