r"""Which model predicts best, and do people differ at all?

Expected log predictive densities by leaving out comparisons (importance sampling, no refit) and by
leaving out people (refits), differences with standard errors clustered by person, a test of the
homogeneous model against the heterogeneous one, and the choice of the number of latent dimensions.
All scores are in nats; higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._arviz import pareto_smooth
from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.inference import fit
from fssa_bayes.model import HeterogeneousBTL, check_data
from fssa_bayes.sampling import check_draws, person_log_marginal_likelihood, propose

__all__ = [
    "MAX_SAMPLES",
    "TARGET_ERROR",
    "Elpd",
    "compare",
    "leave_comparisons_out",
    "leave_users_out",
    "score_users",
]

Pair = tuple[HeterogeneousBTL, NeuralProcessGuide | None]


class Fittable(Protocol):
    """What :func:`leave_users_out` asks of a model of another kind, such as the baselines."""

    def fit(self, data: Preferences, *, seed: int, progress_bar: bool) -> object:
        """Fits to the comparisons of training people."""

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""


_MIN_PEOPLE = 10  # People whose scores can have a standard error worth the name.
_SMALL_DIFFERENCE = 4.0  # Nats below which the normal approximation of a difference fails.


# ---------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Elpd:
    """Holds an expected log predictive density and what it is made of.

    Attributes:
        values: Log predictive density of each unit left out, in nats, with shape (R,).
        person: Position of the person that each unit belongs to, with shape (R,).
        num_people: Number of people U.
        unit: `"comparison"`, `"judgement"` (a ranking, or a comparison that stands alone) or
            `"person"`: what was left out at a time.
        pareto_k: Pareto k-hat of each comparison left out, (R,); None where nothing was
            extrapolated from a posterior that had seen it.
        monte_carlo_error: Standard error of the sum that comes from the draws, in nats.
        digest: Recognises the data, so that only scores on the same data are compared.
    """

    values: np.ndarray
    person: np.ndarray
    num_people: int
    unit: str
    pareto_k: np.ndarray | None
    monte_carlo_error: float
    digest: str

    @property
    def by_person(self) -> np.ndarray:
        """Sum of each person's values, in nats, with shape (U,)."""
        return np.bincount(self.person, self.values, minlength=self.num_people)

    @property
    def total(self) -> float:
        """Sum over all units, in nats."""
        return float(self.values.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the total over people, whose comparisons belong together, in nats."""
        return _standard_error(self.by_person)

    def __str__(self) -> str:
        return f"{self.total:.1f} ± {self.standard_error:.1f} nats, leaving out a {self.unit}"


@torch.no_grad()
def leave_comparisons_out(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int = 1000,
    *,
    seed: int = 0,
) -> Elpd:
    r"""Estimates how well each comparison is predicted from the same person's others.

    A ranking is left out as a whole.

    Draws from :math:`m(z) = .8\,q(z|C) + .2\,p(z)` get the weights :math:`p(z)\,p(C|z) / m(z)`
    divided by :math:`p(y_n|z)`, smoothed by a Pareto tail: the posterior without comparison n. No
    refit is made: **the population is held fixed** at an estimate that may have seen the choice.
    That flatters a model by about as many nats as it has population parameters, which
    :func:`leave_users_out` does not.

    Args:
        model: A fitted model.
        guide: Its guide; None for `latent_dim=0`, where the score is the log-likelihood.
        data: The comparisons, of people the model was fitted to or of others.
        num_samples: Number of draws S of each person.
        seed: Seed of the draws.

    Returns:
        The score, with log p(y_n | the person's other choices) and k-hat for each comparison; above
        a k-hat of .7 a value is in doubt.

    Raises:
        ValueError: If data, model and guide do not fit each other or there are too few draws.

    References:
        Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC.
        Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    check_data(model, data)
    check_guide(model, guide)
    check_draws(model, num_samples, "psis")
    values, shapes, variances = [], [], []
    with seeded(seed):
        for _, batch in user_batches(data, 2 * num_samples, model.device):
            draws = propose(model, guide, batch, num_samples)
            likelihood, mask = model.choice(batch, draws.z), batch.judgement_mask
            seen = likelihood.judgements(batch.choice)
            seen = seen.map(lambda x, mask=mask: x[:, mask].double().cpu())
            choice = batch.choice[mask].double().cpu()
            log_prob = seen.log_prob(choice)
            person = mask.nonzero()[:, 0]
            rest = draws.log_weights[:, person].double().cpu() - log_prob
            log_weights, pareto_k = pareto_smooth(rest.T.numpy())
            log_weights = torch.from_numpy(log_weights).T
            value = seen.average(log_weights).log_prob(choice)
            values.append(value)
            shapes.append(pareto_k)
            variances.append(_ratio_variance(log_prob, log_weights, value, person.cpu()))
    return Elpd(
        values=torch.cat(values).numpy(),
        person=np.repeat(np.arange(len(data)), data.judgement_counts),
        num_people=len(data),
        unit="judgement" if data.has_rankings else "comparison",
        pareto_k=np.concatenate(shapes) if model.latent_dim else None,
        monte_carlo_error=math.sqrt(sum(part.sum().item() for part in variances)),
        digest=data.digest(),
    )


def _ratio_variance(log_prob: Tensor, log_weights: Tensor, value: Tensor, person: Tensor) -> Tensor:
    """Estimates the variance of people's sums of log self-normalised means, by the delta method.

    A person's comparisons share their draws, so their errors add up draw by draw.
    """
    if len(person) == 0:
        return value.new_zeros(0)
    influence = log_weights.exp() * (torch.exp(log_prob - value) - 1)
    total = influence.new_zeros(len(influence), int(person.max()) + 1)
    return total.index_add_(1, person, influence).square().sum(0)


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
    the guide's draws; they are doubled until the standard error of the sum is below .3 nats or a
    person has 16,000.

    Args:
        model: A fitted model.
        guide: Its guide; None for `latent_dim=0`.
        data: The comparisons of other people than those of the fit.
        num_samples: Number of draws of each person to begin with.
        seed: Seed of the draws.

    Returns:
        The score, with log p(all choices of the person) for each.

    Raises:
        ValueError: If data, model and guide do not fit each other or there are too few draws.
    """
    check_data(model, data)
    check_guide(model, guide)
    check_draws(model, num_samples, "psis")
    with seeded(seed), torch.no_grad():
        values, variance, _ = person_log_marginal_likelihood(
            model, guide, data, num_samples, TARGET_ERROR, MAX_SAMPLES
        )
    return Elpd(
        values=values.cpu().numpy(),
        person=np.arange(len(data)),
        num_people=len(data),
        unit="person",
        pareto_k=None,
        monte_carlo_error=variance.sum().sqrt().item(),
        digest=data.digest(),
    )


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

    The people are dealt into folds at random, by `seed` alone, so that models are compared on the
    same folds; each fold is scored by :func:`score_users` after a fit to all others.

    Args:
        build: Returns a fresh model and its guide, None for `latent_dim=0`; or a baseline, not yet
            fitted. Its initial weights are drawn with `seed`.
        data: The comparisons of all people.
        num_folds: Number of folds, and of fits.
        seed: Seed of the folds, the initial weights, the fits and the draws.
        num_samples: Number of draws of each person to begin with.
        fit_options: Arguments of :func:`fssa_bayes.fit`, such as `steps`; a baseline has its own.

    Returns:
        The score, with log p(all choices of the person) for each, people in the order of `data`.

    Raises:
        ValueError: If `num_folds` does not lie between 2 and the number of people, or a baseline
            has no `log_evidence`.
    """
    if not isinstance(num_folds, int) or not 2 <= num_folds <= len(data):
        raise ValueError(
            f"num_folds must be an integer between 2 and the {len(data)} people, got {num_folds!r}"
        )
    fold = np.random.default_rng(seed).permutation(len(data)) % num_folds
    values, variance = np.empty(len(data)), 0.0
    for number in range(num_folds):
        with seeded(seed + number):
            contender = build()
        training, unseen = data.subset(fold != number), data.subset(fold == number)
        if not isinstance(contender, tuple):
            if not hasattr(contender, "log_evidence"):
                raise ValueError(
                    "build must return a model and its guide or a baseline with log_evidence(), "
                    f"got {type(contender).__name__}, which has no probability of all choices of "
                    "a person: see fssa_bayes.held_out.score_folds"
                )
            contender.fit(training, seed=seed + number, progress_bar=False)
            values[fold == number] = contender.log_evidence(unseen).numpy()
            continue
        _fit(contender, training, seed + number, fit_options)
        score = score_users(*contender, unseen, num_samples, seed=seed)
        values[fold == number] = score.values
        variance += score.monte_carlo_error**2
    return Elpd(
        values=values,
        person=np.arange(len(data)),
        num_people=len(data),
        unit="person",
        pareto_k=None,
        monte_carlo_error=math.sqrt(variance),
        digest=data.digest(),
    )


def fit_fresh(
    build: Callable[[], Pair],
    data: Preferences,
    seed: int,
    fit_options: Mapping[str, object] | None,
) -> Pair:
    with seeded(seed):
        pair = build()
    _fit(pair, data, seed, fit_options)
    return pair


def _fit(
    pair: Pair, data: Preferences, seed: int, fit_options: Mapping[str, object] | None
) -> None:
    model, guide = pair
    options = {"seed": seed, "progress_bar": False} | dict(fit_options or {})
    if model.latent_dim == 0:  # Maximum likelihood is its only objective, and converges by itself.
        options = {key: value for key, value in options.items() if key in _ANY_FIT}
    fit(model, guide, data, **options)


_ANY_FIT = ("seed", "progress_bar", "validation", "refit", "device")


# ---------------------------------------------------------------------- comparisons


def compare(scores: Mapping[str, Elpd]) -> pd.DataFrame:
    """Compares models by their scores on the same data, the best first.

    Args:
        scores: The score of each model, by its name.

    Returns:
        One row a model (index `model`). Columns, in nats, as in ArviZ: `rank` from 0; `elpd` and
        `se`, its standard error; `elpd_diff`, the best model's less this one's, and `dse`, the
        standard error of that difference, both paired and clustered by person; `per_unit`, the
        difference for each comparison or person left out; `high_k`, the share of comparisons with
        a k-hat above .7; `verdict`, in words.

    Raises:
        ValueError: If there are fewer than two scores, or they are of different data or units.

    References:
        Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC.
        Sivula, Magnusson, Matamoros & Vehtari (2020), Uncertainty in Bayesian leave-one-out
        cross-validation based model comparison, arXiv 2008.10296.
    """
    if len(scores) < 2:
        raise ValueError(f"scores must hold at least 2 models, got {list(scores)}")
    first_name, first = next(iter(scores.items()))
    for name, score in scores.items():
        if (score.digest, score.unit) != (first.digest, first.unit):
            raise ValueError(
                f"scores must be of the same data, leaving out the same units: {first_name!r} "
                f"({first.num_people} people, by {first.unit}) and {name!r} "
                f"({score.num_people} people, by {score.unit}) are not"
            )
    order = sorted(scores, key=lambda name: -scores[name].total)
    best = scores[order[0]]
    rows = []
    for rank, name in enumerate(order):
        score = scores[name]
        difference = best.by_person - score.by_person
        error = _standard_error(difference)
        row = {
            "rank": rank,
            "elpd": score.total,
            "se": score.standard_error,
            "elpd_diff": difference.sum(),
            "dse": error,
            "per_unit": difference.sum() / len(score.values),
            "high_k": np.nan if score.pareto_k is None else np.mean(score.pareto_k > 0.7),
            "verdict": "best" if rank == 0 else _verdict(difference.sum(), error, best.num_people),
        }
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(order, name="model"))


def _standard_error(by_person: np.ndarray) -> float:
    if len(by_person) < 2:
        return math.nan
    return float(by_person.std(ddof=1) * math.sqrt(len(by_person)))


def _verdict(difference: float, error: float, people: int) -> str:
    if people < _MIN_PEOPLE:
        return f"too few people to judge by: {people}"
    if abs(difference) <= 2 * error:
        return "not told apart from the best"
    if abs(difference) < _SMALL_DIFFERENCE:
        return "less than 4 nats below the best, too little to trust the standard error"
    return f"worse, {difference / error:.1f} standard errors below the best"


# ---------------------------------------------------------------------- is dim z > 0 warranted?


# ---------------------------------------------------------------------- how many dimensions?


TARGET_ERROR = 0.3  # Monte-Carlo standard error in nats of a summed log-likelihood.


MAX_SAMPLES = 16_000
