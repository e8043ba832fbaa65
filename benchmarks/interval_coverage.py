"""Coverage of 95 % intervals of a mixed logit's population, over simulated sets of people.

Means, standard deviations and correlations of normal and of log-normal coefficients, with errors by
the information and by the sandwich. An exact interval covers in 95 % of the sets, and in so many
sets as the 99.9 % band of the binomial distribution says.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from scipy import stats

from benchmarks.harness import Row
from fssa_bayes import HeterogeneousBTL, Preferences, fit

LEVEL = 0.95
ERRORS = ("se_hessian", "se_sandwich")
NAMES = ["price", "time", "comfort"]
KINDS = {
    "normal": None,
    "log-normal": {"price": "-lognormal", "time": "-lognormal"},
}
MEAN = {"normal": [-1.0, -0.5, 0.7], "log-normal": [-0.2, -0.6, 0.7]}  # Of η.
LOADING = [[0.8, 0.0, 0.0], [0.3, 0.6, 0.0], [-0.2, 0.3, 0.7]]


def run(args: argparse.Namespace) -> Iterator[Row]:
    people, sets = (60, 2) if args.quick else (200, 200)
    for kind in KINDS:
        covered = defaultdict(list)
        for seed in range(sets):
            for key, hit in cover(kind, people, seed).items():
                covered[key].append(hit)
        case = f"{kind}: {people} people x 10"
        for error in ERRORS:
            hits = {key[1]: values for key, values in covered.items() if key[0] == error}
            for quantity, values in hits.items():
                yield _row(case, error, " ".join(quantity), values)
            yield _row(case, error, "all", np.concatenate(list(hits.values())))


def cover(kind: str, people: int, seed: int) -> dict[tuple[str, tuple], float]:
    """Fits a set of people, and tells which intervals hold the truth; NaN without an interval."""
    truth = build(kind)
    data, _ = truth.simulate(pairs(people, 10, seed), seed=seed)
    model = build(kind, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of intervals that are not given, which are counted.
        table = fit(model, None, data, seed=seed, progress_bar=False).population(512, seed=seed)
        exact = FIGURES[kind]
    width = stats.norm.ppf((1 + LEVEL) / 2)
    hits = {}
    for error in ERRORS:
        known = table.loc[exact.index]
        inside = ((known["estimate"] - exact).abs() <= width * known[error]).astype(float)
        inside[known[error].isna()] = np.nan
        hits |= {(error, quantity): hit for quantity, hit in inside.items()}
    return hits


def build(kind: str, seed: int | None = None) -> HeterogeneousBTL:
    """Builds the true model, or one to be fitted, with initial weights of a seed."""
    torch.manual_seed(0 if seed is None else seed)
    model = HeterogeneousBTL(
        3, None, utility="linear", coefficients=KINDS[kind], feature_names=NAMES
    )
    if seed is None:
        with torch.no_grad():
            model.utility.mean.copy_(torch.tensor(MEAN[kind]))
            model.utility.loading.copy_(torch.tensor(LOADING))
    return model


def figures(kind: str) -> pd.Series:
    """Computes means, deviations and correlations of the true coefficients, in closed form."""
    location, covariance = np.array(MEAN[kind]), np.array(LOADING) @ np.array(LOADING).T
    is_log = np.array([name in (KINDS[kind] or {}) for name in NAMES])
    variance = covariance.diagonal()
    mean = np.where(is_log, -np.exp(location + variance / 2), location)
    # Cov(−exp η, −exp ν) is the product of the means times exp(cov) − 1; Cov(−exp η, ν) the mean
    # times cov.
    pair = np.where(is_log[:, None] & is_log, np.expm1(covariance), covariance)
    scale = np.where(is_log, mean, 1.0)
    pair = pair * np.outer(scale, scale)
    spread = np.sqrt(pair.diagonal())
    rows = {("mean", name): value for name, value in zip(NAMES, mean, strict=True)}
    rows |= {("sd", name): value for name, value in zip(NAMES, spread, strict=True)}
    for i, j in ((1, 0), (2, 0), (2, 1)):
        value = pair[i, j] / (spread[i] * spread[j])
        rows["correlation", f"{NAMES[i]}, {NAMES[j]}"] = value
    for i in np.flatnonzero(is_log):
        rows["location of log", NAMES[i]] = location[i]
        rows["sd of log", NAMES[i]] = np.sqrt(variance[i])
    return pd.Series(rows)


FIGURES = {kind: figures(kind) for kind in KINDS}


def pairs(people: int, comparisons: int, seed: int) -> Preferences:
    """Asks people about random pairs of 200 items."""
    rng = np.random.default_rng(seed)
    left = rng.integers(200, size=people * comparisons)
    right = (left + rng.integers(1, 200, size=len(left))) % 200
    offsets = np.arange(0, len(left) + 1, comparisons)
    items = np.random.default_rng(0).normal(size=(200, len(NAMES)))
    options = {"items": items, "feature_names": NAMES}
    return Preferences(left, right, np.zeros(len(left)), offsets, **options)


def _row(case: str, error: str, quantity: str, values: np.ndarray) -> Row:
    """Reports a share of intervals that cover, and the band that chance leaves to an exact one."""
    values = np.asarray(values)
    given = values[~np.isnan(values)]
    low, high = stats.binom.interval(0.999, max(len(given), 1), LEVEL)
    share = 100 * given.mean() if len(given) else np.nan
    missing = f", {len(values) - len(given)} not given" if len(given) < len(values) else ""
    metric = f"{quantity} covered [chance]{missing}"
    band = 100 * low / max(len(given), 1), 100 * high / max(len(given), 1)
    return Row("interval_coverage", case, error, metric, "%", share, *band)
