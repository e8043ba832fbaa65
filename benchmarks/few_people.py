"""Few people: held-out cross-entropy with the population held fixed, drawn, or left to the rule.

Each person chooses by coefficients of their own. A model of everybody alike and one of individuals
are fitted to 5 choices of each of a few people. Other people of the same population are then
predicted from 5 choices that are known of them. The last rows are differences in every replicate,
from the better of the first two on average.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.harness import Row
from fssa_bayes import (
    HeterogeneousBTL,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)

ASKED, KNOWN, UNSEEN = 5, 5, 15  # Choices of people of the fit; known and unseen ones of others.
REPLICATES = 4  # For each seed of the command.


@dataclass(frozen=True)
class Population:
    """Describes a population: its items, and how their features or utilities vary over people.

    Attributes:
        name: What the items are.
        num_items: Number of items.
        num_features: Number of features of an item; None for indicators.
        latent_dim: Number of dimensions in which people differ.
        spread: Standard deviation of an entry of Λ; that of coefficients for independent ones.
    """

    name: str
    num_items: int
    num_features: int | None
    latent_dim: int
    spread: float

    def truth(self) -> HeterogeneousBTL:
        """Builds the model that people choose by."""
        rng = np.random.default_rng(1)
        width = self.num_features or self.num_items
        model = HeterogeneousBTL(width, self.latent_dim, utility="linear")
        loading = rng.normal(size=(width, self.latent_dim))
        if self.latent_dim == width:
            loading = np.eye(width)
        with torch.no_grad():
            model.utility.mean.copy_(torch.as_tensor(0.6 * rng.normal(size=width)))
            model.utility.loading.copy_(torch.as_tensor(self.spread * loading))
        return model

    def ask(self, people: int, comparisons: int, seed: int) -> Preferences:
        """Asks people of the population about random pairs."""
        rng = np.random.default_rng(seed)
        left = rng.integers(self.num_items, size=people * comparisons)
        right = (left + rng.integers(1, self.num_items, size=len(left))) % self.num_items
        offsets = np.arange(0, len(left) + 1, comparisons)
        items = None
        if self.num_features is not None:
            size = self.num_items, self.num_features
            items = np.random.default_rng(0).normal(size=size)
        table = {"items": items, "num_items": None if items is not None else self.num_items}
        data = Preferences(left, right, np.zeros(len(left)), offsets, **table)
        return self.truth().simulate(data, seed=seed)[0]


POPULATIONS = (
    Population("people differ", 200, 4, 4, 0.7),
    Population("nearly alike", 200, 4, 4, 0.2),
    Population("10 items", 10, None, 2, 0.7),
)


def run(args: argparse.Namespace) -> Iterator[Row]:
    sizes, others, replicates = ((50, 100, 200), 150, REPLICATES)
    if args.quick:
        sizes, others, replicates = (20,), 20, 2
    for population in POPULATIONS:
        for people in sizes:
            losses = defaultdict(list)
            for seed in args.seeds:
                for replicate in range(replicates):
                    found = cross_entropy(population, people, others, 1000 * seed + replicate)
                    for name, value in found.items():
                        losses[name].append(value)
            case = f"{people} people x {ASKED}, {population.name}"
            for name, values in losses.items():
                yield mean_row(case, name, "cross-entropy", values)
            better = min(("alike", "fixed"), key=lambda name: np.mean(losses[name]))
            for name in ("drawn", "auto"):
                values = np.subtract(losses[name], losses[better])
                yield mean_row(case, name, f"difference from {better}", values)


def cross_entropy(population: Population, people: int, others: int, seed: int) -> dict[str, float]:
    """Fits a few people, and returns the mean loss of other people's unseen choices by method."""
    train = population.ask(people, ASKED, seed)
    test = population.ask(others, KNOWN + UNSEEN, seed + 500_000)
    context, target = test.split_context(KNOWN, seed=seed)
    average = HeterogeneousBTL.for_data(train, 0, utility="linear")
    fit(average, None, train, seed=seed, progress_bar=False)
    alike = Posterior(average, None, context, 1)
    model = HeterogeneousBTL.for_data(train, population.latent_dim, seed=seed, utility="linear")
    guide = NeuralProcessGuide(model, posterior="multivariate_normal")
    stages = [MaximumLikelihood(), Sleep(steps=100)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of few people, all of them.
        result = fit(model, guide, train, objective=stages, seed=seed, progress_bar=False)
        posteriors = {
            "alike": alike,
            "fixed": result.posterior(context, population="fixed", seed=seed),
            "drawn": result.posterior(
                context, population=result.population_draws(seed=seed), seed=seed
            ),
            "auto": result.posterior(context, seed=seed),
        }
    return {name: -one.log_score(target).mean().item() for name, one in posteriors.items()}


def mean_row(case: str, name: str, metric: str, values: list[float] | np.ndarray) -> Row:
    """Summarises replicates by their mean, and its standard error to both sides."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))
    metric += " (mean ± s.e.)"
    return Row("few_people", case, name, metric, "nats", mean, mean - error, mean + error)
