r"""Gold standards for a person's posterior: a grid for K ≤ 2, NUTS for any K.

Both work in the prior's standard normal variable ε, of which z is a function: for a learned prior
z = T(ε), so that one grid and one sampler serve both priors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import pyro
import torch
from torch import Tensor

from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.model import HeterogeneousBTL, check_data
from fssa_bayes.sampling.draws import check_finite
from fssa_bayes.sampling.exact import ExactPosterior, check_size, latent_of_noise, warn_unconverged

__all__ = ["grid"]


_ROUNDS = 10  # Boxes tried for a person; each can be a tenth as wide as the one before.
_SHRINK = 0.8  # A box that would become narrower than this share of its width is drawn again.
_PADDING = 2  # Cells around the points that count, so that a peak between points is inside.
_EDGE_MASS = 1e-4  # Share of the posterior on a grid's edge that is too much,
_GRID_ERROR = 1e-2  # and change of the log evidence when half the points are left out, in nats.


# ---------------------------------------------------------------------- grid


@dataclass(frozen=True)
class _Grid:
    """Holds the grids of a few people: z (S, U, K), log-densities (S, U) and the rest (U,)."""

    z: Tensor
    log_mass: Tensor
    log_joint: Tensor
    log_evidence: Tensor
    grid_error: Tensor
    edge_mass: Tensor


def grid(
    model: HeterogeneousBTL, context: Preferences, *, num: int = 101, bound: float = 6.0
) -> ExactPosterior:
    r"""Computes each person's posterior on a grid of their own, and the evidence p(C).

    The trapezoidal rule in ε, which for a smooth density that vanishes at both ends converges
    faster than any power of the spacing. The grid starts at ±`bound`, in standard deviations of
    the prior, and is moved, narrowed or widened until it ends where the posterior density is
    :math:`e^{-\mathrm{bound}^2 / 2}` of its highest value.

    Args:
        model: A model with one or two latent dimensions.
        context: The people and the choices that are known of them; empty contexts are allowed.
        num: Number of points of each axis, odd.
        bound: Half the width of the grid in standard deviations, where the posterior is normal.

    Returns:
        S = num^K points, their weights and the evidence. `converged` is True where at most 1e-4 of
        the posterior lies on the grid's edge and the log evidence from every second point differs
        by at most .01 nats.

    Raises:
        ValueError: If the model has no or more than two latent dimensions (use :func:`nuts`), the
            context does not fit it, an option is out of range, or 4 GiB would not do.
        FloatingPointError: If the model gives a person no finite posterior.

    Warns:
        UserWarning: If the grid is too coarse or too narrow for some people, whom it names.

    References:
        Trefethen & Weideman (2014), The exponentially convergent trapezoidal rule, SIAM Review
        56(3).
    """
    check_data(model, context)
    if model.latent_dim not in (1, 2):
        hint = ": use nuts" if model.latent_dim else ": a homogeneous model has no posterior of z"
        raise ValueError(
            f"model must have latent_dim of 1 or 2 for a grid, got {model.latent_dim}{hint}"
        )
    if not isinstance(num, int) or num < 11 or num % 2 == 0:
        raise ValueError(f"num must be an odd integer of at least 11, got {num!r}")
    if not 4 <= bound <= 20:
        raise ValueError(f"bound must lie between 4 and 20 standard deviations, got {bound}")
    count = num**model.latent_dim
    check_size(model, context, count)
    parts = [
        _grid_of_people(model, batch, num, float(bound))
        for _, batch in user_batches(context, count, model.device)
    ]
    whole = {f.name: [getattr(part, f.name).cpu() for part in parts] for f in fields(_Grid)}
    whole = {name: torch.cat(part, 1 if name == "z" else -1) for name, part in whole.items()}
    log_mass = whole.pop("log_mass")
    check_finite(whole["z"], log_mass, context)
    error, edge = whole["grid_error"], whole["edge_mass"]
    unknown = torch.full((len(context),), math.nan)
    converged = (edge <= _EDGE_MASS) & (error <= _GRID_ERROR)
    warn_unconverged(context, converged, "a larger num may do")
    return ExactPosterior(
        method="grid",
        context=context,
        log_weights=log_mass.log_softmax(0).float(),
        num_chains=1,
        converged=converged,
        seconds=unknown,
        r_hat=unknown,
        ess_bulk=unknown,
        ess_tail=unknown,
        r_hat_z=unknown,
        num_divergences=torch.zeros(len(context), dtype=torch.int64),
        **whole,
    )


@torch.no_grad()
@pyro.validation_enabled(False)
def _grid_of_people(model: HeterogeneousBTL, batch: Batch, num: int, bound: float) -> _Grid:
    """Fits a box to each person's posterior and evaluates it there."""
    batch, width = batch.clean(), model.latent_dim
    prepared = model.prepare_items(batch.items)
    axis = torch.linspace(0, 1, num, device=model.device)
    unit = torch.cartesian_prod(*[axis] * width).reshape(-1, 1, width)
    upper = torch.full((batch.num_users, width), bound, device=model.device)
    lower = -upper
    for last in [False] * (_ROUNDS - 1) + [True]:
        noise = torch.lerp(lower, upper, unit)
        z = latent_of_noise(model, noise, batch)
        likelihood = model.choice(batch, z, prepared).log_prob(batch.choice)
        # Log-mass of the cell that a point stands for; the last digits decide about its edges.
        cell = ((upper - lower).double() / (num - 1)).log().sum(-1)
        log_mass = likelihood.double() + _log_normal(noise.double()) + cell
        if last or not torch.isfinite(log_mass).all():
            break
        fits, box = _fit_box(noise, log_mass, lower, upper, num, bound**2 / 2 - 0.5)
        if fits.all():
            break
        lower, upper = torch.where(fits, lower, box[0]), torch.where(fits, upper, box[1])
    log_evidence = log_mass.logsumexp(0)
    coarse = log_mass.unflatten(0, (num,) * width)[(slice(None, None, 2),) * width]
    coarse = coarse.flatten(0, width - 1).logsumexp(0) + width * math.log(2)
    on_edge = ((unit == 0) | (unit == 1)).any(-1)
    return _Grid(
        z=z,
        log_mass=log_mass,
        log_joint=model.prior(batch.num_users, batch.covariates).log_prob(z) + likelihood,
        log_evidence=log_evidence.float(),
        grid_error=(coarse - log_evidence).abs().float(),
        edge_mass=((log_mass - log_evidence).exp() * on_edge).sum(0).float(),
    )


def _fit_box(
    noise: Tensor, log_mass: Tensor, lower: Tensor, upper: Tensor, num: int, depth: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Says whose box (U, 1) fits, and gives boxes around the points less than `depth` deep."""
    near = (log_mass > log_mass.amax(0) - depth).unsqueeze(-1)
    first = noise.masked_fill(~near, math.inf).amin(0)
    final = noise.masked_fill(~near, -math.inf).amax(0)
    size = upper - lower
    cell = size / (num - 1)
    # Where the density has not fallen off at the edge, the box grows by half.
    at_lower, at_upper = first < lower + cell / 2, final > upper - cell / 2
    new_lower = torch.where(at_lower, lower - size / 2, first - _PADDING * cell)
    new_upper = torch.where(at_upper, upper + size / 2, final + _PADDING * cell)
    wide_enough = new_upper - new_lower >= _SHRINK * size
    fits = (wide_enough & ~at_lower & ~at_upper).all(-1, keepdim=True)
    return fits, (new_lower, new_upper)


def _log_normal(noise: Tensor) -> Tensor:
    """Evaluates the standard normal log-density of (*, K), with shape (*)."""
    width = noise.shape[-1]
    return -0.5 * noise.square().sum(-1) - width / 2 * math.log(2 * math.pi)


# ---------------------------------------------------------------------- NUTS


# ---------------------------------------------------------------------- cache


# ---------------------------------------------------------------------- both
