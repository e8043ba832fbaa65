"""What lower precision in the networks' products does to posterior means.

A model is fitted in full precision. With the same parameters and draws, and with a fit of its own,
each lower precision is compared with it: posterior means of choice probabilities and of utilities,
and the log score of unseen choices. On a CPU TF32 does not exist, and is left out.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.harness import Row, spread
from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, fit


def run(args: argparse.Namespace) -> Iterator[Row]:
    precisions = ["bf16"] if args.device == "cpu" else ["tf32", "bf16"]
    people, comparisons, width, steps = (60, 8, 8, 5) if args.quick else (1000, 20, 64, 300)
    draws = 50 if args.quick else 1000
    case = f"{people:,} people x {comparisons}, D = {width}"
    for utility in ("bilinear", "mlp"):
        values = defaultdict(list)
        for seed in args.seeds:
            data = simulate(people, comparisons, width, seed)
            train, test = data.split_users(0.2, seed=seed)
            context, target = test.split_context(comparisons // 2, seed=seed)
            pairs = {}
            for precision in ("highest", *precisions):
                torch.manual_seed(seed)
                model = HeterogeneousBTL(width, 2, utility=utility, matmul_precision=precision)
                guide = NeuralProcessGuide(model)
                options = {"seed": seed, "device": args.device, "validation": None}
                start = time.perf_counter()
                fit(model, guide, train, steps=steps, progress_bar=False, **options)
                values[precision, "fit", "s"].append(time.perf_counter() - start)
                pairs[precision] = model, guide
            reference = describe(*pairs["highest"], context, target, draws, seed)
            values["highest", "log score", "nats"].append(reference["score"].mean().item())
            for precision in precisions:
                same = HeterogeneousBTL(width, 2, utility=utility, matmul_precision=precision)
                same = same.to(args.device).eval()
                same.load_state_dict(pairs["highest"][0].state_dict())
                same.feature_names = data.feature_names
                twin = NeuralProcessGuide(same).to(args.device).eval()
                twin.load_state_dict(pairs["highest"][1].state_dict())
                for key, pair in (
                    (precision, (same, twin)),
                    (f"{precision} refit", pairs[precision]),
                ):
                    found = describe(*pair, context, target, draws, seed)
                    for quantity, unit in (("probability", ""), ("utility", "nats")):
                        change = (found[quantity] - reference[quantity]).abs()
                        values[key, f"{quantity}: mean change", unit].append(change.mean().item())
                        values[key, f"{quantity}: largest change", unit].append(change.max().item())
                    gain = (found["score"] - reference["score"]).mean().item()
                    values[key, "log score: change", "nats"].append(gain)
        for (precision, metric, unit), figures in values.items():
            yield spread("precision", case, f"{utility}, {precision}", metric, unit, figures)


def describe(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    context: Preferences,
    target: Preferences,
    draws: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Returns posterior means of choice probabilities and utilities, and people's log scores."""
    posterior = Posterior(model, guide, context, draws, seed=seed)
    z, log_weights = posterior.proposals
    mean = 0.0
    for start in range(0, len(z), 100):  # Weighted proposals: resampling adds noise of its own.
        part, weight = z[start : start + 100], log_weights[start : start + 100].exp()
        with torch.no_grad():
            items = context.items.to(model.device)
            utility = model.item_utility(items, part.to(model.device)).cpu()
        mean = mean + (weight.unsqueeze(-1) * utility).sum(0)
    return {
        "probability": posterior.choice_prob(target).mean[target.batch().mask],
        "utility": mean - mean.mean(-1, keepdim=True),
        "score": posterior.log_score(target),
    }


def simulate(people: int, comparisons: int, width: int, seed: int) -> Preferences:
    """Draws people whose coefficients vary in two directions, with margins of 2 nats."""
    rng = np.random.default_rng(seed)
    total, items = people * comparisons, 200
    left = rng.integers(items, size=total)
    right = (left + rng.integers(1, items, size=total)) % items
    features = rng.normal(size=(items, width))
    mean, loading = rng.normal(size=width), rng.normal(size=(width, 2))
    beta = (mean + rng.normal(size=(people, 2)) @ loading.T) / width**0.5
    margin = ((features[left] - features[right]) * beta.repeat(comparisons, 0)).sum(-1)
    choice = rng.random(total) < 1 / (1 + np.exp(-margin))
    offsets = np.arange(0, total + 1, comparisons)
    return Preferences(left, right, choice, offsets, items=features)
