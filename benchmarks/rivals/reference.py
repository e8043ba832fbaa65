"""What the rivals are judged by: a grid for two latent dimensions, else long importance sampling.

A person's proposals are t distributions, the first at the mode, the second at the mean and the
covariance that the first ones give, each mixed with draws of the prior that bound the weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Chi2

from benchmarks.rivals.laplace import log_joint, normal_approximation
from benchmarks.rivals.problem import Choices, Draws, Estimate, Problem
from fssa_bayes import exact

__all__ = ["sample_long", "solve"]

_FREEDOM = 10.0
_FROM_PRIOR = 0.1  # Share of the draws.


def solve(problem: Problem, draws: int, seed: int) -> Estimate:
    """Returns choice probabilities with their standard errors, which a grid does not have."""
    if problem.model.latent_dim == 2:
        grid = exact.grid(problem.model, problem.context)
        prob, _ = problem.choice_prob(Draws(grid.z, grid.log_weights))
        return Estimate(prob, torch.zeros_like(prob))
    return sample_long(problem, draws, seed)


def sample_long(problem: Problem, draws: int, seed: int) -> Estimate:
    """Estimates choice probabilities by importance sampling, one person after another."""
    generator = torch.Generator().manual_seed(seed)
    choices = problem.choices()
    modes, information = normal_approximation(choices)
    parts = []
    for person, mode in enumerate(modes):
        own = Choices(*(part[[person]] for part in choices))
        location, covariance = mode, np.linalg.inv(information[person])
        for number in (draws // 10, draws):
            z, log_weights = _sample(own, location, covariance, number, generator)
            weights = log_weights.softmax(0)
            location = weights @ z
            covariance = (weights.unsqueeze(-1) * (z - location)).T @ (z - location)
        parts.append(problem.choice_prob(Draws(z.unsqueeze(1), log_weights.unsqueeze(1))))
    return Estimate(*map(torch.cat, zip(*parts, strict=True)))


def _sample(
    choices: Choices,
    location: np.ndarray | Tensor,
    covariance: np.ndarray | Tensor,
    number: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Returns draws (S, K) of the mixture and their log-weights (S,), for one person."""
    location, covariance = torch.as_tensor(location), torch.as_tensor(covariance)
    root, width = torch.linalg.cholesky(covariance), len(location)
    noise = torch.randn(number, width, generator=generator, dtype=torch.float64)
    prior = round(_FROM_PRIOR * number)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        chi_square = Chi2(torch.tensor(_FREEDOM, dtype=torch.float64)).sample((number - prior, 1))
    heavy = noise[prior:] * (_FREEDOM / chi_square).sqrt()
    z = torch.cat([noise[:prior], location + heavy @ root.T])
    standard = torch.linalg.solve_triangular(root, (z - location).T, upper=False)
    size = standard.square().sum(0)
    log_t = -0.5 * (_FREEDOM + width) * torch.log1p(size / _FREEDOM) - root.diagonal().log().sum()
    log_t += math.lgamma((_FREEDOM + width) / 2) - math.lgamma(_FREEDOM / 2)
    log_t -= 0.5 * width * math.log(_FREEDOM * math.pi)
    log_prior = -0.5 * z.square().sum(-1) - 0.5 * width * math.log(2 * math.pi)
    mixture = torch.logaddexp(log_t + math.log1p(-_FROM_PRIOR), log_prior + math.log(_FROM_PRIOR))
    return z, log_joint(choices, z.unsqueeze(0))[0] - mixture
