r"""Does a posterior cover people who are simulated from its own model?

People are drawn from the fitted model, z from p(z), and asked pairs of the data. Were the posterior
exact, the probability integral transform of a true value in its posterior would be uniform, at
every number of known choices (Talts et al. 2018). All quantities are free of the gauge of z:
margins of pairs that are the same for everybody; margins of pairs of each person's own, whose ranks
are those of their choice probabilities; the distance to a point that depends on the context (TARP,
Lemos et al. 2023); and the log-likelihood of the context, which alone sees a posterior that has
learnt too little from it (Modrák et al. 2023).

These checks see whether the guide and its correction match the *fitted model*. They cannot see a
wrong model, which passes on its own simulations: :mod:`fssa_bayes.report` sets them beside checks
on real people.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes import diagnostics
from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.model import HeterogeneousBTL, check_data
from fssa_bayes.posterior import Posterior
from fssa_bayes.sampling import draw_posterior

__all__ = [
    "LEVELS",
    "CalibrationStudy",
    "SimulatedPeople",
    "ask",
    "calibrate",
    "check_study",
    "draw_model",
    "simulate_people",
]

LEVELS = (0.5, 0.8, 0.95)
"""Probabilities of the central intervals whose coverage is counted."""

NUM_FIXED, NUM_OWN = 3, 2

_QUANTITIES = (
    *(f"difference of pair {pair + 1}" for pair in range(NUM_FIXED)),
    *(f"probability of own pair {pair + 1}" for pair in range(NUM_OWN)),
    "distance to a point (TARP)",
    "log-likelihood of context",
)


def ask(
    items: np.ndarray | Tensor, num_users: int, num_comparisons: int, rng: np.random.Generator
) -> Preferences:
    """Asks everybody about as many random pairs of items (M, D); there are no answers yet."""
    total = num_users * num_comparisons
    left = rng.integers(len(items), size=total)
    right = (left + rng.integers(1, len(items), size=total)) % len(items)
    offsets = num_comparisons * np.arange(num_users + 1)
    return Preferences(left, right, np.zeros(total), offsets, items=items)


@torch.no_grad()
def draw_model(
    items: Tensor,
    latent_dim: int,
    utility: str = "bilinear",
    *,
    spread: float = 2.0,
    seed: int = 0,
) -> HeterogeneousBTL:
    """Draws a model to simulate people from, who differ by a stated amount.

    Args:
        items: Features of the items that people will be asked about, with shape (M, D).
        latent_dim: Number of latent dimensions K.
        utility: `"linear"`, `"bilinear"` or `"mlp"`.
        spread: Standard deviation between people of utilities centred over the items, in nats.
        seed: Seed of the parameters.

    Returns:
        The model.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not spread > 0:
        raise ValueError(f"spread must be positive, got {spread}")
    with seeded(seed):
        model = HeterogeneousBTL(items.shape[-1], latent_dim, utility)
        if model.utility.is_linear:
            model.utility.mean.normal_(0.0, 0.5)
        z = model.prior(1000).sample()
    centred = model.item_utility(items, z)
    centred = centred - centred.mean(-1, keepdim=True)
    scale = spread / centred.var(0).mean().sqrt()
    model.utility.scale_differences(scale)
    return model


@dataclass(frozen=True)
class SimulatedPeople:
    """Holds people drawn from a model.

    Attributes:
        source: The model that they come from.
        context: What is known of them.
        target: Pairs whose margins are the quantities of the study; nobody chose between them.
        z: Their latent factors in that model, with shape (U, K).
    """

    source: HeterogeneousBTL
    context: Preferences
    target: Preferences
    z: Tensor


def simulate_people(
    model: HeterogeneousBTL,
    data: Preferences,
    num_context: int,
    num_users: int = 2000,
    *,
    seed: int = 0,
) -> SimulatedPeople:
    """Draws people from the model and asks them pairs of the data.

    Args:
        model: The model, whose people they are.
        data: Whose pairs, and covariates, are resampled; its choices are not looked at.
        num_context: Number of choices known of everybody; of judgements where there are rankings.
        num_users: Number of people U.
        seed: Seed of pairs, people and choices.

    Returns:
        The people. Their target begins with pairs that are the same for all people and all sizes
        of context, and ends with pairs of their own.
    """
    pairs = data.as_pairs()
    fixed = np.random.default_rng(seed).choice(pairs.num_comparisons, NUM_FIXED)
    rng = np.random.default_rng((seed, num_context))
    asked = rng.integers(data.num_judgements, size=(num_users, num_context))
    own = rng.integers(pairs.num_comparisons, size=(num_users, NUM_OWN))
    target = np.concatenate([np.broadcast_to(fixed, (num_users, NUM_FIXED)), own], 1)
    simulation = int(rng.integers(2**31))
    people = rng.integers(len(data), size=num_users)
    context, z = model.simulate(data.imagine(asked, people), seed=simulation)
    return SimulatedPeople(model, context, pairs.imagine(target, people), z)


Weighted = dict[str, tuple[Tensor, Tensor]]
"""By the name of a posterior, its draws (S, U, K) and their normalised log-weights (S, U)."""


@dataclass(frozen=True)
class CalibrationStudy:
    """Holds transforms of simulated truths in their posteriors, by number of known choices.

    G sizes of context, U people at each, Q quantities.

    Attributes:
        sizes: Numbers of known choices, (G,).
        quantities: Names of the quantities, (Q,).
        pit: Probability integral transforms with shape (G, U, Q), by name of the posterior:
            `"corrected"`, the importance-weighted one, and `"guide"`, the guide's own draws, unless
            other draws were studied. The log-likelihood of an empty context says nothing: its
            transforms are random numbers.
        relative_ess: Effective sample size of the guide's draws as a share of their number, (G, U).
        pareto_k: Pareto k-hat of the guide's draws, (G, U).
        contraction: 1 − posterior over prior variance of a margin, the mean over the fixed pairs,
            for the first posterior, (G, U). The prior is that of everybody: what covariates tell
            counts.
    """

    sizes: tuple[int, ...]
    quantities: tuple[str, ...]
    pit: dict[str, Tensor]
    relative_ess: Tensor
    pareto_k: Tensor
    contraction: Tensor

    def test(self, posterior: str = "corrected", *, prob: float = 0.95) -> diagnostics.SbcResult:
        """Tests the transforms for uniformity, together for all quantities and sizes.

        Args:
            posterior: Name of the posterior.
            prob: Probability that an exact posterior is rejected nowhere.

        Returns:
            The verdict for every size and quantity, and the joint one; see
            :func:`fssa_bayes.diagnostics.sbc_test`.
        """
        return diagnostics.sbc_test(*self._long(posterior), names=self.quantities, prob=prob)

    def coverage(self, posterior: str = "corrected") -> pd.DataFrame:
        """Counts how often central 50, 80 and 95 % intervals hold the truth.

        One row for every size, quantity and level; see :func:`fssa_bayes.diagnostics.coverage`.
        """
        return diagnostics.coverage(*self._long(posterior), levels=LEVELS, names=self.quantities)

    def _long(self, posterior: str) -> tuple[Tensor, Tensor]:
        """Returns transforms with shape (G U, Q), and the size of every row's context."""
        pit = self.pit[posterior]
        return pit.flatten(0, 1), torch.tensor(self.sizes).repeat_interleave(pit.shape[1])


@torch.no_grad()
def calibrate(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    sizes: Sequence[int] = (0, 1, 2, 4, 8, 16),
    num_users: int = 2000,
    num_samples: int = 1000,
    source: HeterogeneousBTL | None = None,
    draw: Callable[[SimulatedPeople, int], Weighted] | None = None,
    seed: int = 0,
) -> CalibrationStudy:
    """Studies the posteriors of people simulated from the model, or from another one.

    Args:
        model: A fitted model with latent factor.
        guide: Its guide; None where `draw` needs none.
        data: Whose pairs are asked.
        sizes: Numbers of known choices.
        num_users: People simulated at each of them.
        num_samples: Draws S of each person's posterior.
        source: Model that the people come from, such as the truth of a simulation; the fitted one
            if None. From another one even exact posteriors are not calibrated.
        draw: Another way to a posterior, to be studied in the same manner: maps people and a seed
            to draws (S, U, K) and normalised log-weights (S, U) by the posterior's name.
        seed: Seed of people and draws.

    Returns:
        The study.

    Raises:
        ValueError: If the data do not fit the model, or a number is out of range.

    References:
        Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based
        calibration, arXiv 1804.06788.
        Modrák et al. (2023), Simulation-based calibration checking for Bayesian computation: the
        choice of test quantities shapes sensitivity, arXiv 2211.02383.
        Lemos et al. (2023), Sampling-based accuracy testing of posterior estimators for general
        inference, arXiv 2302.03026.
    """
    check_data(model, data)
    sizes = check_study(model, sizes, num_users, num_samples)
    if draw is None:
        check_guide(model, guide)
    parts = []
    for size in sizes:
        people = simulate_people(source or model, data, size, num_users, seed=seed)
        if draw is None:
            posterior = _amortised(model, guide, people, num_samples, seed)
            weighted = {
                "corrected": posterior.proposals,
                "guide": _guide_alone(model, guide, people, num_samples, seed),
            }
            about = {"relative_ess": posterior.relative_ess, "pareto_k": posterior.pareto_k}
        else:
            weighted = draw(people, seed)
            about = dict.fromkeys(("relative_ess", "pareto_k"), torch.full((num_users,), math.nan))
        parts.append(_transform(model, people, weighted, seed) | about)
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    summaries = {name: stacked.pop(name) for name in ("relative_ess", "pareto_k", "contraction")}
    return CalibrationStudy(sizes, _QUANTITIES, stacked, **summaries)


def _amortised(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    people: SimulatedPeople,
    num_samples: int,
    seed: int,
) -> Posterior:
    """Returns the posterior that a user would get, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Posterior(model, guide, people.context, num_samples, seed=seed)


def _guide_alone(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    people: SimulatedPeople,
    num_samples: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    draws = draw_posterior(model, guide, people.context, num_samples, seed=seed, correct=None)
    return draws.z, draws.log_weights


def _transform(
    model: HeterogeneousBTL,
    people: SimulatedPeople,
    weighted: Weighted,
    seed: int,
) -> dict[str, Tensor]:
    """Computes the transforms of every posterior, and the contraction of the first."""
    with seeded(seed):
        covariates = people.context.covariates
        elsewhere = model.prior(len(people.context), covariates).sample().cpu()
    transforms = {}
    for name, (z, log_weights) in weighted.items():
        parts = _transform_batches(model, people, elsewhere, z, log_weights, seed)
        pit, variance, truth = (torch.cat(part) for part in zip(*parts, strict=True))
        transforms[name] = pit
        if "contraction" not in transforms:
            between = truth.var(0).clamp(min=torch.finfo(truth.dtype).tiny)
            transforms["contraction"] = 1 - (variance / between).mean(-1)
    return transforms


def _transform_batches(
    model: HeterogeneousBTL,
    people: SimulatedPeople,
    elsewhere: Tensor,
    z: Tensor,
    log_weights: Tensor,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields transforms (U, Q), and of fixed pairs posterior variances and true margins (U, F)."""
    for chunk, target in user_batches(people.target, len(z), model.device):
        context = people.context.batch(range(chunk.start, chunk.stop)).to(model.device)
        # The truth, somewhere else, and the draws.
        drawn = torch.cat([elsewhere[None, chunk], z[:, chunk]]).to(model.device)
        pairs = (people.source, people.z[None, chunk].to(model.device)), (model, drawn)
        margin = torch.cat([by.choice(target, at).margin for by, at in pairs]).cpu()
        log_prob = [by.choice(context, at).log_prob(context.choice) for by, at in pairs]
        log_prob = torch.cat(log_prob).cpu().unsqueeze(-1)
        share = log_weights[:, chunk].exp().unsqueeze(-1)
        mean = (share * margin[2:]).sum(0)
        # The point between the posterior and somewhere else depends on the context, without which
        # the prior would pass (Lemos et al. 2023).
        distance = (margin - (mean + margin[1]) / 2).norm(dim=-1, keepdim=True)
        values = torch.cat([margin, distance, log_prob], -1)
        pit = diagnostics.weighted_pit(
            values[2:], log_weights[:, chunk], values[0], seed=seed + chunk.start
        )
        variance = (share * (margin[2:] - mean).square()).sum(0)
        yield pit, variance[:, :NUM_FIXED], margin[0, :, :NUM_FIXED]


def check_study(
    model: HeterogeneousBTL, sizes: Sequence[int], num_users: int, num_samples: int
) -> tuple[int, ...]:
    """Returns the sizes as integers, or raises a ValueError that says what cannot be studied."""
    if model.latent_dim == 0:
        raise ValueError(
            "model must have latent_dim of at least 1 to be studied, got 0: everybody has the same "
            "utilities and nothing is inferred from a person's choices"
        )
    rule = f"sizes must be different numbers of known choices from 0, got {sizes!r}"
    if not isinstance(sizes, Iterable) or any(size != int(size) for size in sizes):
        raise ValueError(rule)
    sizes = tuple(int(size) for size in sizes)
    if not sizes or min(sizes) < 0 or len(set(sizes)) < len(sizes):
        raise ValueError(rule)
    if num_users < 100:
        raise ValueError(
            f"num_users must be at least 100, fewer show no miscalibration, got {num_users}"
        )
    if num_samples < 100:
        raise ValueError(
            f"num_samples must be at least 100, for transforms that are nearly continuous, got "
            f"{num_samples}"
        )
    return sizes
