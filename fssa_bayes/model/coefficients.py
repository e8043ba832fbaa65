r"""Distributions of coefficients: from the normal η = w0 + Λz to the coefficients β = g(η).

A coefficient is η itself (normal, or fixed where its row of Λ is 0), exp(η) or −exp(η). In
willingness-to-pay space the coefficients other than the price's are the price's times a willingness
to pay, :math:`β_k = -β_{price}\, ω_k`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "KINDS",
    "CoefficientMap",
    "check_taste",
    "count_random",
    "describe_taste",
    "find_feature",
    "name_kinds",
]

KINDS = ("normal", "lognormal", "-lognormal", "fixed")
"""Distributions of a coefficient over people."""

_MOST = 60.0  # η above which exp(η) stops growing, so that products of a few stay below 1e38.


class CoefficientMap:
    """Maps η with shape (*, D) to coefficients β with shape (*, D).

    Args:
        kinds: The distribution of each coefficient, one of :data:`KINDS`, (D,).
        price: Position of the price in willingness-to-pay space; None in preference space.
    """

    def __init__(self, kinds: Sequence[str], price: int | None = None) -> None:
        self.kinds = tuple(kinds)
        self.price = price

    @property
    def is_identity(self) -> bool:
        """Whether β is η: all coefficients are normal or fixed, in preference space."""
        return self.price is None and not any("lognormal" in kind for kind in self.kinds)

    @property
    def is_random(self) -> list[bool]:
        """Whether each coefficient differs between people, (D,)."""
        return [kind != "fixed" for kind in self.kinds]

    def sign(self, eta: Tensor) -> Tensor:
        """Returns 1 or −1 for a log-normal coefficient and its negative, 0 for others, (D,)."""
        signs = {"lognormal": 1.0, "-lognormal": -1.0}
        return eta.new_tensor([signs.get(kind, 0.0) for kind in self.kinds])

    def __call__(self, eta: Tensor) -> Tensor:
        """Returns β with shape (*, D)."""
        return self._per_price(self._transform(eta))

    def jacobian(self, eta: Tensor) -> Tensor:
        """Returns the derivatives of β by η, with shape (*, D, D)."""
        value, slope = self._transform(eta), self._slope(eta)
        table = torch.diag_embed(slope)
        if self.price is None:
            return table
        others = self._others(eta)
        scaled = torch.where(others, -value[..., self.price, None], torch.ones_like(value))
        table = table * scaled.unsqueeze(-1)
        column = torch.where(others, -value * slope[..., self.price, None], 0.0)
        table[..., self.price] = table[..., self.price] + column
        return table

    def curvature(self, eta: Tensor, weight: Tensor) -> Tensor:
        """Returns Σ_k weight_k ∂²β_k / ∂η ∂ηᵀ with shape (*, D, D), for weights (*, D)."""
        value, slope = self._transform(eta), self._slope(eta)
        second = torch.where(self.sign(eta) != 0, value, torch.zeros_like(value))
        if self.price is None:
            return torch.diag_embed(weight * second)
        price, others = self.price, self._others(eta)
        pulled = torch.where(others, weight, torch.zeros_like(weight))
        own = torch.where(others, -value[..., price, None] * weight, weight) * second
        own[..., price] = own[..., price] - second[..., price] * (pulled * value).sum(-1)
        cross = -slope[..., price, None] * pulled * slope
        table = torch.diag_embed(own)
        table[..., price] = table[..., price] + cross
        table[..., price, :] = table[..., price, :] + cross
        return table

    def in_units(self, mean: Tensor, loading: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Returns location (D,) and loading (D, R) of η for features divided by `scale` before.

        Args:
            mean: Location of η for the divided features, with shape (D,).
            loading: Its loading, (D, R).
            scale: By what the features were divided, (D,).
        """
        if self.price is not None:
            relative = scale / scale[self.price]
            scale = torch.where(self._others(mean), relative, scale)
        is_log = self.sign(mean) != 0
        factor = torch.where(is_log, torch.ones_like(scale), 1 / scale)
        shift = torch.where(is_log, -scale.log(), torch.zeros_like(scale))
        return mean * factor + shift, loading * factor.unsqueeze(-1)

    def _transform(self, eta: Tensor) -> Tensor:
        sign = self.sign(eta)
        return torch.where(sign != 0, sign * eta.clamp(max=_MOST).exp(), eta)

    def _slope(self, eta: Tensor) -> Tensor:
        """Derivatives of :meth:`_transform`, (*, D)."""
        sign = self.sign(eta)
        return torch.where(sign != 0, sign * eta.clamp(max=_MOST).exp(), torch.ones_like(eta))

    def _others(self, eta: Tensor) -> Tensor:
        """Tells the coefficients other than the price's, (D,)."""
        return torch.arange(len(self.kinds), device=eta.device) != self.price

    def _per_price(self, value: Tensor) -> Tensor:
        if self.price is None:
            return value
        return torch.where(self._others(value), -value[..., self.price, None] * value, value)


def name_kinds(
    coefficients: Mapping[str | int, str] | Sequence[str] | None,
    num_features: int,
    feature_names: Sequence | None,
) -> list[str]:
    """Lists the distribution of each coefficient.

    Args:
        coefficients: Distributions by feature name or position, those left out being normal; or
            one a feature, in order; or None for all normal.
        num_features: Number of features D.
        feature_names: Names of the features, or None.

    Raises:
        TypeError: If `coefficients` is neither.
        ValueError: If a distribution or a feature is unknown, or a name is given without
            `feature_names`.
    """
    if coefficients is None:
        return ["normal"] * num_features
    if isinstance(coefficients, str) or not isinstance(coefficients, Mapping | Sequence):
        raise TypeError(
            "coefficients must be a mapping such as {'price': '-lognormal'}, or one distribution a "
            f"feature, got {coefficients!r}"
        )
    if not isinstance(coefficients, Mapping):
        if len(coefficients) != num_features:
            raise ValueError(
                f"coefficients must have one distribution a feature, {num_features}, got "
                f"{len(coefficients)}"
            )
        coefficients = dict(enumerate(coefficients))
    kinds = ["normal"] * num_features
    for feature, kind in coefficients.items():
        if kind not in KINDS:
            raise ValueError(f"coefficients must be of {KINDS}, got {kind!r} for {feature!r}")
        kinds[find_feature("coefficients", feature, num_features, feature_names)] = kind
    return kinds


def find_feature(
    argument: str, feature: str | int, num_features: int, feature_names: Sequence | None
) -> int:
    """Finds the position of a feature given by name or position.

    Raises:
        ValueError: If there is no such feature, or a name is given without `feature_names`.
    """
    names = list(range(num_features)) if feature_names is None else list(feature_names)
    if feature in names:
        return names.index(feature)
    if isinstance(feature, int) and not isinstance(feature, bool) and 0 <= feature < num_features:
        return feature
    if feature_names is None:
        raise ValueError(
            f"{argument} names the feature {feature!r}, and the model does not know names: build "
            "it with feature_names=data.feature_names, or name features by position"
        )
    raise ValueError(f"{argument} must name features, of {names}, got {feature!r}")


def describe_taste(
    num_features: int,
    utility: object,
    coefficients: Mapping[str | int, str] | Sequence[str] | None,
    correlation: str,
    price: str | int | None,
    feature_names: Sequence | None,
) -> dict[str, object]:
    """Describes how coefficients differ between people, as far as it is not the default.

    Arguments are those of :class:`fssa_bayes.HeterogeneousBTL`.

    Returns:
        `coefficients`, one of :data:`KINDS` a feature; `correlation`; and `price`, a position.

    Raises:
        ValueError: If an argument is out of range, or the utility has no coefficients.
    """
    if correlation not in ("full", "none"):
        raise ValueError(f"correlation must be 'full' or 'none', got {correlation!r}")
    if feature_names is not None and len(feature_names) != num_features:
        raise ValueError(f"feature_names must have {num_features} names, got {len(feature_names)}")
    given = {"coefficients": coefficients, "correlation": correlation, "price": price}
    given = {k: v for k, v in given.items() if v is not None and (k, v) != ("correlation", "full")}
    if given and utility != "linear":  # First: only a linear utility is told names of features.
        raise ValueError(
            f"{', '.join(given)} concern utility='linear', which has coefficients, got "
            f"utility={utility!r}"
        )
    taste: dict[str, object] = {}
    if coefficients is not None:
        taste["coefficients"] = name_kinds(coefficients, num_features, feature_names)
    if correlation != "full":
        taste["correlation"] = correlation
    if price is not None:
        taste["price"] = find_feature("price", price, num_features, feature_names)
    return taste


def count_random(taste: Mapping[str, object], num_features: int) -> int:
    """Counts the coefficients that differ between people."""
    return sum(kind != "fixed" for kind in taste.get("coefficients", ["normal"] * num_features))


def check_taste(taste: Mapping[str, object], latent_dim: int, num_features: int) -> None:
    """Raises a ValueError unless the latent dimensions serve the coefficients that differ."""
    if not taste:
        return
    number = count_random(taste, num_features)
    if latent_dim > number or (latent_dim == 0) != (number == 0):
        raise ValueError(
            f"latent_dim must lie between {min(number, 1)} and {number}, the number of "
            f"coefficients that are not fixed, got {latent_dim}"
        )
    if taste.get("correlation") == "none" and latent_dim != number:
        raise ValueError(
            f"latent_dim must be {number} with correlation='none', one for each coefficient that "
            f"is not fixed, got {latent_dim}"
        )
