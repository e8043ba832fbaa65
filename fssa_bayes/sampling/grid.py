r"""Gold standards for a person's posterior: a grid for K ≤ 2, NUTS for any K.

Both work in the prior's standard normal variable ε, of which z is a function: for a learned prior
z = T(ε), so that one grid and one sampler serve both priors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from tqdm.auto import tqdm

from fssa_bayes._arviz import Group, build, chain_diagnostics, read_group
from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.data.chunks import user_batches
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.model.agreement import check_data
from fssa_bayes.sampling.importance import check_finite

__all__ = ["ExactPosterior", "grid", "nuts"]

_MAX_BYTES = 4 * 2**30  # Largest set of draws that is returned.

_ROUNDS = 10  # Boxes tried for a person; each can be a tenth as wide as the one before.
_SHRINK = 0.8  # A box that would become narrower than this share of its width is drawn again.
_PADDING = 2  # Cells around the points that count, so that a peak between points is inside.
_EDGE_MASS = 1e-4  # Share of the posterior on a grid's edge that is too much,
_GRID_ERROR = 1e-2  # and change of the log evidence when half the points are left out, in nats.

_CACHE_VERSION = 1  # Raised when the same key would stand for other draws.
_REFERENCE_ITEMS = 16  # Items of the table whose utilities must have converged,
_OWN_PAIRS = 32  # and at most that many margins of the person's own pairs.
_LEAST_ESS = 100  # Effective draws a chain, as Vehtari et al. (2021) advise,
_MOST_DIVERGENCES = 0.01  # and divergent transitions as a share of the draws.


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
    _check_size(model, context, count)
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
    _warn_unconverged(context, converged, "a larger num may do")
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
        z = _latent(model, noise, batch)
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


@dataclass(frozen=True)
class _Options:
    """Holds what decides about the draws of a person, beside model and context."""

    num_samples: int
    warmup_steps: int
    num_chains: int
    seed: int
    target_r_hat: float
    max_attempts: int


@dataclass(frozen=True)
class _Chains:
    """Holds the chains z (C, S, K) of a person, divergent transitions and seconds (C,) of each."""

    z: np.ndarray
    num_divergences: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class _Verdict:
    """Holds the log-density of a person's draws, (C · S,), and how far they can be relied upon."""

    log_joint: Tensor
    r_hat: float
    ess_bulk: float
    ess_tail: float
    r_hat_z: float
    converged: bool


def nuts(
    model: HeterogeneousBTL,
    context: Preferences,
    *,
    num_samples: int = 500,
    warmup_steps: int = 500,
    num_chains: int = 4,
    seed: int = 0,
    processes: int | None = None,
    cache: str | os.PathLike | None = None,
    target_r_hat: float = 1.01,
    max_attempts: int = 2,
    progress_bar: bool = False,
) -> ExactPosterior:
    r"""Samples each person's posterior by the no-U-turn sampler, and says whether it converged.

    Pyro's NUTS with a dense mass matrix, one person and one PyTorch thread a chain, of the density
    :math:`N(ε; 0, I)\, p(C \mid z(ε))`; the items' factors are computed once. Chains start at
    draws from the prior.

    *Convergence* is judged by what is identified: the utilities of up to 16 items evenly spaced
    over the item table, centred over these; the margins of up to 32 of the person's own pairs;
    log-likelihood and log-density. z may have modes that stand for the same utilities: its R-hat is
    reported and decides nothing. A person whose chains have not converged is sampled again with
    twice the warm-up and twice the draws, of which every second is kept. Where the last attempt
    fails too, its draws are returned, marked and named in a warning.

    The draws depend on the model, the person's own context and covariates, the item table and the
    options, and not on other people.

    Args:
        model: A model with a latent factor.
        context: The people and the choices that are known of them; empty contexts are allowed.
        num_samples: Draws of each chain that are kept.
        warmup_steps: Steps before them, in which step size and mass matrix are adapted.
        num_chains: Number of chains of each person, at least 2.
        seed: Seed of starting points and draws; the global random state is left as it was.
        processes: Number of processes that share the chains, for a script that starts under
            `if __name__ == "__main__"`; None samples in this one.
        cache: Folder that keeps each person's draws in a netCDF file, which ArviZ reads, under a
            name that stands for model, context and options; it is made. None keeps nothing.
        target_r_hat: R-hat that no quantity may reach.
        max_attempts: How often a person is sampled at most.
        progress_bar: Whether to show progress, person by person.

    Returns:
        S = num_chains · num_samples draws, equally weighted. `converged` is True where R-hat is
        below `target_r_hat`, both effective sample sizes are at least 100 a chain and there are
        no more divergent transitions than 1 % of the draws.

    Raises:
        ValueError: If the model has no latent factor, the context does not fit it, an option is
            out of range or `cache` is a file.
        FloatingPointError: If the model gives a person no finite posterior.

    Warns:
        UserWarning: If chains have not converged, naming the people; if a file of the cache is
            damaged, which is then replaced.

    References:
        Hoffman & Gelman (2014), The No-U-Turn Sampler, JMLR 15.
        Vehtari et al. (2021), Rank-normalization, folding, and localization: an improved R-hat
        for assessing convergence of MCMC, Bayesian Analysis 16(2).
    """
    check_data(model, context)
    options = _Options(num_samples, warmup_steps, num_chains, seed, target_r_hat, max_attempts)
    _check_options(model, options, processes)
    _check_size(model, context, num_chains * num_samples)
    _check_density(model, context, seed)
    folder = None if cache is None else _cache_folder(cache)
    reference = _reference_items(context).to(model.device)
    identity = _identity(model, reference, options)
    people = tqdm(range(len(context)), desc="NUTS", unit="person", disable=not progress_bar)
    with _mapper(processes) as run:
        results = [
            _sample_person(model, context.subset([user]), reference, options, identity, folder, run)
            for user in people
        ]
    chains, verdicts = zip(*results, strict=True)
    z = torch.stack([torch.from_numpy(person.z).flatten(0, 1) for person in chains], 1)

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(verdict, name) for verdict in verdicts])

    unknown = torch.full((len(context),), math.nan)
    _warn_unconverged(context, column("converged"), "more warmup_steps or num_samples may do")
    return ExactPosterior(
        method="nuts",
        context=context,
        z=z,
        log_weights=torch.zeros(z.shape[:2]).log_softmax(0),
        log_joint=torch.stack([verdict.log_joint for verdict in verdicts], 1),
        num_chains=num_chains,
        converged=column("converged"),
        seconds=torch.tensor([float(person.seconds.sum()) for person in chains]),
        log_evidence=None,
        grid_error=unknown,
        edge_mass=unknown,
        r_hat=column("r_hat"),
        ess_bulk=column("ess_bulk"),
        ess_tail=column("ess_tail"),
        r_hat_z=column("r_hat_z"),
        num_divergences=torch.tensor([int(person.num_divergences.sum()) for person in chains]),
    )


def _sample_person(
    model: HeterogeneousBTL,
    person: Preferences,
    reference: Tensor,
    options: _Options,
    identity: str,
    folder: Path | None,
    run: Callable[..., Iterable],
) -> tuple[_Chains, _Verdict]:
    """Takes a person's chains from the cache, or samples them until they have converged."""
    batch = person.batch().to(model.device)
    own = [batch.covariates] if model.num_covariates else []
    rankings = () if batch.rankings is None else (batch.ranking,)
    pairs = batch.items[batch.left], batch.items[batch.right]
    key = _digest(identity, *pairs, batch.choice, *own, *rankings)
    path = None if folder is None else folder / f"{key[:32]}.nc"
    chains = None if path is None else _read(path, key, model, options)
    if chains is not None:
        return chains, _judge(model, batch, reference, chains, options)
    for attempt in range(options.max_attempts):
        seeds = np.random.SeedSequence([options.seed, int(key, 16), attempt])
        sample = partial(_sample_chain, model, batch, options, 2**attempt)
        parts = list(run(sample, map(int, seeds.generate_state(options.num_chains))))
        chains = _Chains(*(np.stack(part) for part in zip(*parts, strict=True)))
        verdict = _judge(model, batch, reference, chains, options)
        if verdict.converged:
            break
    if path is not None:
        _write(path, key, chains)
    return chains, verdict


def _sample_chain(
    model: HeterogeneousBTL, batch: Batch, options: _Options, length: int, seed: int
) -> tuple[np.ndarray, int, float]:
    """Runs one chain, `length` times as long; returns z (S, K), divergences and seconds."""
    start = time.perf_counter()
    with _one_thread(), seeded(seed), pyro.validation_enabled(False):
        first = torch.randn(model.latent_dim, device=model.device)
        kernel = NUTS(potential_fn=_potential(model, batch), full_mass=True)
        mcmc = MCMC(
            kernel,
            num_samples=length * options.num_samples,
            warmup_steps=length * options.warmup_steps,
            initial_params={"noise": first},
            disable_progbar=True,
        )
        mcmc.run()
        noise = mcmc.get_samples()["noise"][length - 1 :: length]
        with torch.no_grad():
            z = _latent(model, noise.unsqueeze(1), batch)[:, 0].cpu().numpy()
    divergences = mcmc.diagnostics()["divergences"]["chain 0"]
    return z, len(divergences), time.perf_counter() - start


def _potential(model: HeterogeneousBTL, batch: Batch) -> Callable[[dict[str, Tensor]], Tensor]:
    """Returns −log N(ε; 0, I) − log p(C | z(ε)) up to a constant, as a function of ε (K,)."""
    batch = batch.clean()
    with torch.no_grad():
        prepared = model.prepare_items(batch.items)

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        # A view: transforms remember the tensor they saw last, with a graph that is gone.
        noise = parameters["noise"].view(1, 1, -1)
        z = _latent(model, noise, batch)
        likelihood = model.choice(batch, z, prepared).log_prob(batch.choice)
        return 0.5 * noise.square().sum() - likelihood.sum()

    return potential


@torch.no_grad()
@pyro.validation_enabled(False)
def _judge(
    model: HeterogeneousBTL, batch: Batch, reference: Tensor, chains: _Chains, options: _Options
) -> _Verdict:
    """Judges the convergence of what the chains say about utilities and densities."""
    z = torch.from_numpy(chains.z).to(model.device).flatten(0, 1).unsqueeze(1)
    choice = model.choice(batch, z)
    likelihood = choice.log_prob(batch.choice)
    log_joint = model.prior(1, batch.covariates).log_prob(z) + likelihood
    utility = model.item_utility(reference, z)[:, 0]
    margin = choice.margin[:, 0, _spaced(batch.choice.shape[1], _OWN_PAIRS)]
    centred = utility - utility.mean(-1, keepdim=True)
    quantities = torch.cat([centred, margin, likelihood, log_joint], -1).cpu().double().numpy()
    # What varies by rounding alone has nothing to converge; the density, last, always has.
    varies = np.ptp(quantities, 0) > 1e-5 * (1 + np.abs(quantities).max(0))
    varies[-1] = True
    quantities = quantities[:, varies]
    r_hat, bulk, tail = chain_diagnostics(quantities.reshape(*chains.z.shape[:2], -1))
    r_hat_z, _, _ = chain_diagnostics(chains.z)
    least = _LEAST_ESS * options.num_chains
    total = options.num_samples * options.num_chains
    converged = (
        (r_hat < options.target_r_hat).all()
        and min(bulk.min(), tail.min()) >= least
        and chains.num_divergences.sum() <= _MOST_DIVERGENCES * total
    )
    numbers = (float(x) for x in (r_hat.max(), bulk.min(), tail.min(), r_hat_z.max()))
    return _Verdict(log_joint[:, 0].cpu(), *numbers, bool(converged))


def _reference_items(context: Preferences) -> Tensor:
    """Returns features or positions of items that are evenly spaced over the table."""
    index = torch.from_numpy(_spaced(context.num_items, _REFERENCE_ITEMS))
    return index if context.items is None else context.items[index]


def _spaced(length: int, most: int) -> np.ndarray:
    """Returns at most `most` positions, evenly spaced from 0 to length − 1."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def _check_options(model: HeterogeneousBTL, options: _Options, processes: int | None) -> None:
    if model.latent_dim == 0:
        raise ValueError("model must have latent_dim of at least 1 for NUTS, got 0")
    least = {"num_samples": 4, "warmup_steps": 1, "num_chains": 2, "seed": 0, "max_attempts": 1}
    for name, low in least.items():
        value = getattr(options, name)
        if not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
    if processes is not None and (not isinstance(processes, int) or processes < 1):
        raise ValueError(f"processes must be an integer of at least 1 or None, got {processes!r}")
    if not options.target_r_hat > 1:
        raise ValueError(f"target_r_hat must be above 1, got {options.target_r_hat}")


@torch.no_grad()
@pyro.validation_enabled(False)
def _check_density(model: HeterogeneousBTL, context: Preferences, seed: int) -> None:
    """Raises a FloatingPointError where the density is not finite, before anything is sampled."""
    parts = []
    with seeded(seed):
        for _, batch in user_batches(context, 4, model.device):
            batch = batch.clean()
            z = model.prior(batch.num_users, batch.covariates).sample((4,))
            parts.append((z.cpu(), model.choice(batch, z).log_prob(batch.choice).cpu()))
    z, likelihood = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    check_finite(z, likelihood, context)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps PyTorch to one thread: on tensors this small two were sixteen times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _mapper(processes: int | None) -> Iterator[Callable[..., Iterable]]:
    """Gives a `map` that works in this process or in several."""
    if processes is None:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as executor:
        yield executor.map


# ---------------------------------------------------------------------- cache


def _identity(model: HeterogeneousBTL, reference: Tensor, options: _Options) -> str:
    """Digests the model, the reference items and the options."""
    about = [_CACHE_VERSION, model.config, repr(model), asdict(options)]
    tensors = [tensor for _, tensor in sorted(model.state_dict().items())]
    return _digest(json.dumps(about, sort_keys=True), reference, *tensors)


def _digest(*parts: str | Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = np.ascontiguousarray(part.detach().cpu().numpy())
            digest.update(f"{array.dtype} {array.shape}".encode())
            part = array.tobytes()
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()


def _cache_folder(cache: str | os.PathLike) -> Path:
    folder = Path(cache)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cache must be a folder, got the file {str(folder)!r}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, key: str, chains: _Chains) -> None:
    """Writes the file whole and renames it into place."""
    noted = {
        "num_divergences": (("chain",), chains.num_divergences),
        "seconds": (("chain",), chains.seconds),
    }
    counts = {"chain": chains.z.shape[0], "draw": chains.z.shape[1], "latent": chains.z.shape[2]}
    coords = {name: ((name,), np.arange(count)) for name, count in counts.items()}
    groups = {
        "posterior": Group({"z": (tuple(counts), chains.z)}, coords),
        "sample_stats": Group(noted, coords),
    }
    content = build(
        groups, {"key": key, "sha256": _digest(*map(torch.from_numpy, astuple(chains)))}
    )
    part = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}.nc")
    try:
        content.to_netcdf(str(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, key: str, model: HeterogeneousBTL, options: _Options) -> _Chains | None:
    """Reads a person's chains; None where there are none, or none that are whole."""
    if not path.exists():
        return None
    try:
        posterior, attributes = read_group(path, "posterior")
        noted, _ = read_group(path, "sample_stats")
        chains = _Chains(posterior["z"], noted["num_divergences"], noted["seconds"])
        shape = (options.num_chains, options.num_samples, model.latent_dim)
        whole = _digest(*map(torch.from_numpy, astuple(chains)))
        if (attributes["key"], attributes["sha256"], chains.z.shape) != (key, whole, shape):
            raise ValueError("its content is not what was written")
    except Exception as error:  # What a damaged HDF5 file raises is not documented.
        warnings.warn(
            f"the cached draws in {str(path)!r} are damaged ({error}) and are sampled again",
            stacklevel=5,
        )
        return None
    return chains


# ---------------------------------------------------------------------- both


def _latent(model: HeterogeneousBTL, noise: Tensor, batch: Batch) -> Tensor:
    """Maps the prior's standard normal variable (S, U, K) to the z of a batch's people."""
    for transform in model.prior_transforms(batch.covariates):
        noise = transform(noise)
    return noise


def _warn_unconverged(context: Preferences, converged: Tensor, advice: str) -> None:
    if not converged.all():
        names = context.user_names[(~converged).numpy()]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"the posterior of {len(names)} of {len(context)} people has not converged, those of "
            f"{', '.join(map(repr, names[:5]))}{more}: see converged and summary(); {advice}",
            stacklevel=3,
        )


def _check_size(model: HeterogeneousBTL, context: Preferences, count: int) -> None:
    size = 4 * count * len(context) * (model.latent_dim + 2)
    if size > _MAX_BYTES:
        raise ValueError(
            f"{count} draws of {len(context)} people would need {size / 2**30:.1f} GiB, more than "
            f"{_MAX_BYTES / 2**30:.0f} GiB: take fewer, or a part of the people (context.subset)"
        )
