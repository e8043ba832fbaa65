r"""Which model predicts best, and do people differ at all?

Expected log predictive densities by leaving out comparisons (importance sampling, no refit) and by
leaving out people (refits), differences with standard errors clustered by person, a test of the
homogeneous model against the heterogeneous one, and the choice of the number of latent dimensions.
All scores are in nats; higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from fssa_bayes._arviz import pareto_smooth
from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences
from fssa_bayes.data.chunks import user_batches
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.inference import fit
from fssa_bayes.model import HeterogeneousBTL, LinearUtility
from fssa_bayes.model.agreement import check_data
from fssa_bayes.model.distributions import Outcomes
from fssa_bayes.population import feature_differences
from fssa_bayes.sampling.importance import (
    check_draws,
    log_predictive,
    person_log_marginal_likelihood,
    propose,
)

__all__ = [
    "Elpd",
    "HeterogeneityTest",
    "LatentDimChoice",
    "choose_latent_dim",
    "compare",
    "heterogeneity_test",
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
_MAX_VARIANCES = 60  # Free variances and covariances that a null distribution is simulated for.
_PEOPLE_PER_VARIANCE = 5  # People needed for each of them.
_TARGET_ERROR = 0.3  # Monte-Carlo standard error in nats of a summed log-likelihood.
_MAX_SAMPLES = 16_000


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
            seen = likelihood.outcomes.map(lambda x, mask=mask: x[:, mask].double().cpu())
            choice = batch.choice[mask].double().cpu()
            log_prob, whole = seen.log_prob(choice), None
            if batch.rankings is not None:
                whole = batch.rankings.inside[mask].cpu()
                ranked = likelihood.log_prob_each(batch.choice)[:, mask].double().cpu()
                log_prob = torch.where(whole, ranked, log_prob)
            person = mask.nonzero()[:, 0]
            rest = draws.log_weights[:, person].double().cpu() - log_prob
            log_weights, pareto_k = pareto_smooth(rest.T.numpy())
            log_weights = torch.from_numpy(log_weights).T
            value = _predictive(seen, log_weights, choice)
            if whole is not None:
                value = torch.where(whole, (log_weights + log_prob).logsumexp(0), value)
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


def _predictive(outcomes: Outcomes, log_weights: Tensor, choice: Tensor) -> Tensor:
    """Scores R choices by draws (S, R) whose weights (S, R) are each comparison's own."""
    each = outcomes.map(lambda x: x.unsqueeze(-1))
    return log_predictive(each, log_weights, choice.unsqueeze(-1)).squeeze(-1)


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
            model, guide, data, num_samples, _TARGET_ERROR, _MAX_SAMPLES
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


def _fit_fresh(
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


@dataclass(frozen=True)
class HeterogeneityTest:
    """Holds a likelihood-ratio test of the homogeneous model.

    Attributes:
        log_likelihood: Maximised log-likelihood of the homogeneous and of the heterogeneous model,
            in nats.
        statistic: Twice their difference.
        statistic_error: Its Monte-Carlo standard error, from the draws of z.
        p_value: Probability of a statistic as large if everybody had the same utilities.
        p_interval: 95 % interval of the p-value for Monte-Carlo error, of the null distribution
            and of the statistic.
        null: Draws of the statistic under the null; empty where its distribution is known.
        method: `"mixture"`, `"simulated mixture"` or `"bootstrap"`.
        people: Number of people.
    """

    log_likelihood: tuple[float, float]
    statistic: float
    statistic_error: float
    p_value: float
    p_interval: tuple[float, float]
    null: np.ndarray
    method: str
    people: int

    @property
    def verdict(self) -> str:
        """What the test says, in words, at the level of 5 %."""
        if self.p_value <= 0.05:
            return f"the {self.people} people do differ"
        if self.statistic > self.null.max(initial=-np.inf) and self.method == "bootstrap":
            return (
                f"the statistic is larger than each of the {len(self.null)} under the null, which "
                "are too few to say more (num_null=19 at least)"
            )
        return f"these {self.people} people do not show that they differ"

    def __str__(self) -> str:
        how = {
            "mixture": "a mixture in equal parts of chi-squares with 0 and 1 degrees of freedom",
            "simulated mixture": (
                "a mixture of chi-squares with different degrees of freedom, of which "
                f"{len(self.null):,} draws were made from its cone"
            ),
            "bootstrap": (
                f"that of {len(self.null)} data sets simulated from the homogeneous model, both "
                "models fitted to each"
            ),
        }[self.method]
        low, high = self.p_interval
        lines = [
            f"Twice the log-likelihood ratio is {self.statistic:.2f} ± {self.statistic_error:.2f}: "
            f"{self.log_likelihood[1]:.2f} against {self.log_likelihood[0]:.2f} nats.",
            "No variance between people is the edge of what variances can be, so the statistic has "
            f"no chi-square distribution if all are alike, but {how}.",
            f"p = {self.p_value:.3g} (Monte-Carlo error: {low:.2g} to {high:.2g}): "
            + f"{self.verdict}, as far as both models fit otherwise.",
            "The test takes one of the models to be true: lapses, position bias or a utility of "
            "the wrong form can look like differences between people. Whether differences help to "
            "predict is another question, which leaving people out answers.",
        ]
        return " ".join(lines)


def heterogeneity_test(
    build: Callable[[], Pair],
    data: Preferences,
    *,
    null: str = "auto",
    num_null: int | None = None,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> HeterogeneityTest:
    r"""Tests whether people differ, by a likelihood ratio against the homogeneous model.

    The null hypothesis, ΛΛᵀ = 0, lies on the boundary. For a linear utility with a normal prior
    the limit of the statistic is :math:`\max_Σ\, 2\,\mathrm{tr}(SΣ) - \mathrm{vec}(Σ)^T I\,
    \mathrm{vec}(Σ)` over covariances Σ of rank at most K, where S is a normal draw of the score
    of Σ and I its information after w0 is accounted for: with one feature
    :math:`\tfrac12 χ^2_0 + \tfrac12 χ^2_1`, otherwise a mixture that is simulated without any
    refit. For other models z is not identified under the null, and the distribution comes from a
    parametric bootstrap: both models are fitted to data simulated from the homogeneous one, in
    which half wins stay where they are.

    Args:
        build: Returns a fresh heterogeneous model and its guide. The homogeneous model has the
            same utility and `latent_dim=0`.
        data: The comparisons.
        null: `"mixture"`, `"bootstrap"`, or `"auto"`: the mixture for a linear utility, a normal
            prior, neither ties nor position bias nor lapses, no rankings, at most 60 variances and
            covariances, and five people for each.
        num_null: Draws from the null distribution; 2,000 for the mixture, 19 for the bootstrap if
            None. A bootstrap cannot have a p-value below 1 / (num_null + 1).
        seed: Seed of weights, fits, draws and simulations.
        num_samples: Number of draws of each person to begin with, for the likelihood.
        fit_options: Arguments of :func:`fssa_bayes.fit`, such as `steps`; the same for the data
            and for every bootstrap data set, so that a short fit costs power and not validity.

    Returns:
        The test; `print` it for an explanation.

    Raises:
        ValueError: If an option is out of range, or the mixture is asked of a model without one.

    References:
        Self & Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood
        ratio tests under nonstandard conditions.
        Silvapulle & Sen (2005), Constrained statistical inference.
        Davies (1987), Hypothesis testing when a nuisance parameter is present only under the
        alternative.
        Davison & Hinkley (1997), Bootstrap methods and their application, chapter 4.
    """
    if null not in ("auto", "mixture", "bootstrap"):
        raise ValueError(f"null must be 'auto', 'mixture' or 'bootstrap', got {null!r}")
    if num_null is not None and (not isinstance(num_null, int) or num_null < 1):
        raise ValueError(f"num_null must be an integer of at least 1, got {num_null!r}")
    with seeded(seed):
        model, _ = build()
    problem = _no_mixture(model, data)
    if null == "mixture" and problem:
        raise ValueError(f"null='mixture' {problem}; null='bootstrap' does without")
    if model.latent_dim == 0:
        raise ValueError("build must return a model with latent_dim of at least 1, got 0")
    if model.num_covariates:
        raise ValueError(
            "build must return a model without covariates, under which differences between people "
            f"are those of z alone, got num_covariates={model.num_covariates}: leave_users_out "
            "tells whether covariates predict"
        )
    if model.config["utility"] == "module":
        raise ValueError(
            "build must return a model with a named utility, of which a homogeneous one can be "
            "made, got a module"
        )

    def ratio(people: Preferences, number: int) -> tuple[HeterogeneousBTL, np.ndarray, float]:
        average, _ = _fit_fresh(lambda: _homogeneous(model), people, number, fit_options)
        pair = _fit_fresh(build, people, number, fit_options)
        scores = [
            score_users(*both, people, num_samples, seed=number) for both in ((average, None), pair)
        ]
        values = np.array([score.total for score in scores])
        return average, values, 2 * scores[1].monte_carlo_error

    average, values, error = ratio(data, seed)
    statistic = 2 * (values[1] - values[0])
    if null == "bootstrap" or problem:
        method, draws = "bootstrap", []
        for number in range(seed + 1, seed + 1 + (num_null or 19)):
            choices = average.simulate(data, seed=number)[0].choice
            if data.ties != "keep":  # Half wins, which no model draws.
                choices = np.where(data.half_wins, 0.5, choices)
            _, simulated, _ = ratio(data.with_choices(choices), number)
            draws.append(2 * (simulated[1] - simulated[0]))
        draws = np.array(draws)
        p_value, interval = _p_value(draws, statistic, error, add=1)
    elif data.num_features == 1:
        method, draws = "mixture", np.empty(0)
        p_value = _half_chi_square(statistic)
        interval = tuple(_half_chi_square(statistic + sign * 2 * error) for sign in (1, -1))
    else:
        method = "simulated mixture"
        draws = _boundary_draws(average, data, model.latent_dim, num_null or 2000, seed=seed)
        p_value, interval = _p_value(draws, statistic, error, add=1)
    return HeterogeneityTest(
        log_likelihood=(values[0].item(), values[1].item()),
        statistic=statistic.item(),
        statistic_error=error,
        p_value=p_value,
        p_interval=interval,
        null=draws,
        method=method,
        people=len(data),
    )


def _no_mixture(model: HeterogeneousBTL, data: Preferences) -> str | None:
    """Says why there is no known limit of the likelihood ratio, or returns None."""
    variances = data.num_features * (data.num_features + 1) // 2
    if not isinstance(model.utility, LinearUtility) or len(model.prior_flow):
        return "needs utility='linear' and prior='normal', whose z vanishes with its variance"
    if answers := list(model.answer_parameters()):
        return f"needs a model without ties, position bias and lapses, got {', '.join(answers)}"
    if data.has_rankings:
        return "needs comparisons that stand alone, got rankings"
    if variances > _MAX_VARIANCES:
        return f"needs at most {_MAX_VARIANCES} variances and covariances, got {variances}"
    if len(data) < _PEOPLE_PER_VARIANCE * variances:
        return (
            f"needs {_PEOPLE_PER_VARIANCE} people for each of the {variances} variances and "
            f"covariances, got {len(data)}"
        )
    return None


def _homogeneous(model: HeterogeneousBTL) -> Pair:
    return HeterogeneousBTL(**(model.config | {"latent_dim": 0, "prior": "normal"})), None


def _half_chi_square(statistic: float) -> float:
    """Returns the tail probability of ½χ²₀ + ½χ²₁."""
    return 1.0 if statistic <= 0 else float(0.5 * stats.chi2.sf(statistic, 1))


def _p_value(
    null: np.ndarray, statistic: float, error: float, add: int
) -> tuple[float, tuple[float, float]]:
    """Returns a Monte-Carlo p-value, and its interval for both sources of Monte-Carlo error."""
    count = len(null)
    p_value = (add + np.sum(null >= statistic)) / (add + count)
    fewest, most = (int(np.sum(null >= statistic + sign * 2 * error)) for sign in (1, -1))
    low = stats.binomtest(fewest, count).proportion_ci(0.95).low
    high = stats.binomtest(most, count).proportion_ci(0.95).high
    return float(p_value), (float(low), float(high))


@torch.no_grad()
def _boundary_draws(
    average: HeterogeneousBTL, data: Preferences, latent_dim: int, num: int, *, seed: int = 0
) -> np.ndarray:
    """Draws the likelihood ratio's limit if everybody is alike, for a linear utility.

    Args:
        average: The homogeneous model at its maximum.
        data: The comparisons.
        latent_dim: Largest rank K of the covariance under the alternative.
        num: Number of draws.
        seed: Seed of the draws.

    Returns:
        Draws with shape (num,), at least 0: see :func:`heterogeneity_test`.
    """
    score, information = _variance_scores(average, data)
    size = score.shape[-1]
    moments = score.flatten(1).T @ score.flatten(1)
    cross = score.flatten(1).T @ information.slope
    efficient = moments - cross @ torch.linalg.pinv(information.outer, hermitian=True) @ cross.T
    values, vectors = torch.linalg.eigh(efficient)
    root = vectors * values.clamp(min=0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, len(root), generator=generator, dtype=root.dtype)
    linear = (noise @ root.T).reshape(num, size, size)
    return _cone_maximum(linear, efficient, min(latent_dim, size)).numpy()


@dataclass(frozen=True)
class _Slopes:
    """Holds people's scores of w0, (U, D), and the sum of their outer products."""

    slope: Tensor
    outer: Tensor


def _variance_scores(average: HeterogeneousBTL, data: Preferences) -> tuple[Tensor, _Slopes]:
    """Returns people's scores of Σ at 0, ½(g gᵀ − H), (U, D, D), and of w0.

    Coefficients are in units in which their information is the identity, so that the cone's
    maximum is well conditioned; directions without information are left out.
    """
    slopes, curvatures = [], []
    for _, batch in user_batches(data, 16, average.device):
        difference = feature_differences(average, batch).double()
        z = batch.choice.new_zeros(1, batch.num_users, 0)
        prob = average.choice(batch, z).mean[0].double()
        residual = (batch.choice - prob) * batch.mask
        spread = prob * (1 - prob) * batch.mask
        slopes.append(torch.einsum("un,und->ud", residual, difference).cpu())
        curvatures.append(torch.einsum("un,und,une->ude", spread, difference, difference).cpu())
    slope, curvature = torch.cat(slopes), torch.cat(curvatures)
    values, vectors = torch.linalg.eigh(curvature.mean(0))
    informative = values > 1e-9 * values[-1]
    whiten = vectors[:, informative] / values[informative].sqrt()
    slope = slope @ whiten
    curvature = whiten.T @ curvature @ whiten
    score = 0.5 * (slope.unsqueeze(-1) * slope.unsqueeze(-2) - curvature)
    return score, _Slopes(slope, slope.T @ slope)


def _cone_maximum(linear: Tensor, quadratic: Tensor, rank: int, steps: int = 100) -> Tensor:
    """Maximises 2 tr(SΣ) − vec(Σ)ᵀ I vec(Σ) over covariances of a rank, for S (B, D, D).

    Accelerated projected gradient ascent (Beck & Teboulle 2009). Below full rank the set is not
    convex: the ascent starts at the best full-rank Σ and at 0, and the better end counts.
    """
    size = linear.shape[-1]
    step = 1 / torch.linalg.eigvalsh(quadratic)[-1]

    def value(sigma: Tensor) -> Tensor:
        flat = sigma.flatten(1)
        return 2 * (linear.flatten(1) * flat).sum(-1) - ((flat @ quadratic) * flat).sum(-1)

    def ascend(sigma: Tensor, rank: int) -> Tensor:
        ahead, momentum = sigma, 1.0
        for number in range(steps):
            gradient = linear - (ahead.flatten(1) @ quadratic).reshape(ahead.shape)
            new = _project(ahead + step * gradient, rank)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - sigma)
            settled = number % 10 == 9 and (value(new) - value(sigma)).abs().max() < 1e-4
            sigma, momentum = new, following
            if settled:
                break
        return sigma

    full = ascend(torch.zeros_like(linear), size)
    best = value(full)
    if rank < size:
        ends = ascend(_project(full, rank), rank), ascend(torch.zeros_like(linear), rank)
        best = torch.maximum(*(value(end) for end in ends))
    return best.clamp(min=0)


def _project(matrix: Tensor, rank: int) -> Tensor:
    """Returns the nearest covariance of that rank at most."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = values.clamp(min=0)
    values[..., : values.shape[-1] - rank] = 0
    return (vectors * values.unsqueeze(-2)) @ vectors.mT


# ---------------------------------------------------------------------- how many dimensions?


@dataclass(frozen=True)
class LatentDimChoice:
    """Holds the number of latent dimensions chosen by some people and judged by others.

    Attributes:
        latent_dim: The number chosen.
        choosing: The comparison that it was chosen by, see :func:`compare`; index `latent_dim`.
        reported: The same on people who had no part in choosing or fitting, for the number
            chosen, its neighbours and 0.
        num_choosing: Number of people the choice was made by.
        num_reported: Number of people it was judged by.
    """

    latent_dim: int
    choosing: pd.DataFrame
    reported: pd.DataFrame
    num_choosing: int
    num_reported: int

    def __str__(self) -> str:
        lines = [
            f"{self.latent_dim} latent dimensions: the fewest within one standard error of the "
            f"best, by leaving out people among {self.num_choosing}. Judged by {self.num_reported} "
            "others, who took no part in choosing or fitting:"
        ]
        for width, row in self.reported.iterrows():
            if width != self.reported.index[0]:
                lines.append(
                    f"{width} against {self.reported.index[0]}: {-row['per_unit']:+.3f} ± "
                    f"{row['dse'] / self.num_reported:.3f} nats a person ({row['verdict']})."
                )
        return "\n".join(lines)


def choose_latent_dim(
    build: Callable[[int], Pair],
    data: Preferences,
    latent_dims: Sequence[int] = (0, 1, 2, 3),
    *,
    report_size: float = 0.3,
    num_folds: int = 3,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> LatentDimChoice:
    """Chooses the number of latent dimensions on some people, and reports its score on others.

    The score of a number chosen because it scored best is too good; so it is reported on people
    who had no part in the choice.

    Args:
        build: Takes a number of latent dimensions and returns a fresh model and its guide, None
            for 0.
        data: The comparisons of all people.
        latent_dims: Numbers to choose from, at least two.
        report_size: Share of the people that the choice is judged by.
        num_folds: Folds of :func:`leave_users_out` among the others.
        seed: Seed of the split, and as in :func:`leave_users_out`.
        num_samples: As in :func:`leave_users_out`.
        fit_options: As in :func:`leave_users_out`.

    Returns:
        The choice: the smallest number whose score is within one standard error of the difference
        from the best.

    Raises:
        ValueError: If there are fewer than two different numbers or an option is out of range.

    References:
        Hastie, Tibshirani & Friedman (2009), The elements of statistical learning, section 7.10,
        on the one-standard-error rule.
    """
    widths = sorted(set(latent_dims))
    if len(widths) < 2 or widths[0] < 0:
        raise ValueError(f"latent_dims must be at least 2 numbers from 0 up, got {latent_dims}")
    choosing, reporting = data.split_users(report_size, seed=seed)
    options = {"seed": seed, "num_samples": num_samples}
    scores = {
        width: leave_users_out(
            lambda width=width: build(width),
            choosing,
            num_folds,
            fit_options=fit_options,
            **options,
        )
        for width in widths
    }
    chosen_by = compare(scores).rename_axis("latent_dim")
    close = chosen_by["elpd_diff"] <= chosen_by["dse"].fillna(0)
    chosen = min(chosen_by.index[close])
    place = widths.index(chosen)
    shown = {*widths[max(0, place - 1) : place + 2], widths[0]}
    final = {}
    for width in sorted(shown):
        model, guide = _fit_fresh(lambda width=width: build(width), choosing, seed, fit_options)
        final[width] = score_users(model, guide, reporting, **options)
    return LatentDimChoice(
        latent_dim=int(chosen),
        choosing=chosen_by,
        reported=compare(final).rename_axis("latent_dim"),
        num_choosing=len(choosing),
        num_reported=len(reporting),
    )
