"""How close `Sleep` brings the guide to the posterior of a fitted model, by number of contexts.

Informative choices: people's centred utilities have a standard deviation of about two nats. A model
is fitted to 2,000 people with 12 choices each, its guide refined by `Sleep`, and people are
simulated fresh from the fitted model, with 0 to 32 choices (`Sleep` teaches up to 24). KL(p‖q) of
the raw guide is taken on a grid of each person's own, with q normalised over all space, so that its
mass off the grid counts.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks import recovery
from benchmarks.harness import Row, seeded, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    exact,
    fit,
)
from fssa_bayes.checks import ask
from fssa_bayes.diagnostics import kl_to_grid
from fssa_bayes.sampling import MOST_PARETO_K, score_draws

SIZES = (0, 1, 2, 4, 8, 16, 32)
# Standard deviation of centred utilities between people in the truth, in nats. A bilinear fit of
# these people recovers three quarters of it, so that both fitted models have about two nats.
SPREAD = {"linear": 2.0, "bilinear": 2.75}


def run(args: argparse.Namespace) -> Iterator[Row]:
    cases = [
        ("linear", "normal", 2, "flow"),
        ("linear", "normal", 2, "bent flow"),
        ("linear", "normal", 2, "multivariate_normal"),
        ("linear", "normal", 2, "normal"),
        ("linear", "flow", 2, "flow"),
        ("bilinear", "normal", 2, "flow"),
        ("bilinear", "normal", 2, "bent flow"),
        ("bilinear", "normal", 2, "multivariate_normal"),
        ("bilinear", "normal", 2, "normal"),
        ("bilinear", "flow", 2, "flow"),
        ("bilinear", "normal", 4, "flow"),
        ("bilinear", "normal", 8, "flow"),
    ]
    for utility, prior, latent_dim, family in cases[:1] if args.quick else cases:
        values = defaultdict(list)
        for seed in args.seeds:
            measure_case(utility, prior, latent_dim, family, seed, args.quick, values)
        case = f"{utility}, {prior} prior, K = {latent_dim}"
        for (metric, unit), figures in values.items():
            yield spread("refinement", case, f"{family}, Sleep", metric, unit, figures)


def measure_case(
    utility: str,
    prior: str,
    latent_dim: int,
    family: str,
    seed: int,
    quick: bool,
    values: dict[tuple[str, str], list[float]],
) -> None:
    """Fits, refines, and adds the figures of every context size to `values`."""
    people, steps, new = (100, 10, 20) if quick else (2000, 1500, 500)
    data = simulate(utility, prior, latent_dim, people, 12, items=200, seed=seed)
    torch.manual_seed(seed)
    model = HeterogeneousBTL(data.num_features, latent_dim, utility, prior)
    coupling = "bent" if family == "bent flow" else "affine"
    guide = NeuralProcessGuide(model, family.removeprefix("bent "), coupling=coupling)
    options = {"validation": None, "progress_bar": False, "seed": seed}
    likelihood = ImportanceWeightedELBO(steps=10 if quick else 1000)
    fit(model, guide, data, objective=likelihood, learning_rate=5e-3, **options)
    start = time.process_time()
    fit(model, guide, data, objective=Sleep(16, steps=steps), **options)
    values["refinement", "CPU s"].append(time.process_time() - start)
    with seeded(seed), torch.no_grad():
        z = model.prior(2000).sample()
    values["spread of utilities", "nats"].append(between_people(model, data.items, z))
    for count in SIZES:
        figures = measure(model, guide, data.items, count, new, seed + 1000)
        at = f"at {count}"
        if "kl" in figures:
            values[f"KL(p || q) {at}", "nats"].append(figures["kl"].mean())
        values[f"relative ESS {at}", ""].append(figures["ess"].mean())
        values[f"k-hat < .7 {at}", "of people"].append((figures["pareto_k"] < MOST_PARETO_K).mean())


def simulate(
    utility: str, prior: str, latent_dim: int, people: int, comparisons: int, items: int, seed: int
) -> Preferences:
    """Draws people from a truth with that spread of utilities, asked about random pairs.

    With the prior `"flow"` they form two groups, which a normal prior cannot describe.
    """
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(items, 5))).float()
    with seeded(seed), torch.no_grad():
        truth = HeterogeneousBTL(5, latent_dim, utility)
        z = torch.randn(max(people, 2000), latent_dim)
        if prior == "flow":
            z[:, 0] = 0.5 * z[:, 0] + torch.randn(len(z)).sign()
        if utility == "linear":
            truth.utility.mean.copy_(recovery.MEAN)
            truth.utility.loading.normal_()
            truth.utility.loading.mul_(SPREAD[utility] / between_people(truth, features, z))
        else:
            last = truth.utility.user_tower[-1]
            scale = SPREAD[utility] / between_people(truth, features, z)
            last.weight.mul_(scale)
            last.bias.mul_(scale)
        data = questions(features, people, comparisons, seed)
        batch = data.batch()
        choice = truth.choice(batch, z[:people]).sample()
    return data.with_choices(choice[batch.mask].numpy())


def between_people(model: HeterogeneousBTL, items: Tensor, z: Tensor) -> float:
    """Computes the standard deviation between people of centred utilities, in nats."""
    with torch.no_grad():
        utility = model.item_utility(items, z)
    centred = utility - utility.mean(-1, keepdim=True)
    return centred.var(0).mean().sqrt().item()


def questions(items: Tensor, people: int, comparisons: int, seed: int) -> Preferences:
    """Asks everybody about as many random pairs, with no answers yet."""
    return ask(items, people, comparisons, np.random.default_rng([seed, comparisons]))


def measure(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    items: Tensor,
    count: int,
    people: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Measures the guide on people simulated from the model with `count` choices each.

    Returns:
        `kl` in nats (K = 2); of the guide, `ess` as a share of the draws and `pareto_k`; each (U,).
    """
    context, _ = model.simulate(questions(items, people, count, seed), seed=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the largest context has")
        posterior = Posterior(model, guide, context, seed=seed)
    figures = {
        "ess": posterior.guide_relative_ess.numpy(),
        "pareto_k": posterior.guide_pareto_k.numpy(),
    }
    if model.latent_dim == 2:
        figures["kl"] = divergence(model, guide, context).numpy()
    return figures


def divergence(
    model: HeterogeneousBTL, guide: NeuralProcessGuide, context: Preferences, num: int = 101
) -> Tensor:
    """Computes KL(p ‖ q) of every person on a grid of num × num points, in nats, (U,)."""
    gold = exact.grid(model, context, num=num)
    log_guide = score_draws(guide, context, gold.z)
    log_posterior = gold.log_joint.double() - gold.log_evidence
    volume = (gold.log_weights - log_posterior).exp()
    return kl_to_grid(log_posterior, log_guide, volume)
