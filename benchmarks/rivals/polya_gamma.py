"""Gibbs sampling of a logistic regression by Pólya–Gamma variables, all people at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.rivals.problem import Draws, Problem
from benchmarks.rivals.rival import Point, Rival, Stopwatch

__all__ = ["PolyaGamma"]

_BURN_IN = 0.1  # Share of the iterations that is dropped.


class PolyaGamma(Rival):
    r"""One chain a person, in turn ω | z, of PG(1, m), and z | ω, which is normal.

    With X the design and b the offset of choices that all count as 1, z has the precision
    :math:`I + X^T \Omega X` and its mean times it is :math:`X^T (½ - Ω b)`.

    References:
        Polson, Scott & Windle (2013), Bayesian inference for logistic models using Pólya–Gamma
        latent variables, JASA 108.
    """

    name = "Pólya–Gamma Gibbs"
    package = "polyagamma"
    linear_only = True

    def curve(self, problem: Problem, sizes: Sequence[int], seed: int) -> Iterator[Point]:
        """Yields the draws of a chain that goes on from one size to the next."""
        from polyagamma import random_polyagamma

        rng, watch = np.random.default_rng(seed), Stopwatch()
        with watch:
            design, offset = problem.choices()
            transposed = np.ascontiguousarray(design.swapaxes(1, 2))
        z = np.zeros((len(design), design.shape[-1]))
        kept = np.empty((sizes[-1], *z.shape))
        eye, done = np.eye(z.shape[1]), 0
        for size in sizes:
            with watch:
                for iteration in range(done, size):
                    margin = offset + (design @ z[..., None])[..., 0]
                    omega = random_polyagamma(1, margin, random_state=rng)
                    root = np.linalg.cholesky(transposed @ (design * omega[..., None]) + eye)
                    pull = transposed @ (0.5 - omega * offset)[..., None]
                    # z = L⁻ᵀ (L⁻¹ Xᵀ(½ − Ωb) + ε).
                    inverse = np.linalg.inv(root)
                    half = inverse @ pull + rng.normal(size=pull.shape)
                    z = (inverse.swapaxes(1, 2) @ half)[..., 0]
                    kept[iteration] = z
            done = size
            drawn = kept[round(_BURN_IN * size) : size].copy()
            yield Point(size, watch.wall, watch.cpu, Draws(torch.from_numpy(drawn)))
