r"""The prior p(z | w) of the latent factor: normal or learned, and moved by covariates."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Self

import pandas as pd
import torch
from pyro import distributions as dist
from pyro.distributions import transforms as T
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn

from fssa_bayes.data import Preferences, column_moments
from fssa_bayes.model.nn import flip_between, row_product

__all__ = ["LatentPrior", "build_flow"]

_UNITS = ("feature_mean", "feature_scale", "covariate_mean", "covariate_scale")
_SPLINE_BOUND = 5.0
# Couplings depend on their passive half as far as this, and are constant beyond. Where shift and
# log-scale grew with it without end, a draw 4 standard deviations out became one of 10,000, no
# gradient drew it back (its weight is 0), and the inverse lost every digit in single precision.
_REACH = 10.0


class LatentPrior(nn.Module):
    r"""Defines :math:`z_u = B \tilde w_u + ζ_u`, with ζ from N(0, I) or a learned p(ζ).

    A base class of :class:`HeterogeneousBTL` rather than a submodule, as saved models hold the
    parameters without a prefix.

    Attributes:
        latent_dim: Number of latent dimensions K.
        num_covariates: Number of covariates W; 0 for none.
        prior_flow: Transforms from standard normal noise to ζ; none for N(0, I).
        covariate_effect: B with shape (K, W), per standard deviation of the covariates, or None.
        covariate_names: Names of the covariates it was fitted to, or None.
    """

    def build_prior(
        self, latent_dim: int, hidden_dim: int, *, is_learned: bool, num_covariates: int
    ) -> None:
        """Adds parameters and buffers; called once, where their initial values are to be drawn."""
        self.latent_dim = latent_dim
        flow = build_flow(latent_dim, hidden_dim) if is_learned and latent_dim else []
        self.prior_flow = nn.ModuleList(flow)
        self.register_buffer("_origin", torch.zeros(()))
        self.num_covariates = num_covariates
        effect = nn.Parameter(torch.zeros(latent_dim, num_covariates)) if num_covariates else None
        self.register_parameter("covariate_effect", effect)
        for name, value in (
            ("covariate_mean", torch.zeros(num_covariates, dtype=torch.float64)),
            ("covariate_scale", torch.ones(num_covariates, dtype=torch.float64)),
            ("covariates_are_standardised", torch.tensor(False)),
        ):
            self.register_buffer(name, value if num_covariates else None)
        self.covariate_names: pd.Index | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Converts the module, but keeps means and scales of what it is fitted to in double."""
        exact = {name: value for name, value in self._buffers.items() if name in _UNITS}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            self._buffers[name] = None if value is None else value.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._origin.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters; means and scales are in double precision."""
        return self._origin.dtype

    def prior(
        self,
        num_users: int,
        covariates: Tensor | None = None,
        transforms: list | None = None,
    ) -> dist.TorchDistribution:
        """Returns p(z | w), with batch shape (U,) and event shape (K,).

        Args:
            num_users: Number of people U.
            covariates: Their covariates with shape (U, W), in original units; not read by a model
                without covariates.
            transforms: As in :meth:`push_forward`.
        """
        shape = (num_users, self.latent_dim)
        base = dist.Normal(self._origin.expand(shape), 1.0 + self._origin).to_event(1)
        return self.push_forward(base, covariates, transforms)

    def push_forward(
        self,
        base: dist.TorchDistribution,
        covariates: Tensor | None = None,
        transforms: list | None = None,
    ) -> dist.TorchDistribution:
        """Maps a distribution of the prior's standard normal variable to one of z.

        Args:
            base: The distribution of the variable.
            covariates: As in :meth:`prior`.
            transforms: The result of :meth:`prior_transforms` for the covariates, which is made
                here if None. Two densities of the same draws, such as prior and guide, are given
                one list: its maps remember the draws, so that both densities are evaluated at the
                same value of the variable and their ratio is exact. Each would else invert a
                learned prior with rounding errors of its own.
        """
        if transforms is None:
            transforms = self.prior_transforms(covariates)
        return dist.TransformedDistribution(base, transforms) if transforms else base

    def prior_transforms(self, covariates: Tensor | None = None) -> list:
        """Lists the maps that take the prior's standard normal variable to z, in order.

        They remember their last draws, and are made afresh so that the model remembers none, and
        no thread sees the draws of another one.
        """
        return self.transforms_around(self.location(covariates))

    def transforms_around(self, location: Tensor) -> list:
        """Lists the same maps for people whose :meth:`location` (*, K) is known."""
        transforms = []
        if len(self.prior_flow):
            spline, *couplings = self.prior_flow
            couplings = [
                T.AffineCoupling(coupling.split_dim, partial(_within_reach, coupling.nn))
                for coupling in couplings
            ]
            transforms = [
                ConditionedSpline(_spline_parameters(spline), _SPLINE_BOUND, "quadratic"),
                *flip_between(couplings, self.latent_dim, self.device),
            ]
        if self.num_covariates:
            # Covariates shift a learned prior and leave its shape. With the cache, scoring the last
            # draws does not invert the flow.
            transforms.append(T.AffineTransform(location, 1.0, event_dim=1, cache_size=1))
        return transforms

    def location(self, covariates: Tensor | None) -> Tensor:
        """Returns the location of the prior given covariates (U, W): B w̃ (U, K), or 0 without B."""
        if not self.num_covariates:
            return self._origin
        self.check_covariates(covariates)
        return row_product(self.standardise_covariates(covariates), self.covariate_effect)

    @property
    def effects(self) -> Tensor:
        """B with shape (K, W), where W is 0 without covariates."""
        if self.covariate_effect is None:
            return self._origin.new_zeros(self.latent_dim, 0)
        return self.covariate_effect

    @property
    def covariate_units(self) -> Tensor:
        """Standard deviations of the covariates, with shape (W,), where W may be 0."""
        if self.covariate_scale is None:
            return self._origin.new_zeros(0, dtype=torch.float64)
        return self.covariate_scale

    def prior_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters of the covariates' effects: B, if there is one."""
        return [] if self.covariate_effect is None else [self.covariate_effect]

    def average_prior(self, num_users: int) -> dist.TorchDistribution:
        """Returns p(z | w) of people whose covariates, if the model has any, are average."""
        average = None if self.covariate_mean is None else self.covariate_mean.expand(num_users, -1)
        return self.prior(num_users, average)

    def sample_population(self, num_users: int, data: Preferences) -> Tensor:
        """Draws z (U, K) of people whose covariates are those of random people of the data."""
        covariates = None
        if self.num_covariates:
            self.check_covariates(data.covariates)
            covariates = data.covariates[torch.randint(len(data), (num_users,))]
        return self.prior(num_users, covariates).sample()

    def standardise_covariates(self, covariates: Tensor | None) -> Tensor:
        """Centres and scales covariates (U, W); gives (1, 0) in a model without covariates."""
        if not self.num_covariates:
            return self._origin.new_zeros(1, 0)
        centred = covariates.to(self.device) - self.covariate_mean
        return (centred / self.covariate_scale).to(self.dtype)

    def set_covariate_standardisation(self, covariates: Tensor | None) -> None:
        """Takes the covariates' mean and standard deviation from people (U, W), once."""
        if not self.num_covariates or self.covariates_are_standardised:
            return
        mean, scale = column_moments(covariates)
        self.covariate_mean.copy_(mean)
        self.covariate_scale.copy_(scale.where(scale > 0, 1.0))
        self.covariates_are_standardised.fill_(True)

    def check_covariates(self, covariates: Tensor | None) -> None:
        """Raises a ValueError unless there are the model's covariates, or the model has none."""
        if not self.num_covariates:
            return
        if covariates is None:
            raise ValueError(
                f"covariates must be given for a model with num_covariates={self.num_covariates}, "
                "got none: Preferences.from_dataframe(users=...) reads them with the comparisons"
            )
        if covariates.shape[-1] != self.num_covariates:
            raise ValueError(
                f"covariates must be the model's num_covariates={self.num_covariates}, "
                f"got {covariates.shape[-1]}"
            )


def build_flow(latent_dim: int, hidden_dim: int) -> list[nn.Module]:
    """Builds a learned transform of the standard normal: a spline, then affine couplings.

    It starts near the identity; Pyro's own initial values put draws up to 40 from the origin.
    """
    spline = T.Spline(latent_dim, count_bins=8, bound=_SPLINE_BOUND, order="quadratic")
    couplings = []
    if latent_dim > 1:
        couplings = [T.affine_coupling(latent_dim, [hidden_dim]) for _ in range(2)]
    with torch.no_grad():
        spline.unnormalized_widths.mul_(0.1)
        spline.unnormalized_heights.mul_(0.1)
        spline.unnormalized_derivatives.mul_(0.1).add_(math.log(math.expm1(1.0)))
        for coupling in couplings:
            coupling.nn.layers[-1].weight.zero_()
            coupling.nn.layers[-1].bias.zero_()
    return [spline, *couplings]


def _spline_parameters(spline: T.Spline) -> tuple[Tensor, Tensor, Tensor, None]:
    """Returns widths and heights of the bins (K, B) and the slopes between them (K, B − 1)."""
    widths, heights = spline.unnormalized_widths, spline.unnormalized_heights
    slopes = nn.functional.softplus(spline.unnormalized_derivatives)
    return widths.softmax(-1), heights.softmax(-1), slopes, None


def _within_reach(network: nn.Module, passive: Tensor) -> tuple[Tensor, Tensor]:
    """Returns shift and log-scale of a coupling, constant where the passive half is far out."""
    return network(passive.clamp(-_REACH, _REACH))
