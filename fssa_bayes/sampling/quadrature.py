r"""Posteriors with one or two latent dimensions by quadrature, on a grid for each person.

The grid lies in the prior's standard normal variable ε, of which z is a function: z = T(ε) for a
learned prior, so that one grid serves both priors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import pyro
import torch
from torch import Tensor

from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.sampling.draws import Draws, check_finite
from fssa_bayes.sampling.exact import ExactPosterior, check_size, judged, latent_of_noise

__all__ = ["Grid", "evaluate_grid", "fit_box", "grid"]


_ROUNDS = 10  # Boxes tried for a person; each can be a tenth as wide as the one before.
_SHRINK = 0.8  # A box is replaced where the new one is narrower than this share of its width.
_BORDER = 2  # Cells around the points that count, so that a peak between points is inside.
_EDGE_MASS = 1e-4  # Largest share of the posterior on a grid's edge.
_GRID_ERROR = 1e-2  # Largest change of the log evidence with half the points, in nats.


@dataclass(frozen=True)
class Grid:
    """Holds the grids of a few people.

    Attributes:
        z: Points with shape (S, U, K).
        log_mass: Log of the prior's mass in the cell of a point, times p(C|z), (S, U), in float64.
        log_joint: Log p(z) p(C|z), in nats, (S, U).
        log_evidence: Log p(C), in nats, (U,).
        grid_error: Change of the log evidence when every second point is left out, (U,).
        edge_mass: Share of the posterior on the outermost points, (U,).
    """

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

    The quadrature is the trapezoidal rule in ε, which converges faster than any power of the
    spacing for a smooth density that vanishes at both ends. The grid starts at ±`bound`, in
    standard deviations of the prior, and is moved, narrowed or widened until it ends where the
    posterior density is :math:`e^{-\mathrm{bound}^2 / 2}` of its highest value.

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
    context = align(model, context)
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
        evaluate_grid(model, batch, num, float(bound))
        for _, batch in user_batches(context, count, model.device)
    ]
    whole = {f.name: [getattr(part, f.name).cpu() for part in parts] for f in fields(Grid)}
    whole = {name: torch.cat(part, 1 if name == "z" else -1) for name, part in whole.items()}
    check_finite(whole["z"], whole["log_mass"], context)
    log_weights = whole["log_mass"].log_softmax(0).float()
    columns = {name: whole[name] for name in ("log_evidence", "grid_error", "edge_mass")}
    converged = (columns["edge_mass"] <= _EDGE_MASS) & (columns["grid_error"] <= _GRID_ERROR)
    return ExactPosterior(
        method="grid",
        context=context,
        draws=Draws.of_posterior(whole["z"], whole["log_joint"], log_weights),
        num_chains=1,
        diagnostics=judged(context, converged, columns, advice="a larger num may do"),
    )


@torch.no_grad()
@pyro.validation_enabled(False)
def evaluate_grid(model: HeterogeneousBTL, batch: Batch, num: int, bound: float) -> Grid:
    """Fits a box to each person's posterior and evaluates the posterior there.

    Args:
        model: A model with one or two latent dimensions.
        batch: The people's contexts, on the model's device.
        num: Number of points of each axis, odd.
        bound: Half the width of the grid in standard deviations, where the posterior is normal.
    """
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
        # In float64, as the last digits of the masses decide where the box ends.
        cell = ((upper - lower).double() / (num - 1)).log().sum(-1)
        log_normal = -0.5 * noise.double().square().sum(-1) - width / 2 * math.log(2 * math.pi)
        log_mass = likelihood.double() + log_normal + cell
        if last or not torch.isfinite(log_mass).all():
            break
        fits, box = fit_box(noise, log_mass, lower, upper, num, bound**2 / 2 - 0.5)
        if fits.all():
            break
        lower, upper = torch.where(fits, lower, box[0]), torch.where(fits, upper, box[1])
    log_evidence = log_mass.logsumexp(0)
    coarse = log_mass.unflatten(0, (num,) * width)[(slice(None, None, 2),) * width]
    coarse = coarse.flatten(0, width - 1).logsumexp(0) + width * math.log(2)
    on_edge = ((unit == 0) | (unit == 1)).any(-1)
    return Grid(
        z=z,
        log_mass=log_mass,
        log_joint=model.prior(batch.num_users, batch.covariates).log_prob(z) + likelihood,
        log_evidence=log_evidence.float(),
        grid_error=(coarse - log_evidence).abs().float(),
        edge_mass=((log_mass - log_evidence).exp() * on_edge).sum(0).float(),
    )


def fit_box(
    noise: Tensor, log_mass: Tensor, lower: Tensor, upper: Tensor, num: int, depth: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Fits a box to the points whose log-mass is within `depth` nats of the highest.

    Args:
        noise: Points of the present boxes, with shape (S, U, K).
        log_mass: Their log-masses, with shape (S, U).
        lower: Lower ends of the present boxes, with shape (U, K).
        upper: Upper ends, with shape (U, K).
        num: Number of points of each axis.
        depth: Largest distance from the highest log-mass, in nats.

    Returns:
        Whose present box fits, Boolean with shape (U, 1); lower and upper ends of the new boxes.
    """
    near = (log_mass > log_mass.amax(0) - depth).unsqueeze(-1)
    first = noise.masked_fill(~near, math.inf).amin(0)
    final = noise.masked_fill(~near, -math.inf).amax(0)
    size = upper - lower
    cell = size / (num - 1)
    # Where the density has not fallen off at the edge, the box grows by half.
    at_lower, at_upper = first < lower + cell / 2, final > upper - cell / 2
    new_lower = torch.where(at_lower, lower - size / 2, first - _BORDER * cell)
    new_upper = torch.where(at_upper, upper + size / 2, final + _BORDER * cell)
    wide_enough = new_upper - new_lower >= _SHRINK * size
    fits = (wide_enough & ~at_lower & ~at_upper).all(-1, keepdim=True)
    return fits, (new_lower, new_upper)
