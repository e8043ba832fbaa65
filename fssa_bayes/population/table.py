r"""Population estimates of the linear utility with standard errors.

The coefficients of a person are β = w0 + Λz, z ~ N(B w̃, I) with w̃ the person's standardised
covariates, if any. Only w0, ΛΛᵀ and ΛB are identified, so Λ = L Rᵀ is rotated to its
lower-triangular form L and the free parameters are θ = (w0, tril L, RᵀB), those of a model of Rᵀz.
The parameters of the answers (log ν of ties, position bias, logit of the lapse rate) follow in θ,
so that all standard errors include their uncertainty.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL, align, positions
from fssa_bayes.population.estimates import Estimates
from fssa_bayes.population.moments import Moments
from fssa_bayes.population.parameters import (
    ParameterEstimate,
    estimate_parameters,
    label_parameters,
)

__all__ = ["population_estimates", "population_table"]

_DISTINCT = 2.0  # Standard errors from 0 of a price that is taken for a denominator.
_ROUNDING = 1e-9  # Distance of a correlation from 1 or −1 that is taken for rounding.


def population_table(
    model: HeterogeneousBTL,
    data: Preferences,
    *,
    reference: Hashable | None = None,
    kind: str | None = None,
    level: float | None = None,
    p_values: bool = False,
    num_samples: int = 1024,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimates mean, standard deviation and correlation of coefficients, and covariates' effects.

    With covariates, means are those of the average person (of the first fit), standard deviations
    and correlations those of people who share their covariates, and a row `effect`, `"age on
    price"`, says by how much a unit of the covariate changes the mean coefficient, the others held
    fixed: ΛB. With fewer latent dimensions than features these effects lie in the span of Λ, so
    that a covariate which acts in another direction is seen in part; `latent_dim=num_features`
    leaves them free. For a log-normal coefficient the effect is the change of its logarithm.

    Args:
        model: A fitted model with linear utility and normal prior.
        data: The comparisons the model was fitted to.
        reference: An item, where items have no features: rows are relative to the item, which has
            0, and not centred over all items.
        kind: Errors of the intervals and p-values, as in :class:`Estimates`.
        level: Probability of an interval, in columns `lower` and `upper`; None for none.
        p_values: Whether there are columns `df`, `statistic` and `p_value`, of tests against 0.
        num_samples: Draws of each person's z in each of two sets, to begin with; they are doubled
            until standard errors agree between the sets.
        seed: Seed of the draws.

    Returns:
        One row for each mean, standard deviation, correlation and effect of a covariate (index
        `quantity`, `term`), in units of the features and covariates given; items without features
        are centred over all items. Of a log-normal coefficient there are rows for the median, and
        for location and standard deviation of its logarithm too; of a normal coefficient of a
        feature, for the share of people in whom it is positive. In willingness-to-pay space rows
        are those of the willingness to pay, in units of the price for a unit of the feature.
        Columns:
        `estimate`; `se_hessian`, from the observed information; `se_outer_product`, from the
        outer product of the people's scores, which most software for mixed logits prints; and
        `se_sandwich`, both together, robust to misspecification, with people as clusters,
        corrected where people are few as :class:`Estimates` says, and from 100 people on
        without the factor U / (U − 1) by which some software enlarges it for U people. With people
        no more than parameters `se_outer_product` is NaN, and of a heterogeneous model
        `se_sandwich` too. Terms
        that the data do not identify (constant or collinear features, items that were never
        compared with the others) have NaN, as have effects of constant or collinear covariates. A
        correlation that is 1 or −1 by the rank of the covariance has no errors. A model with ties,
        position bias or lapses has rows `answer` for log ν, the bias in nats, the lapse rate and
        its logit, on which an interval is more nearly symmetric. Where choices are separated
        (:func:`fssa_bayes.population.find_separation`), rows without a finite estimate are ±inf,
        or NaN, without errors; items without features are centred over the others.

    Raises:
        ValueError: If the utility is not linear, the prior not normal, `reference` is no item or
            items have features, or there are too many parameters for a dense information matrix.

    Warns:
        UserWarning: If there are fewer than two people a parameter, if errors rest on a single
            person, if features are constant or collinear in all comparisons, if other directions
            are without information, if two sets of draws give errors that differ by more than 15 %
            (these are NaN, by name), or if the price of willingness-to-pay space is within two
            standard errors of 0.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    estimates, known = _quantities(model, data, reference, num_samples, seed)
    columns = estimates.three_errors()
    _warn_of_weak_price(model, data, columns)
    if level is not None or p_values:
        columns |= estimates.describe(kind, level=level, p_values=p_values)
        del columns["standard_error"]  # One of the three.
    table = pd.DataFrame(columns, index=estimates.names)
    table.iloc[np.flatnonzero(~known)] = np.nan
    table.loc[_certain(estimates), table.columns != "estimate"] = np.nan
    return table


def population_estimates(
    model: HeterogeneousBTL,
    data: Preferences,
    *,
    reference: Hashable | None = None,
    num_samples: int = 1024,
    seed: int = 0,
) -> Estimates:
    """Returns the quantities of :func:`population_table` that have a meaning, with covariance.

    Arguments and errors are those of :func:`population_table`. Left out are effects of covariates
    that are constant or collinear, and correlations with the reference or of 1 or −1. Names are
    (`quantity`, `term`), or the terms alone where the model is homogeneous.
    """
    estimates, known = _quantities(model, data, reference, num_samples, seed)
    names = estimates.names if model.latent_dim else estimates.names.droplevel("quantity")
    known &= ~_certain(estimates)
    rows = torch.from_numpy(known)
    others = None
    if model.latent_dim == 0 and data.items is not None:
        others = (data.item_names, "of='items'")
    return Estimates(
        names[known],
        estimates.values[rows],
        estimates.jacobian[rows],
        estimates.uncertainty,
        others,
    )


def _quantities(
    model: HeterogeneousBTL,
    data: Preferences,
    reference: Hashable | None,
    num_samples: int,
    seed: int,
) -> tuple[Estimates, np.ndarray]:
    """Returns the rows of :func:`population_table`, and which of them have a meaning."""
    data = align(model, data)
    base = _position_of_reference(data, reference)
    estimate = estimate_parameters(model, data, num_samples, seed, "population()")
    rank = estimate.loading.shape[1]
    coefficients = model.utility.map
    moments = Moments.of(model, rank, has_features=data.items is not None)
    scale = model.feature_scale.double().cpu()
    centre = _items_of_mean(model, data, estimate)
    at_base = torch.zeros_like(scale)  # The reference has no spread, whose root has no derivative.
    if base is not None:
        at_base[base] = 1.0

    def quantities(theta: Tensor) -> Tensor:
        location, loading, effect, of_answers = estimate.unpack(theta)
        location, loading = coefficients.in_units(location, loading, scale)
        if base is not None:
            location, loading = location - location[base], loading - loading[base]
        elif data.items is None:
            location, loading = (
                location - location[centre].mean(),
                loading - loading[centre].mean(0),
            )
        if model.lapse_logit is not None:
            of_answers = torch.cat([of_answers, of_answers[-1:].sigmoid()])
        effect = (loading @ effect / estimate.covariate_scale).T.flatten()
        return torch.cat([moments.values(location, loading, at_base), effect, of_answers])

    index = label_parameters(data, moments, estimate.covariate_names, model.answer_parameters())
    known, quantity = np.ones(len(index), dtype=bool), index.get_level_values(0)
    known[quantity == "effect"] = np.repeat(estimate.has_own_effect.numpy(), model.num_features)
    if base is not None and rank:
        row, column = np.tril_indices(model.num_features, -1)
        known[quantity == "correlation"] = (row != base) & (column != base)
    estimates = Estimates.of(index, quantities, estimate.theta, estimate.uncertainty)
    if rank:  # Of a coefficient at infinity, or that no comparison tells, nothing else is known.
        means = estimates.jacobian[: model.num_features]
        finite, limit = estimate.uncertainty.told(means).numpy(), estimate.uncertainty.limit
        if limit is not None:
            finite &= limit.estimable(means).numpy()
        of_moments = len(moments.labels(data.feature_names.tolist()))
        known[:of_moments] &= moments.select(finite)
        known[: model.num_features] = True  # Means say themselves what they are.
        known[quantity == "effect"] &= np.tile(finite, len(estimate.covariate_names))
    return estimates, known


def _warn_of_weak_price(
    model: HeterogeneousBTL, data: Preferences, columns: dict[str, np.ndarray]
) -> None:
    """Warns where the price, to which willingness to pay is a ratio, may be 0."""
    price = model.utility.map.price
    if price is None:
        return
    value, error = columns["estimate"][price], columns["se_hessian"][price]
    if abs(value) < _DISTINCT * error:
        warnings.warn(
            f"the coefficient of the price {data.feature_names[price]!r} is {value:.3g} with a "
            f"standard error of {error:.2g}, not distinct from 0: willingness to pay is a ratio to "
            "it, and its errors below are too small",
            stacklevel=3,
        )


def _certain(estimates: Estimates) -> np.ndarray:
    """Marks what has no error: correlations of 1 or −1 by the rank, and shares of 0 or 1.

    Such a share goes with a standard deviation at its boundary, 0.
    """
    quantity, values = estimates.names.get_level_values(0), estimates.values.numpy()
    is_correlation, is_share = quantity == "correlation", quantity == "share positive"
    whole = is_correlation & (1 - np.abs(values) < _ROUNDING)
    return whole | (is_share & (np.minimum(values, 1 - values) < _ROUNDING))


def _items_of_mean(
    model: HeterogeneousBTL, data: Preferences, estimate: ParameterEstimate
) -> Tensor | slice:
    """Selects the items that others are centred over: those with finite distances."""
    limit = estimate.uncertainty.limit
    if limit is None and (data.items is not None or model.penalty):
        return slice(None)
    if limit is None:
        return torch.from_numpy(data.components() == 0)
    return limit.reference(torch.eye(data.num_features, len(estimate.theta), dtype=torch.float64))


def _position_of_reference(data: Preferences, reference: Hashable | None) -> int | None:
    """Looks up the item relative to which rows stand; raises a ValueError if it is none."""
    if reference is None:
        return None
    if data.items is not None:
        raise ValueError(
            f"reference must be None where items have features, got {reference!r}: coefficients "
            "are identified without; of='items' or ranking(reference=) compares items"
        )
    return int(positions("reference", [reference], data.item_names)[0])
