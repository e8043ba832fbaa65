"""Points or draws that represent a posterior exactly, up to an error that is known."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Batch, Preferences, first_names
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling.draws import Draws

__all__ = ["ExactPosterior", "check_size", "judged", "latent_of_noise"]


_MAX_BYTES = 4 * 2**30  # Largest set of draws that is returned.


@dataclass(frozen=True)
class ExactPosterior:
    """Holds points or draws that represent each person's posterior p(z | C).

    `Posterior.from_draws` makes choice probabilities, utilities, ranks and scores of them.

    Attributes:
        method: `"grid"` or `"nuts"`.
        context: The people and the choices that are known of them.
        draws: Points or draws, chain after chain; those of NUTS are equally weighted.
        num_chains: Number of chains that the draws come from; 1 for the grid.
        diagnostics: How far each person's posterior can be relied upon, one row a person. Every
            column is also an attribute, `posterior.converged`, as a tensor with shape (U,):

            - `comparisons`, of the context;
            - `converged`, whether the posterior can be relied upon: see :func:`grid` and
              :func:`nuts`.

            Of a grid:

            - `log_evidence`, log p(C), in nats;
            - `grid_error`, change of the log evidence when every second point is left out, in nats;
            - `edge_mass`, share of the posterior on the outermost points.

            Of chains:

            - `r_hat`, largest R-hat of the person's utilities and log-densities;
            - `ess_bulk`, `ess_tail`, their smallest bulk and tail effective sample sizes;
            - `r_hat_z`, largest R-hat of a dimension of z. Where several z stand for the same
              utilities, chains may differ in z and agree on all that can be known;
            - `num_divergences`, divergent transitions after the warm-up;
            - `seconds`, the time that the person took, chains added up; for draws from a cache, the
              time that sampling them took.
    """

    method: str
    context: Preferences
    draws: Draws
    num_chains: int
    diagnostics: pd.DataFrame

    @property
    def z(self) -> Tensor:
        """Points or draws with shape (S, U, K)."""
        return self.draws.z

    @property
    def log_weights(self) -> Tensor:
        """Normalised log-weights with shape (S, U)."""
        return self.draws.log_weights

    @property
    def log_joint(self) -> Tensor:
        """Log p(z) p(C|z), in nats, with shape (S, U)."""
        return self.draws.log_joint

    def __getattr__(self, name: str) -> Tensor:
        """Returns a column of the diagnostics, with shape (U,)."""
        diagnostics = vars(self).get("diagnostics")
        if diagnostics is None or name not in diagnostics:
            raise AttributeError(
                f"{type(self).__name__!r} object by {vars(self).get('method')!r} has no {name!r}"
            )
        return torch.from_numpy(diagnostics[name].to_numpy(copy=True))

    def __repr__(self) -> str:
        return (
            f"ExactPosterior({self.method!r}, {len(self.context)} people, {len(self.z)} draws, "
            f"{int(self.converged.sum())} converged)"
        )

    def summary(self) -> pd.DataFrame:
        """Returns a copy of the table of diagnostics."""
        return self.diagnostics.copy()


def judged(
    context: Preferences, converged: Tensor, columns: Mapping[str, Tensor], *, advice: str
) -> pd.DataFrame:
    """Tabulates diagnostics, and warns of people whose posterior has not converged.

    Args:
        context: The people.
        converged: Whether each person's posterior can be relied upon, Boolean with shape (U,).
        columns: Other columns, each with shape (U,).
        advice: What may help those who have not converged, for the warning.

    Returns:
        One row a person (index `user`), with the columns `comparisons`, `converged` and the others.
    """
    if not converged.all():
        names = context.user_names[(~converged).numpy()]
        warnings.warn(
            f"the posterior of {len(names)} of {len(context)} people has not converged, those of "
            f"{first_names(names)}: see converged and summary(); {advice}",
            stacklevel=3,
        )
    table = {"comparisons": context.counts, "converged": converged.numpy()}
    table |= {name: column.numpy() for name, column in columns.items()}
    return pd.DataFrame(table, index=context.user_names.rename("user"))


def latent_of_noise(model: HeterogeneousBTL, noise: Tensor, batch: Batch) -> Tensor:
    """Maps the prior's standard normal variable (S, U, K) to the z of a batch's people."""
    for transform in model.prior_transforms(batch.covariates):
        noise = transform(noise)
    return noise


def check_size(model: HeterogeneousBTL, context: Preferences, count: int) -> None:
    """Raises a ValueError where `count` draws of every person exceed 4 GiB."""
    size = 4 * count * len(context) * (model.latent_dim + 2)
    if size > _MAX_BYTES:
        raise ValueError(
            f"{count} draws of {len(context)} people would need {size / 2**30:.1f} GiB, more than "
            f"{_MAX_BYTES / 2**30:.0f} GiB: take fewer, or a part of the people (context.subset)"
        )
