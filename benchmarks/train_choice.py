"""Log-likelihoods and population of the train-choice data against the published ones."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from benchmarks.harness import Row, spread
from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, fit
from fssa_bayes.datasets import train_choice


def run(args: argparse.Namespace) -> Iterator[Row]:
    data = train_choice.read(args.data)
    homogeneous = HeterogeneousBTL(4, 0, utility="linear")
    value = fit(homogeneous, None, data, progress_bar=False).log_marginal_likelihood().value
    yield spread("train_choice", "homogeneous", "linear", "log-likelihood", "nats", [value])

    values = defaultdict(list)
    published = train_choice.COEFFICIENTS
    for seed in args.seeds:
        torch.manual_seed(seed)
        model = HeterogeneousBTL(4, latent_dim=4, utility="linear")
        guide = NeuralProcessGuide(model, "multivariate_normal")
        start = time.perf_counter()
        result = fit(
            model,
            guide,
            data,
            steps=20 if args.quick else None,
            seed=seed,
            device=args.device,
            progress_bar=False,
        )
        values["fit", "s"].append(time.perf_counter() - start)
        estimate = result.log_marginal_likelihood(seed=seed)
        values["log-likelihood", "nats"].append(estimate.value)
        values["its Monte-Carlo standard error", "nats"].append(estimate.standard_error)
        table = result.population(num_samples=4000, seed=seed)
        for quantity in ("mean", "sd"):
            for term, expected in published[quantity].items():
                row, error = table.loc[quantity, term], published[f"se of {quantity}"][term]
                difference = (row["estimate"] - expected) / error
                values[f"{quantity} {term}: estimate", ""].append(row["estimate"])
                values[f"{quantity} {term}: off by", "published se"].append(difference)
                for form in ("se_hessian", "se_outer_product", "se_sandwich"):
                    values[f"{quantity} {term}: {form}", "published se"].append(row[form] / error)
    for (metric, unit), figures in values.items():
        yield spread("train_choice", "heterogeneous", "linear", metric, unit, figures)
