"""Mixed logits that this package and others fit, and the score that they are compared by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from fssa_bayes import FitResult, HeterogeneousBTL, Preferences
from fssa_bayes.datasets import electricity, linear_factors, train_choice, yogurt
from fssa_bayes.sampling import Estimate

__all__ = ["PROBLEMS", "Population", "Problem", "Sets", "rescore", "to_sets"]

TARGET_ERROR = 0.2  # Nats, of a rescored log-likelihood.


class Population(NamedTuple):
    """Holds what a package estimates: normal coefficients, and its own log-likelihood in nats.

    Attributes:
        mean: Means of the coefficients, with shape (D,).
        loading: A root of their covariance, with shape (D, R); rows of fixed ones are 0.
        log_likelihood: The package's own log-likelihood at its maximum.
    """

    mean: np.ndarray
    loading: np.ndarray
    log_likelihood: float


class Sets(NamedTuple):
    """Holds choices from sets of one size, C choices among J alternatives.

    Attributes:
        features: Features of the alternatives, with shape (C, J, D).
        chosen: Position of the chosen one, with shape (C,).
        person: Position of the person, non-decreasing, with shape (C,).
    """

    features: np.ndarray
    chosen: np.ndarray
    person: np.ndarray


@dataclass(frozen=True)
class Problem:
    """Names data and a mixed logit of them with normal coefficients.

    Attributes:
        read: Reads the data, given the file of train choices, a seed and whether to be quick.
        correlated: Whether coefficients are correlated.
        fixed: Names of the coefficients that are the same for everybody.
        rank: Rank of the covariance in this package's model; None for a full one.
        population: The population that simulated data are drawn from; None for real ones.
        needs_file: Whether `read` needs the file of train choices.
    """

    read: Callable[[Path | None, int, bool], Preferences]
    correlated: bool
    fixed: tuple[str, ...] = ()
    rank: int | None = None
    population: linear_factors.Population | None = None
    needs_file: bool = False

    def build(self, data: Preferences, seed: int) -> HeterogeneousBTL:
        """Builds this package's model."""
        return HeterogeneousBTL.for_data(
            data,
            self.rank,
            seed=seed,
            utility="linear",
            coefficients=dict.fromkeys(self.fixed, "fixed"),
            correlation="full" if self.correlated else "none",
            feature_names=data.feature_names,
            num_covariates=0,
        )

    def is_random(self, data: Preferences) -> np.ndarray:
        """Tells which coefficients differ between people, with shape (D,)."""
        return np.array([name not in self.fixed for name in data.feature_names])


def to_sets(data: Preferences) -> Sets:
    """Lists the alternatives of each choice; the last one is that which others stand against."""
    first = np.append(data.judgements.heads, data.num_comparisons)
    size = np.diff(first)
    if len(set(size)) != 1:
        raise ValueError(f"choice sets must be of one size, got {sorted(set((size + 1).tolist()))}")
    left, choice = (rows.reshape(-1, size[0]) for rows in (data.left, data.choice))
    items = np.column_stack([left, data.right[first[:-1]]])
    chosen = np.where((choice == 1).any(1), (choice == 1).argmax(1), size[0])
    person = np.repeat(np.arange(len(data)), data.judgement_counts)
    return Sets(data.items.double().numpy()[items], chosen, person)


def rescore(data: Preferences, population: Population, seed: int) -> Estimate:
    """Estimates the log-likelihood at a population by fresh, heavy-tailed importance draws."""
    num_features, rank = population.loading.shape
    model = HeterogeneousBTL(num_features, rank, utility="linear").double()
    model.take_names(data)
    with torch.no_grad():
        model.utility.mean.copy_(torch.from_numpy(population.mean))
        model.utility.loading.copy_(torch.from_numpy(population.loading))
    result = FitResult(model, None, data, history=pd.DataFrame())
    return result.log_marginal_likelihood(seed=seed, target_error=TARGET_ERROR)


def _simulated(people: int, choices: int, num_features: int, correlated: bool) -> Problem:
    population = linear_factors.draw_population(num_features, 2, seed=1)

    def read(path: Path | None, seed: int, quick: bool) -> Preferences:
        count = 60 if quick else people
        return linear_factors.simulate(count, choices, population, seed=100 + seed).data

    return Problem(read, correlated, rank=2, population=population)


PROBLEMS = {
    "train, normal": Problem(
        lambda path, seed, quick: train_choice.read(path), correlated=False, needs_file=True
    ),
    "train, correlated": Problem(
        lambda path, seed, quick: train_choice.read(path), correlated=True, needs_file=True
    ),
    "electricity, normal": Problem(lambda path, seed, quick: electricity.read(), correlated=False),
    "electricity, correlated": Problem(
        lambda path, seed, quick: electricity.read(), correlated=True
    ),
    "yogurt, normal": Problem(
        lambda path, seed, quick: yogurt.read(), correlated=False, fixed=("price",)
    ),
    "yogurt, correlated": Problem(
        lambda path, seed, quick: yogurt.read(), correlated=True, fixed=("price",)
    ),
    "1,000 x 20 x 10, rank 2": _simulated(1_000, 20, 10, correlated=True),
    "20,000 x 24 x 5, rank 2": _simulated(20_000, 24, 5, correlated=True),
    "200,000 x 20 x 5, rank 2": _simulated(200_000, 20, 5, correlated=True),
}
"""Problems by name."""
