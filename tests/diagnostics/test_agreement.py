"""Contraction, effective sample size and the divergence to a grid, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diagnostic_studies import SIZES, study
from torch import Tensor
from torch.distributions import Normal

from fssa_bayes import diagnostics as dg


@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
def test_contraction_is_that_of_the_variances(scale: float) -> None:
    people = study(500, 400, scale=scale)
    values = people.values[..., :2]
    sd = values.std(0, correction=0)
    prior_sd = torch.tensor([1.25, 1.04]).double().sqrt()
    shrunk = dg.contraction(prior_sd, sd)
    for size in SIZES:
        chosen = torch.from_numpy(people.size == size)
        # The exact posterior's variance is 1 / (1 + n) of the prior's.
        expected = 1 - scale**2 / (1 + size)
        assert shrunk[chosen].mean().item() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("sd", [1.0, 1.4])
def test_effective_sample_size_has_its_closed_form(sd: float) -> None:
    # N(0, 1) by draws of N(0, s²): E[w²] = s² / sqrt(2 s² − 1) for w of mean 1.
    target, proposal = Normal(0.0, 1.0), Normal(0.0, sd)
    z = proposal.sample((20_000, 3))
    ess = dg.effective_sample_size(target.log_prob(z) - proposal.log_prob(z) - 3)
    expected = math.sqrt(2 * sd**2 - 1) / sd**2
    np.testing.assert_allclose(ess / 20_000, expected, rtol=0.02)


def normal_grid(loc: float, scale: float, half_width: float = 10.0) -> tuple[Tensor, Tensor, float]:
    """Log-densities of N(0, 1) and N(loc, scale²) on a grid, with the volume of a cell."""
    points = torch.linspace(-half_width, half_width, 2001, dtype=torch.float64)
    exact, other = (torch.tensor(pair, dtype=torch.float64) for pair in ((0, 1), (loc, scale)))
    log_p, log_q = Normal(*exact).log_prob(points), Normal(*other).log_prob(points)
    return log_p[:, None], log_q[:, None], (points[1] - points[0]).item()


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.0, 0.7), (0.0, 1.4), (0.3, 1.0)])
def test_divergences_to_a_grid_are_those_of_normals(loc: float, scale: float) -> None:
    log_p, log_q, volume = normal_grid(loc, scale)
    expected = math.log(scale) + (1 + loc**2) / (2 * scale**2) - 0.5
    # A grid posterior is known up to a constant.
    kl = dg.kl_to_grid(log_p - 12.0, log_q, volume).item()
    assert kl == pytest.approx(expected, abs=1e-9)


def test_mass_off_the_grid_counts() -> None:
    # q is half p and half a far mode that the grid does not reach.
    log_p, _, volume = normal_grid(0.0, 1.0)
    log_q = log_p - math.log(2)
    assert dg.kl_to_grid(log_p, log_q, volume).item() == pytest.approx(math.log(2))


def test_points_may_stand_for_volumes_of_their_own() -> None:
    # Points at quantiles of N(0, 1) with the volumes between their neighbours, for two people.
    u = torch.linspace(0, 1, 4001, dtype=torch.float64)
    edges = Normal(0.0, 1.0).icdf(u[1:-1])
    points, volume = (edges[1:] + edges[:-1]) / 2, edges.diff()
    log_p = Normal(0.0, 1.0).log_prob(points)[:, None].expand(-1, 2)
    log_q = Normal(torch.tensor([0.0, 0.3]), 1.0).log_prob(points[:, None])
    kl = dg.kl_to_grid(log_p, log_q, volume[:, None].expand(-1, 2))
    np.testing.assert_allclose(kl, [0.0, 0.045], atol=1e-3)
    # A volume of each person, and points of no mass under p where q has none either.
    log_p, log_q, cell = normal_grid(0.3, 1.0, half_width=60.0)
    log_p = log_p.expand(-1, 2)
    kl = dg.kl_to_grid(log_p, log_q.expand(-1, 2), torch.full((2,), cell))
    np.testing.assert_allclose(kl, 0.045, atol=1e-6)
    impossible = torch.where(log_p < -50, -torch.inf, log_p)
    assert dg.kl_to_grid(impossible, impossible, cell).abs().max() < 1e-12
    assert (dg.kl_to_grid(log_p, impossible, cell) == torch.inf).all()
