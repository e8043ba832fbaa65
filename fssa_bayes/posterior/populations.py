"""Draws of the population's parameters, and draws of z under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fssa_bayes.data import Batch
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import BradleyTerry, HeterogeneousBTL
from fssa_bayes.sampling import pad_draws

__all__ = ["PopulationDraws", "PopulationMixture", "check_population"]


@dataclass(frozen=True)
class PopulationDraws:
    """Holds draws of a population's parameters, which the training people leave uncertain.

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


def check_population(
    model: HeterogeneousBTL, population: str | PopulationDraws, num_samples: int
) -> PopulationDraws | None:
    """Checks draws of the population for `num_samples` draws of z; returns None for `"fixed"`."""
    if isinstance(population, str) and population == "fixed":
        return None
    if not isinstance(population, PopulationDraws):
        raise ValueError(f"population must be 'fixed' or PopulationDraws, got {population!r}")
    if any(member.config != model.config for member, _ in population.members):
        raise ValueError("population must hold draws of this model, got those of another one")
    if model.latent_dim and len(population) > num_samples:
        raise ValueError(
            f"num_samples must be at least the number of populations, {len(population)}, got "
            f"{num_samples}"
        )
    return population


class PopulationMixture:
    """Evaluates draws of z whose last column is the position of the population of each draw.

    It has the methods of a model by which draws are evaluated.

    Args:
        models: Models that differ in their parameters.
    """

    def __init__(self, models: Sequence[HeterogeneousBTL]) -> None:
        self.models = tuple(models)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.models[0].device

    def choice(self, batch: Batch, z: Tensor, *, backend: str | None = None) -> BradleyTerry:
        """Returns p(choices | z) of draws (S, U, K + 1), with batch shape (S, U)."""
        margin = self._mix(
            z, lambda model, draws: model.choice(batch, draws, backend=backend).margin
        )
        parameters = {name: self._parameter(name, z) for name in ("log_tie", "lapse_logit")}
        return BradleyTerry.from_margin(margin, batch.mask, rankings=batch.rankings, **parameters)

    def _parameter(self, name: str, z: Tensor) -> Tensor | None:
        """Returns a parameter of the answers for every draw, (S, U, 1), or None."""
        if getattr(self.models[0], name) is None:
            return None
        return self._mix(
            z, lambda model, draws: model.answers(draws)[name].expand(*draws.shape[:-1], 1)
        )

    def item_utility(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns the utilities (S, U, M), in nats, of items (M, D) or (M,)."""
        return self._mix(z, lambda model, draws: model.item_utility(items, draws))

    def coefficients(self, z: Tensor) -> Tensor:
        """Returns the coefficients (S, U, D) of linear utilities, in units of the features."""
        return self._mix(z, lambda model, draws: model.coefficients(draws))

    def _mix(self, z: Tensor, evaluate: Callable[[HeterogeneousBTL, Tensor], Tensor]) -> Tensor:
        factors, label = z[..., :-1], z[..., -1]
        out = None
        for position, model in enumerate(self.models):
            own = label == position
            # A row (U,) of proposals is of one population; a row of resampled draws is of several.
            rows = own.any(-1)
            if not rows.any():
                continue
            value = evaluate(model, pad_draws(factors[rows], 0))[: int(rows.sum())]
            if out is None:  # A person's draws lie side by side.
                out = value.new_zeros(*value.shape[1:], len(z)).movedim(-1, 0)
            out[rows] = torch.where(own[rows].unsqueeze(-1), value, out[rows])
        return out
