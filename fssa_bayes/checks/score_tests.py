r"""In which directions do people held out contradict the model?

Score tests ask in which direction the data would change the fitted model. With :math:`\ell_u(s)`
the log marginal likelihood of a person when every margin m becomes :math:`m + (s - 1)\,\delta`,

.. math:: \frac{d \ell_u}{d s}(1) = E_{z \mid y_u} \sum_n (y_{un} - \sigma(m_{un}))\,\delta_{un},

whose expectation is zero for people from the model (Fisher's identity), so that the mean over
people, divided by its standard error, is standard normal.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.checks.enough import LEAST_PEOPLE, NotEnoughDataError
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import BradleyTerry, HeterogeneousBTL
from fssa_bayes.posterior import Posterior

__all__ = ["DIRECTIONS", "differentiate_by_margin", "score_tests"]


DIRECTIONS = (
    "difference between people",
    "consistency of choices",
    "left over right",
    "lapses",
)
"""Names of the directions."""


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

    Of a margin m the mean over the population, or over the people with the same covariates, is
    :math:`\bar m`. The directions δ are: people differ more (:math:`m - \bar m`), choices are more
    consistent (m), left is preferred (1, or the `side` that data name). For lapses the
    log-likelihood is differentiated by the probability of a choice made at random.

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
        NotEnoughDataError: If fewer than 20 people have comparisons.
        ValueError: If the data do not fit the model.

    References:
        Rao (1948), Large sample tests of statistical hypotheses concerning several parameters.
        Commenges & Jacqmin-Gadda (1997), Generalized score test of homogeneity based on correlated
        random effects models, JRSS B 59(1).
    """
    check_unweighted(data, "score_tests()")
    data = data.subset(data.counts > 0) if (data.counts > 0).any() else data
    if len(data) < LEAST_PEOPLE or data.num_comparisons == 0:
        raise NotEnoughDataError(
            f"data must have at least {LEAST_PEOPLE} people with comparisons for a test, got "
            f"{(data.counts > 0).sum()}"
        )
    posterior = Posterior(model, guide, data, num_samples, seed=seed)
    with seeded(seed):
        strangers = model.average_prior(256).sample()
    scores = []
    for _, batch, likelihood, log_weights in posterior.likelihoods(data):
        margin = likelihood.margin
        # The population, shifted by each person's covariates.
        everybody = strangers.unsqueeze(1) + model.location(batch.covariates)
        everybody = everybody.expand(-1, batch.num_users, -1)
        average = model.choice(batch, everybody).margin.mean(0)
        residual, log_prob = differentiate_by_margin(likelihood, batch.choice)
        # The derivative by the lapse rate; a lapse makes all answers equally likely.
        slip = torch.exp(-log_prob) / (3 if model.has_ties else 2) - 1
        if not model.has_ties:  # A lapse never gives half a win each.
            slip = slip * (batch.choice != 0.5)
        side = residual if batch.side is None else residual * batch.side
        if data.has_rankings:  # A ranking has no left side, and no lapses.
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
        p[-1] = stats.t.sf(z[-1], freedom)  # A model without lapses can only have too few of them.
    index = pd.Index(DIRECTIONS, name="direction")
    columns = {"score": score.mean(0), "standard_error": error, "z": z, "p": p}
    return pd.DataFrame(columns, index=index)


def differentiate_by_margin(likelihood: BradleyTerry, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiates the log-probability of choices by their margins.

    Args:
        likelihood: The likelihood, with margins (S, U, N).
        choice: The choices, with shape (U, N).

    Returns:
        d log p(y) / d margin, which is y − σ(margin) in the plain model, and log p(y), (S, U, N).
    """
    with torch.enable_grad():
        margin = likelihood.margin.detach().requires_grad_()
        log_prob = likelihood.at(margin).log_prob_each(choice)
        (residual,) = torch.autograd.grad(log_prob.sum(), margin)
    return residual, log_prob.detach()
