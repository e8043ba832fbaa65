"""The distribution of a person's choices, one event per person."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from fssa_bayes import kernels
from fssa_bayes.kernels.plackett_luce import Rankings, StageShares
from fssa_bayes.kernels.reference import outcome_log_probs
from fssa_bayes.kernels.sums import steady_sum

__all__ = ["BradleyTerry", "Derivatives", "Outcomes", "bind_margin", "log_prob_of_choices"]

_NO_SHAPE = Size()


class _Choices(constraints.Constraint):
    """Values 0, ½ and 1, and other multiples of ½ in the rows of rankings.

    Args:
        rankings: Which rows make up rankings; None for none.
    """

    is_discrete = True
    event_dim = 1

    def __init__(self, rankings: Rankings | None) -> None:
        self.rankings = rankings
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        is_choice = (value == 0) | (value == 0.5) | (value == 1)
        if self.rankings is not None:
            is_choice = is_choice | (self.rankings.inside & ((2 * value) % 1 == 0))
        return is_choice.all(-1)


class Outcomes(NamedTuple):
    """Holds the log-probabilities of the outcomes of a comparison, in nats.

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
        sign = 2 * choice - 1  # Products rather than a look-up, so that a choice of NaN gives NaN.
        won = torch.relu(sign) * self.left + torch.relu(-sign) * self.right
        return won + (1 - sign.abs()) * self.tie

    def average(self, log_weights: Tensor) -> Outcomes:
        """Averages probabilities over draws, the first dimension, with normalised log-weights."""
        # Draws side by side, so that they are added in one order wherever a comparison stands.
        return self.map(lambda x: (log_weights + x).movedim(0, -1).contiguous().logsumexp(-1))

    def entropy(self) -> Tensor:
        """Returns −Σ p log p, in nats, exact also where one outcome is all but certain."""
        return -sum(x.exp() * x for x in self if x is not None)


@dataclass(frozen=True)
class Derivatives:
    r"""Holds first and second derivatives of log p(choices) by margins and answers' parameters.

    In a stage of a ranking or of a choice from a set, the derivative by the margin of item j over
    the base item is 1 for the winner, less p_j, the probability that j is chosen, and the second
    derivatives are p_j p_k, less p_j on the diagonal. `second` holds the sums of −p_j alone; the
    caller adds the products within each stage.

    Attributes:
        first: Derivatives by the margin (by its part t where it is e^s t plus a position bias, s
            the logarithm of a scale), and by log ν, position bias, logit λ and s as far as the
            model has them, each with shape (S, U, N); 0 under the mask. A parameter is taken for
            each comparison's own: what is summed over comparisons later is seen one by one here.
        second: The symmetric table of second derivatives, as those of `first`.
        stages: Probabilities of the items in stages of rankings; None where there are none.
    """

    first: list[Tensor]
    second: list[list[Tensor]]
    stages: StageShares | None = None


class BradleyTerry(TorchDistribution):
    r"""Represents all choices of a person as one event,
    :math:`p(y_1, …, y_N) = \prod_n \sigma(m_n)^{y_n} \sigma(-m_n)^{1 - y_n}`.

    With ties, the three outcomes of a comparison are as :math:`e^{m/2} : e^{-m/2} : ν`, and a
    choice of ½ is a tie; without, it is half a win each. With lapses, the answer is uniform over
    the possible ones with probability λ. A position bias is part of the margin.

    The mask is part of the distribution: masked choices have log-probability 0 and are drawn as 0.
    Keeping the comparisons in the event lets one fused operation sum their log-probabilities, and
    leaves a Pyro model with a single plate, that of the users.

    The rows of a ranking, or of a choice from a set, are one event, with the probability of
    Plackett and Luce. The probability of a single row is that of its two items alone: :attr:`mean`
    and :attr:`outcomes` describe every row by itself, and log-probabilities and draws are those of
    the ranking. Rankings exclude ties, lapses and a position bias.

    Args:
        pairwise: One of the operations of :mod:`fssa_bayes.kernels` with all inputs bound but
            `choice`, `reduce` and `output`, see :meth:`from_margin` for an explicit margin.
        mask: True where there is a comparison, with shape (U, N).
        batch_shape: Shape (*, U) of the people and of the draws of their latent factors.
        log_tie: Log ν, a scalar; None for no ties.
        position_bias: Position bias, a scalar, that the margins hold already; None for none.
        lapse_logit: Logit of λ, a scalar; None for no lapses.
        log_scale: Logarithm of a factor of the margins, but for the position bias, that the margins
            hold already; None for none. It and the three above may have the shape (*, U, 1), each
            person's own.
        rankings: Which comparisons make up rankings; None where all stand alone.
        side: Factor of the position bias in each margin, 1, 0 or −1, with shape (U, N); None for 1.

    Raises:
        ValueError: If there are rankings together with ties, lapses or a position bias.

    References:
        Bradley & Terry (1952), Rank analysis of incomplete block designs.
        Davidson (1970), On extending the Bradley-Terry model to accommodate ties in paired
        comparison experiments, JASA 65.
        Davidson & Beaver (1977), On extending the Bradley-Terry model to incorporate within-pair
        order effects, Biometrics 33.
        Plackett (1975), The analysis of permutations, Applied Statistics 24(2).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        pairwise: Callable[..., Tensor],
        mask: Tensor,
        batch_shape: Size,
        validate_args: bool | None = None,
        *,
        log_tie: Tensor | None = None,
        position_bias: Tensor | None = None,
        lapse_logit: Tensor | None = None,
        log_scale: Tensor | None = None,
        rankings: Rankings | None = None,
        side: Tensor | None = None,
    ) -> None:
        answers = {"log_tie": log_tie, "position_bias": position_bias, "lapse_logit": lapse_logit}
        answers["log_scale"] = log_scale
        self.answers = {name: value for name, value in answers.items() if value is not None}
        if rankings is not None and self.answers:
            raise ValueError(
                f"rankings must be without ties, position bias and lapses, got {list(self.answers)}"
            )
        self.rankings = rankings
        self.side = side
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
        **parameters: Tensor | Rankings | None,
    ) -> BradleyTerry:
        """Builds the distribution from margins in nats with shape (*, U, N).

        Args:
            margin: The margins.
            mask: True where there is a comparison, with shape (U, N); everywhere if None.
            parameters: `log_tie`, `position_bias`, `lapse_logit`, `log_scale`, `rankings` and
                `side`, as the class has them.
        """
        if mask is None:
            mask = margin.new_ones(margin.shape[-2:], dtype=torch.bool)
        return cls(bind_margin(margin, mask), mask, margin.shape[:-1], **parameters)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """What choices may be."""
        return _Choices(self.rankings)

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
        if self.rankings is not None:
            # Both sums are taken apart, whether or not somebody has comparisons that stand alone.
            value = value.masked_fill(~self.mask_, 0.0)
            margin, alone = self.margin, self.mask_ & ~self.rankings.inside
            total = self.rankings.log_prob_of_people(margin, value)
            if not len(self.rankings.alone):
                return total
            each = Outcomes.of(margin).log_prob(value).masked_fill(~alone, 0.0)
            return total + steady_sum(each)
        return steady_sum(self.log_prob_each(value))

    def log_prob_each(self, value: Tensor) -> Tensor:
        """Evaluates the log-probability of each choice, (*, U, N), in nats; 0 if masked.

        The log-probability of a ranking stands at its first comparison; the others have 0.
        """
        self._check(value)
        value = value.masked_fill(~self.mask_, 0.0)
        parameters = {"log_tie": self.log_tie, "lapse_logit": self.lapse_logit}
        each = log_prob_of_choices(self.margin, value, self.rankings, **parameters)
        return each.masked_fill(~self.mask_, 0.0)

    def judgements(self, choice: Tensor) -> Outcomes:
        """Returns the log-probabilities of the outcomes of each judgement, with shape (*, U, N).

        They are :attr:`outcomes`, except for the comparisons of a ranking: the first has the
        log-probability of the ranking, and the others have 0. :meth:`Outcomes.log_prob` of the
        choices then equals :meth:`log_prob_each`.

        Args:
            choice: Choices with shape (U, N), by which rankings are scored.
        """
        if self.rankings is None:
            return self.outcomes
        inside, ranked = self.rankings.inside, self.log_prob_each(choice)
        return self.outcomes.map(lambda x: torch.where(inside, ranked, x))

    def log_predictive(self, log_weights: Tensor, choice: Tensor) -> Tensor:
        r"""Evaluates the log-probability of each judgement, averaged over draws of z.

        Args:
            log_weights: Normalised log-weights with shape (S, U); of the first draws alone if they
                are fewer than the draws.
            choice: Choices with shape (U, N).

        Returns:
            :math:`\log \bar p(y)` in nats with shape (U, N), where :math:`\bar p` is the weighted
            mean of an outcome's probability; half a win each scores
            :math:`\tfrac12 \log \bar p(1) + \tfrac12 \log \bar p(0)`. A ranking has one mean, at
            its first comparison, and 0 at the others.
        """
        drawn = self.judgements(choice).map(lambda x: x[: len(log_weights)])
        score = drawn.average(log_weights.unsqueeze(-1)).log_prob(choice)
        if self.rankings is None:
            return score
        return score.masked_fill(self.rankings.inside & ~self.rankings.head, 0.0)

    def at(self, margin: Tensor) -> BradleyTerry:
        """Returns the distribution of the same comparisons at other margins (*, U, N)."""
        return self.from_margin(
            margin, self.mask_, rankings=self.rankings, side=self.side, **self.answers
        )

    @torch.enable_grad()
    def differentiate(self, choice: Tensor) -> Derivatives:
        """Differentiates log p of each choice (U, N) once and twice, in double precision."""
        choice = choice.double().masked_fill(~self.mask_, 0.0)
        margin = self.margin.detach().double()
        if self.rankings is not None or (self._is_plain and not self.answers):
            return self._differentiate_margins(margin, choice)
        variables = {"margin": margin} | {
            name: value.detach().double().expand_as(margin)
            for name, value in self.answers.items()
            if name not in ("position_bias", "log_scale")
        }
        variables = {name: value.clone().requires_grad_() for name, value in variables.items()}
        outcomes = Outcomes.of(
            *(variables.get(name) for name in ("margin", "log_tie", "lapse_logit"))
        )
        total = outcomes.log_prob(choice).masked_fill(~self.mask_, 0.0).sum()
        first = torch.autograd.grad(total, list(variables.values()), create_graph=True)
        second = [
            torch.autograd.grad(
                value.sum(), list(variables.values()), retain_graph=True, materialize_grads=True
            )
            for value in first
        ]
        # The bias is added to the margin, so derivatives by either are the same, but for its sign.
        column = {name: i for i, name in enumerate(variables)} | {"position_bias": 0}
        # The logarithm of the scale comes after: its column here holds the margin's derivatives.
        index = [column.get(name, 0) for name in ("margin", *self.answers)]
        first = [first[i].detach() for i in index]
        second = [[second[i][j] for j in index] for i in index]
        if self.side is not None and "position_bias" in self.answers:
            side = self.side.double().masked_fill(~self.mask_, 0.0)
            bias = 1 + list(self.answers).index("position_bias")
            first[bias] = first[bias] * side
            second[bias] = [value * side for value in second[bias]]
            for row in second:
                row[bias] = row[bias] * side
        if "log_scale" in self.answers:
            self._differentiate_scale(first, second, margin)
        return Derivatives(first, second)

    def _differentiate_scale(
        self, first: list[Tensor], second: list[list[Tensor]], margin: Tensor
    ) -> None:
        """Turns derivatives by the margin, in place, into those by t and s of its part e^s t."""
        place = 1 + list(self.answers).index("log_scale")
        scale = self.answers["log_scale"].detach().double().exp().expand_as(margin)
        product = margin
        if "position_bias" in self.answers:
            bias = self.answers["position_bias"].detach().double()
            side = 1.0 if self.side is None else self.side.double().masked_fill(~self.mask_, 0.0)
            product = margin - bias * side
        by_margin = first[0]
        factors = {0: scale, place: product}
        for i, factor in factors.items():
            first[i] = first[i] * factor
            second[i] = [value * factor for value in second[i]]
            for row in second:
                row[i] = row[i] * factor
        second[place][place] = second[place][place] + by_margin * product
        second[0][place] = second[0][place] + by_margin * scale
        second[place][0] = second[place][0] + by_margin * scale

    def _differentiate_margins(self, margin: Tensor, choice: Tensor) -> Derivatives:
        prob = torch.sigmoid(margin)
        first = (choice - prob).masked_fill(~self.mask_, 0.0)
        second = (-prob * (1 - prob)).masked_fill(~self.mask_, 0.0)
        stages = None
        if self.rankings is not None:
            inside = self.rankings.inside
            stages = self.rankings.shares(margin, choice)
            first = torch.where(inside, stages.first, first)
            # A row takes part in one stage, or several.
            total = torch.zeros_like(second).flatten(-2)
            total = total.index_add(-1, stages.place, -stages.share).view_as(second)
            second = torch.where(inside, total, second)
        return Derivatives([first], [[second]], stages)

    def sample(self, sample_shape: Size = _NO_SHAPE) -> Tensor:
        """Draws choices 0 or 1, and ½ with ties, with shape (*sample_shape, *, U, N).

        A ranking is drawn as a whole, with as many of its items ranked as in the data.
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

    def decide(self, uniform: Tensor) -> Tensor:
        """Makes choices of uniform numbers from [0, 1), one for each comparison, (*, U, N).

        The choices are distributed as those of :meth:`sample`, and those of a person follow from
        the person's own numbers.
        """
        with torch.no_grad():
            left, _, tie = self.outcomes
            choice = (uniform < left.exp()).to(left.dtype)
            if tie is not None:
                is_tie = (choice == 0) & (uniform < left.exp() + tie.exp())
                choice = choice.masked_fill(is_tie, 0.5)
            choice = choice * self.mask_
            if self.rankings is None:
                return choice
            ranked = self.rankings.decide(self.margin, uniform)
            return torch.where(self.rankings.inside, ranked, choice)

    def expand(self, batch_shape: Size, _instance: BradleyTerry | None = None) -> BradleyTerry:
        """Expands the people and draws to `batch_shape`, which ends in U."""
        return BradleyTerry(
            self.pairwise,
            self.mask_,
            Size(batch_shape),
            self._validate_args,
            rankings=self.rankings,
            side=self.side,
            **self.answers,
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


def log_prob_of_choices(
    margin: Tensor,
    choice: Tensor,
    rankings: Rankings | None = None,
    *,
    log_tie: Tensor | None = None,
    lapse_logit: Tensor | None = None,
) -> Tensor:
    """Evaluates the log-probability of each choice, (*, U, N), in nats, without a mask.

    The log-probability of a ranking stands at its first comparison; the others have 0.

    Args:
        margin: Margins in nats with shape (*, U, N).
        choice: Choices with shape (*, U, N).
        rankings: Which comparisons make up rankings; None where all stand alone.
        log_tie: Log ν; None for no ties.
        lapse_logit: Logit of λ; None for no lapses.
    """
    if rankings is None:
        return Outcomes.of(margin, log_tie, lapse_logit).log_prob(choice)
    total, alone = rankings.log_prob(margin, choice), rankings.alone
    if not len(alone):
        return total
    margin, choice = (x.flatten(-2).index_select(-1, alone) for x in (margin, choice))
    each = Outcomes.of(margin).log_prob(choice)
    return total.flatten(-2).index_add(-1, alone, each).view_as(total)
