"""The best next question, or the best few to be asked at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from fssa_bayes._random import Streams
from fssa_bayes.posterior import Posterior
from fssa_bayes.questions.draws import PersonDraws
from fssa_bayes.questions.goals import Goal, InformationGain, Past
from fssa_bayes.questions.pool import Pool, find_asked, number_sets, read_candidates
from fssa_bayes.questions.scores import Scorer, Scores, prepare, read_people, tabulate

__all__ = ["next_questions"]

_MOST_TUPLES = 64  # Tuples of answers to the questions before: more are sampled.


def next_questions(
    posterior: Posterior,
    pool: Sequence | np.ndarray | pd.DataFrame | None = None,
    goal: Goal | None = None,
    *,
    kind: str = "choice",
    batch: int = 1,
    asked: Sequence | None = None,
    allow_repeat: bool = False,
    both_orders: bool = False,
    users: Sequence | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Chooses the question that serves a goal best, or a batch of questions to be asked at once.

    Questions of a batch are chosen one after another, each by what it adds to those before, whose
    answers are not known: by the expectation over these. Up to 64 tuples of answers are enumerated,
    and beyond that 64 are sampled.

    Args:
        posterior: The posterior of the people. What its context holds has been asked.
        pool: As in :func:`score_questions`.
        goal: What the questions are asked for; :class:`InformationGain` if None.
        kind: As in :func:`score_questions`.
        batch: Number of questions for each person.
        asked: Further questions that have been asked, each a sequence of items, of any size; of
            everybody.
        allow_repeat: Whether a question may be asked again, also within a batch.
        both_orders: Whether a pair may be asked in either order, which differ where the model has a
            position bias; if not, a set of items is one question, in the order in which the pool
            has it first.
        users: Names of people; everybody if None.
        seed: Seed of the choice among pools that are too large and of tuples of answers.

    Returns:
        `batch` rows a person, the best question first. Columns as in :func:`score_questions`, but
        that `score` is what the question adds to those before it.

    Raises:
        TypeError: As in :func:`score_questions`.
        ValueError: As in :func:`score_questions`, or if fewer than `batch` questions are left.

    Warns:
        UserWarning: If the pool has more than 20,000 questions, of which 20,000 are drawn.

    References:
        Kirsch, van Amersfoort & Gal (2019), BatchBALD, NeurIPS.
    """
    goal = InformationGain() if goal is None else goal
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, got {batch!r}")
    model, context = posterior.model, posterior.context
    read = read_candidates(model, context, pool, kind, both_orders=both_orders, seed=seed)
    people = read_people(posterior, users)
    left = {
        user: read if allow_repeat else leave_out(read, posterior, user, asked)
        for user in people.tolist()
    }
    for user, own in left.items():
        number = len(np.unique(own.sets))
        if number < batch and not allow_repeat:
            name = posterior.context.user_names.tolist()[user]
            raise ValueError(
                f"pool must leave batch={batch} questions for {name!r}, got {number} of "
                f"{len(np.unique(read.sets))}, as the others have been asked: give more "
                "questions, or allow_repeat=True"
            )
    found = {}
    for user, scorer in prepare(posterior, read, goal, people):
        rng = Streams(seed, "answers").of(posterior.context.keys[user])
        found[user] = choose(scorer, left[user], batch, rng, allow_repeat=allow_repeat)
    names = posterior.context.user_names[people].tolist()
    tables = [
        tabulate(name, *found[user]) for name, user in zip(names, people.tolist(), strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def leave_out(pool: Pool, posterior: Posterior, user: int, asked: Sequence | None) -> Pool:
    """Leaves out the questions that a person has been asked, in whatever order of the items."""
    found = find_asked(posterior.context, user, asked, pool.size)
    if not found:
        return pool
    number = number_sets(np.concatenate([pool.items, found]), len(pool.names))
    return pool.select(~np.isin(number[: len(pool)], number[len(pool) :]))


def choose(
    scorer: Scorer, pool: Pool, batch: int, rng: np.random.Generator, *, allow_repeat: bool
) -> tuple[Pool, Scores]:
    """Chooses a batch of questions for one person, each by what it adds to those before.

    Returns:
        The questions and their scores, in the order of choice.
    """
    past, chosen, rows = Past.nothing(scorer.draws), [], []
    open_ = np.ones(len(pool), dtype=bool)
    for number in range(batch):
        scores = scorer.score(pool, past)
        best = int(np.where(open_, scores.score, -np.inf).argmax())
        chosen.append(best)
        rows.append([column[best] for column in scores])
        if not allow_repeat:
            open_ &= pool.sets != pool.sets[best]
        if number + 1 < batch:
            past = remember(past, scorer.draws, pool.select(np.array([best])), rng)
    return pool.select(np.array(chosen)), Scores(*map(np.array, zip(*rows, strict=True)))


def remember(past: Past, draws: PersonDraws, question: Pool, rng: np.random.Generator) -> Past:
    """Returns the past with one more question.

    Args:
        past: What was asked before.
        draws: The person's draws.
        question: The question, in a pool of one.
        rng: Source of the sample of tuples, where there are too many of them.
    """
    answers = torch.cat(draws.answer(question).prob)
    likelihood = (past.likelihood.unsqueeze(1) * answers).flatten(0, 1)
    if len(likelihood) > _MOST_TUPLES:
        share = (likelihood @ draws.weights).double().cpu().numpy()
        # Systematic sampling: tuple c is drawn at least ⌊64 p_c⌋ times.
        level = (np.arange(_MOST_TUPLES) + rng.random()) / _MOST_TUPLES
        drawn = np.searchsorted(share.cumsum() / share.sum(), level).clip(max=len(share) - 1)
        scale = torch.from_numpy(1 / (_MOST_TUPLES * share[drawn])).to(likelihood)
        likelihood = likelihood[torch.from_numpy(drawn).to(scale.device)] * scale.unsqueeze(-1)
    offered = draws.rows(question.items)[0].amax(0)
    if past.offered is not None:
        offered = torch.maximum(offered, past.offered)
    return Past(likelihood, offered)
