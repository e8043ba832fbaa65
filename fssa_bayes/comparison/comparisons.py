"""How well is each comparison predicted from the same person's other comparisons?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fssa_bayes._random import Streams
from fssa_bayes._weights import pareto_smooth
from fssa_bayes.comparison.elpd import Elpd
from fssa_bayes.data import Preferences, check_unweighted, user_batches
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.sampling import check_draws, propose

__all__ = ["leave_comparisons_out", "ratio_variance"]


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

    Proposals from :math:`m(z) = .8\,q(z|C) + .2\,p(z)` get the weights
    :math:`p(z)\,p(C|z) / m(z)` divided by :math:`p(y_n|z)`, smoothed by a Pareto tail: the
    posterior without comparison n. The model is not fitted again: **the population is held fixed**
    at an estimate that may have seen the choice. A model is flattered by about as many nats as it
    has population parameters; :func:`leave_users_out` does not flatter.

    Args:
        model: A fitted model.
        guide: Its guide; None for `latent_dim=0`, where the score is the log-likelihood.
        data: The comparisons, of people the model was fitted to or of others.
        num_samples: Number of proposals S for each person.
        seed: Seed of the proposals.

    Returns:
        The score, with log p(y_n | the person's other choices) and k-hat for each comparison; above
        a k-hat of .7 a value is in doubt.

    Raises:
        ValueError: If data, model and guide do not fit each other or there are too few proposals.

    References:
        Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC.
        Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    check_unweighted(data, "leave_comparisons_out()")
    digest, data = data.digest(), align(model, data)  # Models may number items differently.
    check_guide(model, guide)
    check_draws(model, num_samples, "psis")
    values, shapes, variances = [], [], []
    streams = Streams(seed, "comparisons")
    for _, batch in user_batches(data, 2 * num_samples, model.device):
        draws = propose(model, guide, batch, num_samples, streams=streams)
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
        variances.append(ratio_variance(log_prob, log_weights, value, person.cpu()))
    return Elpd(
        values=torch.cat(values).numpy(),
        person=np.repeat(np.arange(len(data)), data.judgement_counts),
        num_people=len(data),
        unit="judgement" if data.has_rankings else "comparison",
        pareto_k=np.concatenate(shapes) if model.latent_dim else None,
        monte_carlo_error=math.sqrt(sum(part.sum().item() for part in variances)),
        digest=digest,
    )


def ratio_variance(log_prob: Tensor, log_weights: Tensor, value: Tensor, person: Tensor) -> Tensor:
    """Estimates the variance of people's sums of log self-normalised means, by the delta method.

    The comparisons of a person share the person's proposals, so the errors of the comparisons add
    up proposal by proposal.

    Args:
        log_prob: log p(y_n | z) at each proposal, with shape (S, R).
        log_weights: Normalised log-weights of the proposals for each comparison, (S, R).
        value: The log of the weighted mean of p(y_n | z), with shape (R,).
        person: Position of the person that each comparison belongs to, with shape (R,).

    Returns:
        The variance for each person up to the last of `person`.
    """
    if len(person) == 0:
        return value.new_zeros(0)
    influence = log_weights.exp() * (torch.exp(log_prob - value) - 1)
    total = influence.new_zeros(len(influence), int(person.max()) + 1)
    return total.index_add_(1, person, influence).square().sum(0)
