r"""Population estimates of the linear utility with standard errors.

The coefficients of a person are β = w0 + Λz, z ~ N(0, I). Only w0 and ΛΛᵀ are identified, so Λ is
rotated to its lower-triangular form L and the free parameters are θ = (w0, tril L). By Fisher's
identity the score of a person is the posterior mean of the complete-data score, and by Louis'
identity the observed information is the posterior mean of the complete-data information less the
posterior covariance of the complete-data score; both are averaged with importance weights.
"""

from __future__ import annotations

import warnings

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.importance import propose, user_batches
from fssa_bayes.model import HeterogeneousBTL, LinearUtility

__all__ = ["population_table"]

_MAX_PARAMETERS = 2000


def population_table(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimates mean, standard deviation and correlation of people's coefficients.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide; None if `latent_dim` is 0.
        data: The comparisons the model was fitted to.
        num_samples: Draws of each person's z.
        seed: Seed of the draws.

    Returns:
        One row for each mean, standard deviation and correlation (index `quantity`, `term`), in
        units of the features given; items without features are centred over all items. Columns:
        `estimate`; `se_hessian`, from the observed information; `se_outer_product`, from the
        outer product of the people's scores, which most software for mixed logits prints; and
        `se_sandwich`, both together, robust to misspecification, with people as clusters. Terms
        that the data do not identify (constant or collinear features) have NaN.

    Raises:
        ValueError: If the utility is not linear, the prior not normal, or there are too many
            parameters for a dense information matrix.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    utility = model.utility
    if not isinstance(utility, LinearUtility):
        raise ValueError(
            "population() needs utility='linear', whose coefficients are identified, got "
            f"{type(utility).__name__}"
        )
    if len(model.prior_flow):
        raise ValueError(
            "population() needs prior='normal', under which mean and covariance describe the "
            "coefficients, got prior='flow'"
        )
    mean = utility.mean.detach().double()
    triangle, rotation = _canonical(utility.loading.detach().double())
    rank = triangle.shape[1]
    row, column = torch.tril_indices(len(mean), rank)
    if len(mean) + len(row) > _MAX_PARAMETERS:
        raise ValueError(
            f"population() inverts a dense information matrix of at most {_MAX_PARAMETERS} "
            f"parameters, got {len(mean) + len(row)}: reduce the features or latent_dim"
        )
    # Positions of the free parameters among the entries of (w0, L), row by row.
    free = torch.cat([torch.arange(len(mean)) * (rank + 1), row * (rank + 1) + 1 + column])
    outer, information = _moments(model, guide, data, rotation, num_samples, seed)
    outer, information = outer[free][:, free], information[free][:, free]

    scale = model.feature_scale.double().cpu()
    centre = data.items is None

    def quantities(theta: Tensor) -> Tensor:
        loading = theta.new_zeros(len(mean), rank).index_put((row, column), theta[len(mean) :])
        location = theta[: len(mean)] / scale
        loading = loading / scale[:, None]
        if centre:
            location, loading = location - location.mean(), loading - loading.mean(0)
        if rank == 0:
            return location
        covariance = loading @ loading.T
        sd = covariance.diagonal().sqrt()
        pair = torch.tril_indices(len(sd), len(sd), -1)
        correlation = (covariance / sd[:, None] / sd[None, :])[pair[0], pair[1]]
        return torch.cat([location, sd, correlation])

    theta = torch.cat([mean.cpu(), triangle.cpu()[row, column]])
    jacobian = torch.autograd.functional.jacobian(quantities, theta)
    inverse = _invert(information, expected_null=int(centre) * (1 + rank))
    inverse_outer = _invert(outer, expected_null=int(centre) * (1 + rank))
    # What depends on a direction without information has no standard error.
    seen = torch.einsum("pi,ij,jk->pk", jacobian, inverse, information)
    unidentified = (jacobian - seen).square().sum(-1) > 0.05 * jacobian.square().sum(-1)
    standard_error = {
        "se_hessian": inverse,
        "se_outer_product": inverse_outer,
        "se_sandwich": inverse @ outer @ inverse,
    }
    columns = {"estimate": quantities(theta).numpy()}
    for name, covariance in standard_error.items():
        variance = torch.einsum("pi,ij,pj->p", jacobian, covariance, jacobian)
        columns[name] = variance.clamp(min=0).masked_fill(unidentified, torch.nan).sqrt().numpy()
    return pd.DataFrame(columns, index=_labels(data, rank))


def _labels(data: Preferences, rank: int) -> pd.MultiIndex:
    names = [str(name) for name in data.feature_names]
    rows = [("mean", name) for name in names]
    if rank:
        rows += [("sd", name) for name in names]
        rows += [
            ("correlation", f"{names[i]}, {names[j]}") for i in range(len(names)) for j in range(i)
        ]
    return pd.MultiIndex.from_tuples(rows, names=["quantity", "term"])


def _canonical(loading: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates Λ (D, K) to L (D, R), lower triangular, and returns the rotation (K, R) with it."""
    rotation, triangle = torch.linalg.qr(loading.T)
    sign = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return (triangle * sign[:, None]).T, rotation * sign


@torch.no_grad()
def _moments(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    rotation: Tensor,
    num_samples: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and their observed information."""
    size = model.num_features * (1 + rotation.shape[1])
    outer = torch.zeros(size, size, dtype=torch.float64)
    information = torch.zeros(size, size, dtype=torch.float64)
    with seeded(seed):
        for batch in user_batches(data, 4 * num_samples, model.device):
            draws = propose(model, guide, batch, num_samples)
            weights = draws.log_weights.double().softmax(0)
            person_outer, person_information = _person_moments(
                model, batch, draws.z, weights, rotation
            )
            outer += person_outer.cpu()
            information += person_information.cpu()
    return outer, information


def _person_moments(
    model: HeterogeneousBTL, batch: Batch, z: Tensor, weights: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums the moments over a batch, for z (S, U, K) with normalised weights (S, U)."""
    likelihood = model.choice(batch, z)
    probability = likelihood.mean.double()
    difference = _differences(model, batch).double()
    # d log p / d margin and − d² log p / d margin², both (S, U, N).
    residual = (batch.choice - probability) * batch.mask
    curvature = probability * (1 - probability) * batch.mask
    rotated = z.double() @ rotation
    factors = torch.cat([rotated.new_ones(*rotated.shape[:-1], 1), rotated], -1)

    gradient = torch.einsum("sun,und->sud", residual, difference)
    score = torch.einsum("sud,suk->sudk", gradient, factors).flatten(-2)
    mean_score = torch.einsum("su,sup->up", weights, score)
    outer = mean_score.T @ mean_score
    weighted = (score * weights.sqrt().unsqueeze(-1)).flatten(0, 1)
    # Complete-data information Σ d dᵀ ⊗ E[curvature · u uᵀ], as a product over comparisons.
    factor_moment = torch.einsum("su,sun,suk,sul->unkl", weights, curvature, factors, factors)
    complete = torch.einsum("und,une,unkl->dkel", difference, difference, factor_moment)
    size = score.shape[-1]
    information = complete.reshape(size, size) - weighted.T @ weighted + outer
    return outer, information


def _differences(model: HeterogeneousBTL, batch: Batch) -> Tensor:
    """Returns x_left − x_right, standardised, with shape (U, N, D)."""
    if batch.items.dtype == torch.int64:
        items = torch.nn.functional.one_hot(batch.items, model.num_features)
    else:
        items = model.standardise(batch.items)
    return items[batch.left] - items[batch.right]


def _invert(matrix: Tensor, expected_null: int) -> Tensor:
    """Inverts an information matrix, leaving out directions the data say nothing about."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    informative = eigenvalues > 1e-9 * eigenvalues[-1]
    null = int((~informative).sum())
    if null > expected_null:
        warnings.warn(
            f"the information on the population is not positive in {null - expected_null} of "
            f"{len(matrix)} directions, as where the covariance is close to one of lower rank; "
            "standard errors leave these out. Fewer latent dimensions, or more draws, may do",
            stacklevel=3,
        )
    vectors = vectors[:, informative]
    return vectors / eigenvalues[informative] @ vectors.T
