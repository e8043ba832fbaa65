"""Recovery of a simulated population by the linear utility."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.harness import Row, spread
from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, fit

MEAN = torch.tensor([1.0, -0.5, 0.25, 0.0, 0.75])
LOADING = torch.tensor([[1.0, 0.0], [0.5, 0.8], [-0.6, 0.3], [0.0, 1.2], [0.4, -0.5]])


def run(args: argparse.Namespace) -> Iterator[Row]:
    people, comparisons, items = (200, 6, 50) if args.quick else (20_000, 24, 500)
    values = defaultdict(list)
    for seed in args.seeds:
        data = simulate(people, comparisons, items, seed)
        torch.manual_seed(seed)
        model = HeterogeneousBTL(len(MEAN), latent_dim=LOADING.shape[1], utility="linear")
        guide = NeuralProcessGuide(model)
        start = time.perf_counter()
        fit(
            model,
            guide,
            data,
            steps=20 if args.quick else None,
            seed=seed,
            device=args.device,
            progress_bar=False,
        )
        values["fit", "s"].append(time.perf_counter() - start)
        scale = model.feature_scale.cpu()
        mean = model.utility.mean.detach().cpu() / scale
        loading = model.utility.loading.detach().cpu() / scale[:, None]
        covariance, truth = loading @ loading.T, LOADING @ LOADING.T
        error = (mean - MEAN).abs().max() / MEAN.abs().max()
        values["largest error of w0", "% of its scale"].append(100 * error.item())
        error = (covariance - truth).abs().max() / truth.abs().max()
        values["largest error of cov", "% of its scale"].append(100 * error.item())
        values["trace of cov", "of the truth's"].append((covariance.trace() / truth.trace()).item())
    for (metric, unit), figures in values.items():
        case = f"{people:,} people x {comparisons}"
        yield spread("recovery", case, "linear, K = 2, D = 5", metric, unit, figures)


def simulate(people: int, comparisons: int, items: int, seed: int) -> Preferences:
    """Draws people from the truth, each asked about random pairs of common items."""
    rng = np.random.default_rng(seed)
    total = people * comparisons
    left = rng.integers(items, size=total)
    right = (left + rng.integers(1, items, size=total)) % items
    offsets = np.arange(0, total + 1, comparisons)
    features = rng.normal(size=(items, len(MEAN)))
    data = Preferences(left, right, np.zeros(total), offsets, items=features)
    truth = HeterogeneousBTL(len(MEAN), LOADING.shape[1], utility="linear")
    with torch.no_grad():
        truth.utility.mean.copy_(MEAN)
        truth.utility.loading.copy_(LOADING)
    return truth.simulate(data, seed=seed)[0]
