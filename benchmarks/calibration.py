"""Can the posteriors be believed? The calibration study in numbers, over seeds.

- `linear` and `bilinear`, K = 2: people who differ by two nats, a model fitted to 2,000 of them,
  its guide refined. Of the raw guide: KL(p‖q) to the exact posterior on a grid (q's mass off the
  grid counts), relative effective sample size, share of people with Pareto k-hat below .7.
  Simulation-based calibration with 2,000 people at each size. Held-out people set against the
  fitted model and one whose differences between people are shrunk to .8, which passes its own
  simulations.
- `two modes`: posterior mass on a person's type before and after the first telling pair.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.harness import Row, spread
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
from fssa_bayes.checks import (
    CalibrationStudy,
    ask,
    calibrate,
    draw_model,
    predict_held_out,
    score_tests,
    simulate_people,
)
from fssa_bayes.datasets import two_mode
from fssa_bayes.diagnostics import sbc_test
from fssa_bayes.sampling import MOST_PARETO_K, score_draws

SIZES = (0, 1, 2, 4, 8, 16)
NUM_ITEMS, NUM_FEATURES = 60, 5


def run(args: argparse.Namespace) -> Iterator[Row]:
    for utility in ("linear", "bilinear"):
        values = defaultdict(list)
        for seed in args.seeds:
            for key, value in study(utility, seed, args.quick).items():
                values[key].append(value)
        for (case, implementation, metric, unit), figures in values.items():
            name = f"{utility}, {case}"
            yield spread("calibration", name, implementation, metric, unit, figures)
    values = defaultdict(list)
    for seed in args.seeds:
        for key, value in two_modes(seed, args.quick).items():
            values[key].append(value)
    for (case, implementation, metric, unit), figures in values.items():
        yield spread("calibration", case, implementation, metric, unit, figures)


def study(utility: str, seed: int, quick: bool) -> dict[tuple[str, str, str, str], float]:
    people, users, draws = (200, 100, 100) if quick else (2500, 2000, 1000)
    start = time.perf_counter()
    _, data = simulate(utility, 2, people, seed)
    train, test = data.split_users(0.2, seed=seed)
    model, guide = fitted(train, utility, 2, seed, quick)
    values = {("fit", "both", "seconds", "s"): time.perf_counter() - start}
    options = {"sizes": SIZES, "num_users": users, "num_samples": draws, "seed": seed}
    calibration = calibrate(model, guide, train, **options)
    values["study", "both", "seconds, fit included", "s"] = time.perf_counter() - start
    values |= raw_guide(model, guide, train, calibration, seed, quick)
    for posterior in ("corrected", "guide"):
        values |= agreement(calibration, posterior)
    if utility == "linear":
        shrunken, its_guide = copy.deepcopy((model, guide))
        with torch.no_grad():
            shrunken.utility.loading.mul_(0.8)
        own = calibrate(shrunken, its_guide, train, **options).test("corrected")
        values["own simulations", "shrunken to .8", "p, adjusted", ""] = own.p_value
        values |= on_real_people(shrunken, its_guide, test, seed, "shrunken to .8")
    return values | on_real_people(model, guide, test, seed, "fitted")


def simulate(
    utility: str, latent_dim: int, people: int, seed: int
) -> tuple[HeterogeneousBTL, Preferences]:
    """Draws people who differ by two nats and their 12 choices each, on random pairs."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(NUM_ITEMS, NUM_FEATURES))
    pairs = ask(items, people, 12, rng)
    truth = draw_model(pairs.items, latent_dim, utility, spread=2.0, seed=seed)
    return truth, truth.simulate(pairs, seed=seed)[0]


def fitted(
    train: Preferences, utility: str, latent_dim: int, seed: int, quick: bool
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(seed)
    model = HeterogeneousBTL(NUM_FEATURES, latent_dim, utility)
    guide = NeuralProcessGuide(model)
    steps, refine = (10, 10) if quick else (800, 1500)
    stages = [ImportanceWeightedELBO(steps=steps), Sleep(16, steps=refine)]
    fit(model, guide, train, objective=stages, validation=None, seed=seed, progress_bar=False)
    return model, guide


def raw_guide(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    calibration: CalibrationStudy,
    seed: int,
    quick: bool,
) -> dict[tuple[str, str, str, str], float]:
    """Sets the guide's own draws against exact posteriors, by number of known choices."""
    values = {}
    for index, size in enumerate(calibration.sizes):
        context = simulate_people(model, data, size, 20 if quick else 200, seed=seed + 1).context
        gold = exact.grid(model, context)
        log_ratio = gold.log_joint - gold.log_evidence - score_draws(guide, context, gold.z)
        divergence = (gold.log_weights.exp() * log_ratio).sum(0)
        case = f"{size} known"
        values[case, "guide", "KL to the exact posterior", "nats"] = divergence.mean().item()
        ess = calibration.guide_relative_ess[index]
        pareto_k = calibration.guide_pareto_k[index]
        values[case, "guide", "relative effective sample size", ""] = ess.mean().item()
        share = (pareto_k < MOST_PARETO_K).float().mean().item()
        values[case, "guide", "people with k-hat below .7", "%"] = 100 * share
    return values


def agreement(
    calibration: CalibrationStudy, posterior: str
) -> dict[tuple[str, str, str, str], float]:
    """Summarises simulation-based calibration and coverage of a posterior."""
    table = calibration.coverage(posterior)
    off = (table["covered"] - table["level"]).abs().max()
    case = "simulated"
    return {
        (case, posterior, "SBC p, adjusted", ""): calibration.test(posterior).p_value,
        (case, posterior, "intervals within 3 s.e.", "%"): 100 * (table["z"].abs() <= 3).mean(),
        (case, posterior, "coverage, worst z", ""): table["z"].abs().max(),
        (case, posterior, "coverage, worst", "points"): 100 * off,
    }


def on_real_people(
    model: HeterogeneousBTL, guide: NeuralProcessGuide, test: Preferences, seed: int, name: str
) -> dict[tuple[str, str, str, str], float]:
    """Sets people held out, who come from the truth, against a model."""
    directions = score_tests(model, guide, test, seed=seed)
    first = predict_held_out(model, guide, test, sizes=(0,), seed=seed)[0]
    agreements = sbc_test(first.pit.unsqueeze(-1)).p_value
    case = "held out"
    return {
        (case, name, "score test of differences, z", ""): directions["z"].iloc[0],
        (case, name, "agreements covered, p", ""): agreements,
    }


def two_modes(seed: int, quick: bool) -> dict[tuple[str, str, str, str], float]:
    """Measures posterior mass on a person's own type, people with and without a telling pair."""
    people, steps = (200, 10) if quick else (10_000, 600)
    data = two_mode.simulate(people, 20, seed=seed).data
    torch.manual_seed(seed)
    model = HeterogeneousBTL(1, latent_dim=2)
    guide = NeuralProcessGuide(model)
    stages = [ImportanceWeightedELBO(steps=steps), Sleep(steps=2 * steps)]
    fit(
        model,
        guide,
        data,
        objective=stages,
        learning_rate=5e-3,
        validation=None,
        seed=seed,
        progress_bar=False,
    )
    fresh = two_mode.simulate(50 if quick else 5000, 2, seed=1_000_000 + seed)
    posterior = Posterior(model, guide, fresh.data, seed=seed)
    # The types order these two items in opposite ways.
    utility = posterior.utility(items=torch.tensor([[0.6], [0.9]]))
    prefers_larger = (utility[..., 1] > utility[..., 0]).double().mean(0).numpy()
    mass = np.where(fresh.type == 0, prefers_larger, 1 - prefers_larger)
    told = two_mode.bayes_type_prob(fresh.data) != 0.5
    return {
        ("two modes", "corrected", "mass on the type, untold", ""): mass[~told].mean(),
        ("two modes", "corrected", "mass on the type, told", ""): mass[told].mean(),
    }
