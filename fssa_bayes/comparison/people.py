"""How well is a person predicted by a model that was fitted to other people?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.comparison.elpd import Elpd
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.data.folds import deal_into_folds
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.inference import fit
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.sampling import check_draws, person_log_marginal_likelihood

__all__ = [
    "MAX_SAMPLES",
    "TARGET_ERROR",
    "Fittable",
    "Pair",
    "fit_fresh",
    "hold_users_out",
    "leave_users_out",
    "score_users",
]

TARGET_ERROR = 0.3  # Monte-Carlo standard error in nats of a summed log-likelihood.
MAX_SAMPLES = 16_000  # Proposals for a person after which no more are made.

# Arguments of `fit` that maximum likelihood, the only objective for `latent_dim=0`, takes.
_OPTIONS_OF_HOMOGENEOUS_FITS = ("seed", "progress_bar", "validation", "refit", "device")

Pair = tuple[HeterogeneousBTL, NeuralProcessGuide | None]


class Fittable(Protocol):
    """The methods that :func:`leave_users_out` needs of a model, such as a baseline."""

    def fit(self, data: Preferences, *, seed: int, progress_bar: bool) -> object:
        """Fits to the comparisons of training people."""

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""


def score_users(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int = 1000,
    *,
    seed: int = 0,
) -> Elpd:
    """Scores people who took no part in the fit by the log marginal likelihood of their choices.

    All choices of a person are predicted together, z integrated out, by importance sampling with
    proposals of the guide. The number of proposals is doubled until the standard error of the sum
    is below .3 nats or a person has 16,000 proposals.

    Args:
        model: A fitted model.
        guide: Its guide; None for `latent_dim=0`, or for draws around the modes of people's
            posteriors under a linear utility and a normal prior.
        data: The comparisons of other people than those of the fit.
        num_samples: Number of proposals for each person to begin with.
        seed: Seed of the proposals.

    Returns:
        The score, with log p(all choices of the person) for each person.

    Raises:
        ValueError: If data, model and guide do not fit each other or there are too few proposals.
    """
    check_unweighted(data, "score_users()")
    aligned = align(model, data)
    check_guide(model, guide, may_lack=model.is_mixed_logit)
    check_draws(model, num_samples, "psis")
    values, variance, _ = person_log_marginal_likelihood(
        model, guide, aligned, num_samples, TARGET_ERROR, MAX_SAMPLES, seed
    )
    return _score_of_people(values.cpu().numpy(), variance.sum().sqrt().item(), data)


def leave_users_out(
    build: Callable[[], Pair | Fittable],
    data: Preferences,
    num_folds: int = 5,
    *,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> Elpd:
    """Estimates how well people are predicted by a model that was fitted to others.

    People are dealt into folds by `seed` alone (:func:`fssa_bayes.data.folds.deal_into_folds`), so
    that models are compared on the same folds. Each fold is scored by :func:`score_users` after a
    fit to the people of all other folds.

    Args:
        build: Returns a fresh model and its guide, None for `latent_dim=0`; or a baseline, not yet
            fitted. Its initial weights are drawn with `seed`.
        data: The comparisons of all people.
        num_folds: Number of folds, and of fits.
        seed: Seed of the folds, the initial weights, the fits and the proposals.
        num_samples: Number of proposals for each person to begin with.
        fit_options: Arguments of :func:`fssa_bayes.fit`, such as `steps`; a baseline has its own.

    Returns:
        The score, with log p(all choices of the person) for each person, in the order of `data`.

    Raises:
        ValueError: If `num_folds` does not lie between 2 and the number of people, or a baseline
            has no `log_evidence`.
    """
    check_unweighted(data, "leave_users_out()")
    fold = deal_into_folds(len(data), num_folds, seed=seed)
    values, variance = np.empty(len(data)), 0.0
    for number in range(num_folds):
        training, unseen = data.subset(fold != number), data.subset(fold == number)
        fitted = fit_fresh(build, training, seed + number, fit_options)
        score = _score_fitted(fitted, unseen, num_samples, seed)
        values[fold == number] = score.values
        variance += score.monte_carlo_error**2
    return _score_of_people(values, math.sqrt(variance), data)


def hold_users_out(
    build: Callable[[], Pair | Fittable],
    data: Preferences,
    test_size: float = 0.25,
    *,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> Elpd:
    """Estimates how well people are predicted by a model that was fitted to others, by one fit.

    Args:
        build: As in :func:`leave_users_out`.
        data: The comparisons of all people.
        test_size: Share of the people who are scored and take no part in the fit.
        seed: Seed of the split (by which alone people are divided), the initial weights, the fit
            and the proposals.
        num_samples: Number of proposals for each person to begin with.
        fit_options: As in :func:`leave_users_out`.

    Returns:
        The score, with log p(all choices of the person) for each person held out.
    """
    check_unweighted(data, "hold_users_out()")
    training, unseen = data.split_users(test_size, seed=seed)
    return _score_fitted(fit_fresh(build, training, seed, fit_options), unseen, num_samples, seed)


def fit_fresh(
    build: Callable[[], Pair | Fittable],
    data: Preferences,
    seed: int,
    fit_options: Mapping[str, object] | None = None,
) -> Pair | Fittable:
    """Builds a model with initial weights drawn by `seed`, and fits it.

    Args:
        build: As in :func:`leave_users_out`.
        data: The comparisons of the training people.
        seed: Seed of the initial weights and of the fit.
        fit_options: As in :func:`leave_users_out`. Options that a fit with `latent_dim=0` does not
            take are left out for such a model.

    Returns:
        What `build` returned, fitted.

    Raises:
        ValueError: If `build` returns a baseline without `log_evidence`.
    """
    with seeded(seed):
        built = build()
    if isinstance(built, tuple):
        model, guide = built
        options = {"seed": seed, "progress_bar": False} | dict(fit_options or {})
        if model.latent_dim == 0:
            taken = _OPTIONS_OF_HOMOGENEOUS_FITS
            options = {key: value for key, value in options.items() if key in taken}
        fit(model, guide, data, **options)
    elif hasattr(built, "log_evidence"):
        built.fit(data, seed=seed, progress_bar=False)
    else:
        raise ValueError(
            "build must return a model and its guide or a baseline with log_evidence(), "
            f"got {type(built).__name__}, which has no probability of all choices of a person: "
            "see fssa_bayes.checks.score_folds"
        )
    return built


def _score_fitted(
    fitted: Pair | Fittable, unseen: Preferences, num_samples: int, seed: int
) -> Elpd:
    """Scores people by what :func:`fit_fresh` returned."""
    if isinstance(fitted, tuple):
        return score_users(*fitted, unseen, num_samples, seed=seed)
    return _score_of_people(fitted.log_evidence(unseen).numpy(), 0.0, unseen)


def _score_of_people(values: np.ndarray, monte_carlo_error: float, data: Preferences) -> Elpd:
    return Elpd(
        values=values,
        person=np.arange(len(data)),
        num_people=len(data),
        unit="person",
        pareto_k=None,
        monte_carlo_error=monte_carlo_error,
        digest=data.digest(),
    )
