"""People who differ in how they answer: coverage of intervals, and scale told apart from taste.

Coverage: sets of people are simulated who differ in one of the answers (how readily they call a
tie, their liking for a side, how often they answer at random, how consistent they are) beside a
taste. A model is fitted to each set; 95 % intervals of the mean and of the standard deviation of
that answer, by the information, should hold the truth in 95 % of the sets. The mean of the log
scale is 0 by definition. Errors are binomial; of all quantities of one set together, over sets.

Scale against taste: people who differ in both their tastes and nothing else, and people who differ
in their scale and nothing else. :func:`fssa_bayes.comparison.heterogeneity_test` asks whether the
scale differs, in a model in which all tastes differ. The share of sets where it says so at 5 % is
its level for the first kind and its power for the second, by the number of answers of each person.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.harness import Row
from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.comparison import heterogeneity_test

WIDTH = 1.959964
PEOPLE, ANSWERS, SETS = 100, 25, 125  # Of each of four kinds: 500 sets.
MEAN = {"ties": -0.4, "position_bias": 0.3, "lapses": -1.0, "scale": None}
SD = {"position_bias": 0.7, "scale": 0.5, "ties": 1.0, "lapses": 1.2}
SIZES, TESTS = (5, 20), 30
CROWD = 200  # People of the sets in which scale and taste are told apart.


def run(args: argparse.Namespace) -> Iterator[Row]:
    sets, sizes, tests = (2, SIZES[:1], 1) if args.quick else (SETS, SIZES, TESTS)
    everything = []
    for name in SD:
        hits = [cover(name, seed) for seed in range(sets)]
        case = f"{name}: {PEOPLE} people x {ANSWERS}"
        for quantity in hits[0]:
            yield _share(case, f"coverage of the {quantity}", [hit[quantity] for hit in hits])
        everything += [np.array(list(hit.values())) for hit in hits]
    yield _share("all sets", "coverage, pooled", everything)
    for kind in ("tastes", "scale"):
        for size in sizes:
            found = [
                tell_apart(kind, 20 if args.quick else CROWD, size, seed) for seed in range(tests)
            ]
            case = f"{kind} alone: {CROWD} people x {size}"
            yield _share(case, f"scale differs at 5 %, {tests} sets", found)


def questions(people: int, per_person: int, seed: int) -> Preferences:
    """Asks about pairs of 25 items with two features."""
    rng = np.random.default_rng(seed)
    number = people * per_person
    left = rng.integers(25, size=number)
    right = (left + rng.integers(1, 25, size=number)) % 25
    offsets = np.arange(0, number + 1, per_person)
    return Preferences(left, right, np.zeros(number), offsets, items=rng.normal(size=(25, 2)))


def build(personal: tuple[str, ...], latent_dim: int) -> HeterogeneousBTL:
    return HeterogeneousBTL(2, latent_dim, utility="linear", personal=personal)


def true_model(name: str) -> HeterogeneousBTL:
    """Builds people with one taste and one answer of their own; ties and bias go with the taste."""
    model = build((name,), 1)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([2.0, -1.0]))
        model.utility.loading.copy_(torch.tensor([[0.8], [0.0]]))
        model.personal.loading.copy_(torch.tensor([[0.4, SD[name]]]))
        if MEAN[name] is not None:
            getattr(model, model.personal.arguments[0]).fill_(MEAN[name])
    return model


def cover(name: str, seed: int) -> dict[str, float]:
    """Fits a set of people; tells whether intervals hold the truth, NaN without an interval."""
    truth = true_model(name)
    (label,) = truth.personal.labels
    exact = {"sd": (("answer sd", label), truth.personal.directions.norm().item())}
    if MEAN[name] is not None:
        exact["mean"] = ("answer", label), MEAN[name]
    data, _ = truth.simulate(questions(PEOPLE, ANSWERS, seed), seed=seed)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of intervals that are not given, which are counted.
        torch.manual_seed(seed)
        model = build((name,), 1)
        table = fit(model, None, data, seed=seed, progress_bar=False).population(128, seed=seed)
    hits = {}
    for quantity, (row, value) in exact.items():
        estimate, error = table.loc[row, ["estimate", "se_hessian"]]
        known = np.isfinite(error)
        hits[quantity] = float(abs(estimate - value) <= WIDTH * error) if known else np.nan
    return hits


def tell_apart(kind: str, people: int, per_person: int, seed: int) -> float:
    """Tells whether the test finds at 5 % that the scale differs."""
    truth = build(("scale",), 2)
    with torch.no_grad():
        truth.utility.mean.copy_(torch.tensor([2.0, -1.0]))
        truth.utility.loading.copy_((kind == "tastes") * torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        truth.personal.loading.zero_()
        truth.personal.loading[0, 2] = 0.7 * (kind == "scale")
    data, _ = truth.simulate(questions(people, per_person, 1_000 + seed), seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test = heterogeneity_test(
            lambda: (build(("scale",), 2), None), data, of="scale", seed=seed, num_samples=200
        )
    return float(test.p_value <= 0.05)


def _share(case: str, metric: str, hits: list) -> Row:
    """Reports a share in per cent ± its standard error over sets; without those not given."""
    values = np.array([np.nanmean(hit) for hit in hits if not np.isnan(hit).all()])
    if missing := len(hits) - len(values):
        metric = f"{metric} ({missing} not given)"
    mean, error = values.mean(), values.std() / np.sqrt(max(len(values), 1))
    low, high = 100 * (mean - error), 100 * (mean + error)
    return Row("personal_answers", case, "fit", metric, "% ± s.e.", 100 * mean, low, high)
