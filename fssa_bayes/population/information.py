r"""Scores of people and the observed information on population parameters.

By Fisher's identity the score of a person is the posterior mean of the complete-data score. By
Louis' identity the observed information is the posterior mean of the complete-data information less
the posterior covariance of the complete-data score. Both means are taken with importance weights.

References:
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.model import CoefficientMap, HeterogeneousBTL, StageShares
from fssa_bayes.sampling import draw_around_modes

__all__ = [
    "batch_information",
    "effect_information",
    "feature_differences",
    "item_information",
    "population_information",
    "population_score",
    "stage_products",
    "sum_information",
]

_PEOPLE = 1024  # People whose scores on all items are held at once.


@torch.no_grad()
def population_information(
    model: HeterogeneousBTL,
    data: Preferences,
    rotation: Tensor,
    num_samples: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and their observed information.

    A score and an information count as often as the person's weight says, so that an outer product
    has the square of the weight.

    Args:
        model: A model with linear utility and normal prior.
        data: The comparisons.
        rotation: R with shape (K, R). Scores are those of the model of Rᵀz.
        num_samples: Draws of each person's z.
        seed: Seed of the draws.

    Returns:
        Two matrices (P, P) over the parameters: w0 and ΛR, feature by feature; RᵀB; those of the
        answers; ΓR of those that differ between people, row by row.
    """
    if _is_of_items(model, data):
        return item_information(model, data)
    return sum_information(model, data, rotation, num_samples, seed, [batch_information])[0]


def _is_of_items(model: HeterogeneousBTL, data: Preferences) -> bool:
    """Tells whether nothing but utilities of items, the same for everybody, has been estimated."""
    has_more = bool(model.answer_parameters()) or data.has_rankings
    return model.latent_dim == 0 and data.items is None and not has_more


@torch.no_grad()
def population_score(
    model: HeterogeneousBTL, data: Preferences, rotation: Tensor, num_samples: int, seed: int
) -> Tensor:
    """Sums the scores of people, each times the person's weight.

    Arguments and parameters are those of :func:`population_information`.

    Returns:
        The derivative of the log-likelihood of all comparisons, without a prior (`penalty`), by the
        parameters, with shape (P,). At estimates of maximum likelihood it is 0 but for Monte-Carlo
        error.
    """
    if _is_of_items(model, data):
        residual = _item_residuals(model, data)[1]
        sides = (data.left, 1.0), (data.right, -1.0)
        counts = (np.bincount(side, sign * residual, data.num_items) for side, sign in sides)
        return torch.from_numpy(sum(counts))
    total: list[Tensor] = []

    def keep(*arguments: object) -> tuple[Tensor, Tensor]:
        scores, information = batch_information(*arguments)
        total.append(scores.sum(0).cpu())
        return scores, information

    sum_information(model, data, rotation, num_samples, seed, [keep])
    return torch.stack(total).sum(0)


@torch.no_grad()
def sum_information(
    model: HeterogeneousBTL,
    data: Preferences,
    rotation: Tensor,
    num_samples: int,
    seed: int,
    ways: Sequence[Callable[..., tuple[Tensor, Tensor]]],
) -> list[tuple[Tensor, Tensor]]:
    """Does what :func:`population_information` does in several ways, from the same draws.

    Args:
        model: A model with linear utility and normal prior.
        data: The comparisons.
        rotation: As in :func:`population_information`.
        num_samples: Draws of each person's z.
        seed: Seed of the draws.
        ways: Functions with the arguments and results of :func:`batch_information`.

    Returns:
        The two matrices of each way.
    """
    rank = rotation.shape[1]
    size = model.num_features * (1 + rank) + rank * model.num_covariates
    size += len(model.answer_parameters())
    size += 0 if model.personal is None else len(model.personal.names) * rank
    sums = [[torch.zeros(size, size, dtype=torch.float64) for _ in range(2)] for _ in ways]
    # Sums do not depend on the order of people; sorted by size, little is padded.
    data = data.subset(np.argsort(data.counts, kind="stable"))
    # A comparison has features, and a margin for each draw: one without a latent factor.
    width = max(4 * num_samples if model.latent_dim else 4, size)
    if model.latent_dim and not model.utility.map.is_identity:
        width *= model.num_features  # A matrix of coefficients for each draw.
    streams = Streams(seed, "information")
    for _, batch in user_batches(data, width, model.device):
        z, weights = _draw(model, batch, num_samples, streams)
        for (outer, information), evaluate in zip(sums, ways, strict=True):
            scores, of_batch = evaluate(model, batch, z, weights, rotation)
            outer += (scores.T @ scores).cpu()
            information += of_batch.cpu()
    return [(outer, information) for outer, information in sums]


def item_information(model: HeterogeneousBTL, data: Preferences) -> tuple[Tensor, Tensor]:
    """Does what :func:`population_information` does for utilities of items, the same for everybody.

    The information is the Laplacian of a graph, whose edges have the weights p (1 − p) of their
    comparisons, so that nothing as wide as the items is held for each comparison.
    """
    items, left, right = data.num_items, *(x.astype(np.int64) for x in (data.left, data.right))
    curvature, residual = _item_residuals(model, data)
    weight = np.bincount(left * items + right, curvature, minlength=items**2)
    weight = torch.from_numpy(weight.reshape(items, items))
    weight = weight + weight.T
    information = torch.diag(weight.sum(0)) - weight
    outer = torch.zeros_like(information)
    for start in range(0, len(data), _PEOPLE):
        rows = slice(*data.offsets[[start, min(start + _PEOPLE, len(data))]])
        own = (data.person[rows] - start) * items
        scores = sum(
            np.bincount(own + side[rows], sign * residual[rows], minlength=_PEOPLE * items)
            for side, sign in ((left, 1.0), (right, -1.0))
        )
        scores = torch.from_numpy(scores.reshape(_PEOPLE, items))
        outer += scores.T @ scores
    return outer, information


def _item_residuals(model: HeterogeneousBTL, data: Preferences) -> tuple[np.ndarray, np.ndarray]:
    """Returns w p (1 − p) and w (y − p) of each comparison, with weights w of people, (R,) each."""
    counts = 1.0 if data.weights is None else data.weights[data.person]
    utility = model.utility.mean.double().cpu().numpy()
    prob = expit(utility[data.left] - utility[data.right])
    return counts * prob * (1 - prob), counts * (data.choice - prob)


def _draw(
    model: HeterogeneousBTL, batch: Batch, num_samples: int, streams: Streams
) -> tuple[Tensor, Tensor]:
    """Draws z (S, U, K) from adapted proposals, with normalised weights (S, U)."""
    if model.latent_dim == 0:
        z = torch.zeros(1, batch.num_users, 0, dtype=model.dtype, device=model.device)
        return z, torch.ones(1, batch.num_users, dtype=torch.float64, device=model.device)
    draws = draw_around_modes(model, batch, num_samples, streams)
    return draws.z.to(model.dtype), draws.log_weights.softmax(0)


def batch_information(
    model: HeterogeneousBTL,
    batch: Batch,
    z: Tensor,
    weights: Tensor,
    rotation: Tensor,
    difference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluates people's scores and their summed information, for given draws.

    Args:
        model: A model with linear utility and normal prior.
        batch: The comparisons, with the people's weights if they have any.
        z: Draws with shape (S, U, K).
        weights: Their normalised weights, with shape (S, U).
        rotation: R with shape (K, R).
        difference: Derivatives of the margins by the coefficients (U, N, D), such as those by a
            part of them; by all of them if None.

    Returns:
        Scores with shape (U, P), and information with shape (P, P), over the parameters of
        :func:`population_information`, both weighted by person.
    """
    derivatives = model.choice(batch, z).differentiate(batch.choice)
    first, second = derivatives.first, derivatives.second
    if difference is None:
        difference = feature_differences(model, batch)
    difference = difference.double()
    rotated = z.double() @ rotation
    factors = torch.cat([rotated.new_ones(*rotated.shape[:-1], 1), rotated], -1)
    taste = Taste.at(model, z)

    of_coefficients = torch.einsum("sun,und->sud", first[0], difference)
    score = torch.einsum("sud,suk->sudk", taste.pull(of_coefficients), factors).flatten(-2)
    score_of_effect, complete_of_effect = effect_information(model, batch, z, rotation)
    number = len(model.answer_parameters())
    of_answers = [value.sum(-1, keepdim=True) for value in first[1 : 1 + number]]
    columns = personal_columns(model)
    if columns:
        own = torch.stack([first[i].sum(-1) for i in columns], -1)
        of_answers.append(torch.einsum("sua,sur->suar", own, rotated).flatten(-2))
    score = torch.cat([score, score_of_effect, *of_answers], -1)
    mean_score = torch.einsum("su,sup->up", weights, score)
    counted_score = mean_score
    if batch.weights is not None:
        counted_score, weights = batch.weights[:, None] * mean_score, weights * batch.weights
    outer = counted_score.T @ mean_score
    weighted = (score * weights.sqrt().unsqueeze(-1)).flatten(0, 1)
    if taste.jacobian is None:
        # Σ d dᵀ ⊗ E[curvature · u uᵀ], as a product over comparisons.
        factor_moment = torch.einsum(
            "su,sun,suk,sul->unkl", weights, -second[0][0], factors, factors
        )
        complete = torch.einsum("und,une,unkl->dkel", difference, difference, factor_moment)
    else:
        complete = taste.complete_information(of_coefficients, -second[0][0], difference)
        complete = torch.einsum("su,sude,suk,sul->dkel", weights, complete, factors, factors)
    size = difference.shape[-1] * factors.shape[-1]
    information = outer - weighted.T @ weighted
    information[:size, :size] += complete.reshape(size, size)
    start = size + len(complete_of_effect)
    information[size:start, size:start] += complete_of_effect
    if derivatives.stages is not None:
        information[:size, :size] -= stage_products(
            derivatives.stages, difference, factors, weights, taste
        )
    for i, row in enumerate(second[1 : 1 + number], start):
        pulled = taste.pull(torch.einsum("sun,und->sud", -row[0], difference))
        cross = torch.einsum("su,sud,suk->dk", weights, pulled, factors)
        information[i, :size] += cross.flatten()
        information[:size, i] += cross.flatten()
        for j, value in enumerate(row[1 : 1 + number], start):
            information[i, j] -= torch.einsum("su,sun->", weights, value)
    stop, rank = start + number, rotated.shape[-1]
    for place, column in enumerate(columns):
        rows, row = slice(stop + place * rank, stop + (place + 1) * rank), second[column]
        pulled = taste.pull(torch.einsum("sun,und->sud", -row[0], difference))
        cross = torch.einsum("su,sud,suk,sur->rdk", weights, pulled, factors, rotated)
        information[rows, :size] += cross.flatten(1)
        information[:size, rows] += cross.flatten(1).T
        for i in range(number):
            cross = torch.einsum("su,sun,sur->r", weights, -row[1 + i], rotated)
            information[rows, start + i] += cross
            information[start + i, rows] += cross
        for other, of_other in enumerate(columns):
            beside = slice(stop + other * rank, stop + (other + 1) * rank)
            own = torch.einsum("su,sun->su", weights, -row[of_other])
            information[rows, beside] += torch.einsum("su,sur,suq->rq", own, rotated, rotated)
    return counted_score, information


def personal_columns(model: HeterogeneousBTL) -> list[int]:
    """Lists where :class:`fssa_bayes.model.Derivatives` have what differs between people."""
    if model.personal is None:
        return []
    known = {"log_tie": model.log_tie, "position_bias": model.bias}
    known |= {"lapse_logit": model.lapse_logit, "log_scale": 0}
    order = [name for name, value in known.items() if value is not None]
    return [1 + order.index(name) for name in model.personal.arguments]


@dataclass(frozen=True)
class Taste:
    """Holds how coefficients β = g(η) depend on η = w0 + Λz at some draws.

    Attributes:
        map: g.
        eta: η with shape (S, U, D).
        jacobian: Derivatives of β by η, with shape (S, U, D, D); None where β is η.
    """

    map: CoefficientMap
    eta: Tensor
    jacobian: Tensor | None

    @classmethod
    def at(cls, model: HeterogeneousBTL, z: Tensor) -> Taste:
        """Evaluates the coefficients of draws (S, U, K)."""
        utility, z = model.utility, model.tastes(z)
        eta = (utility.mean + z @ utility.directions.T).double()
        is_plain = utility.map.is_identity
        return cls(utility.map, eta, None if is_plain else utility.map.jacobian(eta))

    def pull(self, score: Tensor) -> Tensor:
        """Turns derivatives by β into derivatives by η, both with shape (S, U, D)."""
        if self.jacobian is None:
            return score
        return torch.einsum("sued,sue->sud", self.jacobian, score)

    def complete_information(self, score: Tensor, weight: Tensor, difference: Tensor) -> Tensor:
        """Returns the complete-data information on η of each draw, with shape (S, U, D, D).

        Args:
            score: Derivatives by β, with shape (S, U, D).
            weight: Negative second derivatives by the margins, with shape (S, U, N).
            difference: Differences of features, with shape (U, N, D).
        """
        of_beta = torch.einsum("sun,und,une->sude", weight, difference, difference)
        of_eta = torch.einsum("sude,sudf,sueg->sufg", of_beta, self.jacobian, self.jacobian)
        return of_eta - self.map.curvature(self.eta, score)


def effect_information(
    model: HeterogeneousBTL, batch: Batch, z: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the complete-data score (S, U, R W) of RᵀB, and its information (R W, R W).

    Rᵀz given the covariates is normal around RᵀB w̃, whatever the choices. Arguments are those of
    :func:`batch_information`.
    """
    if not model.num_covariates:
        return z.new_zeros(*z.shape[:-1], 0, dtype=torch.float64), z.new_zeros(0, 0)
    covariates = model.standardise_covariates(batch.covariates).double()
    residual = (z - model.location(batch.covariates)).double() @ rotation
    score = torch.einsum("sur,uw->surw", residual, covariates).flatten(-2)
    eye = torch.eye(rotation.shape[1], dtype=torch.float64, device=z.device)
    counted = covariates if batch.weights is None else batch.weights[:, None] * covariates
    return score, torch.kron(eye, counted.T @ covariates)


def stage_products(
    stages: StageShares,
    difference: Tensor,
    factors: Tensor,
    weights: Tensor,
    taste: Taste,
) -> Tensor:
    """Sums E[g gᵀ] over stages, with g = Σ_j p_j x_j ⊗ u, to shape (P, P).

    Args:
        stages: Probabilities p of the items in stages.
        difference: Differences of features, those of the rows' items over the base x, (U, N, D).
        factors: u = (1, Rᵀz) with shape (S, U, 1 + R).
        weights: Normalised weights of the draws, with shape (S, U).
        taste: How coefficients depend on η.
    """
    person = stages.person
    terms = stages.share.unsqueeze(-1) * difference.flatten(0, 1)[stages.place]
    stage = terms.new_zeros(len(terms), len(person), terms.shape[-1])
    stage = stage.index_add(1, stages.stage, terms)
    if taste.jacobian is not None:
        stage = torch.einsum("sped,spe->spd", taste.jacobian[:, person], stage)
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
