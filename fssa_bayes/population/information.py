"""Scores of people and the observed information of population parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences, covariate_rank, user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import Derivatives, HeterogeneousBTL, require_linear
from fssa_bayes.sampling import propose

__all__ = ["feature_differences"]


# What an information matrix without full rank may come from.
LOW_RANK = (
    "as where the covariance is close to one of lower rank; standard errors leave these out. Fewer "
    "latent dimensions, or more draws, may do"
)


COLLINEAR = (
    "as where features are constant or collinear, or people too few; standard errors leave these "
    "out. Fewer features may do"
)


_MAX_PARAMETERS = 2000


def with_standard_errors(
    quantities: Callable[[Tensor], Tensor],
    theta: Tensor,
    outer: Tensor,
    information: Tensor,
    expected_null: int,
    *,
    num_people: int,
    advice: str,
) -> dict[str, np.ndarray]:
    """Evaluates functions of the estimates, with standard errors of three forms.

    People's scores sum to zero, so that of U people they span U − 1 directions at most.
    """
    jacobian = torch.autograd.functional.jacobian(quantities, theta)
    inverse = invert_information(information, expected_null, advice)
    if _too_few(num_people, information):
        outer, inverse_outer = outer * torch.nan, outer * torch.nan
    else:
        inverse_outer = invert_information(outer, expected_null, advice)
    unidentified = find_unidentified(jacobian, inverse, information)
    standard_error = {
        "se_hessian": inverse,
        "se_outer_product": inverse_outer,
        "se_sandwich": inverse @ outer @ inverse,
    }
    columns = {"estimate": quantities(theta).numpy()}
    for name, covariance in standard_error.items():
        variance = torch.einsum("pi,ij,pj->p", jacobian, covariance, jacobian)
        columns[name] = variance.clamp(min=0).masked_fill(unidentified, torch.nan).sqrt().numpy()
    return columns


def _too_few(num_people: int, information: Tensor) -> bool:
    """Tells whether people are too few for their scores to have a covariance, and warns before."""
    parameters = int(torch.linalg.matrix_rank(information, rtol=1e-9, hermitian=True))
    if num_people >= 2 * parameters:
        return False
    few = num_people <= parameters
    said = "cannot be had and are NaN" if few else "are rough (compare se_hessian)"
    warnings.warn(
        f"se_sandwich and se_outer_product, which take people for clusters, {said}: "
        f"{num_people} people with comparisons for {parameters} parameters",
        stacklevel=4,
    )
    return few


@dataclass(frozen=True)
class ParameterEstimate:
    """Holds the free parameters θ = (w0, tril L, RᵀB, of answers) and what is known of them.

    Attributes:
        theta: The estimates, with shape (P,).
        loading: L with shape (D, R), on the CPU.
        rotation: L = Λ · rotation, with shape (K, R).
        entries: Rows and columns of the free entries of L, (2, ·).
        effect: RᵀB with shape (R, W), W = 0 without covariates.
        outer: Sum of the outer products of people's scores, (P, P).
        information: Observed information, (P, P).
        expected_null: Number of directions that no data could identify.
    """

    theta: Tensor
    loading: Tensor
    rotation: Tensor
    entries: Tensor
    effect: Tensor
    outer: Tensor
    information: Tensor
    expected_null: int

    def unpack(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes θ (P,) apart: w0 (D,), L (D, R), RᵀB (R, W) and the parameters of the answers."""
        sizes = len(self.loading), self.entries.shape[1], self.effect.numel()
        mean, free, effect, answers = theta.split([*sizes, len(theta) - sum(sizes)])
        loading = theta.new_zeros(self.loading.shape).index_put(tuple(self.entries), free)
        return mean, loading, effect.reshape(self.effect.shape), answers


def estimate_parameters(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    seed: int,
    what: str,
) -> ParameterEstimate:
    """Collects estimates and information of a linear utility, or says why `what` cannot."""
    require_linear(model, what)
    if len(model.prior_flow):
        raise ValueError(
            f"{what} needs prior='normal', under which mean and covariance describe the "
            "coefficients, got prior='flow'"
        )
    utility = model.utility
    mean = utility.mean.detach().double()
    triangle, rotation = _canonical(utility.loading.detach().double())
    rank = triangle.shape[1]
    entries = torch.tril_indices(len(mean), rank)
    effect = (rotation.T @ model.effects.detach().double()).cpu()
    check_num_parameters(what, len(mean) + entries.shape[1] + effect.numel())
    # Positions of the free parameters among the entries of (w0, L), row by row, and the others.
    row, column = entries
    answers = torch.tensor(list(answer_estimates(model).values()), dtype=torch.float64)
    free = torch.cat(
        [
            torch.arange(len(mean)) * (rank + 1),
            row * (rank + 1) + 1 + column,
            len(mean) * (1 + rank) + torch.arange(effect.numel() + len(answers)),
        ]
    )
    outer, information = sum_moments(model, guide, data, rotation, num_samples, seed)
    triangle = triangle.cpu()
    expected_null = 0 if data.items is not None else 1 + rank
    if model.num_covariates:
        expected_null += rank * (model.num_covariates - covariate_rank(data.covariates))
    return ParameterEstimate(
        theta=torch.cat([mean.cpu(), triangle[row, column], effect.flatten(), answers]),
        loading=triangle,
        rotation=rotation.cpu(),
        entries=entries,
        effect=effect,
        outer=outer[free][:, free],
        information=information[free][:, free],
        expected_null=expected_null,
    )


def check_num_parameters(what: str, parameters: int) -> None:
    if parameters > _MAX_PARAMETERS:
        raise ValueError(
            f"{what} inverts a dense information matrix of at most {_MAX_PARAMETERS} "
            f"parameters, got {parameters}: reduce the features or latent_dim"
        )


def find_unidentified(
    jacobian: Tensor, inverse: Tensor, information: Tensor, share: float = 0.05
) -> Tensor:
    """Tells which quantities depend on directions without information by more than a share."""
    seen = torch.einsum("pi,ij,jk->pk", jacobian, inverse, information)
    return (jacobian - seen).square().sum(-1) > share * jacobian.square().sum(-1)


def answer_estimates(model: HeterogeneousBTL) -> dict[str, float]:
    """Lists the estimates of log ν, position bias and logit of the lapse rate, in this order."""
    return {name: value.item() for name, value in model.answer_parameters().items()}


def label_parameters(
    data: Preferences, rank: int, covariates: Sequence, answers: dict[str, float]
) -> pd.MultiIndex:
    names = [str(name) for name in data.feature_names]
    rows = [("mean", name) for name in names]
    if rank:
        rows += [("sd", name) for name in names]
        rows += [
            ("correlation", f"{names[i]}, {names[j]}") for i in range(len(names)) for j in range(i)
        ]
    rows += [("effect", f"{covariate} on {name}") for covariate in covariates for name in names]
    rows += [("answer", name) for name in answers]
    if "lapse logit" in answers:
        rows.append(("answer", "lapse rate"))
    return pd.MultiIndex.from_tuples(rows, names=["quantity", "term"])


def _canonical(loading: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates Λ (D, K) to L (D, R), lower triangular, and returns the rotation (K, R) with it."""
    rotation, triangle = torch.linalg.qr(loading.T)
    sign = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return (triangle * sign[:, None]).T, rotation * sign


@torch.no_grad()
def sum_moments(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    rotation: Tensor,
    num_samples: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and their observed information."""
    width = rotation.shape[1]
    size = (
        model.num_features * (1 + width)
        + width * model.num_covariates
        + len(answer_estimates(model))
    )
    outer = torch.zeros(size, size, dtype=torch.float64)
    information = torch.zeros(size, size, dtype=torch.float64)
    # Sums do not depend on the order of people; sorted by size, little is padded.
    data = data.subset(np.argsort(data.counts, kind="stable"))
    # A comparison has features, and a margin for each draw: one without a latent factor.
    width = max(4 * num_samples if model.latent_dim else 4, size)
    with seeded(seed):
        for _, batch in user_batches(data, width, model.device):
            draws = propose(model, guide, batch, num_samples)
            weights = draws.log_weights.double().softmax(0)
            person_outer, person_information = person_moments(
                model, batch, draws.z, weights, rotation
            )
            outer += person_outer.cpu()
            information += person_information.cpu()
    return outer, information


def person_moments(
    model: HeterogeneousBTL, batch: Batch, z: Tensor, weights: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums the moments over a batch, for z (S, U, K) with normalised weights (S, U)."""
    derivatives = model.choice(batch, z).differentiate(batch.choice)
    first, second = derivatives.first, derivatives.second
    difference = feature_differences(model, batch).double()
    rotated = z.double() @ rotation
    factors = torch.cat([rotated.new_ones(*rotated.shape[:-1], 1), rotated], -1)

    gradient = torch.einsum("sun,und->sud", first[0], difference)
    score = torch.einsum("sud,suk->sudk", gradient, factors).flatten(-2)
    score_of_effect, complete_of_effect = _effect_moments(model, batch, z, rotation)
    of_answers = [value.sum(-1, keepdim=True) for value in first[1:]]
    score = torch.cat([score, score_of_effect, *of_answers], -1)
    mean_score = torch.einsum("su,sup->up", weights, score)
    outer = mean_score.T @ mean_score
    weighted = (score * weights.sqrt().unsqueeze(-1)).flatten(0, 1)
    # Complete-data information Σ d dᵀ ⊗ E[curvature · u uᵀ], as a product over comparisons.
    factor_moment = torch.einsum("su,sun,suk,sul->unkl", weights, -second[0][0], factors, factors)
    complete = torch.einsum("und,une,unkl->dkel", difference, difference, factor_moment)
    size = difference.shape[-1] * factors.shape[-1]
    information = outer - weighted.T @ weighted
    information[:size, :size] += complete.reshape(size, size)
    start = size + len(complete_of_effect)
    information[size:start, size:start] += complete_of_effect
    information[:size, :size] -= _stage_products(derivatives, difference, factors, weights)
    for i, row in enumerate(second[1:], start):
        cross = torch.einsum("su,sun,und,suk->dk", weights, -row[0], difference, factors)
        information[i, :size] += cross.flatten()
        information[:size, i] += cross.flatten()
        for j, value in enumerate(row[1:], start):
            information[i, j] -= torch.einsum("su,sun->", weights, value)
    return outer, information


def _effect_moments(
    model: HeterogeneousBTL, batch: Batch, z: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the complete-data score (S, U, R W) of RᵀB, and its information (R W, R W).

    Rᵀz given the covariates is normal around RᵀB w̃, whatever the choices.
    """
    covariates = model.standardise_covariates(batch.covariates).double()
    residual = (z - model.location(batch.covariates)).double() @ rotation
    score = torch.einsum("sur,uw->surw", residual, covariates).flatten(-2)
    eye = torch.eye(rotation.shape[1], dtype=torch.float64, device=z.device)
    return score, torch.kron(eye, covariates.T @ covariates)


def _stage_products(
    derivatives: Derivatives, difference: Tensor, factors: Tensor, weights: Tensor
) -> Tensor:
    """Sums E[g gᵀ] over stages of rankings, with g = Σ_j p_j (x_w − x_j) ⊗ u, to shape (P, P)."""
    place, person = derivatives.place, derivatives.person
    terms = derivatives.first[0].flatten(1)[:, place].unsqueeze(-1)
    terms = terms * difference.flatten(0, 1)[place]
    stage = terms.new_zeros(len(terms), len(person), terms.shape[-1])
    stage = stage.index_add(1, derivatives.stage, terms)
    products = torch.einsum("spd,spk->spdk", stage, factors[:, person]).flatten(2)
    scaled = (products * weights[:, person].sqrt().unsqueeze(-1)).flatten(0, 1)
    return scaled.T @ scaled


def feature_differences(model: HeterogeneousBTL, batch: Batch) -> Tensor:
    """Returns x_left − x_right, standardised, with shape (U, N, D)."""
    if batch.items.dtype == torch.int64:
        items = torch.nn.functional.one_hot(batch.items, model.num_features)
    else:
        items = model.standardise(batch.items)
    return items[batch.left] - items[batch.right]


def invert_information(matrix: Tensor, expected_null: int, advice: str) -> Tensor:
    """Inverts an information matrix, leaving out directions the data say nothing about."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    informative = eigenvalues > 1e-9 * eigenvalues[-1]
    null = int((~informative).sum())
    if null > expected_null:
        warnings.warn(
            f"the information on the population is not positive in {null - expected_null} of "
            f"{len(matrix)} directions, {advice}",
            stacklevel=4,
        )
    vectors = vectors[:, informative]
    return vectors / eigenvalues[informative] @ vectors.T
