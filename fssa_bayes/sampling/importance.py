r"""Importance sampling of a person's posterior, with the guide as proposal.

Draws come from the mixture :math:`m(z) = .8\,q(z \mid C) + .2\,p(z)`, so that no weight
:math:`p(z)\,p(C \mid z) / m(z)` exceeds :math:`5\,p(C \mid z)` (a defensive mixture, Hesterberg
1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import pyro
import torch
from torch import Tensor

from fssa_bayes._arviz import pareto_smooth
from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.data.chunks import user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.model.distributions import BradleyTerry, Outcomes

__all__ = [
    "GUIDE_SHARE",
    "Draws",
    "Estimate",
    "Proposals",
    "check_draws",
    "check_finite",
    "draw_posterior",
    "effective_sample_size",
    "estimate_log_marginal_likelihood",
    "log_joint",
    "log_predictive",
    "person_log_marginal_likelihood",
    "propose",
    "propose_over_populations",
    "score_draws",
    "score_judgements",
    "thin",
]

GUIDE_SHARE = 0.8
"""Share of the proposals that come from the guide; the rest come from the prior."""


@dataclass(frozen=True)
class Proposals:
    """Holds draws and their importance weights.

    Attributes:
        z: Draws with shape (S, U, K), those of the guide before those of the prior.
        log_weights: Unnormalised log p(z) p(C|z) / m(z), in nats, with shape (S, U). Their mean
            estimates p(C).
        log_ratio: Log p(z) p(C|z) / q(z|C) of the draws from the guide alone, (S_q, U).
        log_guide: Log q(z|C) of every draw, (S, U).
        log_joint: Log p(z) p(C|z) of every draw, (S, U).
    """

    z: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    log_guide: Tensor
    log_joint: Tensor


@dataclass(frozen=True)
class Draws:
    """Holds draws from the posteriors of all people of a data set, on the CPU.

    Attributes:
        z: Draws with shape (S, U, K).
        log_weights: Normalised log-weights with shape (S, U).
        log_ratio: Log p(z) p(C|z) / q(z|C) of the draws from the guide alone, (S_q, U).
        log_guide: Log q(z|C) of every draw, (S, U).
        log_joint: Log p(z) p(C|z) of every draw, (S, U).
        weight_k: Pareto k-hat of the weights before they were smoothed, (U,); NaN without weights.
        weighted: Whether the weights differ; False for the guide's own draws, for a model without
            latent factor and after resampling.
    """

    z: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    log_guide: Tensor
    log_joint: Tensor
    weight_k: Tensor
    weighted: bool

    @cached_property
    def pareto_k(self) -> Tensor:
        """Pareto k-hat of p(z|C) / q(z|C) on draws of the guide alone, with shape (U,)."""
        if not len(self.log_ratio):  # None of the draws is the guide's.
            return self.log_ratio.new_full(self.log_ratio.shape[1:], math.nan)
        _, pareto_k = pareto_smooth(self.log_ratio.double().T.numpy())
        return torch.from_numpy(pareto_k).float()

    @cached_property
    def relative_ess(self) -> Tensor:
        """Effective sample size of the guide's own draws as a share of their number, (U,)."""
        if not len(self.log_ratio):
            return self.log_ratio.new_full(self.log_ratio.shape[1:], math.nan)
        ratio = self.log_ratio.double()
        return (effective_sample_size(ratio) / len(ratio)).float()

    def resample(self, seed: int) -> Draws:
        """Returns equally weighted draws; those that have equal weights are returned unchanged."""
        if not self.weighted:
            return self
        rng = np.random.default_rng(seed)
        # Systematic resampling, in an order that is random for each person and not sorted.
        cumulative = self.log_weights.double().exp().cumsum(0).T.contiguous()
        draws, users, width = self.z.shape
        point = (np.arange(draws) + rng.random((users, 1))) / draws
        point = torch.from_numpy(point) * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, point).clamp(max=draws - 1)
        order = torch.from_numpy(rng.random((users, draws))).argsort(-1)
        index = index.gather(-1, order).T
        return replace(
            self,
            z=self.z.gather(0, index.unsqueeze(-1).expand(draws, users, width)),
            log_weights=torch.zeros_like(self.log_weights).log_softmax(0),
            log_guide=self.log_guide.gather(0, index),
            log_joint=self.log_joint.gather(0, index),
            weighted=False,
        )


@dataclass(frozen=True)
class Estimate:
    """Holds a Monte-Carlo estimate and how far it can be trusted.

    Attributes:
        value: The estimate, in nats.
        standard_error: Its Monte-Carlo standard error.
        bias: Its estimated bias (the logarithm of a mean is too low on average).
        min_ess: The smallest effective sample size of a person's draws.
    """

    value: float
    standard_error: float
    bias: float
    min_ess: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.standard_error:.2f}"


@torch.no_grad()
@pyro.validation_enabled(False)
def propose(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    batch: Batch,
    num_samples: int,
    guide_share: float = GUIDE_SHARE,
) -> Proposals:
    """Draws from the mixture of guide and prior, and weighs the draws by the likelihood.

    Args:
        model: The model.
        guide: The guide; None for a model without latent factor, which gets one draw of width 0.
        batch: The people's contexts, on the model's device.
        num_samples: Number of draws S.
        guide_share: Share of the draws that come from the guide.

    Returns:
        The draws and their weights.
    """
    batch = batch.clean()
    if model.latent_dim == 0:
        z = batch.choice.new_zeros((1, batch.num_users, 0))
        log_prob = model.choice(batch, z).log_prob(batch.choice)
        return Proposals(z, log_prob, log_prob, torch.zeros_like(log_prob), log_prob)
    prior, posterior = model.prior(batch.num_users, batch.covariates), guide.posterior(batch)
    from_guide = min(max(round(guide_share * num_samples), 1), num_samples)
    # Each set of draws is scored by itself: a flow remembers its last draws, and need not invert.
    draws = [posterior.sample((from_guide,))]
    log_guide = [posterior.log_prob(draws[0])]
    if from_guide < num_samples:
        draws.append(prior.sample((num_samples - from_guide,)))
        log_guide.append(posterior.log_prob(draws[1]))
    z, log_guide = torch.cat(draws), torch.cat(log_guide)
    log_prior = prior.log_prob(z)
    log_joint = log_prior + model.choice(batch, z).log_prob(batch.choice)
    log_mixture = log_guide
    if from_guide < num_samples:
        share = from_guide / num_samples
        log_mixture = torch.logaddexp(log_guide + math.log(share), log_prior + math.log1p(-share))
    # With an empty context guide, prior and mixture are one: rounding is all that differs.
    empty = batch.num_comparisons == 0
    log_weights = (log_joint - log_mixture).masked_fill(empty, 0.0)
    log_ratio = (log_joint - log_guide)[:from_guide].masked_fill(empty, 0.0)
    return Proposals(z, log_weights, log_ratio, log_guide, log_joint)


def propose_over_populations(
    populations: Sequence[tuple[HeterogeneousBTL, NeuralProcessGuide | None]],
    batch: Batch,
    num_samples: int,
    guide_share: float = GUIDE_SHARE,
) -> Proposals:
    r"""Draws from every one of several populations, and weighs all draws together.

    With θ drawn with the populations, the weights :math:`p(z)\,p(C|z,θ) / m_θ(z)` represent the
    joint posterior of z and θ given C, for θ as likely beforehand as the populations are.

    Args:
        populations: Models, each with its guide.
        batch: The people's contexts, on the models' device.
        num_samples: Number of draws S of all populations together.
        guide_share: Share of the draws that come from the guides.

    Returns:
        The proposals, population after population, where z has one column more, its last: the
        position of the population that it belongs to.
    """
    sizes = [len(part) for part in np.array_split(np.arange(num_samples), len(populations))]
    parts = []
    for position, ((model, guide), size) in enumerate(zip(populations, sizes, strict=True)):
        draws = propose(model, guide, batch, size, guide_share)
        label = torch.full_like(draws.log_weights, position).unsqueeze(-1)
        parts.append(replace(draws, z=torch.cat([draws.z, label.to(draws.z.dtype)], -1)))
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Proposals))
    return Proposals(*(torch.cat(column) for column in columns))


def check_draws(model: HeterogeneousBTL, num_samples: int, correct: str | None) -> None:
    """Raises a ValueError unless that many draws can be taken and corrected in that way."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}")
    if correct == "psis" and model.latent_dim and num_samples < 25:
        raise ValueError(f"num_samples must be at least 25 for correct='psis', got {num_samples}")
    if correct not in ("psis", None):
        raise ValueError(f"correct must be 'psis' or None, got {correct!r}")


def draw_posterior(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    num_samples: int,
    *,
    seed: int,
    correct: str | None,
    populations: Sequence[tuple[HeterogeneousBTL, NeuralProcessGuide | None]] = (),
) -> Draws:
    """Draws from the posterior of every person, a few people at a time, and smooths the weights.

    Args:
        model: The model.
        guide: Its guide, or None for a model without latent factor.
        context: The people and the choices that are known of them.
        num_samples: Number of draws S of each person.
        seed: Seed of the draws.
        correct: `"psis"` for Pareto-smoothed importance weights, None for the guide's own draws.
        populations: Draws of the population's parameters, see :func:`propose_over_populations`;
            empty for those of `model` alone.

    Returns:
        The draws, weighted where they are corrected.

    Raises:
        FloatingPointError: If the model gives a person no finite posterior.
    """
    share = GUIDE_SHARE if correct else 1.0
    batches = []
    with seeded(seed):
        for _, batch in user_batches(context, num_samples, model.device):
            if populations:
                draws = propose_over_populations(populations, batch, num_samples, share)
            else:
                draws = propose(model, guide, batch, num_samples, share)
            batches.append([getattr(draws, field.name).cpu() for field in fields(Proposals)])
    z, log_weights, *others = (torch.cat(parts, 1) for parts in zip(*batches, strict=True))
    log_weights = log_weights.double()
    check_finite(z, log_weights, context)
    weighted = correct is not None and (model.latent_dim > 0 or len(populations) > 0)
    if weighted:
        smoothed, weight_k = pareto_smooth(log_weights.T.numpy())
        log_weights = torch.from_numpy(smoothed).T.float()
    else:
        weight_k = np.full(len(context), math.nan)
        log_weights = torch.zeros_like(log_weights).log_softmax(0).float()
    return Draws(z, log_weights, *others, torch.from_numpy(weight_k).float(), weighted)


def thin(draws: Draws, count: int, rng: np.random.Generator) -> Draws:
    """Keeps `count` of a person's weighted draws, none of them twice, without changing any mean.

    Draws of large weight keep it; of the others some are drawn, each with a probability in
    proportion to its weight, and share the rest equally.

    References:
        Fearnhead & Clifford (2003), On-line inference for hidden Markov models via particle
        filters, JRSS B 65(4).
    """
    index, log_weights = zip(
        *(_thinned(person, count, rng) for person in draws.log_weights.double().exp().T.numpy()),
        strict=True,
    )
    index = torch.from_numpy(np.stack(index, -1))
    return replace(
        draws,
        z=draws.z.gather(0, index.unsqueeze(-1).expand(*index.shape, draws.z.shape[-1])),
        log_weights=torch.from_numpy(np.stack(log_weights, -1)).float(),
        log_guide=draws.log_guide.gather(0, index),
        log_joint=draws.log_joint.gather(0, index),
    )


def _thinned(
    weights: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses `count` of the weights (R,); returns their positions and new log-weights."""
    order = np.argsort(-weights, kind="stable")
    ordered = weights[order] / weights.sum()
    rest = ordered[::-1].cumsum()[::-1]  # Mass from this draw on.
    share = rest[:count] / (count - np.arange(count))
    large = int(np.argmax(ordered[:count] <= share))
    threshold = share[large]
    points = (rng.random() + np.arange(count - large)) * threshold
    small = large + np.searchsorted(ordered[large:].cumsum(), points, side="right")
    small = np.minimum(small, len(weights) - 1)
    chosen = np.concatenate([np.arange(large), small])
    new = np.concatenate([ordered[:large], np.full(count - large, threshold)])
    with np.errstate(divide="ignore"):
        return order[chosen], np.log(new)


@torch.no_grad()
@pyro.validation_enabled(False)
def score_draws(guide: NeuralProcessGuide | None, context: Preferences, z: Tensor) -> Tensor:
    """Evaluates log q(z|C) of draws (S, U, K) from elsewhere, with shape (S, U); NaN if None."""
    if guide is None:
        return torch.full(z.shape[:2], math.nan)
    return _over_people(
        guide.model, context, z, lambda batch, draws: guide.posterior(batch).log_prob(draws)
    )


@torch.no_grad()
def log_joint(model: HeterogeneousBTL, context: Preferences, z: Tensor) -> Tensor:
    """Evaluates log p(z) p(C|z) of draws (S, U, K) from elsewhere, with shape (S, U), in nats."""

    def evaluate(batch: Batch, draws: Tensor) -> Tensor:
        likelihood = model.choice(batch, draws).log_prob(batch.choice)
        return model.prior(batch.num_users, batch.covariates).log_prob(draws) + likelihood

    return _over_people(model, context, z, evaluate)


def _over_people(
    model: HeterogeneousBTL,
    context: Preferences,
    z: Tensor,
    evaluate: Callable[[Batch, Tensor], Tensor],
) -> Tensor:
    """Evaluates draws (S, U, K) of people, a few at a time, and returns (S, U) on the CPU."""
    values = [
        evaluate(batch.clean(), z[:, people].to(model.device)).cpu()
        for people, batch in user_batches(context, len(z), model.device)
    ]
    return torch.cat(values, 1)


def check_finite(z: Tensor, log_weights: Tensor, context: Preferences) -> None:
    """Raises a FloatingPointError unless every person has finite draws z and a finite weight."""
    broken = ~(torch.isfinite(log_weights).any(0) & ~torch.isnan(log_weights).any(0))
    broken |= ~torch.isfinite(z).all(-1).all(0)
    if broken.any():
        first = context.user_names[int(broken.nonzero()[0])]
        raise FloatingPointError(
            f"the posterior of user {first!r} is not finite ({int(broken.sum())} such "
            "people): the model's parameters or features are out of range"
        )


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Computes Kish's :math:`(\sum w)^2 / \sum w^2` over the draws of log-weights (S, U)."""
    return torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0))


def estimate_log_marginal_likelihood(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    target_error: float,
    max_samples: int,
) -> Estimate:
    """Estimates the log marginal likelihood of all people, drawing until it is precise enough.

    Each person's draws are doubled together until the standard error of the sum is below
    `target_error` or a person has `max_samples` draws. Draws of all rounds are used.
    """
    values, variance, ess = person_log_marginal_likelihood(
        model, guide, data, num_samples, target_error, max_samples
    )
    return Estimate(
        value=values.sum().item(),
        standard_error=variance.sum().sqrt().item(),
        bias=-variance.sum().item() / 2,
        min_ess=ess.min().item(),
    )


def person_log_marginal_likelihood(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    num_samples: int,
    target_error: float,
    max_samples: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates log p(C) of each person, as :func:`estimate_log_marginal_likelihood` their sum.

    Returns:
        The estimates in nats, their Monte-Carlo variances and effective sample sizes, each in
        double precision on the model's device with shape (U,).
    """
    sums = None
    drawn = 0
    while True:
        # First and second moments of the weights, in logs: additive over rounds.
        rounds = []
        for _, batch in user_batches(data, num_samples, model.device):
            log_weights = propose(model, guide, batch, num_samples).log_weights.double()
            rounds.append(torch.stack([log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)]))
        moments = torch.cat(rounds, -1)
        sums = moments if sums is None else torch.logaddexp(sums, moments)
        drawn += num_samples
        ess = torch.exp(2 * sums[0] - sums[1])
        total = 1 if model.latent_dim == 0 else drawn
        variance = (1 / ess - 1 / total).clamp(min=0)
        if variance.sum().sqrt().item() <= target_error or 2 * drawn > max_samples:
            return sums[0] - math.log(total), variance, ess
        num_samples = drawn


def log_predictive(outcomes: Outcomes, log_weights: Tensor, choice: Tensor) -> Tensor:
    r"""Evaluates the log-probability of each choice, averaged over draws of z.

    Args:
        outcomes: Log-probabilities of the outcomes, each with shape (S, U, N).
        log_weights: Normalised log-weights with shape (S, U).
        choice: Choices with shape (U, N).

    Returns:
        :math:`\log \bar p(y)` in nats with shape (U, N), where :math:`\bar p` is the weighted mean
        of an outcome's probability; half a win each scores
        :math:`\tfrac12 \log \bar p(1) + \tfrac12 \log \bar p(0)`.
    """
    log_weights = log_weights.unsqueeze(-1)
    return outcomes.map(lambda x: (log_weights + x).logsumexp(0)).log_prob(choice)


def score_judgements(likelihood: BradleyTerry, log_weights: Tensor, choice: Tensor) -> Tensor:
    """Evaluates the log-probability of each judgement, averaged over draws of z.

    As :func:`log_predictive`; that of a ranking, whose mean is taken of the whole, stands at its
    first comparison, and 0 at its others.

    Args:
        likelihood: Distribution of the choices under the draws, with batch shape (S, U).
        log_weights: Normalised log-weights with shape (S, U), or of the first draws alone.
        choice: Choices with shape (U, N).

    Returns:
        Log-probabilities in nats with shape (U, N).
    """
    count = len(log_weights)
    outcomes = likelihood.outcomes.map(lambda x: x[:count])
    alone = log_predictive(outcomes, log_weights, choice)
    if likelihood.rankings is None:
        return alone
    log_prob = likelihood.log_prob_each(choice)[:count]
    joint = (log_weights.unsqueeze(-1) + log_prob).logsumexp(0)
    joint = joint.masked_fill(~likelihood.rankings.head, 0.0)
    return torch.where(likelihood.rankings.inside, joint, alone)
