"""Mixed logits by Biogeme: simulated likelihood of Latin hypercube draws, compiled by JAX.

References:
    Bierlaire (2023), A short introduction to Biogeme, Technical report TRANSP-OR 230620, EPFL.
"""

from __future__ import annotations

import os
from contextlib import chdir
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from benchmarks.simulated_likelihood.problems import Population, Sets

__all__ = ["fit_biogeme"]

_START = 0.1  # Of the entries of the covariance's root on its diagonal.


def fit_biogeme(
    sets: Sets, is_random: np.ndarray, num_draws: int, seed: int, *, correlated: bool
) -> Population:
    """Fits normal coefficients, without standard errors.

    The covariance's root is lower triangular, its entries parameters.

    Args:
        sets: The choices.
        is_random: Which coefficients differ between people, with shape (D,).
        num_draws: Number of draws of each person.
        seed: Seed of the draws.
        correlated: Whether coefficients are correlated.
    """
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    from biogeme import biogeme, models
    from biogeme.database import Database
    from biogeme.expressions import (
        Beta,
        Draws,
        MonteCarlo,
        PanelLikelihoodTrajectory,
        Variable,
        log,
    )

    _, size, width = sets.features.shape
    columns = {
        f"x{k}_{j}": sets.features[:, j, k].astype(float) for j in range(size) for k in range(width)
    }
    table = pd.DataFrame({"person": sets.person, "chosen": sets.chosen, **columns})
    database = Database("sets", table)
    database.panel("person")
    number = np.flatnonzero(is_random)
    draws = [Draws(f"z{k}", "NORMAL_MLHS") for k in number]
    entries = [
        (row, column)
        for row in range(len(number))
        for column in range(row + 1)
        if correlated or row == column
    ]
    coefficients = [Beta(f"mean_{k}", 0, None, None, 0) for k in range(width)]
    for row, column in entries:
        start = _START if row == column else 0.0
        factor = Beta(f"root_{row}_{column}", start, None, None, 0)
        coefficients[number[row]] += factor * draws[column]
    utilities = {
        j: sum(coefficients[k] * Variable(f"x{k}_{j}") for k in range(width)) for j in range(size)
    }
    likelihood = PanelLikelihoodTrajectory(models.logit(utilities, None, Variable("chosen")))
    options = {"number_of_draws": num_draws, "seed": seed + 1, "save_iterations": False}
    options |= {"generate_html": False, "generate_yaml": False, "number_of_threads": 1}
    # Second derivatives are dear; without them the search is quasi-Newton's.
    options |= {"calculating_second_derivatives": "never", "second_derivatives": 0.0}
    with TemporaryDirectory() as folder, chdir(folder):  # It writes files where it runs.
        problem = biogeme.BIOGEME(database, log(MonteCarlo(likelihood)), **options)
        problem.model_name = "sets"
        results = problem.estimate()
    estimates = results.get_beta_values()
    mean = np.array([estimates[f"mean_{k}"] for k in range(width)])
    loading = np.zeros((width, len(number)))
    for row, column in entries:
        loading[number[row], column] = estimates[f"root_{row}_{column}"]
    return Population(mean, loading, float(results.final_log_likelihood))
