r"""What a question is worth: goals, each a small class.

Every goal scores a question by an expectation over z and over the exact distribution of the answer,
:math:`\sum_s w_s \sum_a p_a(z_s)\,g_a(z_s)` with the weights w of the posterior draws. A goal says
what g is. The inner sum is the *contribution* of a draw, from which the Monte-Carlo error of the
score follows.

Of a batch of questions, the goal of one more is its expectation given the answers to the questions
before: the joint goal of all, less that of those before. See :class:`Past`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, canonical_names
from fssa_bayes.model import HeterogeneousBTL, positions
from fssa_bayes.questions.draws import Answers, PersonDraws
from fssa_bayes.questions.pool import Pool, list_questions, read_pool

__all__ = [
    "Basis",
    "BestItemInformation",
    "Goal",
    "InformationGain",
    "Past",
    "PredictiveInformation",
    "ValueOfInformation",
]

_MOST_RANK = 16  # Of features that are replaced: the default bilinear utility has 16 factors.
_ROUNDING = 1e-5  # Of single precision, relative to the largest feature.


@dataclass(frozen=True)
class Past:
    """Holds how probable each draw makes the answers to the questions before, in a batch.

    Attributes:
        likelihood: Probability of each of C tuples of answers given each draw, with shape (C, S),
            times a factor of the tuple where tuples were sampled; one tuple of probability 1 where
            there was no question before. The weighted means of the rows sum to 1.
        offered: Highest utility among the items of these questions, (S,); None where there are
            none.
    """

    likelihood: Tensor
    offered: Tensor | None = None

    @classmethod
    def nothing(cls, draws: PersonDraws) -> Past:
        """Returns the past in which nothing was asked."""
        return cls(torch.ones_like(draws.weights).unsqueeze(0))


@dataclass(frozen=True)
class Basis:
    r"""Holds features times the probabilities of the answers before, once for all questions.

    Utilities of many items are combinations of few numbers, such as the coefficients of a person:
    features :math:`f = G h` of low rank are replaced by h, and G is applied to the means.

    Attributes:
        values: Features h for each tuple c of answers before, with shape (C R, S).
        weighted: The same times the weights of the draws, (S, C R).
        shape: C and R.
        mixing: The matrix G, with shape (J, R); None where h is f.
    """

    values: Tensor
    weighted: Tensor
    shape: tuple[int, int]
    mixing: Tensor | None

    @classmethod
    def of(cls, features: Tensor, draws: PersonDraws, past: Past) -> Basis:
        """Prepares the features (J, S) of a person's draws, given the answers before."""
        mixing, core = factorise(features)
        values = (past.likelihood.unsqueeze(1) * core).flatten(0, 1)
        weighted = (values * draws.weights).T.contiguous()
        return cls(values, weighted, (len(past.likelihood), len(core)), mixing)

    def average(self, prob: list[Tensor]) -> Tensor:
        """Returns the means m (A, Q, C, J), given probabilities (Q, S) of the A answers."""
        mean = [p @ self.weighted for p in prob[:-1]]
        mean.append(self.weighted.sum(0) - sum(mean))  # Probabilities of all answers sum to 1.
        mean = torch.stack(mean).unflatten(-1, self.shape)
        return mean if self.mixing is None else mean @ self.mixing.T

    def combine(self, prob: list[Tensor], coefficients: Tensor) -> Tensor:
        """Returns the contributions (Q, S), given coefficients (A, Q, C, J)."""
        if self.mixing is not None:
            coefficients = coefficients @ self.mixing
        coefficients = coefficients.flatten(-2)
        used = coefficients.flatten(0, -2).any(0)  # Few items are recommended after some answer.
        coefficients, values = coefficients[..., used], self.values[used]
        total, *others = (k @ values for k in coefficients)
        total.mul_(prob[0])
        for p, each in zip(prob[1:], others, strict=True):
            total.addcmul_(p, each)
        return total


class Goal(ABC):
    r"""Defines what a question is asked for.

    A goal implements :meth:`features` and :meth:`coefficients`. With features :math:`f_j(z)`, and
    :math:`m_{acj}` the posterior mean of :math:`f_j` times the probabilities of answer a and of the
    tuple c of answers before, the score is :math:`\sum_{acj} k_{acj} m_{acj}`, where the
    coefficients k are a function of m.
    """

    def read(self, model: HeterogeneousBTL, data: Preferences, pool: Pool) -> Pool | None:
        """Reads what the goal is about: target questions, or all items as a single question.

        Args:
            model: The model.
            data: The people's data, which name the items.
            pool: The questions that are to be scored.

        Raises:
            ValueError: If an item is unknown, or the goal is not defined for such questions.
        """
        return None

    @abstractmethod
    def features(self, draws: PersonDraws, about: Pool | None) -> Tensor:
        """Returns features of a person's draws, (J, S).

        Args:
            draws: The draws.
            about: Result of :meth:`read`.
        """

    @abstractmethod
    def coefficients(self, mean: Tensor) -> Tensor:
        """Returns the coefficients k (A, Q, C, J) of the means m (A, Q, C, J)."""

    def contributions(
        self, answers: Answers, basis: Basis, draws: PersonDraws, past: Past
    ) -> Tensor:
        """Evaluates the contribution of every draw to the score of every question.

        Args:
            answers: Probabilities of the answers.
            basis: The features, given the answers before.
            draws: The person's draws.
            past: The answers to the questions before.

        Returns:
            Contributions with shape (Q, S), whose weighted mean is the score.
        """
        return basis.combine(answers.prob, self.coefficients(basis.average(answers.prob)))


@dataclass(frozen=True)
class InformationGain(Goal):
    r"""Scores a question by the mutual information of its answer and z, in nats.

    It is the expected Kullback–Leibler divergence to the posterior given the answer from the
    posterior now: :math:`H(\bar p) - \sum_s w_s H(p(z_s))`, with H the entropy of the answer.

    References:
        Lindley (1956), On a measure of the information provided by an experiment, Annals of
        Mathematical Statistics 27.
        Houlsby, Huszár, Ghahramani & Lengyel (2011), Bayesian active learning for classification
        and preference learning, arXiv 1112.5745.
    """

    def features(self, draws: PersonDraws, about: Pool | None) -> Tensor:
        """Returns a single feature, 1."""
        return torch.ones_like(draws.weights).unsqueeze(0)

    def coefficients(self, mean: Tensor) -> Tensor:
        """Returns minus the log-probability of the answer given the answers before."""
        return -log_ratio(mean, mean.sum(0))

    def contributions(
        self, answers: Answers, basis: Basis, draws: PersonDraws, past: Past
    ) -> Tensor:
        """Evaluates the sum over answers of p log p, less p times the log of its mean."""
        mean = torch.stack([p @ basis.weighted for p in answers.prob])
        total = torch.zeros_like(answers.prob[0])
        for prob, k in zip(answers.prob, self.coefficients(mean), strict=True):
            log_prob = prob.clamp(min=torch.finfo(prob.dtype).tiny).log_()
            total.addcmul_(prob, log_prob.addmm_(k, past.likelihood))
        return total


@dataclass(frozen=True)
class PredictiveInformation(Goal):
    """Scores a question by what its answer tells of the answers to other questions, in nats.

    It is the mean, over target questions, of the mutual information of both answers.

    Args:
        targets: Questions whose answers are to be predicted, each a sequence of distinct items, all
            of one size: comparisons, or choices of the best item.

    References:
        Bickford Smith et al. (2023), Prediction-oriented Bayesian active learning, AISTATS.
    """

    targets: Sequence

    def __post_init__(self) -> None:
        targets = self.targets
        if isinstance(targets, pd.DataFrame | np.ndarray):
            targets = np.asarray(targets, dtype=object).tolist()
        targets = tuple(tuple(question) for question in list_questions("targets", targets))
        object.__setattr__(self, "targets", targets)

    def read(self, model: HeterogeneousBTL, data: Preferences, pool: Pool) -> Pool:
        """Reads the target questions."""
        return read_pool(model, data, self.targets, argument="targets")

    def features(self, draws: PersonDraws, about: Pool | None) -> Tensor:
        """Returns the probabilities of the answers to the targets, those of a target together."""
        return torch.stack(draws.answer(about).prob, 1).flatten(0, 1)

    def coefficients(self, mean: Tensor) -> Tensor:
        """Returns the pointwise information of both answers, divided by the number of targets."""
        each = mean.unflatten(-1, (len(self.targets), -1))
        return pointwise_information(each).flatten(-2) / len(self.targets)


@dataclass(frozen=True)
class BestItemInformation(Goal):
    """Scores a question by what its answer tells of which item is the best, in nats.

    It is the mutual information of the answer and the item of the highest utility.

    Args:
        items: Names of the items, at least two; None for all items.

    References:
        Hennig & Schuler (2012), Entropy search for information-efficient global optimization,
        JMLR 13.
    """

    items: Sequence | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", as_names(self.items))

    def read(self, model: HeterogeneousBTL, data: Preferences, pool: Pool) -> Pool:
        """Reads the items."""
        return read_items(self.items, data)

    def features(self, draws: PersonDraws, about: Pool | None) -> Tensor:
        """Returns, for every item that is the best in some draw, whether it is, 1 or 0."""
        best = draws.rows(about.items[0]).argmax(0)
        return (best == best.unique().unsqueeze(-1)).to(draws.weights)

    def coefficients(self, mean: Tensor) -> Tensor:
        """Returns the pointwise information of answer and best item."""
        return pointwise_information(mean)


@dataclass(frozen=True)
class ValueOfInformation(Goal):
    r"""Scores a question by what its answer is worth to somebody who recommends an item, in nats.

    The item recommended is that of the highest posterior mean utility.

    Args:
        items: Names of the items that may be recommended, at least two; None for all items.
        kind: `"evoi"`, the expected rise, by the answer, of the posterior mean utility of the item
            recommended, which is never negative; or `"eubo"`, by how much the best of the items
            that the question offers is expected to exceed the item recommended now. The latter
            takes the person not to err, and may be negative.

    Raises:
        ValueError: If `kind` is unknown.

    References:
        Chajewska, Koller & Parr (2000), Making rational decisions using adaptive utility
        elicitation, AAAI.
        Lin, Astudillo, Frazier & Bakshy (2022), Preference exploration for efficient Bayesian
        optimization with multiple outcomes, AISTATS.
    """

    items: Sequence | None = None
    kind: str = "evoi"

    def __post_init__(self) -> None:
        if self.kind not in ("evoi", "eubo"):
            raise ValueError(f"kind must be 'evoi' or 'eubo', got {self.kind!r}")
        object.__setattr__(self, "items", as_names(self.items))

    def read(self, model: HeterogeneousBTL, data: Preferences, pool: Pool) -> Pool:
        """Reads the items; refuses rankings with `kind="eubo"`."""
        if self.kind == "eubo" and pool.is_ranking:
            raise ValueError(
                "kind='eubo' is defined for pairs and choices of the best item, got rankings: use "
                "kind='evoi'"
            )
        return read_items(self.items, data)

    def features(self, draws: PersonDraws, about: Pool | None) -> Tensor:
        """Returns utilities less that of the item recommended now; for "eubo" the latter alone."""
        utility = draws.rows(about.items[0])
        recommended = utility[(utility @ draws.weights).argmax()]
        return utility - recommended if self.kind == "evoi" else recommended.unsqueeze(0)

    def coefficients(self, mean: Tensor) -> Tensor:
        """Returns 1 for the item recommended given the answer, less 1 for that without it."""
        chosen = mean.argmax(-1, keepdim=True)
        before = mean.sum(0, keepdim=True).argmax(-1, keepdim=True).expand_as(chosen)
        zero, one = torch.zeros_like(mean), torch.ones_like(chosen, dtype=mean.dtype)
        return zero.scatter_add(-1, chosen, one).scatter_add(-1, before, -one)

    def contributions(
        self, answers: Answers, basis: Basis, draws: PersonDraws, past: Past
    ) -> Tensor:
        """Evaluates the contributions; those of `kind="eubo"` are of the items offered alone."""
        if self.kind == "evoi":
            return super().contributions(answers, basis, draws, past)
        offered = draws.rows(answers.items).amax(1)
        if past.offered is None:
            return offered - basis.values  # With nothing before, the only feature.
        return torch.relu(offered - past.offered)


def factorise(features: Tensor) -> tuple[Tensor | None, Tensor]:
    """Writes features (J, S) of low rank R as a product of matrices (J, R) and (R, S).

    Where the rank is not low the features themselves are returned, and None for the first matrix.
    The columns of a few draws span those of all draws, which is checked.
    """
    if len(features) <= 2 * _MOST_RANK:
        return None, features
    some = torch.linspace(0, features.shape[1] - 1, 2 * _MOST_RANK, device=features.device).long()
    basis, size, _ = torch.linalg.svd(features[:, some].double(), full_matrices=False)
    basis = basis[:, size > _ROUNDING * size[0]].to(features.dtype)
    if basis.shape[1] > _MOST_RANK:
        return None, features
    core = basis.T @ features
    error = (features - basis @ core).abs().max()
    return (basis, core) if error <= _ROUNDING * features.abs().max() else (None, features)


def log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Returns log(above / below), 0 where `above` is 0 but for rounding."""
    return (above / below).log().masked_fill(above <= 0, 0.0)


def pointwise_information(joint: Tensor) -> Tensor:
    """Returns the pointwise information of two variables, given the answers before, in nats.

    Args:
        joint: Probabilities with shape (A, Q, C, *, J) of an answer a and of the value j of another
            variable, together with the tuple c of answers before.
    """
    one, other = joint.sum(-1, keepdim=True), joint.sum(0, keepdim=True)
    return log_ratio(joint, one * other / other.sum(-1, keepdim=True))


def as_names(items: Sequence | None) -> tuple | None:
    """Returns names as a tuple, which does not change; None for all items."""
    return None if items is None else tuple(canonical_names("items", items).tolist())


def read_items(items: Sequence | None, data: Preferences) -> Pool:
    """Reads items as one question."""
    names = data.item_names if items is None else canonical_names("items", list(items))
    if len(names) < 2:
        raise ValueError(f"items must have at least two names, got {names.tolist()}")
    position = positions("items", names, data.item_names).numpy()
    if not names.is_unique:
        raise ValueError(f"items must be distinct, got {names[names.duplicated()].tolist()[0]!r}")
    return Pool(position[None], "choice", data.item_names)
