"""Utilities by the names that arguments have for them."""

from __future__ import annotations

from torch import nn

from fssa_bayes.model.distributional import DistributionalUtility, LinearDistributionalUtility
from fssa_bayes.model.utilities import (
    BilinearUtility,
    LinearUtility,
    MLPUtility,
    ModuleUtility,
    Utility,
)

__all__ = ["UTILITIES", "build_utility"]

UTILITIES: dict[str, type[Utility]] = {
    "bilinear": BilinearUtility,
    "linear": LinearUtility,
    "mlp": MLPUtility,
    "distributional": DistributionalUtility,
    "distributional-linear": LinearDistributionalUtility,
}
"""Utilities by the name that they have as an argument of :class:`HeterogeneousBTL`."""


def build_utility(
    utility: str | nn.Module, num_features: int, latent_dim: int, config: dict
) -> Utility:
    """Builds a utility by its name, with the arguments of the model that it takes."""
    if isinstance(utility, nn.Module):
        return ModuleUtility(utility)
    if utility not in UTILITIES:
        *names, last = map(repr, UTILITIES)
        raise ValueError(f"utility must be {', '.join(names)}, {last} or a module, got {utility!r}")
    build = UTILITIES[utility]
    options = {name: config[name] for name in build.options if name in config}
    return build(num_features, latent_dim, **options)
