"""Utilities r(x, z) of items to people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fssa_bayes import kernels
from fssa_bayes.model.coefficients import CoefficientMap
from fssa_bayes.model.nn import (
    MLP,
    PRECISIONS,
    product,
    row_product,
    shed_denormals,
    tower,
)

__all__ = [
    "BilinearUtility",
    "LinearUtility",
    "MLPUtility",
    "ModuleUtility",
    "PreparedItems",
    "Utility",
    "of_latents",
]


class PreparedItems(NamedTuple):
    """Holds what guide and model both need of a batch.

    Attributes:
        items: Standardised features (M, D), or positions (M,).
        factors: The utility's factors of the items, (M, F); None in a homogeneous model.
        transforms: The maps from the prior's standard normal variable to the z of the people, see
            :meth:`fssa_bayes.HeterogeneousBTL.push_forward`; None where each makes its own.
    """

    items: Tensor
    factors: Tensor | None
    transforms: list | None = None


class Utility(nn.Module, ABC):
    """Defines what a model, its guide and its fit ask of a utility r(x, z).

    A utility implements :meth:`forward`; where there is a fused operation for many draws,
    :meth:`bind`; and where there are features of items for the guide to see, :meth:`item_factors`.

    Attributes:
        options: The arguments of :class:`HeterogeneousBTL` that it takes beside the number of
            features and of latent dimensions.
        is_linear: Whether r(x, z) = x·g(w0 + Λz), whose coefficients are identified.
        is_product: Whether r(x, z) is a product of factors of the item and of the person, so that
            most of the work is done once for draws that everybody shares.
        is_random: Whether a person draws the utilities of items anew for each judgement;
            :meth:`forward` then gives their means, and rankings have no likelihood.
        has_precision: Whether `matmul_precision` concerns it.
        num_item_factors: Width F of :meth:`item_factors`.
    """

    options: ClassVar[tuple[str, ...]] = ()
    is_linear = False
    is_product = False
    is_random = False
    has_precision = False
    num_item_factors = 1

    @abstractmethod
    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns utilities (*, U, M) of items (M, D) or (M,) for z with shape (*, U, K)."""

    def item_factors(self, items: Tensor) -> Tensor:
        """Returns features of items for the guide to see, (M, F); here none, a zero for each."""
        return torch.zeros(len(items), 1, device=items.device)

    def pairwise(self, items: Tensor, factors: Tensor | None, z: Tensor) -> Callable[..., Tensor]:
        """Binds one of the operations of :mod:`fssa_bayes.kernels` to the utilities it compares.

        Args:
            items: Items (M, D) or (M,), standardised.
            factors: Their factors (M, F); None where z has width 0.
            z: Latent factors with shape (S, U, K); expanded from (S, 1, K) where people share them.

        Returns:
            The operation, which still takes `left`, `right`, `choice`, `mask` and options.
        """
        if z.shape[-1] == 0:  # Everybody has the same utilities.
            return partial(kernels.pairwise_gather, self(items, z[:, :1]))
        return self.bind(items, factors, z)

    def bind(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        """Does what :meth:`pairwise` does, for people who differ."""
        return partial(kernels.pairwise_gather, self(items, z))

    def population_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters that describe the population, and learn faster than networks."""
        return []

    def set_precision(self, precision: str) -> None:
        """Sets the precision of matrix products, one of :data:`fssa_bayes.model.nn.PRECISIONS`.

        Raises:
            ValueError: If the precision is unknown, or lower in a utility that it does not concern.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"matmul_precision must be one of {PRECISIONS}, got {precision!r}")
        if precision != "highest" and not self.has_precision:
            raise ValueError(
                "matmul_precision must be 'highest' for a utility without networks of this "
                f"package's, got {precision!r}"
            )
        for module in self.modules():
            if hasattr(module, "precision"):
                module.precision = precision

    def scale_differences(self, factor: float | Tensor) -> None:
        """Multiplies, in place, the part of the utilities that depends on z."""
        raise NotImplementedError(f"{type(self).__name__} has no scale of its own")


class LinearUtility(Utility):
    r"""Computes r(x, z) = x·g(w0 + Λz): random coefficients, or a mixed logit.

    g is the identity, unless some coefficients are log-normal or in willingness-to-pay space.

    Args:
        num_features: Number of item features D.
        latent_dim: Number of latent dimensions K.
        coefficients: The distribution of each coefficient, as in
            :mod:`fssa_bayes.model.coefficients`; all normal if None.
        correlation: `"full"`, or `"none"` for a latent dimension for each random coefficient.
        price: Position of the price in willingness-to-pay space; None in preference space.

    Attributes:
        map: g.
        is_uncorrelated: Whether every random coefficient has a latent dimension of its own.
        is_restricted: Whether some entries of Λ are 0 by definition.
        free: Which entries of Λ are parameters, Boolean with shape (D, K); the others are 0.
    """

    options = ("coefficients", "correlation", "price")
    is_linear = True
    is_product = True

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        coefficients: Sequence[str] | None = None,
        correlation: str = "full",
        price: int | None = None,
    ) -> None:
        super().__init__()
        self.num_item_factors = 1 + latent_dim
        self.map = CoefficientMap(coefficients or ["normal"] * num_features, price)
        self.is_uncorrelated = correlation == "none"
        self.is_restricted = self.is_uncorrelated or not all(self.map.is_random)
        free = torch.tensor(self.map.is_random).unsqueeze(-1).expand(-1, latent_dim).clone()
        loading = 0.3 * torch.randn(num_features, latent_dim)
        if self.is_uncorrelated:
            # Its gradient vanishes at 0: a start near 0 would stay there for long.
            free[free.clone()] = torch.eye(latent_dim, dtype=torch.bool).flatten()
            loading.fill_(0.5)
        self.register_buffer("free", free, persistent=False)
        self.mean = nn.Parameter(torch.zeros(num_features))
        self.loading = nn.Parameter(loading * free)

    def population_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters that describe the population: w0 and Λ."""
        return [self.mean, self.loading]

    def scale_differences(self, factor: float | Tensor) -> None:
        """Multiplies Λ in place."""
        self.loading.mul_(factor)

    @property
    def directions(self) -> Tensor:
        """Λ with shape (D, K), whose entries that are not free are 0 and stay so."""
        return self.loading * self.free if self.is_restricted else self.loading

    def item_factors(self, items: Tensor) -> Tensor:
        """Returns x·g(w0) and its derivatives by z where z is 0, with shape (M, 1 + K)."""
        mean, slope = self.mean, self.directions
        if not self.map.is_identity:
            mean, slope = self.map(mean), self.map.jacobian(mean) @ slope
        table = torch.cat([mean.unsqueeze(-1), slope], -1)
        if items.dtype == torch.int64:
            return table[items]
        return row_product(items, table.T.contiguous())

    def coefficients(self, z: Tensor) -> Tensor:
        """Returns g(w0 + Λz) with shape (*, U, D) for z with shape (*, U, K)."""
        return self.map(self.mean + z @ self.directions.T)

    def margin_jacobian(self, items: Tensor, left: Tensor, right: Tensor, z: Tensor) -> Tensor:
        """Returns the derivatives of the margins (U, N) by z (U, K), with shape (U, N, K)."""
        if not self.map.is_identity:
            slope = self.map.jacobian(self.mean + z @ self.directions.T) @ self.directions
            return (items[left] - items[right]) @ slope
        table = self.directions
        table = table[items] if items.dtype == torch.int64 else items @ table
        return table[left] - table[right]

    def margin_curvature(self, weighted: Tensor, z: Tensor) -> Tensor:
        """Returns the second derivatives by z of x·g(w0 + Λz), with shape (U, K, K).

        Args:
            weighted: x with shape (U, D), a sum of differences of items with weights.
            z: Latent factors with shape (U, K).
        """
        curvature = self.map.curvature(self.mean + z @ self.directions.T, weighted)
        return self.directions.T @ curvature @ self.directions

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns utilities (*, U, M) of items (M, D) or (M,) for z with shape (*, U, K)."""
        if items.dtype == torch.int64 and self.map.is_identity:
            return self.mean[items] + z @ self.directions[items].T
        beta = self.coefficients(z)
        return beta[..., items] if items.dtype == torch.int64 else beta @ items.T

    def bind(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        """Binds the product of coefficients or factors, whichever has fewer terms."""
        # x·w0 + (xΛ)·z has fewer products than x·β.
        is_short = items.dtype == torch.int64 or z.shape[-1] + 1 < items.shape[-1]
        if self.map.is_identity and is_short:
            user_factors = torch.cat([torch.ones_like(z[..., :1]), z], -1)
            return partial(kernels.pairwise_bilinear, factors, user_factors)
        return partial(kernels.pairwise_bilinear, items, of_latents(self.coefficients, z))


class BilinearUtility(Utility):
    r"""Computes r(x, z) = φ(x)·ψ(z) with two MLP towers.

    ψ is a network, so it can switch between types of people, and the likelihood of many draws is a
    matrix product.

    Args:
        num_features: Number of item features D.
        latent_dim: Number of latent dimensions K.
        hidden_dim: Width of both towers.
        num_factors: Number of factors that the towers end in.
    """

    options = ("hidden_dim", "num_factors")
    is_product = True
    has_precision = True

    def __init__(
        self, num_features: int, latent_dim: int, hidden_dim: int = 64, num_factors: int = 16
    ) -> None:
        super().__init__()
        self.num_item_factors = num_factors
        self.item_tower = tower(num_features, hidden_dim, hidden_dim, num_factors)
        self.user_tower = MLP(latent_dim, hidden_dim, hidden_dim, num_factors)

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns utilities (*, U, M) of items (M, D) or (M,) for z with shape (*, U, K)."""
        return self.user_tower(z) @ self.item_tower(items).T

    def scale_differences(self, factor: float | Tensor) -> None:
        """Multiplies the last layer of ψ in place."""
        for parameter in self.user_tower[-1].parameters():
            parameter.mul_(factor)

    def item_factors(self, items: Tensor) -> Tensor:
        """Returns φ(x) with shape (M, F)."""
        return self.item_tower(items)

    def bind(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        """Binds the product of both towers' factors."""
        users = of_latents(lambda z: shed_denormals(self.user_tower(shed_denormals(z))), z)
        return partial(kernels.pairwise_bilinear, shed_denormals(factors), users)


class MLPUtility(Utility):
    r"""Computes r(x, z) = w·relu(A(x) + B z): a network on [h(x), z], its first layer split.

    Args:
        num_features: Number of item features D.
        latent_dim: Number of latent dimensions K.
        hidden_dim: Width of the layers.
    """

    options = ("hidden_dim",)
    has_precision = True

    def __init__(self, num_features: int, latent_dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.num_item_factors = hidden_dim
        self.item_tower = tower(num_features, hidden_dim, hidden_dim, hidden_dim)
        self.user_layer = nn.Parameter(torch.randn(hidden_dim, latent_dim))
        self.precision = "highest"
        self.weight = nn.Parameter(torch.randn(hidden_dim) / hidden_dim**0.5)

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns utilities (*, U, M) of items (M, D) or (M,) for z with shape (*, U, K)."""
        user = product(z, self.user_layer, self.precision).unsqueeze(-2)
        return torch.relu(self.item_tower(items) + user) @ self.weight

    def scale_differences(self, factor: float | Tensor) -> None:
        """Multiplies w in place."""
        self.weight.mul_(factor)

    def item_factors(self, items: Tensor) -> Tensor:
        """Returns the items' part of the hidden layer, with shape (M, H)."""
        return self.item_tower(items)

    def bind(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        """Binds the network's last layer on the hidden layers of items and people."""
        layer = partial(product, weight=self.user_layer, precision=self.precision)
        user = of_latents(lambda z: shed_denormals(layer(shed_denormals(z))), z)
        return partial(kernels.pairwise_mlp, shed_denormals(factors), user, self.weight)


class ModuleUtility(Utility):
    """Uses any module that maps items (*, D) and z (*, K), broadcast, to utilities (*).

    Args:
        module: The utility; with `latent_dim=0` its z has width 0.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns utilities (*, U, M) of items (M, D) for z with shape (*, U, K)."""
        return self.module(items, z.unsqueeze(-2))

    def bind(self, items: Tensor, factors: Tensor, z: Tensor) -> Callable[..., Tensor]:
        """Binds the gather of utilities; items that differ between people, each for its person."""
        return partial(self._gather, items, z)

    def _gather(self, items: Tensor, z: Tensor, left: Tensor, right: Tensor, *args, **kwargs):
        if len(items) <= 2 * left.shape[1]:
            return kernels.pairwise_gather(self(items, z), left, right, *args, **kwargs)
        # Items that differ between people are evaluated for their own person only.
        mask = args[1] if len(args) > 1 else kwargs["mask"]
        index = torch.cat([left, right], -1).masked_fill(~torch.cat([mask, mask], -1), 0)
        utility = self.module(items[index], z.unsqueeze(-2))
        position = torch.arange(index.shape[1], device=index.device).expand_as(index)
        left, right = position.chunk(2, -1)
        return kernels.pairwise_gather(utility, left, right, *args, **kwargs)


def of_latents(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Applies a function of the last axis to z (S, U, K), in the order of its memory.

    Where the draws of a person lie side by side they are multiplied side by side, at the same
    place within a block of rows whoever the other people are. The function of draws that people
    share, expanded from (S, 1, K), is evaluated once.
    """
    if z.shape[1] > 1 and z.stride(1) == 0:
        return function(z[:, 0]).unsqueeze(1).expand(-1, z.shape[1], -1)
    by_person = z.transpose(0, 1)
    return function(by_person).transpose(0, 1) if by_person.is_contiguous() else function(z)
