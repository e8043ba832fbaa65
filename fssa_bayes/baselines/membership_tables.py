"""What is said of the classes' membership: odds, shares at given covariates, effects on shares."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.baselines.membership import ClassMembership, CovariateTable, log_shares
from fssa_bayes.baselines.mixture_errors import MixtureParameters
from fssa_bayes.data import Preferences, identified_covariates, name_levels
from fssa_bayes.population import Estimates

__all__ = ["effect_estimates", "membership_estimates", "share_estimates"]


def membership_estimates(
    parameters: MixtureParameters, membership: ClassMembership, reference: int
) -> Estimates:
    """Estimates the log odds of the classes against a reference class.

    Args:
        parameters: The parameters of the mixture.
        membership: The shares of the classes, fitted.
        reference: Number of the reference class, from 1.

    Returns:
        For every other class `constant`, the log odds of people whose covariates are 0, and the
        change of the log odds with a unit of each covariate, named (`class`, `term`).
    """
    table, terms = membership.table, ["constant", *membership.table.names]
    others = [number for number in range(parameters.num_classes) if number != reference - 1]

    def quantities(theta: Tensor) -> Tensor:
        gamma = table.in_given_units(parameters.unpack(theta)[1])
        return (gamma[others] - gamma[reference - 1]).flatten()

    index = [(number + 1, term) for number in others for term in terms]
    names = pd.MultiIndex.from_tuples(index, names=["class", "term"])
    return Estimates.of(names, quantities, parameters.theta, parameters.uncertainty)


def share_estimates(
    parameters: MixtureParameters, membership: ClassMembership, users: pd.DataFrame | None
) -> Estimates:
    """Estimates shares of the classes among people with given covariates.

    Args:
        parameters: The parameters of the mixture.
        membership: The shares of the classes, fitted.
        users: Covariates, one row a person; None for the mean over the people of the fit.

    Returns:
        Shares named by (`user`, `class`); by `class` for a mean.
    """
    design = parameters.design
    if users is not None:
        design = membership.table.design(membership.table.read(users))

    def quantities(theta: Tensor) -> Tensor:
        share = log_shares(design, parameters.unpack(theta)[1]).exp()
        return share.mean(0) if users is None else share.flatten()

    numbers = pd.RangeIndex(1, parameters.num_classes + 1, name="class")
    names: pd.Index = numbers
    if users is not None:
        names = pd.MultiIndex.from_product([users.index, numbers], names=["user", "class"])
    return Estimates.of(names, quantities, parameters.theta, parameters.uncertainty)


def effect_estimates(
    parameters: MixtureParameters, membership: ClassMembership, data: Preferences
) -> tuple[Estimates, Tensor]:
    """Estimates how the shares of the classes change with a unit of each covariate, on average.

    Args:
        parameters: The parameters of the mixture.
        membership: The shares of the classes, fitted.
        data: The people, whose covariates are changed.

    Returns:
        Changes named (`covariate`, `class`), and whether each has a meaning, (Q,): a constant or
        collinear covariate has none.
    """
    table, covariates = membership.table, membership.table.select(data)
    settings = [two_settings(table, covariates, column) for column in range(len(table))]

    def quantities(theta: Tensor) -> Tensor:
        gamma = parameters.unpack(theta)[1]
        rows = []
        for low, high, width in settings:
            shares = [log_shares(table.design(side), gamma).exp().mean(0) for side in (low, high)]
            rows.append((shares[1] - shares[0]) / width)
        return torch.cat(rows)

    numbers = range(1, parameters.num_classes + 1)
    names = pd.MultiIndex.from_product([table.names, numbers], names=["covariate", "class"])
    known = identified_covariates(covariates).repeat_interleave(parameters.num_classes)
    estimates = Estimates.of(names, quantities, parameters.theta, parameters.uncertainty)
    return estimates, known


def two_settings(
    table: CovariateTable, covariates: Tensor, column: int
) -> tuple[Tensor, Tensor, float]:
    """Returns everybody's covariates (U, W) at two values of one of them, and their distance.

    A covariate with two values has the one and the other; other covariates are half a standard
    deviation lower and higher. A level of a category is compared with the reference level.
    """
    low, high = covariates.clone(), covariates.clone()
    values = covariates[:, column].unique()
    siblings = _other_levels(table, column)
    if len(values) == 2:
        low[:, siblings] = high[:, siblings] = 0.0
        low[:, column], high[:, column] = values
        return low, high, float(values[1] - values[0])
    half = table.scale[column] / 2
    low[:, column] -= half
    high[:, column] += half
    return low, high, float(2 * half)


def _other_levels(table: CovariateTable, column: int) -> list[int]:
    """Returns the positions of the other indicators of a category."""
    own: Hashable = table.names[column]
    for name, levels in table.levels.items():
        indicators = name_levels(name, levels)
        if own in indicators:
            places = table.names.get_indexer(indicators)
            return [int(place) for place in places if place != column]
    return []
