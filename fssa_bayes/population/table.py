r"""Population estimates of the linear utility with standard errors, and draws of populations.

The coefficients of a person are β = w0 + Λz, z ~ N(B w̃, I) with w̃ the person's standardised
covariates, if any. Only w0, ΛΛᵀ and ΛB are identified, so Λ = L Rᵀ is rotated to its
lower-triangular form L and the free parameters are θ = (w0, tril L, RᵀB), those of a model of Rᵀz.
By Fisher's identity the score of a person is the posterior mean of the complete-data score, and by
Louis' identity the observed information is the posterior mean of the complete-data information less
the posterior covariance of the complete-data score; both are averaged with importance weights. The
parameters of the answers (log ν of ties, position bias, logit of the lapse rate) follow θ, so that
everybody's standard errors know that they are estimated.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.data.chunks import user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.kernels.plackett_luce import Rankings
from fssa_bayes.model import HeterogeneousBTL, LinearUtility
from fssa_bayes.model.distributions import BradleyTerry, Outcomes
from fssa_bayes.sampling.importance import propose

__all__ = [
    "PopulationDraws",
    "PopulationMixture",
    "covariate_rank",
    "feature_differences",
    "identified_covariates",
    "mixture_table",
    "population_draws",
    "population_table",
    "ranking_table",
]

# What an information matrix without full rank may come from.
_LOW_RANK = (
    "as where the covariance is close to one of lower rank; standard errors leave these out. Fewer "
    "latent dimensions, or more draws, may do"
)
_COLLINEAR = (
    "as where features are constant or collinear, or people too few; standard errors leave these "
    "out. Fewer features may do"
)
_SMALL_CLASS = (
    "as where a class has few people or its choices are separated; standard errors leave these "
    "out. Fewer classes may do"
)

_MAX_PARAMETERS = 2000
_NORMAL_95 = 1.6448536269514722  # 95 % quantile of the standard normal.


def population_table(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimates mean, standard deviation and correlation of coefficients, and covariates' effects.

    With covariates, means are those of the average person (of the first fit), standard deviations
    and correlations those of people who share their covariates, and a row `effect`, `"age on
    price"`, says by how much a unit of the covariate changes the mean coefficient, the others held
    fixed: ΛB. With fewer latent dimensions than features these effects lie in the span of Λ, so
    that a covariate which acts in another direction is seen in part; `latent_dim=num_features`
    leaves them free.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide; None if `latent_dim` is 0.
        data: The comparisons the model was fitted to.
        num_samples: Draws of each person's z.
        seed: Seed of the draws.

    Returns:
        One row for each mean, standard deviation, correlation and effect of a covariate (index
        `quantity`, `term`), in units of the features and covariates given; items without features
        are centred over all items. Columns:
        `estimate`; `se_hessian`, from the observed information; `se_outer_product`, from the
        outer product of the people's scores, which most software for mixed logits prints; and
        `se_sandwich`, both together, robust to misspecification, with people as clusters and
        without the factor U / (U − 1) by which some software enlarges it for U people; NaN, as the
        one before, where people are no more than parameters. Terms
        that the data do not identify (constant or collinear features) have NaN, effects of constant
        or collinear covariates in `estimate` too. A model with ties,
        position bias or lapses has rows `answer` for log ν, the bias in nats, the lapse rate and
        its logit, on which an interval is more nearly symmetric.

    Raises:
        ValueError: If the utility is not linear, the prior not normal, or there are too many
            parameters for a dense information matrix.

    Warns:
        UserWarning: If there are fewer than two people a parameter, or directions without
            information that are not expected.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    estimate = _estimate(model, guide, data, num_samples, seed, "population()")
    outer, information = estimate.outer, estimate.information
    rank = estimate.loading.shape[1]
    scale = model.feature_scale.double().cpu()
    unit = model.covariate_scale.double().cpu() if model.num_covariates else torch.ones(0)
    centre = data.items is None

    def quantities(theta: Tensor) -> Tensor:
        location, loading, effect, of_answers = estimate.unpack(theta)
        location, loading = location / scale, loading / scale[:, None]
        if centre:
            location, loading = location - location.mean(), loading - loading.mean(0)
        if model.lapse_logit is not None:
            of_answers = torch.cat([of_answers, of_answers[-1:].sigmoid()])
        if rank == 0:
            return torch.cat([location, of_answers])
        covariance = loading @ loading.T
        sd = covariance.diagonal().sqrt()
        pair = torch.tril_indices(len(sd), len(sd), -1)
        correlation = (covariance / sd[:, None] / sd[None, :])[pair[0], pair[1]]
        effect = (loading @ effect / unit).T.flatten()
        return torch.cat([location, sd, correlation, effect, of_answers])

    advice = _LOW_RANK if model.latent_dim else _COLLINEAR
    columns = _with_errors(
        quantities,
        estimate.theta,
        outer,
        information,
        estimate.expected_null,
        num_people=int((data.counts > 0).sum()),
        advice=advice,
    )
    covariates = data.covariate_names if model.num_covariates else []
    table = pd.DataFrame(columns, index=_labels(data, rank, covariates, _answers(model)))
    if model.num_covariates:
        unknown = np.repeat(~identified_covariates(data.covariates).numpy(), model.num_features)
        table.iloc[np.flatnonzero(table.index.get_level_values(0) == "effect")[unknown]] = np.nan
    return table


def _with_errors(
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
    inverse = _invert(information, expected_null, advice)
    if _too_few(num_people, information):
        outer, inverse_outer = outer * torch.nan, outer * torch.nan
    else:
        inverse_outer = _invert(outer, expected_null, advice)
    unidentified = _unidentified(jacobian, inverse, information)
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


def mixture_table(
    models: Sequence[HeterogeneousBTL],
    weights: Tensor,
    responsibility: Tensor,
    data: Preferences,
) -> pd.DataFrame:
    """Estimates the coefficients and the shares of the classes of a mixture.

    By Louis' identity the observed information is the mean of the complete-data information less
    the covariance of the complete-data score, both over a person's possible classes.

    Args:
        models: The classes' fitted models, with linear utility and `latent_dim=0`.
        weights: Shares of the classes, with shape (C,).
        responsibility: Probability of every person's class given all their choices, (U, C).
        data: The comparisons the mixture was fitted to.

    Returns:
        One row for each class's coefficients, in units of the features given (items without
        features are centred over all items), parameters of the answers, and `share` (index
        `class`, from 1, and `term`). Columns as in :func:`population_table`.

    Raises:
        ValueError: If a utility is not linear, some comparisons are rankings, or there are too many
            parameters for a dense information matrix.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    if not all(isinstance(model.utility, LinearUtility) for model in models):
        raise ValueError(
            "coefficients() needs utility='linear', whose coefficients are identified, got "
            f"{models[0].config['utility']!r}"
        )
    if data.ranking is not None:
        raise ValueError(
            "coefficients() of a mixture needs plain comparisons, got rankings: fit it to "
            "data.as_pairs()"
        )
    first, size = models[0], models[0].num_features
    each = size + len(_answers(first))
    _check_size("coefficients()", len(models) * (each + 1) - 1)
    outer, information = _mixture_moments(models, weights.double(), responsibility.double(), data)
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
    answers = [torch.tensor(list(_answers(m).values()), dtype=torch.float64) for m in models]
    logits = weights.double().clamp(min=1e-300).log()
    own = [part for pair in zip(means, answers, strict=True) for part in pair]
    theta = torch.cat([*own, logits[1:] - logits[0]])
    expected_null = len(models) if data.items is None else 0
    columns = _with_errors(
        quantities,
        theta,
        outer,
        information,
        expected_null,
        num_people=int((data.counts > 0).sum()),
        advice=_SMALL_CLASS,
    )
    terms = [term for _, term in _labels(data, 0, [], _answers(first))] + ["share"]
    index = [(number + 1, term) for number in range(len(models)) for term in terms]
    return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(index, names=["class", "term"]))


@torch.no_grad()
def _mixture_moments(
    models: Sequence[HeterogeneousBTL], weights: Tensor, responsibility: Tensor, data: Preferences
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and their observed information.

    Parameters are those of the classes, one class after another, and log π_c / π_1 for c > 1.
    """
    each = models[0].num_features + len(_answers(models[0]))
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
            score[:, own], complete = _class_moments(model, batch, share.squeeze(-1))
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


def _class_moments(model: HeterogeneousBTL, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scores (U, P) of people of one class, and the sum of weighted information."""
    z = batch.choice.new_zeros(1, batch.num_users, 0)
    first, second = _derivatives(model.choice(batch, z), batch.choice, model.bias is not None)
    difference = feature_differences(model, batch).double()
    weight = weight.to(difference.device)
    # The margin moves with the coefficients by x_l − x_r, the answers' parameters by themselves.
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


def covariate_rank(covariates: Tensor) -> int:
    """Counts the independent directions in which people's covariates (U, W) vary."""
    return int(_varied_directions(covariates)[0].sum())


def identified_covariates(covariates: Tensor) -> Tensor:
    """Tells which covariates (U, W) vary between people where the others are held fixed, (W,)."""
    varied, vectors = _varied_directions(covariates)
    return vectors[:, ~varied].square().sum(-1) < 1e-6


def _varied_directions(covariates: Tensor) -> tuple[Tensor, Tensor]:
    """Returns eigenvectors (W, W) of the correlations, and which of them have any variance."""
    table = covariates.double().cpu()
    centred = table - table.mean(0)
    # What a constant differs from its mean by is rounding.
    centred[:, centred.abs().amax(0) <= 1e-6 * table.abs().amax(0)] = 0
    centred = centred / centred.std(0, unbiased=False).clamp(min=1e-300)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    return values > 1e-9, vectors


@dataclass(frozen=True)
class PopulationDraws:
    """Holds draws of a population's parameters: what the training people leave open.

    Made by :meth:`fssa_bayes.FitResult.population_draws` and
    :meth:`fssa_bayes.FitResult.bootstrap`, for `Posterior(..., population=...)`.

    Attributes:
        members: Models with the parameters drawn, each with its guide (None for `latent_dim=0`).
        method: How they were drawn, in words.
    """

    members: tuple[tuple[HeterogeneousBTL, NeuralProcessGuide | None], ...] = field(repr=False)
    method: str

    def __len__(self) -> int:
        """Returns the number of populations."""
        return len(self.members)


class PopulationMixture:
    """Evaluates draws of z whose last column tells which population each belongs to.

    It stands where a model stands, for those who evaluate draws and do not fit.

    Args:
        models: Models that differ in their parameters.
    """

    def __init__(self, models: Sequence[HeterogeneousBTL]) -> None:
        self.models = tuple(models)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.models[0].device

    def choice(self, batch: Batch, z: Tensor) -> BradleyTerry:
        """Returns p(choices | z) of draws (S, U, K + 1), with batch shape (S, U)."""
        margin = self._mix(z, lambda model, draws: model.choice(batch, draws).margin)
        parameters = {name: self._parameter(name, z) for name in ("log_tie", "lapse_logit")}
        return BradleyTerry.from_margin(margin, batch.mask, rankings=batch.rankings, **parameters)

    def _parameter(self, name: str, z: Tensor) -> Tensor | None:
        """Returns a parameter of the answers for every draw, (S, U, 1), or None."""
        if getattr(self.models[0], name) is None:
            return None
        return self._mix(z, lambda model, draws: getattr(model, name).expand(*draws.shape[:-1], 1))

    def item_utility(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns the utilities (S, U, M), in nats, of items (M, D) or (M,)."""
        return self._mix(z, lambda model, draws: model.item_utility(items, draws))

    def _mix(self, z: Tensor, evaluate: Callable[[HeterogeneousBTL, Tensor], Tensor]) -> Tensor:
        factors, label = z[..., :-1], z[..., -1]
        out = None
        for position, model in enumerate(self.models):
            own = label == position
            # Proposals lie population after population; only resampled draws mix in every row.
            rows = own.any(-1)
            if not rows.any():
                continue
            value = evaluate(model, factors[rows])
            out = value.new_zeros(len(z), *value.shape[1:]) if out is None else out
            out[rows] = torch.where(own[rows].unsqueeze(-1), value, out[rows])
        return out


def population_draws(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    num: int = 50,
    num_samples: int = 1000,
    seed: int = 0,
) -> PopulationDraws:
    """Draws w0, Λ and B of the linear utility from the normal approximation of their estimates.

    The covariance is the sandwich, with people as clusters. Only ΛΛᵀ is identified: its triangular
    factor is drawn and turned back, so that z means in every draw what it means in the model.
    Directions that the data say nothing about stay at their estimates.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide; None if `latent_dim` is 0. Every draw keeps it, as a proposal.
        data: The comparisons the model was fitted to.
        num: Number of populations.
        num_samples: Draws of each training person's z, for the information.
        seed: Seed of the draws.

    Returns:
        The populations.

    Raises:
        ValueError: If the utility is not linear, the prior not normal, or there are too many
            parameters for a dense information matrix.

    References:
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    _check_count(num)
    estimate = _estimate(model, guide, data, num_samples, seed, "population_draws()")
    advice = _LOW_RANK if model.latent_dim else _COLLINEAR
    inverse = _invert(estimate.information, estimate.expected_null, advice)
    eigenvalues, vectors = torch.linalg.eigh(inverse @ estimate.outer @ inverse)
    root = vectors * eigenvalues.clamp(min=0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, len(root), generator=generator, dtype=root.dtype)
    members = []
    for theta in estimate.theta + noise @ root.T:
        mean, loading, effect, answers = estimate.unpack(theta)
        twin, twin_guide = copy.deepcopy((model, guide))
        with torch.no_grad():
            twin.utility.mean.copy_(mean)
            twin.utility.loading.copy_(loading @ estimate.rotation.T)
            if model.num_covariates:
                change = estimate.rotation @ (effect - estimate.effect)
                twin.covariate_effect.add_(change.to(twin.covariate_effect))
            for parameter, value in zip(twin.answer_parameters().values(), answers, strict=True):
                parameter.copy_(value)
        members.append((twin, twin_guide))
    return PopulationDraws(tuple(members), "normal approximation with the sandwich covariance")


def ranking_table(
    model: HeterogeneousBTL,
    data: Preferences,
    items: Sequence | None = None,
    *,
    groups: Sequence | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Ranks items by a homogeneous linear model, with standard errors clustered by person.

    Args:
        model: A fitted model with `latent_dim=0` and linear utility.
        data: The comparisons the model was fitted to.
        items: Names of the items to rank; all if None.
        groups: A label for each of the items, which are then centred and ranked within their
            group, as where groups were never compared with each other.
        num_draws: Draws of the coefficients from the estimate's normal approximation, for ranks.
        seed: Seed of the draws.

    Returns:
        One row an item (index `item`), the best first, group by group. Columns: `group` where there
        are groups; `utility`, centred over the items ranked, in nats; `standard_error`, the
        sandwich with people as clusters; `lower` and `upper`, a 90 % interval; `rank`, from 1;
        `rank_lower` and `rank_upper`, the 5 % and 95 % quantiles of the rank. Errors and intervals
        are NaN where the data do not identify an item's place among those ranked, as across
        components of the comparison graph.

    Raises:
        ValueError: If the model is heterogeneous or not linear, an item is unknown, or there are
            too many coefficients for a dense information matrix.

    References:
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    if not isinstance(model.utility, LinearUtility) or model.latent_dim:
        raise ValueError(
            "ranking() needs utility='linear' and latent_dim=0, whose maximum of the likelihood "
            f"has a standard error, got utility={model.config['utility']!r} and "
            f"latent_dim={model.latent_dim}"
        )
    _check_size("ranking()", model.num_features)
    names = data.item_names if items is None else pd.Index(items)
    position = data.item_names.get_indexer(names)
    if len(names) == 0 or (position < 0).any():
        unknown = list(names[position < 0][:1])
        raise ValueError(f"items must be known names, at least one, got {unknown}")
    if groups is not None and len(groups) != len(names):
        raise ValueError(f"groups must have one label an item, {len(names)}, got {len(groups)}")
    rotation = torch.zeros(0, 0, dtype=torch.float64)
    outer, information = _moments(model, None, data, rotation, 1, seed)
    # What the data say nothing about is left out, and shows as NaN.
    inverse = _invert(information, len(information), _COLLINEAR)
    covariance = inverse @ outer @ inverse

    if data.items is None:
        design = torch.eye(data.num_items, dtype=torch.float64)[position]
    else:
        design = model.standardise(data.items[position].to(model.device)).double().cpu()
    members = [np.arange(len(names))]
    if groups is not None:
        members = list(pd.Series(groups).groupby(groups, sort=False).indices.values())
    for rows in members:
        design[rows] -= design[rows].mean(0)
    utility = design @ model.utility.mean.detach().double().cpu()
    design = torch.nn.functional.pad(design, (0, len(inverse) - design.shape[1]))
    # A square root of the sandwich covariance, whatever its rank.
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = design @ (vectors * eigenvalues.clamp(min=0).sqrt())
    error = root.square().sum(-1).sqrt()
    noise = torch.randn(
        root.shape[1], num_draws, generator=torch.Generator().manual_seed(seed), dtype=root.dtype
    )
    draws = torch.cat([utility.unsqueeze(-1), utility.unsqueeze(-1) + root @ noise], -1)
    ranks = torch.empty_like(draws)
    for rows in members:
        ranks[rows] = 1 + (-draws[rows]).argsort(0).argsort(0).double()
    rank, ranks = ranks[:, 0].long(), ranks[:, 1:]
    table = pd.DataFrame(
        {
            "utility": utility,
            "standard_error": error,
            "lower": utility - _NORMAL_95 * error,
            "upper": utility + _NORMAL_95 * error,
            "rank": rank,
            "rank_lower": ranks.quantile(0.05, -1, interpolation="nearest"),
            "rank_upper": ranks.quantile(0.95, -1, interpolation="nearest"),
        },
        index=names.rename("item"),
    )
    unknown = _unidentified(design, inverse, information, share=1e-6).numpy()
    table.loc[unknown, ["standard_error", "lower", "upper", "rank_lower", "rank_upper"]] = np.nan
    if groups is None:
        return table.sort_values("rank")
    table.insert(0, "group", np.asarray(groups))
    return table.iloc[np.concatenate([rows[rank[rows].argsort()] for rows in members])]


@dataclass(frozen=True)
class _Estimate:
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


def _estimate(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    seed: int,
    what: str,
) -> _Estimate:
    """Collects estimates and information of a linear utility, or says why `what` cannot."""
    utility = model.utility
    if not isinstance(utility, LinearUtility):
        raise ValueError(
            f"{what} needs utility='linear', whose coefficients are identified, got "
            f"{type(utility).__name__}"
        )
    if len(model.prior_flow):
        raise ValueError(
            f"{what} needs prior='normal', under which mean and covariance describe the "
            "coefficients, got prior='flow'"
        )
    mean = utility.mean.detach().double()
    triangle, rotation = _canonical(utility.loading.detach().double())
    rank = triangle.shape[1]
    entries = torch.tril_indices(len(mean), rank)
    effect = torch.zeros(rank, 0, dtype=torch.float64)
    if model.num_covariates:
        effect = (rotation.T @ model.covariate_effect.detach().double()).cpu()
    _check_size(what, len(mean) + entries.shape[1] + effect.numel())
    # Positions of the free parameters among the entries of (w0, L), row by row, and the others.
    row, column = entries
    answers = torch.tensor(list(_answers(model).values()), dtype=torch.float64)
    free = torch.cat(
        [
            torch.arange(len(mean)) * (rank + 1),
            row * (rank + 1) + 1 + column,
            len(mean) * (1 + rank) + torch.arange(effect.numel() + len(answers)),
        ]
    )
    outer, information = _moments(model, guide, data, rotation, num_samples, seed)
    triangle = triangle.cpu()
    expected_null = 0 if data.items is not None else 1 + rank
    if model.num_covariates:
        expected_null += rank * (model.num_covariates - covariate_rank(data.covariates))
    return _Estimate(
        theta=torch.cat([mean.cpu(), triangle[row, column], effect.flatten(), answers]),
        loading=triangle,
        rotation=rotation.cpu(),
        entries=entries,
        effect=effect,
        outer=outer[free][:, free],
        information=information[free][:, free],
        expected_null=expected_null,
    )


def _check_count(num: int) -> None:
    if not isinstance(num, int) or num < 2:
        raise ValueError(f"num must be an integer of at least 2, got {num!r}")


def _check_size(what: str, parameters: int) -> None:
    if parameters > _MAX_PARAMETERS:
        raise ValueError(
            f"{what} inverts a dense information matrix of at most {_MAX_PARAMETERS} "
            f"parameters, got {parameters}: reduce the features or latent_dim"
        )


def _unidentified(
    jacobian: Tensor, inverse: Tensor, information: Tensor, share: float = 0.05
) -> Tensor:
    """Tells which quantities depend on directions without information by more than a share."""
    seen = torch.einsum("pi,ij,jk->pk", jacobian, inverse, information)
    return (jacobian - seen).square().sum(-1) > share * jacobian.square().sum(-1)


def _answers(model: HeterogeneousBTL) -> dict[str, float]:
    """Lists the estimates of log ν, position bias and logit of the lapse rate, in this order."""
    return {name: value.item() for name, value in model.answer_parameters().items()}


def _labels(
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
def _moments(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    rotation: Tensor,
    num_samples: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Sums the outer products of people's scores, and their observed information."""
    width = rotation.shape[1]
    size = model.num_features * (1 + width) + width * model.num_covariates + len(_answers(model))
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
    if likelihood.rankings is None:
        first, second = _derivatives(likelihood, batch.choice, model.bias is not None)
    else:
        first, second = _ranking_derivatives(likelihood, batch.choice)
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
    if likelihood.rankings is not None:
        information[:size, :size] -= _stage_products(
            likelihood.rankings, batch.choice, first[0], difference, factors, weights
        )
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
    if not model.num_covariates:
        return z.new_zeros(*z.shape[:-1], 0, dtype=torch.float64), z.new_zeros(0, 0)
    covariates = model.standardise_covariates(batch.covariates).double()
    residual = (z - model.location(batch.covariates)).double() @ rotation
    score = torch.einsum("sur,uw->surw", residual, covariates).flatten(-2)
    eye = torch.eye(rotation.shape[1], dtype=torch.float64, device=z.device)
    return score, torch.kron(eye, covariates.T @ covariates)


@torch.enable_grad()
def _derivatives(
    likelihood: BradleyTerry, choice: Tensor, has_bias: bool
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Differentiates log p(y | m, answers) once and twice, for each comparison.

    Returns:
        First derivatives (S, U, N) by the margin and each parameter of the answers, in order, and
        the symmetric table of the second ones; 0 under the mask.
    """
    mask = likelihood.mask_
    margin = likelihood.margin.detach().double()
    # A parameter is repeated for each comparison: what is summed later is seen one by one here.
    parameters = {
        name: value.detach().double().expand_as(margin)
        for name, value in (("tie", likelihood.log_tie), ("lapse", likelihood.lapse_logit))
        if value is not None
    }
    variables = {"margin": margin} | parameters
    variables = {name: value.clone().requires_grad_() for name, value in variables.items()}
    outcomes = Outcomes.of(*(variables.get(name) for name in ("margin", "tie", "lapse")))
    choice = choice.double().masked_fill(~mask, 0.0)
    total = outcomes.log_prob(choice).masked_fill(~mask, 0.0).sum()
    first = torch.autograd.grad(total, list(variables.values()), create_graph=True)
    second = [
        torch.autograd.grad(
            value.sum(), list(variables.values()), retain_graph=True, materialize_grads=True
        )
        for value in first
    ]
    # The bias stands after the ties; its derivatives are the margin's own.
    order = [n for n in ("margin", "tie", "bias", "lapse") if n in variables or n == "bias"]
    order = [n for n in order if n != "bias" or has_bias]
    column = {"bias": 0} | {name: i for i, name in enumerate(variables)}
    index = [column[name] for name in order]
    return [first[i].detach() for i in index], [[second[i][j] for j in index] for i in index]


def _ranking_derivatives(
    likelihood: BradleyTerry, choice: Tensor
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Differentiates log p(y | m) as :func:`_derivatives`, where some comparisons are rankings.

    With p_j the probability that j is chosen in a stage, the first derivative by the winner's
    margin over j is p_j, and the second ones are −p_j on the diagonal and p_j p_k everywhere. Of
    these the diagonal part is returned; :func:`_stage_products` is the other.
    """
    margin, mask, rankings = likelihood.margin.double(), likelihood.mask_, likelihood.rankings
    choice = choice.double().masked_fill(~mask, 0.0)
    prob, ranked = torch.sigmoid(margin), rankings.gradient(margin, choice)
    first = torch.where(rankings.inside, ranked, (choice - prob).masked_fill(~mask, 0.0))
    alone = (-prob * (1 - prob)).masked_fill(~mask, 0.0)
    return [first], [[torch.where(rankings.inside, -first.abs(), alone)]]


def _stage_products(
    rankings: Rankings,
    choice: Tensor,
    gradient: Tensor,
    difference: Tensor,
    factors: Tensor,
    weights: Tensor,
) -> Tensor:
    """Sums E[g gᵀ] over stages, with g = Σ_j p_j (x_w − x_j) ⊗ u, to shape (P, P)."""
    winner = rankings.winner(choice)
    terms = gradient.flatten(1)[:, rankings.place].unsqueeze(-1)
    terms = terms * difference.flatten(0, 1)[rankings.place]
    stage = terms.new_zeros(len(terms), len(rankings.first), terms.shape[-1])
    stage = stage.index_add(1, winner, terms)
    person = rankings.first // choice.shape[-1]
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


def _invert(matrix: Tensor, expected_null: int, advice: str) -> Tensor:
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
