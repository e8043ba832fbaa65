"""Points or draws that represent a posterior exactly, up to an error that is known."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["ExactPosterior"]


_MAX_BYTES = 4 * 2**30  # Largest set of draws that is returned.


@dataclass(frozen=True)
class ExactPosterior:
    """Holds points or draws that represent each person's posterior p(z | C).

    `Posterior.from_draws` makes choice probabilities, utilities, ranks and scores of them.

    Attributes:
        method: `"grid"` or `"nuts"`.
        context: The people and the choices that are known of them.
        z: Points or draws with shape (S, U, K), chain after chain.
        log_weights: Normalised log-weights with shape (S, U); all equal for NUTS.
        log_joint: Log p(z) p(C|z), in nats, with shape (S, U).
        num_chains: Number of chains that the draws come from; 1 for the grid.
        converged: Whether the posterior can be relied upon, Boolean with shape (U,); see
            :func:`grid` and :func:`nuts`.
        seconds: Time that a person took, with shape (U,), chains added up; for draws out of a
            cache the time that it took to make them. NaN for the grid.
        log_evidence: Log p(C), in nats, with shape (U,); None for NUTS.
        grid_error: Change of the log evidence when every second point is left out, in nats, (U,).
        edge_mass: Share of the posterior on the outermost points of the grid, (U,).
        r_hat: Largest R-hat of a person's utilities and log-densities, (U,).
        ess_bulk: Their smallest bulk effective sample size, (U,).
        ess_tail: Their smallest tail effective sample size, (U,).
        r_hat_z: Largest R-hat of a dimension of z, (U,). Where several z stand for the same
            utilities, chains may differ in z and agree on all that can be known.
        num_divergences: Divergent transitions after the warm-up, int64 with shape (U,).

    What belongs to the other method is NaN, and 0 divergences.
    """

    method: str
    context: Preferences
    z: Tensor
    log_weights: Tensor
    log_joint: Tensor
    num_chains: int
    converged: Tensor
    seconds: Tensor
    log_evidence: Tensor | None
    grid_error: Tensor
    edge_mass: Tensor
    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    r_hat_z: Tensor
    num_divergences: Tensor

    def __repr__(self) -> str:
        return (
            f"ExactPosterior({self.method!r}, {len(self.context)} people, {len(self.z)} draws, "
            f"{int(self.converged.sum())} converged)"
        )

    def summary(self) -> pd.DataFrame:
        """Tabulates how far each person's posterior can be relied upon, one row a person."""
        names = ["log_evidence", "grid_error", "edge_mass"]
        if self.method == "nuts":
            names = ["r_hat", "ess_bulk", "ess_tail", "r_hat_z", "num_divergences", "seconds"]
        columns = {"comparisons": self.context.counts, "converged": self.converged.numpy()}
        columns |= {name: getattr(self, name).numpy() for name in names}
        return pd.DataFrame(columns, index=self.context.user_names.rename("user"))


def latent_of_noise(model: HeterogeneousBTL, noise: Tensor, batch: Batch) -> Tensor:
    """Maps the prior's standard normal variable (S, U, K) to the z of a batch's people."""
    for transform in model.prior_transforms(batch.covariates):
        noise = transform(noise)
    return noise


def warn_unconverged(context: Preferences, converged: Tensor, advice: str) -> None:
    if not converged.all():
        names = context.user_names[(~converged).numpy()]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"the posterior of {len(names)} of {len(context)} people has not converged, those of "
            f"{', '.join(map(repr, names[:5]))}{more}: see converged and summary(); {advice}",
            stacklevel=3,
        )


def check_size(model: HeterogeneousBTL, context: Preferences, count: int) -> None:
    size = 4 * count * len(context) * (model.latent_dim + 2)
    if size > _MAX_BYTES:
        raise ValueError(
            f"{count} draws of {len(context)} people would need {size / 2**30:.1f} GiB, more than "
            f"{_MAX_BYTES / 2**30:.0f} GiB: take fewer, or a part of the people (context.subset)"
        )
