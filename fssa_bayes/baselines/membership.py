r"""The class that a person belongs to, by a multinomial logit of the person's covariates."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import (
    Preferences,
    align_covariates,
    canonical_names,
    column_moments,
    expand_levels,
    explain_unknown,
    find_columns,
    find_names,
    first_names,
    name_levels,
    usable_numbers,
)
from fssa_bayes.population import Divergence

__all__ = [
    "ClassMembership",
    "CovariateTable",
    "check_covariates_argument",
    "find_separated_classes",
    "maximise_membership",
    "membership_information",
    "null_of_design",
]

_LEAST_PEOPLE = 0.01  # Information on a direction, in people, below which it has no maximum.
_FAR = 3.0  # Log odds, for a derivative of unit length, from which a coefficient is at infinity.
_NULL = 1e-9  # Of the largest eigenvalue: below, covariates do not vary in a direction.
_NEWTON_STEPS = 50
_FAR_FROM_FIT = 20  # Standard deviations from the people of the fit that are pointed out.


@dataclass(frozen=True)
class CovariateTable:
    """Tells which covariates the classes depend on, and in which units they are standardised.

    Attributes:
        columns: Names of the columns that a user gives, categories among them.
        names: Names of the W covariates, indicators of categories among them.
        levels: Levels of the categories by column, the reference level first.
        num_columns: Number of covariates that the people of the fit had, some of them not used.
        mean: Means of the covariates over the people of the fit, with shape (W,).
        scale: Their standard deviations, 1 for a constant, (W,).
    """

    columns: tuple[Hashable, ...]
    names: pd.Index
    levels: Mapping[Hashable, tuple]
    num_columns: int
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, data: Preferences, covariates: bool | Sequence[Hashable]) -> CovariateTable:
        """Chooses covariates of the people of a fit.

        Args:
            data: The people.
            covariates: True for all covariates, False for none, or names of columns.

        Raises:
            ValueError: If people have no covariates, or none of a name.
        """
        if covariates is False:
            nothing = torch.zeros(0, dtype=torch.float64)
            return cls((), pd.Index([]), {}, data.num_covariates, nothing, nothing)
        if data.covariates is None:
            raise ValueError(
                "data must have covariates of people for covariates=, got none: "
                "Preferences.from_dataframe(users=...) reads them with the comparisons"
            )
        owners = _columns_of(data)
        known = pd.Index(list(dict.fromkeys(owners)), dtype=object)
        chosen = list(known) if covariates is True else list(covariates)
        for name in chosen:
            if name not in known:
                raise ValueError(
                    f"covariates must be those of the data, [{first_names(known)}], got {name!r}"
                    f"{explain_unknown(name, known)}"
                )
        position = [place for name in chosen for place, own in enumerate(owners) if own == name]
        if not position:
            raise ValueError("covariates must vary, got categories of a single level alone")
        mean, scale = column_moments(data.covariates[:, position])
        names = data.covariate_names
        return cls(
            tuple(chosen),
            names if position == list(range(len(names))) else names[position],
            {name: data.covariate_levels[name] for name in chosen if name in data.covariate_levels},
            data.num_covariates,
            mean,
            scale.where(scale > 0, 1.0),
        )

    def __len__(self) -> int:
        return len(self.names)

    def select(self, data: Preferences) -> Tensor:
        """Returns the covariates of people, in double precision and the units given, (U, W).

        Raises:
            ValueError: If a covariate is missing, or a category has an unknown level.

        Warns:
            UserWarning: If a covariate lies 20 standard deviations from the people of the fit.
        """
        if not len(self):
            return torch.zeros(len(data), 0, dtype=torch.float64)
        rule = f"data must have the covariates the classes depend on, [{first_names(self.names)}]"
        if data.covariates is None:
            raise ValueError(
                f"{rule}, got none: Preferences.from_dataframe(users=...) reads them with the "
                "comparisons"
            )
        own = data.covariate_names
        if isinstance(own, pd.RangeIndex):  # Columns without names: their number tells them apart.
            place = find_names(self.names, own)
            if len(own) != self.num_columns or (place < 0).any():
                raise ValueError(f"{rule}, got {len(own)} columns without names")
            table = data.covariates[:, place]
        else:
            table = align_covariates(data, self.names, self.levels).covariates
        return self._check_units(table.double())

    def read(self, users: pd.DataFrame) -> Tensor:
        """Returns the covariates of a table of people, one row a person, (U, W).

        Raises:
            TypeError: If `users` is no table.
            ValueError: If a covariate is missing or no finite number, or a level is unknown.
        """
        if not isinstance(users, pd.DataFrame):
            raise TypeError(f"users must be a DataFrame, got {type(users).__name__}")
        if not len(users):
            raise ValueError("users must have at least one row, got none")
        rule = "users must have the covariates the classes depend on"
        order = find_columns(rule, users.columns, pd.Index(list(self.columns)))
        if order is None and users.shape[1] != len(self.columns):
            raise ValueError(f"{rule}, {len(self.columns)} columns, got {users.shape[1]}")
        table = users if order is None else users.iloc[:, order]
        table, _ = expand_levels("users", table, self.levels)
        order = find_columns(rule, table.columns, self.names)
        table = table if order is None else table.iloc[:, order]
        values = table.to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = np.argwhere(~usable_numbers(values))
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"users must hold finite numbers, got {values[row, column]} for "
                f"{table.index[row]!r}, column {table.columns[column]!r}"
            )
        return self._check_units(torch.tensor(values))

    def _check_units(self, table: Tensor) -> Tensor:
        shift = ((table - self.mean) / self.scale).abs()
        if shift.numel() and shift.max() > _FAR_FROM_FIT:
            name = first_names(self.names[[int(shift.amax(0).argmax())]])
            warnings.warn(
                f"covariate {name} lies {shift.max():.0f} standard deviations from the people the "
                "classes were fitted to: are the units the same?",
                stacklevel=4,
            )
        return table

    def design(self, table: Tensor) -> Tensor:
        """Returns a column of ones and the standardised covariates, (U, 1 + W)."""
        ones = table.new_ones(len(table), 1)
        return torch.cat([ones, (table - self.mean) / self.scale], 1)

    def in_given_units(self, coefficients: Tensor) -> Tensor:
        """Turns coefficients (C, 1 + W) of the design into those of the covariates as given.

        The first is the constant, of people whose covariates are all 0.
        """
        slopes = coefficients[:, 1:] / self.scale
        constant = coefficients[:, 0] - slopes @ self.mean
        return torch.cat([constant[:, None], slopes], 1)


@dataclass(frozen=True)
class ClassMembership:
    r"""Gives the shares of the classes among people with given covariates, a multinomial logit

    .. math:: π_{uc} \propto \exp(γ_{c0} + γ_c \cdot \tilde w_u),

    with w̃ the standardised covariates. Without covariates all people have the same shares.

    Attributes:
        table: The covariates.
        coefficients: γ with shape (C, 1 + W), those of the first class 0, in double precision.
    """

    table: CovariateTable
    coefficients: Tensor

    def log_share(self, data: Preferences) -> Tensor:
        """Evaluates log π of every person and class, with shape (U, C)."""
        return log_shares(self.table.design(self.table.select(data)), self.coefficients)


def log_shares(design: Tensor, coefficients: Tensor) -> Tensor:
    """Evaluates log π (U, C), a person's row by itself, whoever the others are."""
    columns = [(design * row).sum(-1) for row in coefficients]
    return torch.stack(columns, -1).log_softmax(-1)


def check_covariates_argument(covariates: object) -> None:
    """Raises an error unless `covariates` is True, False or a list of different names."""
    if isinstance(covariates, bool):
        return
    if isinstance(covariates, str) or not isinstance(covariates, Sequence | pd.Index):
        raise TypeError(
            f"covariates must be True, False or a list of names of columns, got {covariates!r}"
        )
    names = canonical_names("covariates", covariates)
    if not len(names) or not names.is_unique:
        raise ValueError(
            f"covariates must be at least one name, all of them different, got {covariates!r}"
        )


def _columns_of(data: Preferences) -> list[Hashable]:
    """Names the column that a user gave for each covariate: its category for an indicator."""
    owners = dict(zip(data.covariate_names, data.covariate_names, strict=True))
    for column, levels in data.covariate_levels.items():
        owners |= dict.fromkeys(name_levels(column, levels), column)
    return list(owners.values())


def maximise_membership(design: Tensor, responsibility: Tensor, start: Tensor) -> Tensor:
    r"""Maximises :math:`\sum_u \sum_c q_{uc} \log π_{uc}`, a weighted multinomial logit, by Newton.

    Args:
        design: Ones and standardised covariates, with shape (U, 1 + W).
        responsibility: Weights q, the probabilities of each person's class, (U, C).
        start: Coefficients to begin with, (C, 1 + W).

    Returns:
        Coefficients with shape (C, 1 + W). Without covariates they are the logarithms of the mean
        weights; else those of the first class are 0.
    """
    if design.shape[1] == 1:
        return responsibility.mean(0).log()[:, None]
    point = start - start[:1]
    value = _weighted_log_share(design, responsibility, point)
    for _ in range(_NEWTON_STEPS):
        share = log_shares(design, point).exp()
        gradient = ((responsibility - share)[:, 1:].T @ design).flatten()
        information = membership_information(design, share)
        ridge = 1e-10 * information.diagonal().mean().clamp(min=1e-300)
        information.diagonal().add_(ridge)  # Directions without information stay as they are.
        step = torch.linalg.solve(information, gradient)
        if not step @ gradient > 1e-14 * len(design):
            break
        move = torch.cat([point.new_zeros(1, design.shape[1]), step.view_as(point[1:])])
        length = 1.0
        while (new := _weighted_log_share(design, responsibility, point + length * move)) < value:
            length /= 2
            if length < 1e-9:  # Rounding hides what is left to be gained.
                return point
        point, value = point + length * move, new
    return point


def _weighted_log_share(design: Tensor, responsibility: Tensor, coefficients: Tensor) -> Tensor:
    return (responsibility * log_shares(design, coefficients)).sum()


def membership_information(design: Tensor, share: Tensor) -> Tensor:
    """Returns the information on γ of classes 2 to C where classes are known, a square matrix.

    Its (C − 1)(1 + W) rows are those of class 2 first.

    Args:
        design: Ones and standardised covariates, with shape (U, 1 + W).
        share: Shares of the classes, (U, C).
    """
    free, width = share[:, 1:], design.shape[1]
    classes = free.shape[1]
    out = design.new_zeros(classes, width, classes, width)
    for one in range(classes):
        for two in range(one, classes):
            weight = free[:, one] * (float(one == two) - free[:, two])
            out[one, :, two] = out[two, :, one] = (design * weight[:, None]).T @ design
    return out.reshape(classes * width, classes * width)


def null_of_design(design: Tensor) -> Tensor:
    """Returns an orthonormal basis of the directions in which covariates do not vary, (1 + W, n).

    They are constant or collinear there.
    """
    eigenvalues, vectors = torch.linalg.eigh(design.T @ design / len(design))
    return vectors[:, eigenvalues <= _NULL * eigenvalues[-1]]


def find_separated_classes(design: Tensor, coefficients: Tensor) -> Divergence | None:
    """Finds what of γ is at infinity, as where nobody with some covariates is of some class.

    Along such a direction the likelihood rises to an end, and the shares that change are 0 or 1.
    The information of known classes on the direction, which bounds that of the data, is below
    a hundredth of a person's.

    Args:
        design: Ones and standardised covariates, with shape (U, 1 + W).
        coefficients: γ where the fit stopped, (C, 1 + W), those of the first class 0.

    Returns:
        The divergence, over the coefficients of classes 2 to C; None where there is none.
    """
    information = membership_information(design, log_shares(design, coefficients).exp())
    eigenvalues, vectors = torch.linalg.eigh(design.T @ design / len(design))
    varies = eigenvalues > _NULL * eigenvalues[-1]
    # In these units a direction changes log odds by 1, in the mean square over people.
    root = vectors[:, varies] / eigenvalues[varies].sqrt()
    root = torch.kron(torch.eye(len(coefficients) - 1, dtype=root.dtype), root)
    eigenvalues, vectors = torch.linalg.eigh(root.T @ information @ root)
    flat = eigenvalues < _LEAST_PEOPLE
    if not flat.any():
        return None
    directions = torch.linalg.qr(root @ vectors[:, flat])[0]
    return Divergence(directions, coefficients[1:].flatten(), far=_FAR)
