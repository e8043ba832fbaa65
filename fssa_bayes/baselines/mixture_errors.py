"""Coefficients and shares of a mixture's classes, with standard errors."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.model import HeterogeneousBTL, require_linear
from fssa_bayes.population import (
    Estimates,
    Moments,
    Uncertainty,
    answer_estimates,
    check_num_parameters,
    feature_differences,
    label_parameters,
)

__all__ = ["class_moments", "mixture_moments", "mixture_table"]

_ADVICE = (
    "as where a class has few people or its choices are separated; standard errors leave these "
    "out. Fewer classes may do"
)


def mixture_table(
    models: Sequence[HeterogeneousBTL],
    weights: Tensor,
    responsibility: Tensor,
    data: Preferences,
) -> pd.DataFrame:
    """Estimates the coefficients and the shares of the classes of a mixture.

    By Louis' identity the observed information is the mean of the complete-data information less
    the covariance of the complete-data score. Mean and covariance are over the classes a person may
    belong to.

    Args:
        models: The classes' fitted models, with linear utility and `latent_dim=0`.
        weights: Shares of the classes, with shape (C,).
        responsibility: Probability of every person's class given all their choices, (U, C).
        data: The comparisons to which the mixture was fitted.

    Returns:
        One row for each class's coefficients, in units of the features given (items without
        features are centred over all items), parameters of the answers, and `share` (index
        `class`, from 1, and `term`). Columns as in :func:`fssa_bayes.population.population_table`.

    Raises:
        ValueError: If a utility is not linear, some comparisons are rankings, or there are too many
            parameters for a dense information matrix.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    for model in models:
        require_linear(model, "coefficients()")
    if data.ranking is not None:
        raise ValueError(
            "coefficients() of a mixture needs plain comparisons, got rankings: fit it to "
            "data.as_pairs()"
        )
    first, size = models[0], models[0].num_features
    each = size + len(answer_estimates(first))
    check_num_parameters("coefficients()", len(models) * (each + 1) - 1)
    outer, information = mixture_moments(models, weights.double(), responsibility.double(), data)
    scale = first.feature_scale.double().cpu()

    def quantities(theta: Tensor) -> Tensor:
        logits = torch.cat([theta.new_zeros(1), theta[len(models) * each :]])
        share, rows = logits.softmax(0), []
        for number in range(len(models)):
            own = theta[number * each : (number + 1) * each]
            mean = own[:size] / scale
            mean = mean - mean.mean() if data.items is None else mean
            rate = [] if first.lapse_logit is None else [own[-1:].sigmoid()]
            rows += [mean, own[size:], *rate, share[number : number + 1]]
        return torch.cat(rows)

    means = [model.utility.mean.detach().double().cpu() for model in models]
    answers = [
        torch.tensor(list(answer_estimates(m).values()), dtype=torch.float64) for m in models
    ]
    logits = weights.double().clamp(min=1e-300).log()
    own = [part for pair in zip(means, answers, strict=True) for part in pair]
    theta = torch.cat([*own, logits[1:] - logits[0]])
    uncertainty = Uncertainty(
        information,
        outer,
        num_people=int((data.counts > 0).sum()),
        people=None,
        expected_null=len(models) if data.items is None else 0,
        advice=_ADVICE,
    )
    moments = Moments(first.utility.map, rank=0)
    labels = label_parameters(data, moments, [], answer_estimates(first))
    terms = [*labels.get_level_values("term"), "share"]
    index = [(number + 1, term) for number in range(len(models)) for term in terms]
    names = pd.MultiIndex.from_tuples(index, names=["class", "term"])
    estimates = Estimates.of(names, quantities, theta, uncertainty)
    return pd.DataFrame(estimates.three_errors(), index=names)


@torch.no_grad()
def mixture_moments(
    models: Sequence[HeterogeneousBTL], weights: Tensor, responsibility: Tensor, data: Preferences
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and people's observed information.

    Arguments are those of :func:`mixture_table`. The parameters are those of the classes, one class
    after another, and log π_c / π_1 for c > 1.
    """
    each = models[0].num_features + len(answer_estimates(models[0]))
    size = len(models) * (each + 1) - 1
    outer, information = torch.zeros(2, size, size, dtype=torch.float64)
    of_shares = slice(len(models) * each, size)
    is_class = torch.eye(len(models), dtype=torch.float64) - weights
    for people, batch in user_batches(data, max(4, size), models[0].device):
        prob = responsibility[people]
        mean_score = torch.zeros(batch.num_users, size, dtype=torch.float64)
        for number, model in enumerate(models):
            own = slice(number * each, (number + 1) * each)
            share = prob[:, number : number + 1]
            score = torch.zeros_like(mean_score)
            score[:, own], complete = class_moments(model, batch, share.squeeze(-1))
            score[:, of_shares] = is_class[number, 1:]
            information[own, own] += complete
            information -= score.T @ (share * score)
            mean_score += share * score
        between = (weights.diag() - weights.outer(weights))[1:, 1:]
        information[of_shares, of_shares] += batch.num_users * between
        outer_here = mean_score.T @ mean_score
        outer += outer_here
        information += outer_here
    return outer, information


def class_moments(model: HeterogeneousBTL, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns people's scores of the parameters of one class, and the sum of their information.

    Args:
        model: The model of the class.
        batch: The people.
        weight: Probability that a person belongs to the class, with shape (U,).

    Returns:
        Scores with shape (U, P), and information, weighted by `weight`, with shape (P, P).
    """
    z = batch.choice.new_zeros(1, batch.num_users, 0)
    derivatives = model.choice(batch, z).differentiate(batch.choice)
    first, second = derivatives.first, derivatives.second
    difference = feature_differences(model, batch).double()
    weight = weight.to(difference.device)
    # The derivative of the margin with respect to the coefficients is x_l − x_r.
    ones = difference.new_ones(*difference.shape[:-1], 1)
    moves = [difference, *(ones for _ in first[1:])]
    score = [torch.einsum("un,und->ud", d[0], move) for d, move in zip(first, moves, strict=True)]
    blocks = [
        [
            -torch.einsum("u,un,und,une->de", weight, second[i][j][0], moves[i], moves[j])
            for j in range(len(moves))
        ]
        for i in range(len(moves))
    ]
    return torch.cat(score, -1).cpu(), torch.cat([torch.cat(row, -1) for row in blocks]).cpu()
