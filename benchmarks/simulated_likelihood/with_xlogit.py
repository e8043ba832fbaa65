"""Mixed logits by xlogit: simulated likelihood of Halton draws, by NumPy.

References:
    Arteaga, Park, Beeramoole & Paz (2022), xlogit: An open-source Python package for
    GPU-accelerated estimation of mixed logit models, Journal of Choice Modelling 42.
"""

from __future__ import annotations

import numpy as np

from benchmarks.simulated_likelihood.problems import Population, Sets

__all__ = ["fit_xlogit"]

_HELD = 2**28  # Terms of persons, choices, alternatives and draws that are held at once: 2 GB.


def fit_xlogit(sets: Sets, is_random: np.ndarray, num_draws: int) -> Population:
    """Fits independent normal coefficients, without standard errors; there are no others.

    Args:
        sets: The choices.
        is_random: Which coefficients differ between people, with shape (D,).
        num_draws: Number of Halton draws of each person.
    """
    from xlogit import MixedLogit

    count, size, width = sets.features.shape
    names = np.array([f"x{position}" for position in range(width)])
    alternative = np.tile(np.arange(size), count)
    people = sets.person[-1] + 1
    per_person = np.bincount(sets.person).max() * size * num_draws
    model = MixedLogit()
    model.fit(
        sets.features.reshape(-1, width),
        (alternative == np.repeat(sets.chosen, size)).astype(int),
        varnames=names,
        alts=alternative,
        ids=np.repeat(np.arange(count), size),
        panels=np.repeat(sets.person, size),
        randvars=dict.fromkeys(names[is_random], "n"),
        n_draws=num_draws,
        batch_size=int(min(people, max(1, _HELD // per_person))),
        skip_std_errs=True,
        verbose=0,
    )
    estimates = dict(zip(model.coeff_names, model.coeff_, strict=True))
    mean = np.array([estimates[name] for name in names])
    scale = np.array([estimates.get(f"sd.{name}", 0.0) for name in names])
    return Population(mean, np.diag(scale), float(model.loglikelihood))
