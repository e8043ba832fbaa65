r"""Scores and information of a population by the density of its coefficients.

Where every random coefficient has a direction of its own, a person's data are complete with
:math:`η = w_0 + Λz` of the random coefficients in place of z, and

.. math:: \log p(C, η) = \log p(C \mid η) + \log N(η;\, w_0 + ΛB\tilde w,\, ΛΛ^T)

depends on w0 and Λ through the normal density alone. Scores are then polynomials of second degree
in z, whatever the coefficients are as functions of η, where scores by the margins grow as exp(η)
does under log-normal coefficients. Fixed coefficients and the parameters of the answers have the
score of :math:`\log p(C \mid η)`.

References:
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44.
    Papaspiliopoulos, Roberts & Sköld (2007), A general framework for the parametrization of
    hierarchical models, Statistical Science 22(1): η is the centred parametrisation, z the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fssa_bayes.data import Batch
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.information import Taste, feature_differences, stage_products

__all__ = ["has_density", "information_by_density"]

_LEAST = 1e-6  # Singular value of Λ, by the largest, from which its density is taken for one.


def has_density(model: HeterogeneousBTL) -> bool:
    """Tells whether the random coefficients' normal η have a density, and Λ an inverse.

    Scores of what else differs between people (`personal`) are those by the margins.
    """
    if model.latent_dim == 0 or not model.utility.is_linear or model.personal is not None:
        return False
    loading = _random_rows(model)
    if loading.shape[0] != loading.shape[1]:
        return False
    values = torch.linalg.svdvals(loading)
    return bool(values[-1] > _LEAST * values[0])


def information_by_density(
    model: HeterogeneousBTL, batch: Batch, z: Tensor, weights: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Does what :func:`fssa_bayes.population.information.batch_information` does, by the density.

    Args:
        model: A model for which :func:`has_density` holds.
        batch: The comparisons, with the people's weights if they have any.
        z: Draws with shape (S, U, K).
        weights: Their normalised weights, with shape (S, U).
        rotation: R with shape (K, K), orthogonal.
    """
    rotated = z.double() @ rotation
    residual = (z - model.location(batch.covariates)).double() @ rotation
    factors = torch.cat([rotated.new_ones(*rotated.shape[:-1], 1), rotated], -1)
    score = torch.einsum("sur,suk->surk", residual, factors)
    score[..., 1:] -= torch.eye(rotation.shape[1], dtype=score.dtype, device=z.device)
    counted = weights if batch.weights is None else weights * batch.weights
    parts, complete = [score.flatten(-2)], [_complete_of_density(counted, residual, factors)]
    if model.num_covariates:
        covariates = model.standardise_covariates(batch.covariates).double()
        parts.append(torch.einsum("sur,uw->surw", residual, covariates).flatten(-2))
        of_effect, across = _complete_of_effect(counted, factors, covariates)
        size = len(complete[0])
        joint = score.new_zeros(size + len(of_effect), size + len(of_effect))
        joint[:size, :size], joint[size:, size:] = complete[0], of_effect
        joint[:size, size:], joint[size:, :size] = across, across.T
        complete = [joint]
    if not all(model.utility.map.is_random) or model.answer_parameters():
        own, information = _by_choices(model, batch, z, counted)
        parts.append(own)
        complete.append(information)
    score = torch.cat(parts, -1)
    mean_score = torch.einsum("su,sup->up", weights, score)
    counted_score = torch.einsum("su,sup->up", counted, score)
    weighted = (score * counted.sqrt().unsqueeze(-1)).flatten(0, 1)
    information = torch.block_diag(*complete) + counted_score.T @ mean_score - weighted.T @ weighted
    table = _change_of_parameters(model, rotation)
    return counted_score @ table, table.T @ information @ table


def _random_rows(model: HeterogeneousBTL) -> Tensor:
    """Returns the rows of Λ of the random coefficients, in double precision."""
    random = torch.tensor(model.utility.map.is_random, device=model.device)
    return model.utility.directions.detach().double()[random]


def _complete_of_density(weights: Tensor, residual: Tensor, factors: Tensor) -> Tensor:
    r"""Returns the information on M = Λ⁻¹ (dw0, dΛ) of the density, (R (1 + R), R (1 + R)).

    With ζ = (1, z), M = (m, N) and e the residual, minus the second differential of
    :math:`-\log|\det Λ| - ‖e‖^2 / 2` is :math:`‖Mζ‖^2 + 2\, e^T N M ζ - \operatorname{tr} N^2`.
    """
    rank = residual.shape[-1]
    square = torch.einsum("su,suk,sul->kl", weights, factors, factors)
    cross = torch.einsum("su,sua,suc->ac", weights, residual, factors)
    eye = torch.eye(rank, dtype=factors.dtype, device=factors.device)
    table = torch.einsum("ab,kl->akbl", eye, square)
    product = torch.zeros_like(table)  # Rows of N by columns of N, then rows and columns of M.
    for b in range(rank):
        product[:, 1 + b, b] = cross
    swapped = torch.einsum("ac,bd->abdc", eye, eye).permute(0, 2, 1, 3)
    table = table + product + product.permute(2, 3, 0, 1)
    table[:, 1:, :, 1:] -= weights.sum() * swapped
    size = rank * (1 + rank)
    return table.reshape(size, size)


def _complete_of_effect(
    weights: Tensor, factors: Tensor, covariates: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the information on RᵀB (R W, R W), and that on M with it (R (1 + R), R W)."""
    rank = factors.shape[-1] - 1
    eye = torch.eye(rank, dtype=factors.dtype, device=factors.device)
    across = torch.einsum("su,suk,uw->kw", weights, factors, covariates)
    counted = weights.sum(0).unsqueeze(-1) * covariates
    return _product(eye, counted.T @ covariates), _product(eye, across)


def _by_choices(
    model: HeterogeneousBTL, batch: Batch, z: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns scores (S, U, F) of log p(C | η), and their complete-data information (F, F).

    The parameters are the fixed coefficients, then those of the answers.
    """
    derivatives = model.choice(batch, z).differentiate(batch.choice)
    first, second = derivatives.first, derivatives.second
    difference = feature_differences(model, batch).double()
    fixed = [i for i, is_random in enumerate(model.utility.map.is_random) if not is_random]
    taste = Taste.at(model, z)
    of_beta = torch.einsum("sun,und->sud", first[0], difference)
    score = [taste.pull(of_beta)[..., fixed]]
    score += [value.sum(-1, keepdim=True) for value in first[1:]]
    score = torch.cat(score, -1)
    complete = score.new_zeros(score.shape[-1], score.shape[-1])
    if fixed:
        ones = score.new_ones(*z.shape[:-1], 1)
        if taste.jacobian is None:
            curvature = torch.einsum("su,sun->un", weights, -second[0][0])
            own = torch.einsum("un,und,une->de", curvature, difference, difference)
        else:
            each = taste.complete_information(of_beta, -second[0][0], difference)
            own = torch.einsum("su,sude->de", weights, each)
        if derivatives.stages is not None:
            own = own - stage_products(derivatives.stages, difference, ones, weights, taste)
        complete[: len(fixed), : len(fixed)] = own[fixed][:, fixed]
    for i, row in enumerate(second[1:], len(fixed)):
        pulled = taste.pull(torch.einsum("sun,und->sud", -row[0], difference))[..., fixed]
        cross = torch.einsum("su,sud->d", weights, pulled)
        complete[i, : len(fixed)] = complete[: len(fixed), i] = cross
        for j, value in enumerate(row[1:], len(fixed)):
            complete[i, j] = -torch.einsum("su,sun->", weights, value)
    return score, complete


def _change_of_parameters(model: HeterogeneousBTL, rotation: Tensor) -> Tensor:
    """Returns the derivatives of (M, RᵀB, fixed coefficients, answers) by (w0, ΛR, RᵀB, answers).

    Coefficients come feature by feature, each with its row of ΛR.
    """
    random = torch.tensor(model.utility.map.is_random, device=model.device)
    rank, number = rotation.shape[1], len(random)
    inverse = torch.linalg.inv(_random_rows(model) @ rotation)
    effects, answers = rank * model.num_covariates, len(model.answer_parameters())
    eye = torch.eye(1 + rank, dtype=inverse.dtype, device=inverse.device)
    size = rank * (1 + rank) + effects + int((~random).sum()) + answers
    table = inverse.new_zeros(size, number * (1 + rank) + effects + answers)
    columns = torch.arange(number * (1 + rank), device=inverse.device).reshape(number, -1)
    table[: rank * (1 + rank), columns[random].flatten()] = _product(inverse, eye)
    rest = torch.arange(rank * (1 + rank), size, device=inverse.device)
    after = number * (1 + rank) + torch.arange(effects + answers, device=inverse.device)
    table[rest, torch.cat([after[:effects], columns[~random, 0], after[effects:]])] = 1.0
    return table


def _product(one: Tensor, two: Tensor) -> Tensor:
    """Returns the Kronecker product; `torch.kron` refuses some strides (PyTorch 2.13)."""
    return torch.einsum("ab,cd->acbd", one, two).reshape(len(one) * len(two), -1)
