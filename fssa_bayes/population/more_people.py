r"""What more people would add: the gain in the log score of new people that is still to be had.

Estimates :math:`\hat\theta` from n people are on average worse for a new person than those from
everybody there is, by

.. math:: \tfrac{1}{2n} \operatorname{tr}(I^{-1} J)

nats, where I is a person's expected information and J the covariance of a person's score. The trace
is the number of parameters where the model is right.

References:
    Takeuchi (1976), Distribution of informational statistics and a criterion of model fitting.
    Stone (1977), An asymptotic equivalence of choice of model by cross-validation and Akaike's
    criterion, JRSS B 39.
    Rao & Scott (1981), The analysis of categorical data from complex sample surveys, JASA 76: a
    score statistic by the mean eigenvalue of I⁻¹ J.
    Efron & Tibshirani (1993), An introduction to the bootstrap, chapter 11: the jackknife.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special  # scipy.stats takes ten times as long to import.
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.population.information import population_information, population_score
from fssa_bayes.population.parameters import estimate_parameters, free_positions, prior_score
from fssa_bayes.population.standard_errors import Uncertainty

__all__ = ["GainOfMorePeople", "gain_of_more_people"]

_GROUPS = 50  # Of people, one of which the jackknife leaves out at a time.
_LEAST_PEOPLE = 10  # With fewer people a standard error over people says too little.
_STRANGE = 1e-3  # Probability that people of the same population are taken for others.
_NOTHING = 5e-4  # Nats: the probability of a choice changes by a two-thousandth of itself.


@dataclass(frozen=True)
class GainOfMorePeople:
    """Holds how much better new people would be predicted by a fit to more people.

    A gain is that of the log score of a new person's comparisons, all together or, which is the
    same, each given those before it.

    Attributes:
        num_people: Number n of people of the fit, those with comparisons.
        among: Number N of people that could be fitted; infinite for as many as one likes.
        per_person: Expected gain in the log score of a new person, in nats.
        per_comparison: The same for each comparison, by the mean number of these.
        standard_error: Standard error of `per_comparison` over people, in nats.
        effective_parameters: tr(I⁻¹ J), about the number of parameters where the model is right.
    """

    num_people: int
    among: float
    per_person: float
    per_comparison: float
    standard_error: float
    effective_parameters: float

    def __str__(self) -> str:
        end = ""
        if self.per_comparison + 2 * self.standard_error < _NOTHING:
            end = ": more people would change next to nothing"
        among = f"{self.among:,.0f}" if math.isfinite(self.among) else "any number of"
        return (
            f"a fit to {among} people, in place of {self.num_people:,}, would gain "
            f"{self.per_comparison:.2g} ± {self.standard_error:.1g} nats a comparison "
            f"({self.per_person:.2g} a person) in the log score of new people{end}"
        )


def gain_of_more_people(
    model: HeterogeneousBTL,
    data: Preferences,
    among: int | None = None,
    *,
    num_samples: int = 1024,
    seed: int = 0,
) -> GainOfMorePeople:
    """Estimates what fitting more people like those of a fit would gain, without fitting them.

    Args:
        model: A model with linear utility and normal prior, fitted by maximum likelihood.
        data: The comparisons the model was fitted to, of a sample of the people.
        among: Number N of people that could be fitted, those of the sample among them; None for as
            many as one likes, whose gain is the largest.
        num_samples: Draws of each person's z, as for :func:`population_table`.
        seed: Seed of the draws.

    Returns:
        The expected gain, with a standard error from a jackknife over 50 groups of people. It is
        the leading term in 1 / n: the gain is larger where people are few for the parameters
        (fewer than 10 each), and unknown where a standard deviation is estimated at 0.

    Raises:
        ValueError: If `among` is less than the people of the fit, these are fewer than 10, choices
            are separated, so that estimates are infinite, the score of `data` is too far from 0 at
            the estimates for people of the fit, or as :func:`population_table`.

    Warns:
        UserWarning: As :func:`population_table`, of directions without information.

    Example:
        >>> from fssa_bayes import HeterogeneousBTL, fit
        >>> from fssa_bayes.datasets import two_mode
        >>> data = two_mode.simulate(num_users=300, num_comparisons=9, seed=0).data
        >>> model = HeterogeneousBTL(data.num_features, 0, "linear")
        >>> result = fit(model, None, data, progress_bar=False)
        >>> gain = gain_of_more_people(model, data, 10**6)
        >>> 0 < gain.standard_error < gain.per_comparison < 0.05
        True
    """
    what = "gain_of_more_people()"
    data = align(model, data)
    data = data.subset(np.flatnonzero(data.counts > 0))
    number = len(data)
    if number < _LEAST_PEOPLE:
        raise ValueError(f"{what} needs {_LEAST_PEOPLE} people with comparisons, got {number}")
    is_whole = isinstance(among, int) and not isinstance(among, bool)
    if among is not None and not (is_whole and among >= number):
        raise ValueError(
            f"among must be None or an integer of at least the {number} people of the fit, got "
            f"{among!r}"
        )
    estimate = estimate_parameters(model, data, num_samples, seed, what)
    known = estimate.uncertainty
    if known.limit is not None and not known.limit.is_penalised:
        raise ValueError(
            f"{what} needs finite estimates, and some are infinite (choices are separated, or "
            "lapses explain them): leave items or features out, or take more people"
        )
    parameters = torch.trace(known.inverse @ known.outer).item()

    others = len(estimate.theta) - estimate.num_features - estimate.entries.shape[1]
    personal = len(estimate.loading) - estimate.num_features
    free = free_positions(estimate.loading, estimate.entries, others, personal)
    rotation = estimate.rotation.to(model.device)
    score = population_score(model, data, rotation, num_samples, seed)[free]
    _check_score(known, score + prior_score(model, len(score)), data)
    groups = min(number, _GROUPS)
    left_out = np.empty(groups)
    # Information is not inverted in directions that have none, which are the same without a group.
    eigenvalues, vectors = torch.linalg.eigh(known.inverse)
    seen = vectors[:, eigenvalues > 0.5 / torch.linalg.eigvalsh(known.information)[-1]]
    for group in range(groups):
        people = data.subset(np.arange(group, number, groups))
        matrices = population_information(model, people, rotation, num_samples, seed)
        outer, information = (
            seen.T @ (whole - part.cpu()[free][:, free]) @ seen
            for whole, part in zip((known.outer, known.information), matrices, strict=True)
        )
        left_out[group] = torch.trace(torch.linalg.solve(information, outer)).item()
    error = math.sqrt((groups - 1) * left_out.var())

    weight = 1.0 if data.weights is None else float(data.weights.mean())
    per_parameter = 0.5 / weight * (1 / number - (0 if among is None else 1 / among))
    per_person = per_parameter * parameters
    comparisons = float(data.counts.mean())
    return GainOfMorePeople(
        num_people=number,
        among=math.inf if among is None else among,
        per_person=per_person,
        per_comparison=per_person / comparisons,
        standard_error=per_parameter * error / comparisons,
        effective_parameters=parameters / weight,
    )


def _check_score(known: Uncertainty, score: Tensor, data: Preferences) -> None:
    """Refuses comparisons whose score (P,) is too far from 0 for those of the fit.

    Most samples of other people of the same population pass. So does a score that is far from 0 for
    so many people and yet of no consequence, such as the error of a fit with few draws.
    """
    number = len(data)
    covariance = known.outer - score[:, None] * score / number
    distance = (score @ known.inverse @ score).item()
    # About chi-squared, times the mean eigenvalue of I⁻¹ J.
    rank = max(1, int(torch.linalg.matrix_rank(known.inverse, hermitian=True)))
    scale = torch.trace(known.inverse @ covariance).item() / rank
    most = special.chdtri(rank, _STRANGE) * scale
    weight = number if data.weights is None else data.weights.sum()
    loss = 0.5 * distance / weight / data.counts.mean()
    if distance > most and loss > _NOTHING:
        raise ValueError(
            f"data must be the comparisons that the model was fitted to, got others: the score at "
            f"the estimates is so far from 0 that a fit to them gains some {loss:.2g} nats a "
            f"comparison (score statistic {distance / scale:.3g} of {rank} parameters, "
            f"at most {most / scale:.3g} for people of the fit). Pass result.data, or "
            "fit to convergence"
        )
