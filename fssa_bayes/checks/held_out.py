r"""Do predictions hold for people the model has never seen?

Simulated people cannot show that a model is wrong; real ones can. For every number of known choices
the unseen ones are scored, their probabilities kept for a reliability diagram, and each person's
number of agreements with the average person is set against its predictive distribution, which is
too narrow where people differ more than the model thinks.

Score tests ask in which direction the data would change the fitted model. With :math:`\ell_u(s)`
the log marginal likelihood of a person when every margin m becomes :math:`m + (s - 1)\,\delta`,

.. math:: \frac{d \ell_u}{d s}(1) = E_{z \mid y_u} \sum_n (y_{un} - \sigma(m_{un}))\,\delta_{un},

whose expectation is zero for people from the model (Fisher's identity), so that the mean over
people, divided by its standard error, is standard normal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from fssa_bayes import diagnostics
from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.model.distributions import BradleyTerry, Outcomes
from fssa_bayes.posterior import ChoiceProbability, Posterior
from fssa_bayes.sampling.importance import score_judgements

__all__ = [
    "HeldOut",
    "Predictor",
    "compare_by_context",
    "predict_held_out",
    "score_by_context",
    "score_folds",
    "score_tests",
]

_LEAST_PEOPLE = 20  # Fewer give no standard error worth printing.


@dataclass(frozen=True)
class HeldOut:
    """Holds predictions of unseen choices at one number of known choices.

    U people with N unseen choices at most, NaN in padding and where a ranking says nothing.

    Attributes:
        num_context: Number of known choices.
        prob: Probability that left is preferred, plus half of that of a tie where the model knows
            ties: the expectation of `choice`, (U, N).
        choice: What was chosen, (U, N).
        log_score: Log-probability of each choice in nats, (U, N); of a ranking as a whole, at its
            first comparison, with NaN at its others.
        baseline: The same where nothing is known of the person, (U, N).
        pit: Transform of each person's agreements with the average person in their predictive
            distribution, randomised, (U,).
    """

    num_context: int
    prob: Tensor
    choice: Tensor
    log_score: Tensor
    baseline: Tensor
    pit: Tensor

    def gain(self) -> tuple[float, float]:
        """Returns how much knowing the person gains a comparison, in nats, with its standard error.

        The mean over people of each person's mean, so that the standard error is clustered by
        person.
        """
        gain = (self.log_score - self.baseline).nanmean(-1)
        return gain.mean().item(), (gain.std() / len(gain) ** 0.5).item()


def predict_held_out(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    *,
    sizes: Sequence[int] = (0, 1, 2, 4, 8, 16),
    num_samples: int = 1000,
    seed: int = 0,
) -> list[HeldOut]:
    """Predicts the unseen choices of people from the first few.

    Args:
        model: A fitted model.
        guide: Its guide.
        data: People who took no part in the fit.
        sizes: Numbers of known choices; those that leave fewer than 20 people with something to
            predict are left out.
        num_samples: Draws S of each person's posterior.
        seed: Seed of splits and draws.

    Returns:
        The predictions, one entry a size.

    Raises:
        ValueError: If the data do not fit the model, or no size leaves enough people.
    """
    predictions = []
    for size in sorted(sizes):
        enough = data.judgement_counts > size
        if enough.sum() >= _LEAST_PEOPLE:
            context, target = data.subset(enough).split_context(size, seed=seed)
            predictions.append(_predict(model, guide, size, context, target, num_samples, seed))
    if not predictions:
        raise ValueError(
            f"data must have {_LEAST_PEOPLE} people with more than min(sizes) = {min(sizes)} "
            f"{_judgements(data)}, got {len(data)} people with at most "
            f"{data.judgement_counts.max()}"
        )
    return predictions


@torch.no_grad()
def _predict(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    size: int,
    context: Preferences,
    target: Preferences,
    num_samples: int,
    seed: int,
) -> HeldOut:
    nothing, _ = target.split_context(0, seed=seed)
    known = Posterior(model, guide, context, num_samples, seed=seed)
    unknown = Posterior(model, guide, nothing, num_samples, seed=seed)
    average = _expected(unknown.choice_prob(target))
    whole = target.batch()
    silent = ~whole.mask | (whole.choice == 0.5) & ~whole.half_wins  # Pairs a ranking leaves open.
    return HeldOut(
        size,
        prob=_expected(known.choice_prob(target)).masked_fill(silent, torch.nan),
        choice=whole.choice.masked_fill(silent, torch.nan),
        log_score=_log_score(known, target),
        baseline=_log_score(unknown, target),
        pit=_agreements(known, target, average, seed),
    )


def _log_score(posterior: Posterior, target: Preferences) -> Tensor:
    """Log-probability of each choice in nats, (U, N), NaN in padding; of a ranking at its head."""
    table = torch.full((len(target), int(target.counts.max())), torch.nan)
    for people, batch, likelihood, log_weights in posterior.likelihoods(target):
        score = score_judgements(likelihood, log_weights, batch.choice)
        width = batch.mask.shape[1]
        table[people, :width] = score.masked_fill(~batch.judgement_mask, torch.nan).cpu()
    return table


def _agreements(posterior: Posterior, target: Preferences, average: Tensor, seed: int) -> Tensor:
    """Transforms of people's agreements with the average person, whose choices are (U, N); (U,)."""
    pit = torch.empty(len(target))
    with seeded(seed):
        for people, batch, likelihood, log_weights in posterior.likelihoods(target):
            expected = average[people, : batch.mask.shape[1]].to(batch.choice)
            liked = (expected > 0.5).to(batch.choice) * 2 - 1
            # Half a win each is never drawn by a model without ties.
            is_drawn = batch.mask & (~batch.half_wins | posterior.model.has_ties)
            weight, drawn = liked * is_drawn, likelihood.sample() - 0.5
            agreed = ((batch.choice - 0.5) * weight).sum(-1, keepdim=True)
            pit[people] = diagnostics.weighted_pit(
                (drawn * weight).sum(-1, keepdim=True).cpu(),
                log_weights.cpu(),
                agreed.cpu(),
                seed=seed + people.start,
            ).squeeze(-1)
    return pit


def _expected(prob: ChoiceProbability) -> Tensor:
    return prob.mean + prob.tie / 2


class Predictor(Protocol):
    """What a comparison asks of a posterior, or of a baseline that stands in its place."""

    def log_score(self, target: Preferences) -> Tensor:
        """Returns each person's mean log-probability of unseen choices, in nats, (U,)."""

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Returns probabilities of unseen choices."""


def score_by_context(
    predictors: Mapping[str, Callable[[Preferences], Predictor]],
    data: Preferences,
    sizes: Sequence[int] = (0, 1, 3, 5, 10),
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores predictions of unseen choices by the number of choices that are known.

    Everybody who has more choices than are known takes part, so that the people, and their unseen
    choices, differ between sizes; all predictors see the same ones. A ranking is one choice, known
    or unseen as a whole.

    Args:
        predictors: By name, what turns known choices into predictions, such as
            `lambda context: Posterior(model, guide, context)`.
        data: People who took no part in any fit.
        sizes: Numbers of known choices.
        seed: Seed of the splits into known and unseen choices.

    Returns:
        One row a person, size and predictor. Columns: `known`, `predictor`, `user`; `unseen`, the
        number of choices that are predicted; `log_score`, their mean, nats a choice; `accuracy`,
        the share of those that are no ties of which the likelier side was chosen, an undecided
        prediction counting half; of a ranking, all pairs that it orders are counted.

    Raises:
        ValueError: If there are no predictors or sizes, or nobody has more choices than the
            smallest size.
    """
    if not predictors:
        raise ValueError("predictors must hold at least one, got none")
    if len(sizes) == 0:
        raise ValueError("sizes must hold at least one number of known choices, got none")
    if not (data.judgement_counts > min(sizes)).any():
        raise ValueError(
            f"data must have people with more than min(sizes) = {min(sizes)} "
            f"{_judgements(data)}, got {data.judgement_counts.max()} at most"
        )
    parts = []
    for size in sizes:
        enough = data.judgement_counts > size
        if not enough.any():
            continue
        context, target = data.subset(enough).split_context(size, seed=seed)
        for name, predict in predictors.items():
            predictor = predict(context)
            columns = {
                "known": size,
                "predictor": name,
                "user": target.user_names,
                "unseen": target.judgement_counts,
                "log_score": predictor.log_score(target).double().numpy(),
                "accuracy": _accuracy(predictor.choice_prob(target), target),
            }
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def score_folds(
    fitters: Mapping[str, Callable[[Preferences], Callable[[Preferences], Predictor]]],
    data: Preferences,
    sizes: Sequence[int] = (0, 1, 3, 5, 10),
    *,
    num_folds: int = 5,
    folds: Sequence[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Fits to some people and scores predictions for the others, fold by fold.

    People are dealt into folds at random, by `seed` alone, so that different fits are compared on
    the same folds.

    Args:
        fitters: By name, what fits to people and returns a predictor as :func:`score_by_context`
            wants it.
        data: The comparisons of all people.
        sizes: Numbers of known choices.
        num_folds: Number of folds.
        folds: Which folds are left out in turn, from 0; all if None.
        seed: Seed of the folds, and of splits into known and unseen choices.

    Returns:
        The table of :func:`score_by_context`, with a column `fold`: everybody stands once for each
        size and predictor, for :func:`compare_by_context`.

    Raises:
        ValueError: If `num_folds` does not lie between 2 and the number of people, or a fold is
            none of them or named twice.
    """
    if not isinstance(num_folds, int) or not 2 <= num_folds <= len(data):
        raise ValueError(
            f"num_folds must be an integer between 2 and the {len(data)} people, got {num_folds!r}"
        )
    folds = range(num_folds) if folds is None else folds
    unknown = [number for number in folds if number not in range(num_folds)]
    if unknown or len(folds) == 0:
        raise ValueError(f"folds must be some of 0 to {num_folds - 1}, got {list(folds)}")
    if len(sizes) == 0:
        raise ValueError("sizes must hold at least one number of known choices, got none")
    if len(set(folds)) < len(folds):
        raise ValueError(f"folds must name a fold once, got {list(folds)}")
    dealt = np.random.default_rng(seed).permutation(len(data)) % num_folds
    parts = []
    for number in folds:
        train, test = data.subset(dealt != number), data.subset(dealt == number)
        predictors = {name: fitter(train) for name, fitter in fitters.items()}
        scores = score_by_context(predictors, test, sizes, seed=seed)
        parts.append(scores.assign(fold=number))
    return pd.concat(parts, ignore_index=True)


def _judgements(data: Preferences) -> str:
    return "judgements" if data.has_rankings else "comparisons"


def _accuracy(prob: ChoiceProbability, target: Preferences) -> np.ndarray:
    """Shares of right predictions among a person's pairs that are no ties, (U,)."""
    batch = target.batch()
    lean, answer = _expected(prob) - 0.5, batch.choice - 0.5
    right = torch.where(lean == 0, 0.5, (lean.sign() == answer.sign()).double())
    right = right.masked_fill(~batch.mask | (answer == 0), torch.nan)
    return right.nanmean(-1).numpy()


def compare_by_context(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Compares predictors with one of them, person by person.

    Args:
        scores: Of :func:`score_by_context`; those of several folds can be put under each other if
            nobody stands in two.
        baseline: Name of the predictor that the others are compared with.

    Returns:
        One row a size and predictor (index `known`, `predictor`). Columns: `people`; `log_score`,
        the mean over people, nats a choice, and `accuracy`; `gain` in log score over the
        baseline, and its `standard_error` over people; `elpd_diff`, the sum of gains over all
        unseen choices, in nats, and `dse`, its standard error, clustered by person.

    Raises:
        ValueError: If `baseline` is none of the predictors, or a person stands twice.
    """
    names = list(dict.fromkeys(scores["predictor"]))
    if baseline not in names:
        raise ValueError(f"baseline must be one of {names}, got {baseline!r}")
    if scores.duplicated(["known", "predictor", "user"]).any():
        raise ValueError("scores must have one row a size, predictor and user, got more")
    rows = {}
    for size, of_size in scores.groupby("known", sort=True):
        reference = of_size[of_size["predictor"] == baseline].set_index("user")
        for name in names:
            own = of_size[of_size["predictor"] == name].set_index("user").loc[reference.index]
            gain = own["log_score"] - reference["log_score"]
            total = gain * own["unseen"]
            people = len(own)
            rows[size, name] = {
                "people": people,
                "log_score": own["log_score"].mean(),
                "accuracy": own["accuracy"].mean(),
                "gain": gain.mean(),
                "standard_error": gain.std() / people**0.5,
                "elpd_diff": total.sum(),
                "dse": total.std() * people**0.5,
            }
    index = pd.MultiIndex.from_tuples(rows, names=["known", "predictor"])
    return pd.DataFrame(list(rows.values()), index=index)


_DIRECTIONS = (
    "difference between people",
    "consistency of choices",
    "left over right",
    "lapses",
)


@torch.no_grad()
def score_tests(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Tests in which directions people who took no part in the fit contradict the model.

    Directions δ of a margin m, whose mean over the population, or that part of it which has the
    person's covariates, is :math:`\bar m`: people differ
    more (:math:`m - \bar m`), choices are more consistent (m), left is preferred (1). For lapses
    the log-likelihood is differentiated by the probability of a choice made at random.

    Args:
        model: A fitted model.
        guide: Its guide.
        data: People who took no part in the fit.
        num_samples: Draws S of each person's posterior given all their choices.
        seed: Seed of the draws.

    Returns:
        One row a direction (index `direction`): `score`, the mean over people in nats per unit of
        s; `standard_error`, clustered by person; `z`, their ratio; `p`, by Student's t, two-sided
        (one-sided for lapses in a model without them). NaN where nobody has a score, as for lapses
        where all choices are half wins, and for lapses and the left side where there are rankings.

    Raises:
        ValueError: If the data do not fit the model or there are fewer than 20 people.

    References:
        Rao (1948), Large sample tests of statistical hypotheses concerning several parameters.
        Commenges & Jacqmin-Gadda (1997), Generalized score test of homogeneity based on correlated
        random effects models, JRSS B 59(1).
    """
    data = data.subset(data.counts > 0) if (data.counts > 0).any() else data
    if len(data) < _LEAST_PEOPLE or data.num_comparisons == 0:
        raise ValueError(
            f"data must have at least {_LEAST_PEOPLE} people with comparisons for a test, got "
            f"{(data.counts > 0).sum()}"
        )
    posterior = Posterior(model, guide, data, num_samples, seed=seed)
    with seeded(seed):
        strangers = model.average_prior(256).sample()
    scores = []
    for _, batch, likelihood, log_weights in posterior.likelihoods(data):
        margin, average = likelihood.margin, _mean_margin(model, batch, strangers)
        residual, log_prob = _residual(likelihood, batch.choice)
        # The derivative by the share of answers at random, each of them as likely as another.
        slip = torch.exp(-log_prob) / (3 if model.has_ties else 2) - 1
        if not model.has_ties:  # Half a win each is no answer.
            slip = slip * (batch.choice != 0.5)
        side = residual
        if data.has_rankings:  # They have no left side, and are no answers at random.
            side, slip = side * torch.nan, slip * torch.nan
        terms = (residual * (margin - average), residual * margin, side, slip)
        person = [(term * batch.mask).sum(-1) for term in terms]
        weights = log_weights.exp().unsqueeze(-1)
        scores.append((weights * torch.stack(person, -1)).sum(0))
    score = torch.cat(scores).double().cpu().numpy()
    error = score.std(0, ddof=1) / np.sqrt(len(score))
    z = score.mean(0) / np.where(error > 0, error, np.nan)
    freedom = len(score) - 1
    p = 2 * stats.t.sf(np.abs(z), freedom)
    if model.lapse_logit is None:
        p[-1] = stats.t.sf(z[-1], freedom)  # A model without lapses can have too few only.
    index = pd.Index(_DIRECTIONS, name="direction")
    columns = {"score": score.mean(0), "standard_error": error, "z": z, "p": p}
    return pd.DataFrame(columns, index=index)


def _residual(likelihood: BradleyTerry, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Returns d log p(y) / d margin, y − σ(margin) in the plain model, and log p(y), (S, U, N)."""
    with torch.enable_grad():
        margin = likelihood.margin.detach().requires_grad_()
        if likelihood.rankings is None:
            outcomes = Outcomes.of(margin, likelihood.log_tie, likelihood.lapse_logit)
            log_prob = outcomes.log_prob(choice)
        else:
            mask, rankings = likelihood.mask_, likelihood.rankings
            twin = BradleyTerry.from_margin(margin, mask, rankings=rankings)
            log_prob = twin.log_prob_each(choice)
        (residual,) = torch.autograd.grad(log_prob.sum(), margin)
    return residual, log_prob.detach()


def _mean_margin(model: HeterogeneousBTL, batch: Batch, z: Tensor) -> Tensor:
    """Averages margins over people z (S, K), moved to each person's covariates, to (U, N)."""
    everybody = (z.unsqueeze(1) + model.location(batch.covariates)).expand(-1, batch.num_users, -1)
    return model.choice(batch, everybody).margin.mean(0)
