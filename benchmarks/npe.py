"""Amortised posteriors of a linear utility with K = 2, beside `sbi`'s neural posterior estimation.

Both are taught by simulation from a model that is known: z from the prior, choices given z. `sbi`
(NPE with a neural spline flow, its own stopping rule) sees ten choices a person through an
embedding that ignores their order, each as the signed difference of the items' loadings and its
offset, of which the likelihood is a function. Our guides, a multivariate normal and a flow, are
taught for contexts of 0 to 60 choices by `Sleep`, with one particle and with 16, for as many CPU
seconds as `sbi` has used on 2,000 simulations. KL(p‖q) is that to the exact posterior on a grid,
the mean over people with ten choices.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row, seeded, spread
from benchmarks.rivals.problem import Problem, make_problem, signed_choices, teach
from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, Sleep, exact, fit
from fssa_bayes.checks import ask
from fssa_bayes.sampling import ExactPosterior, score_draws

KNOWN = 10
_FEWEST, _MEASURED = 5, 20  # Steps of `Sleep`: at least, and to see what a step takes.


def run(args: argparse.Namespace) -> Iterator[Row]:
    has_sbi = importlib.util.find_spec("sbi") is not None
    people, simulations = (20, 500) if args.quick else (400, 2000)
    if not has_sbi:
        print("npe: sbi skipped, it is not installed: our guides are taught for 10 seconds")
    values = defaultdict(list)
    for seed in args.seeds:
        taught = teach("linear", 2, people=100 if args.quick else 2000, steps=1, seed=seed)
        problem = make_problem(taught, people, KNOWN, seed=seed)
        grid = exact.grid(problem.model, problem.context)
        _compare(problem, grid, simulations, seed, args.quick, has_sbi, values)
    for (case, name, metric, unit), figures in values.items():
        yield spread("npe", case, name, metric, unit, figures)


def _compare(
    problem: Problem,
    grid: ExactPosterior,
    simulations: int,
    seed: int,
    quick: bool,
    has_sbi: bool,
    values: dict[tuple[str, str, str, str], list[float]],
) -> None:
    """Adds the figures of `sbi` with so many simulations, and of our guides at its seconds."""
    seconds = 1.0 if quick else 10.0

    def add(name: str, used: float, divergence: float) -> None:
        case = f"linear, K = 2, {KNOWN} known"
        values[case, name, "CPU time of teaching", "s"].append(used)
        values[case, name, "KL(p || q)", "nats"].append(divergence)

    if has_sbi:
        seconds, divergence = _sbi(problem, grid, simulations, seed, quick)
        add("sbi NPE", seconds, divergence)
    for family, short in (("multivariate_normal", "normal"), ("flow", "flow")):
        for particles in (1, 16):
            used, divergence = _ours(problem, grid, family, particles, seconds, seed)
            add(f"{short}, Sleep({particles})", used, divergence)


def _ours(
    problem: Problem,
    grid: ExactPosterior,
    family: str,
    particles: int,
    seconds: float,
    seed: int,
) -> tuple[float, float]:
    """Teaches a guide for about as many CPU seconds, and returns those used and its divergence."""
    model, data = problem.model, _asked(problem, 1000, 30, seed)[0]

    def teach_guide(steps: int) -> tuple[NeuralProcessGuide, float]:
        with seeded(seed):
            guide = NeuralProcessGuide(model, family)
        start = time.process_time()
        options = {"validation": None, "seed": seed, "progress_bar": False}
        fit(model, guide, data, objective=[Sleep(particles, steps=steps)], **options)
        return guide.eval(), time.process_time() - start

    # What a fit takes apart from its steps cancels in the difference.
    short, long = (teach_guide(count * _MEASURED)[1] for count in (1, 2))
    steps = 2 * _MEASURED + (seconds - long) * _MEASURED / max(long - short, 1e-3)
    guide, used = teach_guide(max(_FEWEST, round(steps)))
    return used, _divergence(grid, score_draws(guide, problem.context, grid.z))


def _sbi(
    problem: Problem, grid: ExactPosterior, simulations: int, seed: int, quick: bool
) -> tuple[float, float]:
    """Teaches NPE, and returns its CPU seconds and its divergence."""
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn
    from sbi.neural_nets.embedding_nets import FCEmbedding, PermutationInvariantEmbedding
    from torch.utils.tensorboard import SummaryWriter

    with warnings.catch_warnings(), seeded(seed):
        warnings.simplefilter("ignore")  # Of sbi's own dependencies.
        start = time.process_time()
        simulated, z = _asked(problem, simulations, KNOWN, seed)
        x = _as_trials(problem.model, simulated)
        single = FCEmbedding(x.shape[-1], output_dim=64, num_hiddens=64)
        embedding = PermutationInvariantEmbedding(single, trial_net_output_dim=64, output_dim=64)
        density = posterior_nn("nsf", embedding_net=embedding, z_score_x="none")
        prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        with TemporaryDirectory() as folder:
            writer = SummaryWriter(folder)  # sbi's own would write into the working directory.
            options = {"summary_writer": writer, "show_progress_bars": False}
            inference = NPE(prior, density_estimator=density, **options)
            inference.append_simulations(z, x)
            estimator = inference.train(**({"max_num_epochs": 2} if quick else {})).eval()
            seconds = time.process_time() - start
            writer.close()
        observed = _as_trials(problem.model, problem.context)
        with torch.no_grad():
            parts = [estimator.log_prob(part, observed) for part in grid.z.float().split(500)]
    return seconds, _divergence(grid, torch.cat(parts))


def _asked(problem: Problem, people: int, size: int, seed: int) -> tuple[Preferences, Tensor]:
    """Simulates people of the model: their choices, and their z with shape (U, K)."""
    rng = np.random.default_rng([seed, people])
    data, z = problem.model.simulate(ask(problem.taught.items, people, size, rng), seed=seed + 2)
    return data, torch.as_tensor(z).float()


def _as_trials(model: HeterogeneousBTL, data: Preferences) -> Tensor:
    """Returns each choice as its row of the design and its offset, with shape (U, N, K + 1)."""
    design, offset = signed_choices(model, data)
    return torch.from_numpy(np.concatenate([design, offset[..., None]], -1)).float()


def _divergence(grid: ExactPosterior, log_guide: Tensor) -> float:
    """Averages KL(p‖q) over people, from log q(z|C) at the points of the grid, (S, U)."""
    log_ratio = grid.log_joint - grid.log_evidence - log_guide
    return (grid.log_weights.exp() * log_ratio).sum(0).mean().item()
