"""The score of every question that a person may be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.model import positions
from fssa_bayes.posterior import Posterior
from fssa_bayes.questions.draws import PersonDraws, draw_people
from fssa_bayes.questions.goals import Basis, Goal, InformationGain, Past
from fssa_bayes.questions.pool import Pool, read_candidates, read_pool
from fssa_bayes.sampling import map_people

__all__ = ["Scorer", "Scores", "prepare", "read_people", "score_questions", "tabulate"]

_CHUNK = 2**18  # Probabilities that are held at once: 512 kB in float32, within the cache.


class Scores(NamedTuple):
    """Holds what is said of Q questions, in arrays with shape (Q,).

    Attributes:
        score: The score.
        mc_error: Its Monte-Carlo standard error.
        answer: Number of the most probable answer.
        prob: Posterior probability of that answer.
    """

    score: np.ndarray
    mc_error: np.ndarray
    answer: np.ndarray
    prob: np.ndarray


class Scorer(NamedTuple):
    """Scores questions for one person.

    Attributes:
        draws: The person's draws.
        goal: What the questions are asked for.
        features: The goal's features of the draws, (J, S).
    """

    draws: PersonDraws
    goal: Goal
    features: Tensor

    def score(self, pool: Pool, past: Past | None = None) -> Scores:
        """Scores the questions of a pool, given the answers to those before.

        Args:
            pool: The questions.
            past: What was asked before; None for nothing.
        """
        past = Past.nothing(self.draws) if past is None else past
        answers = len(self.draws.answer(pool.select(np.arange(1))).prob)
        size = max(1, _CHUNK // (answers * len(self.draws.weights)))
        starts = range(0, len(pool), size)
        parts = [pool.select(np.arange(i, min(i + size, len(pool)))) for i in starts]
        device = self.draws.weights.device
        # In one thread, so that the last digits do not depend on the number of threads.
        (basis,) = map_people(device, lambda f: Basis.of(f, self.draws, past), [self.features])
        found = map_people(device, lambda part: self._score_part(part, basis, past), parts)
        return Scores(*(torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)))

    @torch.no_grad()
    def _score_part(self, part: Pool, basis: Basis, past: Past) -> tuple[Tensor, ...]:
        """Returns the fields of :class:`Scores` of a few questions."""
        weights, answers = self.draws.weights, self.draws.answer(part)
        each = self.goal.contributions(answers, basis, self.draws, past)
        score = each @ weights
        variance = each.sub_(score.unsqueeze(-1)).square_() @ weights.square()
        prob, answer = torch.stack([p @ weights for p in answers.prob]).max(0)
        return score, variance.sqrt(), answer, prob


def score_questions(
    posterior: Posterior,
    pool: Sequence | np.ndarray | pd.DataFrame | None = None,
    goal: Goal | None = None,
    *,
    kind: str = "choice",
    users: Sequence | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores questions by what their answers are expected to tell of a person.

    Ties, position bias and lapses are inside the probabilities of the answers, and so are draws of
    the population where the posterior has these. The sums over answers are exact.

    Args:
        posterior: The posterior of the people, whose context is what has been asked.
        pool: Questions, each a sequence of names of distinct items, all of one size: a list, an
            array or a DataFrame with a row a question, all of which are scored. None for all pairs
            of items, or for 20,000 of them, drawn at random, where there are more. Of two items the
            person says which they prefer, left or right.
        goal: What the questions are asked for; :class:`InformationGain` if None.
        kind: What is asked of three items or more: `"choice"`, which is the best, or `"ranking"`,
            their order, of at most five.
        users: Names of people; everybody if None.
        seed: Seed of the pairs that are drawn.

    Returns:
        One row a person and question, in the order of both. Columns: `user`; `question`, a tuple of
        items; `score`, in nats, and `mc_error`, its Monte-Carlo standard error; `answer`, the most
        probable one ("left", "right" or "tie", the item chosen, or a tuple of the items in order),
        and `prob`, its posterior probability.

    Raises:
        TypeError: If a question is not a sequence of items, or `goal` is no goal.
        ValueError: If a person or item is unknown, an item stands twice in a question, questions
            are of different sizes, or model or goal are not defined for such questions.

    Warns:
        UserWarning: If `pool` is None and 20,000 of the pairs are drawn.
    """
    goal = InformationGain() if goal is None else goal
    model, context = posterior.model, posterior.context
    if pool is None:
        read = read_candidates(model, context, None, kind, seed=seed)
    else:
        read = read_pool(model, context, pool, kind)
    people = read_people(posterior, users)
    found = {user: scorer.score(read) for user, scorer in prepare(posterior, read, goal, people)}
    names = posterior.context.user_names[people].tolist()
    tables = [
        tabulate(name, read, found[user]) for name, user in zip(names, people.tolist(), strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def prepare(
    posterior: Posterior, pool: Pool, goal: Goal, people: np.ndarray
) -> Iterator[tuple[int, Scorer]]:
    """Yields position and scorer of people, in the order of the data.

    Args:
        posterior: The posterior.
        pool: The questions.
        goal: What they are asked for.
        people: Positions of the people.

    Raises:
        TypeError: If `goal` is no goal.
        ValueError: If the goal names an unknown item or is not defined for the questions.
    """
    if not isinstance(goal, Goal):
        raise TypeError(f"goal must be a Goal, such as InformationGain(), got {goal!r}")
    about = goal.read(posterior.model, posterior.context, pool)
    items = pool.items if about is None else np.append(pool.items, about.items)
    for user, draws in draw_people(posterior, np.unique(items), people):
        yield user, Scorer(draws, goal, goal.features(draws, about))


def read_people(posterior: Posterior, users: Sequence | None) -> np.ndarray:
    """Returns the positions of people given by name; of everybody if None."""
    if users is None:
        return np.arange(len(posterior.context))
    return positions("users", users, posterior.context.user_names).numpy()


def tabulate(user: object, pool: Pool, scores: Scores) -> pd.DataFrame:
    """Tabulates the scores of a person's questions, as :func:`score_questions` says."""
    columns = {"user": [user] * len(pool), "question": pool.questions}
    columns |= {"score": scores.score, "mc_error": scores.mc_error}
    columns |= {"answer": pool.name_answers(scores.answer), "prob": scores.prob}
    return pd.DataFrame(columns)
