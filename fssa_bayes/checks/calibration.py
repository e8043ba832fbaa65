r"""Does a posterior cover people who are simulated from its own model?

People are drawn from the fitted model, z from p(z), and asked pairs of the data. Were the posterior
exact, the probability integral transform of a true value in its posterior would be uniform, at
every number of known choices (Talts et al. 2018). All quantities are free of the gauge of z:
margins of pairs that are the same for everybody; margins of pairs of each person's own, whose ranks
are those of their choice probabilities; the distance to a point that depends on the context (TARP,
Lemos et al. 2023); and the log-likelihood of the context, which alone sees a posterior that has
learnt too little from it (Modrák et al. 2023).

These checks see whether the guide and its correction match the *fitted model*. They cannot see a
wrong model, which passes on its own simulations; :mod:`fssa_bayes.report` sets them beside checks
on real people.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes import diagnostics
from fssa_bayes._random import seeded
from fssa_bayes.checks.simulation import (
    NUM_FIXED,
    NUM_OWN,
    SimulatedPeople,
    simulate_people,
)
from fssa_bayes.data import Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.posterior import Posterior
from fssa_bayes.sampling import draw_posterior

__all__ = ["LEVELS", "CalibrationStudy", "calibrate", "check_study", "transform_truths"]

LEVELS = (0.5, 0.8, 0.95)
"""Probabilities of the central intervals whose coverage is counted."""

_QUANTITIES = (
    *(f"difference of pair {pair + 1}" for pair in range(NUM_FIXED)),
    *(f"probability of own pair {pair + 1}" for pair in range(NUM_OWN)),
    "distance to a point (TARP)",
    "log-likelihood of context",
)

Weighted = dict[str, tuple[Tensor, Tensor]]
"""By the name of a posterior, its draws (S, U, K) and their normalised log-weights (S, U)."""

_ABOUT = ("pareto_k", "relative_ess", "reliable", "guide_pareto_k", "guide_relative_ess")


@dataclass(frozen=True)
class CalibrationStudy:
    """Holds transforms of simulated truths in their posteriors, by number of known choices.

    G sizes of context, U people at each, Q quantities.

    Attributes:
        sizes: Numbers of known choices, (G,).
        quantities: Names of the quantities, (Q,).
        pit: Probability integral transforms with shape (G, U, Q), by name of the posterior:
            `"corrected"`, the importance-weighted draws, and `"guide"`, the guide's own draws,
            unless other draws were studied. The log-likelihood of an empty context says nothing:
            its transforms are random numbers.
        pareto_k: Pareto k-hat of the importance weights of the corrected posteriors, (G, U).
        relative_ess: Effective sample size of these weights as a share of the draws, (G, U).
        reliable: 1 where the corrected draws can be relied upon, else 0, (G, U).
        guide_pareto_k: Pareto k-hat of draws of the guide alone, (G, U).
        guide_relative_ess: Their effective sample size as a share of the draws, (G, U). All five
            are NaN where other draws were studied.
        contraction: 1 − posterior over prior variance of a margin, the mean over the fixed pairs,
            for the first posterior, (G, U). The prior is that of all people together, so that what
            is learned from covariates counts.
    """

    sizes: tuple[int, ...]
    quantities: tuple[str, ...]
    pit: dict[str, Tensor]
    pareto_k: Tensor
    relative_ess: Tensor
    reliable: Tensor
    guide_pareto_k: Tensor
    guide_relative_ess: Tensor
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
        guide: Its guide; None where `draw` needs none, and for a linear utility with a normal
            prior, whose `"corrected"` posteriors are studied alone then.
        data: Pairs that the people are asked.
        sizes: Numbers of known choices.
        num_users: People simulated at each of them.
        num_samples: Draws S of each person's posterior.
        source: Model that the people come from, such as the truth of a simulation; the fitted one
            if None. With people from another model even exact posteriors are not calibrated. It has
            the model's items, features and covariates in the same order.
        draw: Draws other posteriors, which are studied instead: maps people and a seed to draws
            (S, U, K) and normalised log-weights (S, U) by the posterior's name.
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
    data = align(model, data)
    if source is not None and data.for_model(source) is not data:
        raise ValueError(
            "source must have the items, features and covariates of the model, in the same order, "
            "as both are asked the same pairs, got others"
        )
    sizes = check_study(model, sizes, num_users, num_samples)
    if draw is None:
        check_guide(model, guide, may_lack=model.is_mixed_logit)
    parts = []
    for size in sizes:
        people = simulate_people(source or model, data, size, num_users, seed=seed)
        if draw is None:
            with warnings.catch_warnings():  # The study itself judges the draws.
                warnings.simplefilter("ignore", UserWarning)
                posterior = Posterior(model, guide, people.context, num_samples, seed=seed)
            weighted = {"corrected": posterior.proposals}
            if guide is not None:
                alone = draw_posterior(
                    model, guide, people.context, num_samples, seed=seed, correct=None
                )
                weighted["guide"] = alone.z, alone.log_weights
            about = {name: getattr(posterior, name).float() for name in _ABOUT}
        else:
            weighted = draw(people, seed)
            about = dict.fromkeys(_ABOUT, torch.full((num_users,), math.nan))
        parts.append(transform_truths(model, people, weighted, seed) | about)
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    summaries = {name: stacked.pop(name) for name in (*_ABOUT, "contraction")}
    return CalibrationStudy(sizes, _QUANTITIES, stacked, **summaries)


def transform_truths(
    model: HeterogeneousBTL, people: SimulatedPeople, weighted: Weighted, seed: int
) -> dict[str, Tensor]:
    """Computes the transforms of the true quantities in every posterior.

    Args:
        model: The model whose posteriors they are.
        people: The simulated people, of whom the truth is known.
        weighted: Draws and normalised log-weights by the name of the posterior.
        seed: Seed of the points of TARP and of randomised ties.

    Returns:
        Probability integral transforms (U, Q) by the name of the posterior; and `contraction`, that
        of the first posterior, (U,).
    """
    with seeded(seed):
        covariates = people.context.covariates
        elsewhere = model.prior(len(people.context), covariates).sample().cpu()
    transforms = {}
    for name, (z, log_weights) in weighted.items():
        parts = []
        for chunk, target in user_batches(people.target, len(z), model.device):
            context = people.context.batch(range(chunk.start, chunk.stop)).to(model.device)
            # The truth, a draw of the prior, and the draws of the posterior.
            drawn = torch.cat([elsewhere[None, chunk], z[:, chunk]]).to(model.device)
            pairs = (people.source, people.z[None, chunk].to(model.device)), (model, drawn)
            margin = torch.cat([by.choice(target, at).margin for by, at in pairs]).cpu()
            log_prob = [by.choice(context, at).log_prob(context.choice) for by, at in pairs]
            log_prob = torch.cat(log_prob).cpu().unsqueeze(-1)
            share = log_weights[:, chunk].exp().unsqueeze(-1)
            mean = (share * margin[2:]).sum(0)
            # The reference point of TARP, midway between the posterior mean and a draw of the
            # prior, depends on the context; else the prior would pass (Lemos et al. 2023).
            distance = (margin - (mean + margin[1]) / 2).norm(dim=-1, keepdim=True)
            values = torch.cat([margin, distance, log_prob], -1)
            pit = diagnostics.weighted_pit(
                values[2:], log_weights[:, chunk], values[0], seed=seed + chunk.start
            )
            variance = (share * (margin[2:] - mean).square()).sum(0)
            parts.append((pit, variance[:, :NUM_FIXED], margin[0, :, :NUM_FIXED]))
        pit, variance, truth = (torch.cat(part) for part in zip(*parts, strict=True))
        transforms[name] = pit
        if "contraction" not in transforms:
            between = truth.var(0).clamp(min=torch.finfo(truth.dtype).tiny)
            transforms["contraction"] = 1 - (variance / between).mean(-1)
    return transforms


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
