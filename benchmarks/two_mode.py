"""Few-shot prediction on the two-mode problem against the exact Bayes predictor."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from benchmarks.harness import Row, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Sleep,
    fit,
)
from fssa_bayes.datasets import two_mode

CONTEXTS = (0, 1, 3, 5, 10)


def run(args: argparse.Namespace) -> Iterator[Row]:
    steps, people = (10, 200) if args.quick else (600, 10_000)
    for utility, fresh in (("bilinear", 5_000), ("mlp", 1_000)):
        fresh = 40 if args.quick else fresh
        values = defaultdict(list)
        for seed in args.seeds:
            torch.manual_seed(seed)
            data = two_mode.simulate(people, 20, seed=seed).data
            model = HeterogeneousBTL(1, latent_dim=2, utility=utility)
            guide = NeuralProcessGuide(model)
            stages = [ImportanceWeightedELBO(steps=steps), Sleep(steps=steps // 2)]
            start = time.perf_counter()
            fit(
                model,
                guide,
                data,
                objective=stages,
                learning_rate=5e-3,
                validation=None,
                seed=seed,
                device=args.device,
                progress_bar=False,
            )
            values["fit", "seconds", "s"].append(time.perf_counter() - start)
            for count in CONTEXTS:
                test = two_mode.simulate(fresh, count + 5, seed=1_000_000 + seed).data
                context, target = test.split_context(count, seed=seed)
                posterior = Posterior(model, guide, context, seed=seed)
                prob = posterior.choice_prob(target).mean.flatten().numpy()
                row = two_mode.compare_with_bayes(prob, context, target)
                log_loss = -posterior.log_score(target).mean().item()
                raw = Posterior(model, guide, context, 500, seed=seed, correct=None)
                above = {
                    "log-loss above Bayes": log_loss,
                    "log-loss above Bayes, raw guide": -raw.log_score(target).mean().item(),
                }
                case = f"{count} contexts"
                for metric, value in above.items():
                    value -= row["bayes_log_loss"].mean()
                    values[case, metric, "nats"].append(value)
                lost, confidence = row["accuracy_lost"].mean(), row["confidence"].mean()
                exact = row["bayes_accuracy"].mean() - lost
                values[case, "accuracy lost", "points"].append(100 * lost)
                values[case, "confidence - accuracy", "points"].append(100 * (confidence - exact))
                ess = posterior.guide_relative_ess.mean().item()
                values[case, "relative effective sample size", ""].append(ess)
        for (case, metric, unit), figures in values.items():
            yield spread("two_mode", case, utility, metric, unit, figures)
