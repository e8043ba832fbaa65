"""The distribution of a person's choices, one event per person."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from fssa_bayes import kernels
from fssa_bayes.kernels.plackett_luce import Rankings
from fssa_bayes.kernels.reference import outcome_log_probs

__all__ = ["BradleyTerry", "Outcomes", "bind_margin"]

_NO_SHAPE = Size()


class _Choices(constraints.Constraint):
    """Values 0, ½ and 1."""

    is_discrete = True
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return (value == 0) | (value == 0.5) | (value == 1)


class Outcomes(NamedTuple):
    """Holds the log-probabilities of what a comparison may end in, in nats.

    Attributes:
        left: Log-probability that left is preferred.
        right: Log-probability that right is.
        tie: Log-probability of a tie, of the same shape; None where there are no ties.
    """

    left: Tensor
    right: Tensor
    tie: Tensor | None

    @classmethod
    def of(
        cls, margin: Tensor, log_tie: Tensor | None = None, lapse_logit: Tensor | None = None
    ) -> Outcomes:
        r"""Evaluates Davidson's probabilities
        :math:`e^{m/2} : e^{-m/2} : ν`, mixed with a uniform answer at the lapse rate λ.

        Every term is a log-sigmoid, so that float32 survives margins of ±1e4 and both derivatives
        are finite.

        Args:
            margin: Margins m in nats, with shape (*).
            log_tie: Log ν; None for no ties.
            lapse_logit: Logit of λ; None for no lapses.
        """
        if log_tie is None:
            left, right = outcome_log_probs(margin)
            outcomes = cls(left, right, None)
        else:
            # With L(x) = log σ(x), −log(e^−m + ν e^{−m/2}) is m + L(−log ν − m/2).
            half = margin / 2
            outcomes = cls(
                F.logsigmoid(margin + F.logsigmoid(-log_tie - half)),
                F.logsigmoid(-margin + F.logsigmoid(half - log_tie)),
                F.logsigmoid(log_tie - half + F.logsigmoid(margin)),
            )
        if lapse_logit is None:
            return outcomes
        attentive = F.logsigmoid(-lapse_logit)
        careless = F.logsigmoid(lapse_logit) - math.log(2 if log_tie is None else 3)
        return outcomes.map(lambda x: torch.logaddexp(attentive + x, careless))

    def map(self, function: Callable[[Tensor], Tensor]) -> Outcomes:
        """Applies a function to each of the log-probabilities."""
        return Outcomes(*(None if x is None else function(x) for x in self))

    def log_prob(self, choice: Tensor) -> Tensor:
        """Picks the log-probability of choices: ½ is a tie, or half a win each without ties."""
        if self.tie is None:
            return choice * self.left + (1 - choice) * self.right
        sign = 2 * choice - 1  # Products and no look-up, so that a NaN is not taken for an answer.
        won = torch.relu(sign) * self.left + torch.relu(-sign) * self.right
        return won + (1 - sign.abs()) * self.tie

    def entropy(self) -> Tensor:
        """Returns −Σ p log p, in nats, exact also where one outcome is all but certain."""
        return -sum(x.exp() * x for x in self if x is not None)


class BradleyTerry(TorchDistribution):
    r"""Represents all choices of a person as one event,
    :math:`p(y_1, …, y_N) = \prod_n \sigma(m_n)^{y_n} \sigma(-m_n)^{1 - y_n}`.

    With ties, the three outcomes of a comparison are as :math:`e^{m/2} : e^{-m/2} : ν`, and a
    choice of ½ is a tie; without, it is half a win each. With lapses, the answer is uniform over
    the possible ones with probability λ. A position bias is part of the margin.

    The mask is part of the distribution: masked choices have log-probability 0 and are drawn as 0.
    Keeping the comparisons in the event lets one fused operation sum their log-probabilities, and
    leaves a Pyro model with a single plate, that of the users.

    Comparisons that are the pairs of a ranking are one event within it, with the probability of
    Plackett and Luce, of which a comparison by itself is a marginal: so :attr:`mean` and
    :attr:`outcomes` describe each comparison by itself, log-probabilities and draws the ranking.
    Rankings exclude ties and lapses, and a position bias in the margins.

    Args:
        pairwise: One of the operations of :mod:`fssa_bayes.kernels` with all inputs bound but
            `choice`, `reduce` and `output`, see :meth:`from_margin` for an explicit margin.
        mask: True where there is a comparison, with shape (U, N).
        batch_shape: Shape (*, U) of the people and of the draws of their latent factors.
        log_tie: Log ν, a scalar; None for no ties.
        lapse_logit: Logit of λ, a scalar; None for no lapses.
        rankings: Which comparisons make up rankings; None where all stand alone.

    Raises:
        ValueError: If there are rankings together with ties or lapses.

    References:
        Bradley & Terry (1952), Rank analysis of incomplete block designs.
        Davidson (1970), On extending the Bradley-Terry model to accommodate ties in paired
        comparison experiments, JASA 65.
        Davidson & Beaver (1977), On extending the Bradley-Terry model to incorporate within-pair
        order effects, Biometrics 33.
        Plackett (1975), The analysis of permutations, Applied Statistics 24(2).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(_Choices(), 1)
    has_rsample = False

    def __init__(
        self,
        pairwise: Callable[..., Tensor],
        mask: Tensor,
        batch_shape: Size,
        validate_args: bool | None = None,
        *,
        log_tie: Tensor | None = None,
        lapse_logit: Tensor | None = None,
        rankings: Rankings | None = None,
    ) -> None:
        if rankings is not None and not (log_tie is None and lapse_logit is None):
            raise ValueError("rankings must be without ties and lapses, got a model with them")
        self.rankings = rankings
        self.pairwise = pairwise
        self.mask_ = mask
        self.log_tie = log_tie
        self.lapse_logit = lapse_logit
        super().__init__(Size(batch_shape), mask.shape[-1:], validate_args=validate_args)

    @classmethod
    def from_margin(
        cls,
        margin: Tensor,
        mask: Tensor | None = None,
        *,
        log_tie: Tensor | None = None,
        lapse_logit: Tensor | None = None,
        rankings: Rankings | None = None,
    ) -> BradleyTerry:
        """Builds the distribution from margins in nats with shape (*, U, N)."""
        if mask is None:
            mask = margin.new_ones(margin.shape[-2:], dtype=torch.bool)
        parameters = {"log_tie": log_tie, "lapse_logit": lapse_logit, "rankings": rankings}
        return cls(bind_margin(margin, mask), mask, margin.shape[:-1], **parameters)

    @property
    def margin(self) -> Tensor:
        """Utility of left minus utility of right, plus any position bias, with shape (*, U, N).

        In nats; 0 if masked.
        """
        return self.pairwise(output="margin").expand(self.batch_shape + self.event_shape)

    @property
    def outcomes(self) -> Outcomes:
        """Log-probabilities of left, right and, with ties, a tie, each with shape (*, U, N)."""
        return Outcomes.of(self.margin, self.log_tie, self.lapse_logit)

    @property
    def mean(self) -> Tensor:
        """Probability that left is preferred, with shape (*, U, N)."""
        return torch.sigmoid(self.margin) if self._is_plain else self.outcomes.left.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Sums the log-probabilities of the choices (*, U, N) to shape (*, U), in nats."""
        self._check(value)
        if value.ndim == 2 and self._is_plain and self.rankings is None:
            # The same choices for every draw: one operation.
            return self.pairwise(choice=value).expand(self.batch_shape)
        return self.log_prob_each(value).sum(-1)

    def log_prob_each(self, value: Tensor) -> Tensor:
        """Evaluates the log-probability of each choice, (*, U, N), in nats; 0 if masked.

        That of a ranking stands at its first comparison, and 0 at its others.
        """
        self._check(value)
        value = value.masked_fill(~self.mask_, 0.0)
        if self.rankings is None:
            return self.outcomes.log_prob(value).masked_fill(~self.mask_, 0.0)
        margin, alone = self.margin, self.rankings.alone
        total = self.rankings.log_prob(margin, value)
        if not len(alone):
            return total
        margin, value = (x.flatten(-2).index_select(-1, alone) for x in (margin, value))
        each = Outcomes.of(margin).log_prob(value)
        return total.flatten(-2).index_add(-1, alone, each).view_as(total)

    def sample(self, sample_shape: Size = _NO_SHAPE) -> Tensor:
        """Draws choices 0 or 1, and ½ with ties, with shape (*sample_shape, *, U, N).

        Rankings are drawn whole, as many of their items ranked as were.
        """
        shape = Size(sample_shape) + self.batch_shape + self.event_shape
        with torch.no_grad():
            if self._is_plain:
                choice = torch.bernoulli(self.mean.expand(shape)) * self.mask_
                if self.rankings is None:
                    return choice
                ranked = self.rankings.sample(self.margin.expand(shape))
                return torch.where(self.rankings.inside, ranked, choice)
            left, right, tie = self.outcomes
            choice = torch.bernoulli(torch.sigmoid(left - right).expand(shape))
            if tie is not None:
                is_tie = torch.bernoulli(tie.exp().clamp(max=1.0).expand(shape))
                choice = torch.where(is_tie.bool(), 0.5, choice)
            return choice * self.mask_

    def expand(self, batch_shape: Size, _instance: BradleyTerry | None = None) -> BradleyTerry:
        """Expands the people and draws to `batch_shape`, which ends in U."""
        return BradleyTerry(
            self.pairwise,
            self.mask_,
            Size(batch_shape),
            self._validate_args,
            log_tie=self.log_tie,
            lapse_logit=self.lapse_logit,
            rankings=self.rankings,
        )

    @property
    def _is_plain(self) -> bool:
        return self.log_tie is None and self.lapse_logit is None

    def _check(self, value: Tensor) -> None:
        if value.shape[-2:] != self.mask_.shape[-2:]:
            raise ValueError(
                f"choices must have shape (*, {', '.join(map(str, self.mask_.shape[-2:]))}), "
                f"got {tuple(value.shape)}"
            )
        if self._validate_args:
            self._validate_sample(value.masked_fill(~self.mask_, 0.0))


def bind_margin(margin: Tensor, mask: Tensor) -> Callable[..., Tensor]:
    """Binds :func:`fssa_bayes.kernels.pairwise_gather` to margins (*, U, N) that are given.

    Returns:
        The operation, which still takes `choice` and options.
    """
    users, comparisons = margin.shape[-2:]
    # Margins are utilities of N items, all of them compared with one more of utility 0.
    utility = F.pad(margin, (0, 1)).reshape(-1, users, comparisons + 1)
    left = torch.arange(comparisons, device=margin.device).expand(users, -1)
    right = torch.full_like(left, comparisons)

    def pairwise(choice: Tensor | None = None, **options: str) -> Tensor:
        value = kernels.pairwise_gather(utility, left, right, choice, mask, **options)
        return value.reshape(margin.shape[:-2] + value.shape[1:])

    return pairwise
