"""Do predictions hold for people the model has never seen?

Simulated people cannot show that a model is wrong; real people can. For every number of known
choices three things are computed: scores of the unseen choices; their probabilities, for a
reliability diagram; and the place of each person's number of agreements with the average person in
its predictive distribution, which is too narrow where people differ more than the model says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fssa_bayes import diagnostics
from fssa_bayes._random import seeded
from fssa_bayes.checks.enough import LEAST_PEOPLE, NotEnoughDataError, word_for_judgements
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import ChoiceProbability, Posterior

__all__ = [
    "HeldOut",
    "expected_choice",
    "predict_held_out",
    "tabulate_log_prob",
    "transform_agreements",
]


@dataclass(frozen=True)
class HeldOut:
    """Holds predictions of unseen choices at one number of known choices.

    U people have at most N unseen choices; values are NaN in padding and where a ranking says
    nothing.

    Attributes:
        num_context: Number of known choices.
        prob: Probability that left is preferred, plus half of that of a tie where the model knows
            ties: the expectation of `choice`, (U, N).
        choice: What was chosen, (U, N).
        log_score: Log-probability of each choice in nats, (U, N); of a ranking as a whole, at its
            first comparison, with NaN at its others.
        baseline: Log-probability of each choice where nothing is known of the person, (U, N).
        pit: Probability integral transform of each person's number of agreements with the average
            person, randomised, (U,).
    """

    num_context: int
    prob: Tensor
    choice: Tensor
    log_score: Tensor
    baseline: Tensor
    pit: Tensor

    def gain(self) -> tuple[float, float]:
        """Returns the gain in log score from known choices, nats a choice, and its standard error.

        The gain is the mean over people of each person's mean, so that the standard error is
        clustered by person.
        """
        gain = (self.log_score - self.baseline).nanmean(-1)
        return gain.mean().item(), (gain.std() / len(gain) ** 0.5).item()


@torch.no_grad()
def predict_held_out(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    *,
    sizes: Sequence[int] = (0, 1, 2, 4, 8, 16),
    num_samples: int = 1000,
    seed: int = 0,
) -> list[HeldOut]:
    """Predicts the unseen choices of people from a few known ones.

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
        NotEnoughDataError: If no size leaves enough people.
        ValueError: If the data do not fit the model.
    """
    check_unweighted(data, "predict_held_out()")
    predictions = []
    for size in sorted(sizes):
        enough = data.judgement_counts > size
        if enough.sum() < LEAST_PEOPLE:
            continue
        context, target = data.subset(enough).split_context(size, seed=seed)
        nothing, _ = target.split_context(0, seed=seed)
        known = Posterior(model, guide, context, num_samples, seed=seed)
        unknown = Posterior(model, guide, nothing, num_samples, seed=seed)
        average = expected_choice(unknown.choice_prob(target))
        whole = target.batch()
        # Padding, and pairs that a ranking leaves open.
        silent = ~whole.mask | (whole.choice == 0.5) & ~whole.half_wins
        predictions.append(
            HeldOut(
                size,
                prob=expected_choice(known.choice_prob(target)).masked_fill(silent, torch.nan),
                choice=whole.choice.clamp(0, 1).masked_fill(silent, torch.nan),
                log_score=tabulate_log_prob(known, target),
                baseline=tabulate_log_prob(unknown, target),
                pit=transform_agreements(known, target, average, seed),
            )
        )
    if not predictions:
        raise NotEnoughDataError(
            f"data must have {LEAST_PEOPLE} people with more than min(sizes) = {min(sizes)} "
            f"{word_for_judgements(data)}, got {len(data)} people with at most "
            f"{data.judgement_counts.max()}"
        )
    return predictions


def tabulate_log_prob(posterior: Posterior, target: Preferences) -> Tensor:
    """Evaluates the log-probability of each choice in nats, (U, N), with NaN in padding.

    A ranking has one log-probability, at its first comparison, and NaN at its others.
    """
    table = torch.full((len(target), int(target.counts.max())), torch.nan)
    for people, batch, likelihood, log_weights in posterior.likelihoods(target):
        score = likelihood.log_predictive(log_weights, batch.choice)
        width = batch.mask.shape[1]
        table[people, :width] = score.masked_fill(~batch.judgement_mask, torch.nan).cpu()
    return table


def transform_agreements(
    posterior: Posterior, target: Preferences, average: Tensor, seed: int
) -> Tensor:
    """Transforms each person's number of agreements with the average person, to (U,).

    Args:
        posterior: The people's posterior.
        target: Their unseen choices.
        average: Expected choices of the average person on the same pairs, (U, N).
        seed: Seed of the simulated choices and of ties between numbers of agreements.

    Returns:
        Probability integral transforms in the predictive distributions.
    """
    pit = torch.empty(len(target))
    with seeded(seed):
        for people, batch, likelihood, log_weights in posterior.likelihoods(target):
            expected = average[people, : batch.mask.shape[1]].to(batch.choice)
            liked = (expected > 0.5).to(batch.choice) * 2 - 1
            # Half a win each is never drawn by a model without ties.
            is_drawn = batch.mask & (~batch.half_wins | posterior.model.has_ties)
            weight, drawn = liked * is_drawn, likelihood.sample().clamp(0, 1) - 0.5
            agreed = ((batch.choice.clamp(0, 1) - 0.5) * weight).sum(-1, keepdim=True)
            pit[people] = diagnostics.weighted_pit(
                (drawn * weight).sum(-1, keepdim=True).cpu(),
                log_weights.cpu(),
                agreed.cpu(),
                seed=seed + people.start,
            ).squeeze(-1)
    return pit


def expected_choice(prob: ChoiceProbability) -> Tensor:
    """Returns the expectation of a choice, in which a tie counts ½, with shape (U, N)."""
    return prob.mean + prob.tie / 2
