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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssa_bayes import diagnostics
from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import ChoiceProbability, Posterior

__all__ = ["HeldOut", "predict_held_out"]

LEAST_PEOPLE = 20  # Fewer give no standard error worth printing.


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
        if enough.sum() >= LEAST_PEOPLE:
            context, target = data.subset(enough).split_context(size, seed=seed)
            predictions.append(_predict(model, guide, size, context, target, num_samples, seed))
    if not predictions:
        raise ValueError(
            f"data must have {LEAST_PEOPLE} people with more than min(sizes) = {min(sizes)} "
            f"{word_for_judgements(data)}, got {len(data)} people with at most "
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
    average = expected_choice(unknown.choice_prob(target))
    whole = target.batch()
    silent = ~whole.mask | (whole.choice == 0.5) & ~whole.half_wins  # Pairs a ranking leaves open.
    return HeldOut(
        size,
        prob=expected_choice(known.choice_prob(target)).masked_fill(silent, torch.nan),
        choice=whole.choice.masked_fill(silent, torch.nan),
        log_score=_log_score(known, target),
        baseline=_log_score(unknown, target),
        pit=_agreements(known, target, average, seed),
    )


def _log_score(posterior: Posterior, target: Preferences) -> Tensor:
    """Log-probability of each choice in nats, (U, N), NaN in padding; of a ranking at its head."""
    table = torch.full((len(target), int(target.counts.max())), torch.nan)
    for people, batch, likelihood, log_weights in posterior.likelihoods(target):
        score = likelihood.log_predictive(log_weights, batch.choice)
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


def expected_choice(prob: ChoiceProbability) -> Tensor:
    return prob.mean + prob.tie / 2


def word_for_judgements(data: Preferences) -> str:
    return "judgements" if data.has_rankings else "comparisons"
