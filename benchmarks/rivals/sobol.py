"""Quasi-Monte-Carlo over the prior: one set of points for everybody, weighted by likelihood."""

from __future__ import annotations

import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch.nn.functional import logsigmoid

from benchmarks.rivals.problem import Draws, Problem
from benchmarks.rivals.rival import Independent

__all__ = ["SharedSobol"]

_PEOPLE = 16  # At once, so that a block of margins stays in the cache.


class SharedSobol(Independent):
    """Scrambled Sobol points of the prior; people differ in their weights alone."""

    name = "shared Sobol"

    @torch.no_grad()
    def draw(self, problem: Problem, size: int, seed: int) -> Draws:
        """Returns the same points for everybody, weighted by each person's likelihood."""
        model, context = problem.model, problem.context
        # A power of two of points, as Sobol's are balanced then.
        points = qmc.Sobol(model.latent_dim, rng=seed).random_base2((size - 1).bit_length())
        z = torch.from_numpy(ndtri(points.clip(1e-12, 1 - 1e-12))).float()
        utility = model.item_utility(context.items, z.unsqueeze(1))[:, 0].T.contiguous()
        left, right, choice = map(torch.as_tensor, (context.left, context.right, context.choice))
        better, worse = (
            torch.where(choice > 0.5, left, right),
            torch.where(choice > 0.5, right, left),
        )
        parts = []
        rows = _PEOPLE * problem.size
        for start in range(0, len(better), rows):
            some = slice(start, start + rows)
            margin = utility[better[some]] - utility[worse[some]]
            parts.append(logsigmoid(margin).view(-1, problem.size, len(z)).sum(1))
        log_weights = torch.cat(parts).T
        return Draws(z.unsqueeze(1).expand(-1, len(context), -1), log_weights)
