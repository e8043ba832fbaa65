"""The free parameters of a linear utility's population, their estimates and their names."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.data import Preferences, covariate_rank, identified_covariates
from fssa_bayes.model import HeterogeneousBTL, LinearUtility, require_linear
from fssa_bayes.population.clusters import few_people_moments
from fssa_bayes.population.divergence import Divergence, find_divergence
from fssa_bayes.population.identification import find_null, warn_of_null
from fssa_bayes.population.moments import Moments, PersonalMoments
from fssa_bayes.population.separation import Limit, Separation, find_separation
from fssa_bayes.population.settled import SETTLED, settle
from fssa_bayes.population.standard_errors import UNSETTLED, Uncertainty

__all__ = [
    "ParameterEstimate",
    "answer_estimates",
    "check_num_parameters",
    "describe_divergence",
    "estimate_parameters",
    "free_positions",
    "has_population_estimates",
    "identify_loading",
    "identify_tastes",
    "label_parameters",
    "prior_score",
    "rotate_to_triangle",
]

_MAX_PARAMETERS = 2000
_NOTHING_PERSONAL = PersonalMoments()
_MOST_CORRELATIONS = 300  # For which more draws are taken.

# What a lack of rank may come from, with and without latent factors.
_ADVICE_ON_COVARIANCE = (
    "as where the covariance is close to one of lower rank; standard errors leave these out. Fewer "
    "latent dimensions, or more draws, may do"
)
_ADVICE_ON_FEATURES = (
    "as where features are nearly collinear, or people too few; standard errors leave these out. "
    "Fewer features may do"
)


@dataclass(frozen=True)
class ParameterEstimate:
    """Holds the free parameters θ = (w0, tril L, RᵀB, of answers) and what is known of them.

    Attributes:
        theta: The estimates, with shape (P,).
        loading: L with shape (D + A, R), on the CPU: that of D coefficients, then that of A
            parameters of the answers that differ between people.
        num_features: D.
        rotation: L = Λ · rotation, with shape (K, R).
        entries: Rows and columns of the free entries of L, (2, ·).
        effect: RᵀB with shape (R, W), W = 0 without covariates.
        uncertainty: What is known of the errors of θ.
        covariate_names: Names of the W covariates.
        covariate_scale: Their standard deviations in the first fit, (W,).
        has_own_effect: Whether a covariate varies where the others are held fixed, (W,).
    """

    theta: Tensor
    loading: Tensor
    num_features: int
    rotation: Tensor
    entries: Tensor
    effect: Tensor
    uncertainty: Uncertainty
    covariate_names: pd.Index
    covariate_scale: Tensor
    has_own_effect: Tensor

    def unpack(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Takes θ (P,) apart: w0 (D,), L (D + A, R), RᵀB (R, W) and the answers' parameters."""
        sizes = self.num_features, self.entries.shape[1], self.effect.numel()
        mean, free, effect, answers = theta.split([*sizes, len(theta) - sum(sizes)])
        loading = theta.new_zeros(self.loading.shape).index_put(tuple(self.entries), free)
        return mean, loading, effect.reshape(self.effect.shape), answers

    @torch.no_grad()
    def assign(self, model: HeterogeneousBTL, theta: Tensor) -> None:
        """Writes θ (P,) into a copy of the model, in place; the rotation of z stays."""
        mean, loading, effect, answers = self.unpack(theta)
        model.utility.mean.copy_(mean)
        loading = loading @ self.rotation.T
        model.utility.loading.copy_(loading[: self.num_features, : model.taste_dim])
        if model.personal is not None:
            model.personal.loading.copy_(loading[self.num_features :])
        change = self.rotation @ (effect - self.effect)
        model.effects.add_(change.to(model.effects))  # Parts of B that Λ does not see stay.
        for parameter, value in zip(model.answer_parameters().values(), answers, strict=True):
            parameter.copy_(value)


def estimate_parameters(
    model: HeterogeneousBTL,
    data: Preferences,
    num_samples: int,
    seed: int,
    what: str,
    *,
    quiet: bool = False,
) -> ParameterEstimate:
    """Collects the estimates of a linear utility's population and the information on them.

    Args:
        model: A fitted model with linear utility and normal prior.
        data: The comparisons the model was fitted to.
        num_samples: Draws of each person's z in each of two sets, to begin with.
        seed: Seed of the draws.
        what: Who asks, for messages.
        quiet: Whether directions without information are no cause for a warning.

    Raises:
        ValueError: If the utility is not linear, the prior not normal, or there are too many
            parameters for a dense information matrix.
    """
    require_linear(model, what)
    if len(model.prior_flow):
        raise ValueError(
            f"{what} needs prior='normal', under which mean and covariance describe the "
            "coefficients, got prior='flow'"
        )
    check_num_parameters(what, model.num_features)
    separation = find_separation(model, data)
    if separation and model.latent_dim == 0 and not model.penalty:
        model = separation.at_limit(model)
    mean = model.utility.mean.detach().double()
    triangle, rotation, entries = identify_loading(model)
    rank = triangle.shape[1]
    null = find_null(model, data)
    if not quiet:
        warn_of_null(null, data)
    personal = len(triangle) - len(mean)
    expected_null = 0 if null is None else null.shape[1] * (1 + rank - personal)
    effect = (rotation.T @ model.effects.detach().double()).cpu()
    has_own_effect = torch.ones(0, dtype=torch.bool)
    if model.num_covariates:
        has_own_effect = identified_covariates(data.covariates)
        expected_null += rank * (model.num_covariates - covariate_rank(data.covariates))
    check_num_parameters(what, len(mean) + entries.shape[1] + effect.numel())
    row, column = entries
    answers = torch.tensor(list(answer_estimates(model).values()), dtype=torch.float64)
    free = free_positions(triangle, entries, effect.numel() + len(answers), personal)
    are_correlated = not model.utility.is_uncorrelated
    settled = settle(
        model,
        data,
        rotation,
        free,
        _quantities_to_settle(
            triangle.cpu(), entries, len(free), personal, are_correlated=are_correlated
        ),
        num_samples,
        seed,
        may_lack_rank=expected_null > 0,
    )
    prior = torch.diag(_prior_information(model, len(free)))
    information = settled.information + prior
    triangle = triangle.cpu()
    people = None
    if model.latent_dim == 0:  # Of a copy, as the model may be fitted again before they are needed.
        people = partial(few_people_moments, copy.deepcopy(model), data)
    theta = torch.cat([mean.cpu(), triangle[row, column], effect.flatten(), answers])
    limit = _limit(model, separation, theta) if separation else None
    if model.lapse_logit is not None and model.latent_dim == 0 and limit is None:
        limit = find_divergence(model, data, information, theta)
        if limit is not None:
            information = limit.remove(information)
    return ParameterEstimate(
        theta=theta,
        loading=triangle,
        num_features=len(mean),
        rotation=rotation.cpu(),
        entries=entries,
        effect=effect,
        uncertainty=Uncertainty(
            information,
            settled.outer,
            sets=settled.sets if model.latent_dim else (),
            num_people=int((data.counts > 0).sum()),
            people=people,
            expected_null=None if quiet or limit is not None else expected_null,
            advice=_ADVICE_ON_COVARIANCE if model.latent_dim else _ADVICE_ON_FEATURES,
            limit=limit,
            null=None if null is None else F.pad(null, (0, 0, 0, len(theta) - len(null))),
            weight=_typical_weight(data),
        ),
        covariate_names=data.covariate_names[: model.num_covariates],
        covariate_scale=model.covariate_units.double().cpu(),
        has_own_effect=has_own_effect,
    )


def _typical_weight(data: Preferences) -> float | None:
    """Returns Σ w² / Σ w over the weights of people with comparisons; None without weights."""
    if data.weights is None:
        return None
    weights = data.weights[data.counts > 0]
    return float(weights @ weights / weights.sum())


def free_positions(loading: Tensor, entries: Tensor, others: int, personal: int = 0) -> Tensor:
    """Finds θ (P,) among (w0, L), row by row, and what follows, as information has them.

    Args:
        loading: L with shape (D + A, R).
        entries: Rows and columns of its free entries, (2, ·).
        others: Number of the parameters that follow.
        personal: Number A of the last rows of L, without a part of w0, which stand at the end.
    """
    number, rank = len(loading) - personal, loading.shape[1]
    row, column = entries
    width, after = rank + 1, number * (rank + 1) + others
    place = torch.where(row < number, row * width + 1, after + (row - number) * rank) + column
    return torch.cat([torch.arange(number) * width, place, number * width + torch.arange(others)])


def _quantities_to_settle(
    loading: Tensor, entries: Tensor, size: int, personal: int = 0, *, are_correlated: bool
) -> tuple[Tensor, Tensor]:
    """Returns derivatives of quantities by θ, (Q, P), and how far sets of draws may differ, (Q,).

    All parameters but L and the deviations of η within 5 %; correlations of η, where they are not
    too many, within 15 %.

    Args:
        loading: L with shape (D + A, R).
        entries: Rows and columns of its free entries, (2, ·).
        size: Number P of parameters.
        personal: Number A of the last rows of L, without a part of w0.
        are_correlated: Whether η has correlations.
    """
    number, free = len(loading), entries.shape[1]
    length = loading.norm(dim=1, keepdim=True)
    random = (length > 0).flatten()
    unit = loading / length.clamp(min=1e-300)
    first, second = torch.combinations(torch.arange(number)[random], 2).T
    if not are_correlated or loading.shape[1] < 2 or len(first) > _MOST_CORRELATIONS:
        first = second = first[:0]
    product = unit @ unit.T
    by_loading = torch.zeros(len(first), *loading.shape, dtype=torch.float64)
    here, value = torch.arange(len(first)), product[first, second].unsqueeze(-1)
    by_loading[here, first] = (unit[second] - value * unit[first]) / length[first]
    by_loading[here, second] = (unit[first] - value * unit[second]) / length[second]
    eye = torch.eye(size, dtype=torch.float64)
    row, column = entries
    means = number - personal
    of_loading = slice(means, means + free)
    spread = eye.new_zeros(number, size)
    spread[row, torch.arange(means, means + free)] = unit[row, column]
    correlation = eye.new_zeros(len(first), size)
    correlation[:, of_loading] = by_loading[:, row, column]
    narrow = torch.cat([eye[:means], spread[random], eye[means + free :]])
    tolerance = torch.full((len(narrow) + len(first),), SETTLED, dtype=torch.float64)
    tolerance[len(narrow) :] = UNSETTLED
    return torch.cat([narrow, correlation]), tolerance


def _prior_information(model: HeterogeneousBTL, size: int) -> Tensor:
    """Returns the prior's part of the information of a homogeneous model's parameters, (P,)."""
    information = torch.zeros(size, dtype=torch.float64)
    if model.penalty:
        coefficients = model.utility.mean.detach().double().cpu()
        information[: len(coefficients)] = coefficients.sigmoid() * (-coefficients).sigmoid()
        for place, (name, value) in enumerate(model.answer_parameters().items(), len(coefficients)):
            if name == "position bias":
                value = value.detach().double()
                information[place] = value.sigmoid() * (-value).sigmoid()
    return 2 * model.penalty * information


def prior_score(model: HeterogeneousBTL, size: int) -> Tensor:
    """Returns the derivative of the prior's log-density (`penalty`) by θ, with shape (P,).

    Args:
        model: A model with linear utility.
        size: Number P of parameters.
    """
    score = torch.zeros(size, dtype=torch.float64)
    if model.penalty:
        coefficients = model.utility.mean.detach().double().cpu()
        score[: len(coefficients)] = -(coefficients / 2).tanh()
        for place, (name, value) in enumerate(model.answer_parameters().items(), len(coefficients)):
            if name == "position bias":
                score[place] = -(value.detach().double() / 2).tanh()
    return model.penalty * score


def _limit(model: HeterogeneousBTL, separation: Separation, theta: Tensor) -> Limit:
    """Finds the parameters of a separation among θ (P,): w0 first, those of the answers last."""
    names = list(model.answer_parameters())
    answers = [i for i, name in enumerate(names, len(theta) - len(names)) if name != "lapse logit"]
    columns = np.concatenate([np.arange(model.num_features), np.array(answers, dtype=np.int64)])
    known = model.latent_dim == 0 and model.lapse_logit is None
    point = theta[columns].numpy() if known else None
    return Limit(separation, columns, point, is_penalised=model.penalty > 0)


def describe_divergence(model: HeterogeneousBTL, data: Preferences) -> str:
    """Says which estimates of a fit with lapses ran off to infinity; `""` for none.

    It is looked for in homogeneous linear models.

    Args:
        model: A fitted model.
        data: The comparisons the model was fitted to.
    """
    if model.lapse_logit is None or model.latent_dim or not has_population_estimates(model):
        return ""
    estimate = estimate_parameters(model, data, 1, 0, "fit()", quiet=True)
    limit = estimate.uncertainty.limit
    if not isinstance(limit, Divergence):
        return ""
    return limit.describe(data, list(model.answer_parameters()))


def has_population_estimates(model: HeterogeneousBTL) -> bool:
    """Tells whether a model has what :func:`estimate_parameters` needs."""
    if not model.utility.is_linear or len(model.prior_flow):
        return False
    triangle, _, entries = identify_loading(model)
    size = model.num_features + entries.shape[1] + triangle.shape[1] * model.num_covariates
    return size <= _MAX_PARAMETERS


def identify_loading(model: HeterogeneousBTL) -> tuple[Tensor, Tensor, Tensor]:
    """Turns Λ, and Γ below it, into the form in which they are identified.

    Returns:
        As :func:`identify_tastes`. What differs between people beside tastes has rows below those
        of the coefficients, and columns to their right.
    """
    triangle, rotation, entries = identify_tastes(model.utility)
    if model.personal is None:
        return triangle, rotation, entries
    rows, taste_dim = model.personal.directions.detach().double(), model.taste_dim
    sign = torch.where(rows[:, taste_dim:].diagonal() < 0, -1.0, 1.0).double()
    number, rank = triangle.shape
    rotation = torch.block_diag(rotation, torch.diag(sign))
    loading = torch.cat([F.pad(triangle, (0, len(rows))), rows @ rotation])
    free = model.personal.free.cpu()
    of_tastes = free[:, :1].expand(-1, rank) if taste_dim else free[:, :0]
    free = torch.cat([of_tastes, free[:, taste_dim:]], 1)
    row, column = free.nonzero().T
    return loading, rotation, torch.cat([entries, torch.stack([row + number, column])], 1)


def identify_tastes(utility: LinearUtility) -> tuple[Tensor, Tensor, Tensor]:
    """Turns Λ into the form in which it is identified.

    Returns:
        L = Λ · rotation with shape (D, R): diagonal signs positive, and lower triangular among the
        coefficients that are not fixed, unless they are uncorrelated; the rotation (K, R); and rows
        and columns of the free entries of L, (2, ·).
    """
    loading = utility.directions.detach().double()
    rows = torch.tensor(utility.map.is_random, device=loading.device).nonzero().squeeze(-1)
    if utility.is_uncorrelated:
        sign = torch.where(loading.sum(0) < 0, -1.0, 1.0).double()
        return loading * sign, torch.diag(sign), utility.free.nonzero().T.cpu()
    triangle, rotation = rotate_to_triangle(loading[rows])
    table = loading.new_zeros(len(loading), triangle.shape[1]).index_copy(0, rows, triangle)
    row, column = torch.tril_indices(*triangle.shape)
    return table, rotation, torch.stack([rows.cpu()[row], column])


def rotate_to_triangle(loading: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates Λ (D, K) to L (D, R), lower triangular, and returns the rotation (K, R) with it."""
    rotation, triangle = torch.linalg.qr(loading.T)
    sign = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return (triangle * sign[:, None]).T, rotation * sign


def check_num_parameters(what: str, parameters: int) -> None:
    """Raises a ValueError if `what` would invert too large a dense information matrix."""
    if parameters > _MAX_PARAMETERS:
        raise ValueError(
            f"{what} inverts a dense information matrix of at most {_MAX_PARAMETERS} "
            f"parameters, got {parameters}: reduce the features or latent_dim"
        )


def answer_estimates(model: HeterogeneousBTL) -> dict[str, float]:
    """Lists the estimates of log ν, position bias and logit of the lapse rate, in this order."""
    return {name: value.item() for name, value in model.answer_parameters().items()}


def label_parameters(
    data: Preferences,
    moments: Moments,
    covariates: Iterable,
    answers: Iterable[str],
    personal: PersonalMoments = _NOTHING_PERSONAL,
) -> pd.MultiIndex:
    """Names the rows of a table of the population, (`quantity`, `term`).

    Names of correlations and effects are strings; others are those of the data.

    Args:
        data: Names the features; a name that is an integer stays one.
        moments: What is said of the coefficients.
        covariates: Names of the covariates.
        answers: Names of the answers' parameters. A logit is followed by its rate.
        personal: What is said of those that differ between people.
    """
    rows = moments.labels(data.feature_names.tolist())
    rows += [
        ("effect", f"{covariate} on {name}")
        for covariate in covariates
        for name in [*data.feature_names, *personal.names]
    ]
    rows += [("answer", name) for name in answers]
    if "lapse logit" in answers:
        rows.append(("answer", "lapse rate"))
    rows += personal.labels(data.feature_names.tolist(), moments.random)
    return pd.MultiIndex.from_tuples(rows, names=["quantity", "term"])
