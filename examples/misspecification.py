"""Which diagnostics notice which kind of wrong model?

Fits a model to people who behave as it assumes, and sets it before people held out who do not:

- `none`: they do, and a check that rings here rings falsely;
- `lapses`: one answer in eight is given at random;
- `position bias`: left has an advantage of .4 nats;
- `shrunken model`: the model says people differ by .8 of what they do;
- `unseen types`: one person in ten prefers what hardly anybody does;
- `informative contexts`: which of two pairs a person answers depends on what they would answer,
  the one that they feel more strongly about.

What to see: simulation-based calibration, which is done on people from the model itself, is the same
for all rows and sees nothing. The score test of the right direction finds lapses, bias and shrinkage.
People of unseen types are found one by one, by the surprise of their choices. Informative contexts
look like people who differ more: no check of choices can tell these two apart.

    python examples/misspecification.py
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Preferences,
    Sleep,
    diagnostics,
    fit,
)
from fssa_bayes.calibration import calibrate, draw_model
from fssa_bayes.held_out import predict_held_out, score_tests

NUM_ITEMS, NUM_FEATURES, LATENT_DIM = 60, 5, 2
KNOWN = 4


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    truth = draw_truth(args)
    train, _ = truth.simulate(ask(args.users, args, seed=args.seed), seed=args.seed)
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(NUM_FEATURES, LATENT_DIM, "linear")
    guide = NeuralProcessGuide(model)
    stages = [ImportanceWeightedELBO(steps=args.steps), Sleep(steps=args.steps)]
    fit(model, guide, train, objective=stages, validation=None, seed=args.seed)
    print(f"fitted in {time.perf_counter() - start:.0f} s")
    table = {}
    for name, misbehave in PEOPLE.items():
        people = misbehave(truth, args)
        judged = shrunk(model) if name == "shrunken model" else model
        table[name] = ring(judged, guide, people, args)
    table = pd.DataFrame(table).T.rename_axis("people")
    with pd.option_context("display.width", 200):
        print(f"\np-values (share of people below .01 for the last), {args.test_users} people a row")
        print(table.map(lambda p: f"{p:.3f}" + ("*" if p < LEVEL else " ")).to_string())
    print(f"* below {LEVEL:.3f}: noticed")
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"\n{draw(table, args.out / 'misspecification.png')}; {time.perf_counter() - start:.0f} s")


# ---------------------------------------------------------------------- people


def lapses(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    rng = np.random.default_rng(args.seed + 2)
    people = behave(truth, args)
    random = rng.integers(2, size=people.num_comparisons)
    slipped = rng.random(people.num_comparisons) < 1 / 8
    return people.with_choices(np.where(slipped, random, people.choice))


def position_bias(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    return choose(truth, ask(args.test_users, args, seed=args.seed + 1), args, bias=0.4)


def unseen_types(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    pairs = ask(args.test_users, args, seed=args.seed + 1)
    return choose(truth, pairs, args, strange=0.1)


def informative_contexts(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    """Lets everybody answer one of two questions: the one that they feel more strongly about."""
    double = argparse.Namespace(**vars(args) | {"comparisons": 2 * args.comparisons})
    pairs = ask(args.test_users, double, seed=args.seed + 1)
    z = factors(truth, len(pairs), args)
    margin = truth.choice(pairs.batch(), z[None]).margin[0].abs()
    first = margin[:, ::2] >= margin[:, 1::2]
    number = torch.arange(pairs.num_comparisons).view(len(pairs), -1)
    answered = torch.where(first, number[:, ::2], number[:, 1::2])
    return choose(truth, pairs.imagine(answered.numpy()), args)


def behave(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    return choose(truth, ask(args.test_users, args, seed=args.seed + 1), args)


PEOPLE: dict[str, Callable[[HeterogeneousBTL, argparse.Namespace], Preferences]] = {
    "none": behave,
    "lapses": lapses,
    "position bias": position_bias,
    "shrunken model": behave,
    "unseen types": unseen_types,
    "informative contexts": informative_contexts,
}


def ask(users: int, args: argparse.Namespace, *, seed: int) -> Preferences:
    """Asks people about random pairs of the items, the same items for all."""
    items = np.random.default_rng(0).normal(size=(NUM_ITEMS, NUM_FEATURES))
    rng = np.random.default_rng(seed)
    total = users * args.comparisons
    left = rng.integers(NUM_ITEMS, size=total)
    right = (left + rng.integers(1, NUM_ITEMS, size=total)) % NUM_ITEMS
    offsets = np.arange(users + 1) * args.comparisons
    return Preferences(left, right, np.zeros(total), offsets, items=items)


def factors(truth: HeterogeneousBTL, users: int, args: argparse.Namespace) -> torch.Tensor:
    generator = torch.Generator().manual_seed(args.seed + 3)
    return torch.randn(users, truth.latent_dim, generator=generator)


@torch.no_grad()
def choose(
    truth: HeterogeneousBTL,
    pairs: Preferences,
    args: argparse.Namespace,
    *,
    bias: float = 0.0,
    strange: float = 0.0,
) -> Preferences:
    """Draws choices; a share of the people is five standard deviations from the population."""
    z = factors(truth, len(pairs), args)
    count = round(strange * len(pairs))
    z[:count] = 5 * z[:count] / z[:count].norm(dim=-1, keepdim=True)
    batch = pairs.batch()
    margin = truth.choice(batch, z[None]).margin[0] + bias
    generator = torch.Generator().manual_seed(args.seed + 4)
    choice = torch.bernoulli(torch.sigmoid(margin), generator=generator)
    return pairs.with_choices(choice[batch.mask].numpy())


def shrunk(model: HeterogeneousBTL) -> HeterogeneousBTL:
    smaller = copy.deepcopy(model)
    with torch.no_grad():
        smaller.utility.loading.mul_(0.8)
    return smaller


# ---------------------------------------------------------------------- checks


def ring(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    people: Preferences,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Runs the checks and returns their p-values."""
