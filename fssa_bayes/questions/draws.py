"""What each posterior draw of a person answers to questions, from the utilities of the items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.posterior import Posterior
from fssa_bayes.questions.pool import Pool
from fssa_bayes.sampling import map_people

__all__ = ["Answers", "PersonDraws", "draw_people", "pair_prob", "rank_prob"]


class Answers(NamedTuple):
    """Holds the probabilities of the A answers to Q questions, given each of S draws.

    Attributes:
        prob: Probability of each answer, A tensors with shape (Q, S).
        items: Positions of the questions' items, with shape (Q, m).
    """

    prob: list[Tensor]
    items: np.ndarray


@dataclass(frozen=True)
class PersonDraws:
    """Holds weighted posterior draws of what one person's answers depend on.

    Attributes:
        utility: Utilities of R items relative to the first of them, in nats, with shape (R, S).
        row: Row in `utility` of each item of the table, −1 for items that are not there, (M,).
        weights: Normalised weights of the draws, (S,).
        bias: Advantage of the left in nats, with shape () or (S,).
        log_tie: Davidson's log ν, () or (S,); None for no ties.
        lapse_logit: Logit of the lapse rate, () or (S,); None for no lapses.
    """

    utility: Tensor
    row: Tensor
    weights: Tensor
    bias: Tensor
    log_tie: Tensor | None
    lapse_logit: Tensor | None

    def rows(self, items: np.ndarray) -> Tensor:
        """Returns the utilities (*, S) of items given by position, with shape (*)."""
        row = self.row[torch.from_numpy(np.ascontiguousarray(items))].to(self.utility.device)
        return self.utility.index_select(0, row.flatten()).view(*items.shape, -1)

    def answer(self, pool: Pool) -> Answers:
        """Evaluates the probabilities of all answers to the questions of a pool."""
        if pool.size == 2:
            margin = self.rows(pool.items[:, 0]).sub_(self.rows(pool.items[:, 1])).add_(self.bias)
            return Answers(pair_prob(margin, self.log_tie, self.lapse_logit), pool.items)
        utility = self.rows(pool.items)
        if pool.is_ranking:
            return Answers([rank_prob(utility[:, order]) for order in pool.orders], pool.items)
        return Answers(list(utility.softmax(1).unbind(1)), pool.items)


def pair_prob(
    margin: Tensor, log_tie: Tensor | None = None, lapse_logit: Tensor | None = None
) -> list[Tensor]:
    r"""Evaluates the probabilities of left, right and, with ties, a tie.

    They are those of :meth:`fssa_bayes.model.Outcomes.of`, to single precision, without the
    log-probabilities, which are not needed here.

    Args:
        margin: Margins in nats, with shape (Q, S).
        log_tie: Log ν, () or (S,); None for no ties.
        lapse_logit: Logit of the lapse rate, () or (S,); None for no lapses.
    """
    left = margin.sigmoid()
    prob = [left, 1 - left]
    if log_tie is not None:
        # Of those who answer no tie, left and right have the probabilities of Bradley and Terry.
        root = margin.abs().mul_(-0.5).exp_()
        tie = log_tie.exp() * root
        tie = tie.div_(1 + root.square() + tie)
        prob = [*(x.mul_(1 - tie) for x in prob), tie]
    if lapse_logit is None:
        return prob
    lapse = lapse_logit.sigmoid()
    return [x.mul_(1 - lapse).add_(lapse / len(prob)) for x in prob]


def rank_prob(utility: Tensor) -> Tensor:
    """Evaluates the probability (Q, S) of an order of items, by Plackett and Luce.

    Args:
        utility: Utilities of the items, the best first, with shape (Q, m, S).
    """
    left = utility.flip(1).logcumsumexp(1).flip(1)  # At each stage, over the items still there.
    return (utility - left).sum(1).exp()


def draw_people(
    posterior: Posterior, items: np.ndarray, people: np.ndarray
) -> Iterator[tuple[int, PersonDraws]]:
    """Yields the draws of some people, one after another.

    Every person is asked, as it were, to compare each item with the first one: the margins of all
    draws are the utilities, whatever the model and wherever its draws come from.

    Args:
        posterior: The posterior.
        items: Positions of the items whose utilities are needed, at least two, distinct.
        people: Positions of the people, ascending.

    Yields:
        Position of the person and their :class:`PersonDraws`.

    Raises:
        FloatingPointError: If an item has a utility that is not finite.
    """
    draws = _draw_people(posterior, items, people)
    # Each in one thread, so that the last digits do not depend on the number of threads.
    while one := map_people(posterior.model.device, lambda rest: next(rest, None), [draws])[0]:
        yield one


@torch.no_grad()
def _draw_people(
    posterior: Posterior, items: np.ndarray, people: np.ndarray
) -> Iterator[tuple[int, PersonDraws]]:
    """Does the work of :func:`draw_people`."""
    row = torch.full((posterior.context.num_items,), -1)
    row[torch.from_numpy(items)] = torch.arange(len(items))
    wanted = set(people.tolist())
    star = _compare_with_first(posterior.context, items, people)
    for where, _, likelihood, log_weights in posterior.likelihoods(star):
        own = [user for user in range(where.start, where.stop) if user in wanted]
        if not own:
            continue
        margin = likelihood.margin
        for user in own:
            place = user - where.start
            utility, bias = _split(margin[:, place].T)
            _check_finite(utility, posterior.context, user, items)
            yield (
                user,
                PersonDraws(
                    utility.contiguous(),
                    row,
                    log_weights[:, place].exp(),
                    bias,
                    _of_person(likelihood.log_tie, place),
                    _of_person(likelihood.lapse_logit, place),
                ),
            )


def _compare_with_first(data: Preferences, items: np.ndarray, people: np.ndarray) -> Preferences:
    """Asks people to compare each item with the first, and the first with the second."""
    first = np.full(len(items) - 1, items[0])
    left, right = np.append(items[1:], items[0]), np.append(first, items[1])
    counts = np.zeros(len(data), dtype=np.int64)
    counts[people] = len(left)
    return Preferences(
        np.tile(left, len(people)),
        np.tile(right, len(people)),
        np.ones(counts.sum()),
        np.append(0, counts.cumsum()),
        items=data.items,
        num_items=data.num_items,
        item_names=data.item_names,
        feature_names=None if data.items is None else data.feature_names,
        feature_levels=data.feature_levels,
    )


def _split(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Divides margins (R, S) into utilities relative to the first item (R, S) and the bias (S,)."""
    # The second item over the first and the first over the second have the bias in common.
    bias = (margin[0] + margin[-1]) / 2
    return torch.cat([torch.zeros_like(margin[:1]), margin[:-1] - bias]), bias


def _check_finite(utility: Tensor, data: Preferences, user: int, items: np.ndarray) -> None:
    """Raises an error where a question would be scored by utilities that are no numbers."""
    is_finite = utility.isfinite().all(-1).cpu().numpy()
    if not is_finite.all():
        name = data.item_names[items[int(is_finite.argmin())]]
        raise FloatingPointError(
            f"utilities must be finite, got others of {name!r} or of {data.item_names[items[0]]!r} "
            f"for user {data.user_names[user]!r}: are the model's parameters finite?"
        )


def _of_person(value: Tensor | None, place: int) -> Tensor | None:
    """Returns a parameter of one person's draws, with shape () or (S,)."""
    if value is None:
        return None
    return value.detach() if value.ndim == 0 else value[:, place, 0]
