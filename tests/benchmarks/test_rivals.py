"""What the rivals draw is the posterior, and what is said of their times is so."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fssa_bayes import exact

pytestmark = pytest.mark.filterwarnings("ignore:100 people are few")

ROOT = Path(__file__).parents[2]
RIVALS = {  # Module, and the draws or iterations that leave an rms error below .01.
    "posterior.Corrected": 2048,
    "laplace.Laplace": 2048,
    "sobol.SharedSobol": 2048,
    "polya_gamma.PolyaGamma": 4096,
    "numpyro_nuts.NumPyroNUTS": 2048,
    "numpyro_nuts.NumPyroHMC": 2048,
}


@pytest.fixture(scope="module")
def load():
    """Imports a module of the benchmarks, which are not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def problems(load) -> dict:
    """Fifteen people with 6 choices each, of a model whose guide has hardly been taught."""
    problem = load("rivals.problem")
    return {
        utility: problem.make_problem(
            problem.teach(utility, 2, people=100, steps=30, seed=0), 15, 6, seed=0
        )
        for utility in ("linear", "bilinear")
    }


@pytest.fixture(scope="module")
def truths(load, problems: dict) -> dict:
    solve = load("rivals.reference").solve
    return {name: solve(problem, 0, 0).prob for name, problem in problems.items()}


@pytest.mark.slow
@pytest.mark.parametrize("utility", ["linear", "bilinear"])
@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_draws_from_the_posterior(
    name: str, utility: str, load, problems: dict, truths: dict
) -> None:
    module, kind = name.split(".")
    rival = getattr(load(f"rivals.{module}"), kind)()
    if not rival.is_there:
        pytest.skip(f"needs the package {rival.package}")
    if rival.linear_only and utility != "linear":
        pytest.skip("needs a linear utility")
    sizes = [64, RIVALS[name]]
    rough, fine = rival.curve(problems[utility], sizes, seed=1)
    off = problems[utility].choice_prob(fine.draws).prob - truths[utility]
    assert off.square().mean().sqrt() < 0.01
    assert (rough.size, fine.size) == tuple(sizes)
    assert rival.is_independent or 0 < rough.wall < fine.wall  # Chains add up their times.
    rough_off = problems[utility].choice_prob(rough.draws).prob - truths[utility]
    assert rough_off.square().mean() > off.square().mean()


def test_long_importance_sampling_agrees_with_the_grid(load, problems: dict, truths: dict) -> None:
    reference = load("rivals.reference")
    estimate = reference.sample_long(problems["linear"], 20_000, 0)
    standardised = (estimate.prob - truths["linear"]) / estimate.error
    assert estimate.error.max() < 0.005
    assert 0.7 < standardised.square().mean().sqrt() < 1.4  # 15 people, pairs are dependent.


def test_choices_as_a_logistic_regression(load, problems: dict) -> None:
    problem = problems["linear"]
    z = torch.randn(15, 4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch = problem.context.batch()
        expected = problem.model.choice(batch, z.transpose(0, 1)).log_prob(batch.choice).T
    found = load("rivals.laplace").log_joint(problem.choices(), z) + 0.5 * z.square().sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_newton_finds_the_mode(load, problems: dict) -> None:
    """At the mode the slope vanishes; on a fine grid no point is higher."""
    choices, laplace = problems["linear"].choices(), load("rivals.laplace")
    mode, information = map(torch.from_numpy, laplace.normal_approximation(choices))
    highest = laplace.log_joint(choices, mode.unsqueeze(1))[:, 0]
    grid = exact.grid(problems["linear"].model, problems["linear"].context)
    others = laplace.log_joint(choices, grid.z.transpose(0, 1).double())
    assert (others.max(1).values <= highest + 1e-9).all()
    assert (others.max(1).values > highest - 0.01).all()
    step = 1e-3 * torch.eye(2, dtype=torch.float64)
    there = [laplace.log_joint(choices, (mode + s).unsqueeze(1))[:, 0] for s in (*step, *-step)]
    second = torch.stack([highest - (there[k] + there[k + 2]) / 2 for k in range(2)], 1) * 2e6
    torch.testing.assert_close(second, information.diagonal(dim1=1, dim2=2), rtol=1e-3, atol=1e-3)


def test_standard_error_by_hand(load, problems: dict) -> None:
    problem, draws = problems["linear"], load("rivals.problem").Draws
    z = torch.randn(3, 15, 2, generator=torch.Generator().manual_seed(1))
    log_weights = torch.tensor([0.2, 0.3, 0.5]).log().unsqueeze(-1).expand(-1, 15) + 7
    estimate = problem.choice_prob(draws(z, log_weights))
    each = torch.stack([problem.choice_prob(draws(z[[place]])).prob for place in range(3)])
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(estimate.prob, (weights * each).sum(0), rtol=1e-5, atol=1e-6)
    error = (weights.square() * (each - estimate.prob).square()).sum(0).sqrt()
    torch.testing.assert_close(estimate.error, error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("level", "seconds"), [(0.05, 400.0), (0.1, 100.0), (0.9, 16.0)])
def test_time_to_an_error(level: float, seconds: float, load) -> None:
    """Errors that fall as 1 / √t reach a level at 1 / level²; a curve begins at its first time."""
    times = np.array([[16.0, 64.0, 256.0, 1024.0]])
    reached = load("inference").at_error(times, times**-0.5, level)
    assert reached == pytest.approx([seconds])


def test_an_error_that_one_seed_never_reaches(load) -> None:
    times, errors = np.array([[1.0, 4.0]] * 2), np.array([[0.2, 0.1], [0.2, 0.15]])
    assert np.isinf(load("inference").at_error(times, errors, 0.12)).all()
    assert np.isfinite(load("inference").at_error(times, errors, 0.16)).all()
