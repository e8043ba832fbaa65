"""Laplace's approximation: the mode and the curvature there, with smoothed importance weights."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.rivals.problem import Choices, Draws, Problem
from benchmarks.rivals.rival import Independent
from fssa_bayes.sampling import pareto_smooth

__all__ = ["Laplace", "log_joint", "normal_approximation"]

_ITERATIONS, _TOLERANCE = 50, 1e-10


def normal_approximation(choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Finds modes (U, K) and informations (U, K, K) there by Newton's method.

    The log-posterior is concave. A step longer than 2 is shortened to it, which suffices where a
    margin's slope by z is of the order of 1.
    """
    design, offset = choices
    z = np.zeros((len(design), design.shape[-1]))
    for _ in range(_ITERATIONS):
        prob = expit(-(offset + np.einsum("unk,uk->un", design, z)))
        slope = np.einsum("unk,un->uk", design, prob) - z
        information = design.swapaxes(1, 2) @ (design * (prob * (1 - prob))[..., None])
        information += np.eye(z.shape[1])
        step = np.linalg.solve(information, slope[..., None])[..., 0]
        z += step * np.minimum(1, 2 / np.linalg.norm(step, axis=1, keepdims=True).clip(1e-12))
        if (slope * step).sum(1).max() < _TOLERANCE:
            break
    return z, information


def log_joint(choices: Choices, z: Tensor) -> Tensor:
    """Evaluates log p(z) p(C|z) up to a constant, (U, S), for z with shape (U, S, K)."""
    design, offset = (torch.from_numpy(part).to(z.dtype) for part in choices)
    margin = torch.baddbmm(offset.unsqueeze(-1), design, z.transpose(1, 2))
    return logsigmoid(margin).sum(1) - 0.5 * z.square().sum(-1)


class Laplace(Independent):
    """Draws from the normal approximation, weighted by p(z) p(C|z) over its density."""

    name = "Laplace, smoothed"
    least = 25  # Of which a tail of weights can be fitted.
    linear_only = True

    def draw(self, problem: Problem, size: int, seed: int) -> Draws:
        """Draws from the normal distribution of each person, weighted."""
        choices = problem.choices()
        mode, information = map(torch.from_numpy, normal_approximation(choices))
        generator = torch.Generator().manual_seed(seed)
        people, width = mode.shape
        noise = torch.randn(people, size, width, generator=generator)
        root = torch.linalg.inv(torch.linalg.cholesky(information)).float()
        z = torch.baddbmm(mode.float().unsqueeze(1), noise, root)  # The rows are (L⁻ᵀ ε)ᵀ.
        log_weights = log_joint(choices, z) + 0.5 * noise.square().sum(-1)
        smoothed, _ = pareto_smooth(log_weights.double().numpy())
        return Draws(z.transpose(0, 1), torch.from_numpy(smoothed).T)
