"""Posteriors by the no-U-turn sampler, with a judgement of convergence."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from tqdm.auto import tqdm

from fssa_bayes._arviz import chain_diagnostics
from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.sampling.cache import (
    Chains,
    NutsOptions,
    cache_folder,
    digest_of,
    identity_of,
    read_chains,
    write_chains,
)
from fssa_bayes.sampling.draws import Draws, check_finite
from fssa_bayes.sampling.exact import ExactPosterior, check_size, judged, latent_of_noise

__all__ = ["Verdict", "judge", "nuts", "potential_energy", "sample_chain", "sample_person"]


_REFERENCE_ITEMS = 16  # Items of the table whose utilities must have converged.
_OWN_PAIRS = 32  # Pairs of the person, at most, whose margins must have converged.
_LEAST_ESS = 100  # Effective draws of a chain, as Vehtari et al. (2021) advise.
_MOST_DIVERGENCES = 0.01  # Divergent transitions as a share of the draws.


@dataclass(frozen=True)
class Verdict:
    """Says how far a person's draws can be relied upon.

    Attributes:
        log_joint: Log p(z) p(C|z) of the draws, chain after chain, with shape (C · S,).
        r_hat: Largest R-hat of what is identified, see :func:`nuts`.
        ess_bulk: Smallest bulk effective sample size.
        ess_tail: Smallest tail effective sample size.
        r_hat_z: Largest R-hat of a dimension of z.
        converged: Whether the draws can be relied upon.
    """

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

    Pyro's NUTS samples the density :math:`N(ε; 0, I)\, p(C \mid z(ε))` with a dense mass matrix; a
    chain is of one person and runs in one PyTorch thread. The items' factors are computed once.
    Chains start at draws from the prior.

    *Convergence* is judged by what is identified: the utilities of up to 16 items evenly spaced
    over the item table, centred over these; the margins of up to 32 of the person's own pairs;
    log-likelihood and log-density. z may have modes that stand for the same utilities: the R-hat of
    z is reported and decides nothing. A person whose chains have not converged is sampled again
    with twice the warm-up and twice the draws, of which every second is kept. Where the last
    attempt fails too, its draws are returned, and a warning names the person.

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
            `if __name__ == "__main__"`; None samples in the present process.
        cache: Folder that keeps each person's draws in a netCDF file, which ArviZ reads, under a
            name that stands for model, context and options; the folder is made where it is missing.
            None keeps nothing.
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
    context = align(model, context)
    options = NutsOptions(num_samples, warmup_steps, num_chains, seed, target_r_hat, max_attempts)
    _check_options(model, options, processes)
    check_size(model, context, num_chains * num_samples)
    _check_density(model, context, seed)
    folder = None if cache is None else cache_folder(cache)
    spread = torch.from_numpy(_spaced(context.num_items, _REFERENCE_ITEMS))
    reference = (spread if context.items is None else context.items[spread]).to(model.device)
    identity = identity_of(model, reference, options)
    people = tqdm(range(len(context)), desc="NUTS", unit="person", disable=not progress_bar)
    with _mapper(processes) as run:
        results = [
            sample_person(model, context.subset([user]), reference, options, identity, folder, run)
            for user in people
        ]
    chains, verdicts = zip(*results, strict=True)
    z = torch.stack([torch.from_numpy(person.z).flatten(0, 1) for person in chains], 1)
    log_joint = torch.stack([verdict.log_joint for verdict in verdicts], 1)
    names = ("r_hat", "ess_bulk", "ess_tail", "r_hat_z")
    columns = {name: torch.tensor([getattr(v, name) for v in verdicts]) for name in names}
    divergences = [int(person.num_divergences.sum()) for person in chains]
    columns["num_divergences"] = torch.tensor(divergences)
    columns["seconds"] = torch.tensor([float(person.seconds.sum()) for person in chains])
    converged = torch.tensor([verdict.converged for verdict in verdicts])
    advice = "more warmup_steps or num_samples may do"
    return ExactPosterior(
        method="nuts",
        context=context,
        draws=Draws.of_posterior(z, log_joint),
        num_chains=num_chains,
        diagnostics=judged(context, converged, columns, advice=advice),
    )


def sample_person(
    model: HeterogeneousBTL,
    person: Preferences,
    reference: Tensor,
    options: NutsOptions,
    identity: str,
    folder: Path | None,
    run: Callable[..., Iterable],
) -> tuple[Chains, Verdict]:
    """Takes a person's chains from the cache, or samples them until they have converged.

    Args:
        model: The model.
        person: The choices that are known of one person.
        reference: Features (M, D) or positions (M,) of the items whose utilities are judged.
        options: The options of :func:`nuts`.
        identity: Digest of model, reference items and options, see :func:`identity_of`.
        folder: Folder of the cache, or None.
        run: A `map` that runs :func:`sample_chain` for each seed.
    """
    batch = person.batch().to(model.device)
    own = [batch.covariates] if model.num_covariates else []
    rankings = () if batch.rankings is None else (batch.ranking,)
    sides = () if batch.side is None or model.bias is None else ("side", batch.side)
    pairs = batch.items[batch.left], batch.items[batch.right]
    key = digest_of(identity, *pairs, batch.choice, *own, *rankings, *sides)
    path = None if folder is None else folder / f"{key[:32]}.nc"
    chains = None if path is None else read_chains(path, key, model, options)
    if chains is not None:
        return chains, judge(model, batch, reference, chains, options)
    for attempt in range(options.max_attempts):
        seeds = np.random.SeedSequence([options.seed, int(key, 16), attempt])
        sample = partial(sample_chain, model, batch, options, 2**attempt)
        parts = list(run(sample, map(int, seeds.generate_state(options.num_chains))))
        chains = Chains(*(np.stack(part) for part in zip(*parts, strict=True)))
        verdict = judge(model, batch, reference, chains, options)
        if verdict.converged:
            break
    if path is not None:
        write_chains(path, key, chains)
    return chains, verdict


def sample_chain(
    model: HeterogeneousBTL, batch: Batch, options: NutsOptions, length: int, seed: int
) -> tuple[np.ndarray, int, float]:
    """Runs one chain, `length` times as long as the options say, and keeps every `length`-th draw.

    Returns:
        z with shape (S, K), the number of divergent transitions, and the seconds that it took.
    """
    start = time.perf_counter()
    with _one_thread(), seeded(seed), pyro.validation_enabled(False):
        first = torch.randn(model.latent_dim, device=model.device)
        kernel = NUTS(potential_fn=potential_energy(model, batch), full_mass=True)
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
            z = latent_of_noise(model, noise.unsqueeze(1), batch)[:, 0].cpu().numpy()
    divergences = mcmc.diagnostics()["divergences"]["chain 0"]
    return z, len(divergences), time.perf_counter() - start


def potential_energy(
    model: HeterogeneousBTL, batch: Batch
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Returns −log N(ε; 0, I) − log p(C | z(ε)) up to a constant, as a function of ε (K,)."""
    batch = batch.clean()
    with torch.no_grad():
        prepared = model.prepare_items(batch.items)

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        # Transforms cache the last tensor with its graph, which is freed; a view is not cached.
        noise = parameters["noise"].view(1, 1, -1)
        z = latent_of_noise(model, noise, batch)
        likelihood = model.choice(batch, z, prepared).log_prob(batch.choice)
        return 0.5 * noise.square().sum() - likelihood.sum()

    return potential


@torch.no_grad()
@pyro.validation_enabled(False)
def judge(
    model: HeterogeneousBTL, batch: Batch, reference: Tensor, chains: Chains, options: NutsOptions
) -> Verdict:
    """Judges the convergence of what the chains say about utilities and densities.

    Args:
        model: The model.
        batch: The context of one person.
        reference: Features (M, D) or positions (M,) of the items whose utilities are judged.
        chains: The person's chains.
        options: The options of :func:`nuts`.
    """
    z = torch.from_numpy(chains.z).to(model.device).flatten(0, 1).unsqueeze(1)
    choice = model.choice(batch, z)
    likelihood = choice.log_prob(batch.choice)
    log_joint = model.prior(1, batch.covariates).log_prob(z) + likelihood
    utility = model.item_utility(reference, z)[:, 0]
    margin = choice.margin[:, 0, _spaced(batch.choice.shape[1], _OWN_PAIRS)]
    centred = utility - utility.mean(-1, keepdim=True)
    own = []
    if model.personal is not None:
        answers = model.answers(z)
        own = [answers[name][:, 0] for name in model.personal.arguments]
    quantities = torch.cat([centred, margin, *own, likelihood, log_joint], -1)
    quantities = quantities.cpu().double().numpy()
    # Quantities that vary by rounding alone are left out; the density, the last column, is always
    # judged.
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
    return Verdict(log_joint[:, 0].cpu(), *numbers, bool(converged))


def _spaced(length: int, most: int) -> np.ndarray:
    """Returns at most `most` positions, evenly spaced from 0 to length − 1."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def _check_options(model: HeterogeneousBTL, options: NutsOptions, processes: int | None) -> None:
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
    """Raises a FloatingPointError where the density of draws from the prior is not finite."""
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
    """Keeps PyTorch to one thread: two were sixteen times slower on tensors of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _mapper(processes: int | None) -> Iterator[Callable[..., Iterable]]:
    """Gives a `map` that works in the present process or in several."""
    if processes is None:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as executor:
        yield executor.map
