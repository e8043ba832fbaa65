"""An interview: one person is asked, question by question, until enough is known."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from fssa_bayes.data import (
    Preferences,
    canonical_names,
    find_names,
    names_from_json,
    names_to_json,
)
from fssa_bayes.data.comparisons import select_where
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL, align, positions
from fssa_bayes.posterior import PopulationDraws, Posterior
from fssa_bayes.questions.files import (
    damaged,
    digest_modules,
    digest_text,
    read_interview,
    write_interview,
)
from fssa_bayes.questions.goals import Goal, InformationGain, ValueOfInformation
from fssa_bayes.questions.pool import Pool, find_asked, number_sets, read_candidates
from fssa_bayes.questions.scores import prepare, score_questions
from fssa_bayes.questions.stop import Stop, Verdict, draw_afresh

__all__ = ["Interview"]

_LEVELS = (0.05, 0.95)


class Interview:
    """Asks one person the most useful question, then the next one, and says when to stop.

    A question follows from the seed and from the answers and skips so far, and from nothing else:
    not from how often :meth:`ask` was called, what was undone, or whether the interview was saved
    and resumed.

    Args:
        model: A fitted model.
        guide: Its guide; None where :class:`Posterior` allows it.
        pool: The questions that may be asked, each a sequence of names of distinct items, all of
            one length; or a table of them, a row a question. None for all pairs of items, of which
            20,000 are drawn at random where there are more.
        items: Names of the items that may be recommended; all items if None.
        goal: What a question is to tell.
        kind: What is asked of more than two items: `"choice"`, the best of them, or `"ranking"`,
            their order.
        stop: When to stop.
        context: Answers of this person that are known already, with the items and the person's
            covariates. Data of other people tell the items alone; so do names of items, or a table
            of their features, indexed by name. None for the items of a model of items without
            features.
        user: Name of the person; None for the only person of `context`, else "person".
        num_samples: Number of draws of each posterior.
        population: Whether the population's parameters are held fixed, as for :class:`Posterior`.
        seed: Seed of all draws.
        allow_repeat: Whether a question may be asked again after it was answered. A question that
            was skipped is never asked again.

    Attributes:
        user: Name of the person.
        items: Names of the items that may be recommended.

    Raises:
        TypeError: If `goal` or `stop` is something else.
        ValueError: If an option is out of range, an item is unknown, or items or covariates that
            the model needs are missing.
        FloatingPointError: If the model gives an item no finite utility.

    Example:
        >>> model = HeterogeneousBTL(3, 1, "linear", feature_names=["tea", "cola", "milk"])
        >>> interview = Interview(model, None, stop=Stop(best=None, max_questions=1))
        >>> left, right = interview.ask()
        >>> interview.answer(left)
        >>> interview.ask() is None
        True
        >>> interview.verdict.reason
        'max_questions=1 are answered'
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        pool: Sequence | np.ndarray | pd.DataFrame | None = None,
        *,
        items: Sequence | None = None,
        goal: Goal | None = None,
        kind: str = "choice",
        stop: Stop | None = None,
        context: Preferences | pd.DataFrame | Sequence | None = None,
        user: Hashable | None = None,
        num_samples: int = 1000,
        population: str | PopulationDraws = "fixed",
        seed: int = 0,
        allow_repeat: bool = False,
    ) -> None:
        goal = InformationGain() if goal is None else goal
        stop = Stop() if stop is None else stop
        for name, value, wanted in (("goal", goal, Goal), ("stop", stop, Stop)):
            if not isinstance(value, wanted):
                raise TypeError(f"{name} must be a {wanted.__name__}, got {value!r}")
        self.model, self.guide, self.goal, self.stop = model, guide, goal, stop
        self.num_samples, self.population, self.seed = num_samples, population, seed
        self.kind, self.allow_repeat = kind, allow_repeat
        start = read_person(model, context, user)
        self.user = start.user_names.tolist()[0]
        names = start.item_names if items is None else canonical_names("items", items)
        positions("items", names, start.item_names)
        if not names.is_unique:
            twice = names[names.duplicated()].tolist()[0]
            raise ValueError(f"items must be distinct, got {twice!r} twice")
        self.items = names.tolist()
        self._recommends_all = len(names) == start.num_items
        self._unanswered = select_where(start, np.zeros(start.num_comparisons, dtype=bool))
        self._steps = [_Step(start)]
        self._pool = read_candidates(model, start, pool, kind, seed=seed)
        if len(self._find_candidates()):
            self._propose()  # Refuses what is wrong before the first question.

    def __repr__(self) -> str:
        return f"Interview({self.user!r}, {self.num_answered} answers)"

    @property
    def num_answered(self) -> int:
        """Number of answers so far, without those that were known before."""
        return sum(step.event.answer is not None for step in self._steps[1:])

    @property
    def posterior(self) -> Posterior:
        """The posterior of the answers so far, and of those known before."""
        now = self._steps[-1]
        if now.posterior is None:
            now.posterior = Posterior(
                self.model,
                self.guide,
                now.context,
                self.num_samples,
                seed=self.seed,
                population=self.population,
            )
        return now.posterior

    @property
    def verdict(self) -> Verdict:
        """Whether to stop, and why; the item to recommend, and how sure that is."""
        now = self._steps[-1]
        if now.verdict is None:
            is_left = len(self._find_candidates()) > 0
            value = self._find_value() if is_left and self.stop.value is not None else None
            verdict = self.stop.judge(self.posterior, self.items, self.num_answered, value)
            if not is_left and not verdict.stop:
                verdict = dataclasses.replace(verdict, stop=True, reason="no question is left")
            now.verdict, now.prob_best = verdict, verdict.prob
        return now.verdict

    def ask(self) -> tuple | None:
        """Returns the next question, the names of its items; None when it is time to stop.

        The question is the same until it is answered, skipped or undone.
        """
        if self.verdict.stop:
            return None
        self._steps[-1].is_open = True
        return self._propose()[0]

    def answer(self, choice: Hashable | Sequence) -> None:
        """Takes the answer to the question that is open.

        Args:
            choice: Of two items the name of the preferred one, `"left"`, `"right"` or, where the
                model has ties, `"tie"`; the name of the best of more items; or their names, the
                best first, for a ranking.

        Raises:
            ValueError: If no question is open, or the answer is none to it.
        """
        question, score = self._open_question("answer()")
        answer = read_answer(question, choice, self.kind, self.model.has_ties)
        said = add_answer(self._unanswered, question, answer)
        prob = math.exp(self.posterior.log_score(said).item())
        self._steps.append(self._steps[-1].follow(_Event(question, answer, prob, score)))

    def skip(self) -> None:
        """Passes over the question that is open, which is not asked again.

        Raises:
            ValueError: If no question is open.
        """
        question, score = self._open_question("skip()")
        self._steps.append(self._steps[-1].follow(_Event(question, None, None, score)))

    def undo(self) -> None:
        """Takes the last answer or skip back: its question is open again.

        Raises:
            ValueError: If nothing was answered or skipped.
        """
        if len(self._steps) == 1:
            raise ValueError("undo() must follow an answer or a skip, got neither")
        self._steps.pop()
        self.ask()

    def ranking(self) -> pd.DataFrame:
        """Ranks the items that may be recommended.

        Returns:
            One row an item (index `item`), the highest mean first. Columns: the posterior `mean` of
            its utility, centred over these items, with `lower` and `upper`, the 5 % and 95 %
            quantiles, in nats; `prob_best`, the probability that its utility is the highest.
        """
        utility = self.posterior.utility(self.items)[:, 0].double()
        lower, upper = utility.quantile(torch.tensor(_LEVELS, dtype=utility.dtype), 0)
        columns = {"mean": utility.mean(0), "lower": lower, "upper": upper}
        columns["prob_best"] = self.posterior.rank_prob(self.items)[0, :, 0].double()
        index = pd.Index(self.items, name="item")
        table = pd.DataFrame({name: v.numpy() for name, v in columns.items()}, index=index)
        return table.sort_values("mean", ascending=False, kind="stable")

    def to_frame(self) -> pd.DataFrame:
        """Tabulates the answers.

        Returns:
            One row an answer, in order. Columns: `question`, a tuple of names; `answer`, the name
            of the preferred item, `"tie"`, or a tuple of names, the best first; `prob`, the
            probability that the posterior gave to this answer before; `score`, what the question
            was expected to tell, in the terms of the goal; `prob_best`, :attr:`Verdict.prob` after
            the answer.
        """
        rows = [
            (event.question, event.name_answer(), event.prob, event.score, prob_best)
            for event, prob_best in self._list_events()
            if event.answer is not None
        ]
        return pd.DataFrame(rows, columns=["question", "answer", "prob", "score", "prob_best"])

    def save(self, path: str | os.PathLike) -> None:
        """Saves the interview as a JSON file, which appears whole or not at all.

        Model, guide, items and goal are not saved, but their digests are.

        Args:
            path: The file, which is replaced if it exists.

        Raises:
            OSError: If the file cannot be written.
        """
        events = [event.to_json() | {"prob_best": best} for event, best in self._list_events()]
        settings = {
            "user": names_to_json([self.user]),
            "kind": self.kind,
            "stop": dataclasses.asdict(self.stop),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "allow_repeat": self.allow_repeat,
        }
        content = {"settings": settings, "digests": self._digest_parts(), "events": events}
        write_interview(Path(path), content)

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        pool: Sequence | np.ndarray | pd.DataFrame | None = None,
        *,
        items: Sequence | None = None,
        goal: Goal | None = None,
        context: Preferences | pd.DataFrame | Sequence | None = None,
        population: str | PopulationDraws = "fixed",
    ) -> Self:
        """Continues an interview that was saved; the file holds all other options.

        Args:
            path: The file.
            model: The model of the interview.
            guide: Its guide, as in the interview.
            pool: The pool of the interview.
            items: The items that may be recommended in the interview.
            goal: The goal of the interview.
            context: The context of the interview.
            population: The population of the interview.

        Returns:
            The interview in the state in which it was saved.

        Raises:
            FileNotFoundError: If there is no file.
            ValueError: If the file holds no interview, or one of another model, pool, items, goal,
                context or population.
        """
        path = Path(path)
        content = read_interview(path)
        settings = dict(content["settings"])
        settings["user"] = names_from_json("user", settings["user"]).tolist()[0]
        settings["stop"] = Stop(**settings["stop"])
        given = {"items": items, "goal": goal, "context": context, "population": population}
        interview = cls(model, guide, pool, **given, **settings)
        for name, digest in interview._digest_parts().items():
            if content["digests"][name] != digest:
                raise ValueError(
                    f"{name} must be as in the interview that {str(path)!r} holds, got another one"
                )
        for number, saved in enumerate(content["events"]):
            try:
                event, prob_best = _Event.from_json(saved), saved["prob_best"]
                interview._steps.append(interview._steps[-1].follow(event, prob_best))
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(path, f"event {number}: {error}") from error
        return interview

    def _find_candidates(self) -> Pool:
        """Returns the questions that may be asked now."""
        now = self._steps[-1]
        known = self._unanswered if self.allow_repeat else now.context
        done = find_asked(known, 0, now.skipped, self._pool.size)
        if not done:
            return self._pool
        items = np.concatenate([self._pool.items, done])
        number = number_sets(items, len(self._pool.names))
        return self._pool.select(~np.isin(*np.split(number, [len(self._pool)])))

    def _propose(self) -> tuple[tuple, float]:
        """Finds the best question left, once, and its score."""
        now = self._steps[-1]
        if now.proposal is None:
            now.proposal = self._choose(self.goal)
        return now.proposal

    def _choose(self, goal: Goal) -> tuple[tuple, float]:
        """Finds the best question left by a goal, and its score."""
        candidates = self._find_candidates()
        ((_, scorer),) = prepare(self.posterior, candidates, goal, np.array([0]))
        score = scorer.score(candidates).score
        best = int(score.argmax())
        return candidates.select(np.array([best])).questions[0], float(score[best])

    def _find_value(self) -> float:
        """Returns the value of the best question left, in nats, by draws that did not choose it."""
        goal = ValueOfInformation(self.items)
        every = ValueOfInformation() if self._recommends_all else goal
        question, _ = self._propose() if self.goal in (goal, every) else self._choose(goal)
        table = score_questions(draw_afresh(self.posterior), [question], goal, kind=self.kind)
        return float(table["score"].iloc[0])

    def _open_question(self, what: str) -> tuple[tuple, float]:
        if not self._steps[-1].is_open:
            ended = self._steps[-1].verdict
            why = f": {ended.reason}" if ended is not None and ended.stop else ""
            raise ValueError(f"ask() must come before {what}, no question is open{why}")
        return self._propose()

    def _list_events(self) -> list[tuple[_Event, float]]:
        """Lists answers and skips, each with :attr:`Verdict.prob` after it."""
        self._steps[-1].prob_best = self.verdict.prob
        return [(step.event, step.prob_best) for step in self._steps[1:]]

    def _digest_parts(self) -> dict[str, str]:
        """Digests what a file does not hold and a question depends on, by argument."""
        modules = [self.model]
        if self.guide is not None and not self.model.is_mixed_logit:
            modules.append(self.guide)
        drawn = [] if isinstance(self.population, str) else self.population.members
        return {
            "model": digest_modules(modules),
            "context": self._steps[0].context.digest(),
            "pool": digest_text(repr(self._pool.items.tolist())),
            "items": digest_text(repr(self.items)),
            "goal": digest_text(repr(self.goal)),
            "population": digest_modules([member for member, _ in drawn]),
        }


@dataclass(frozen=True)
class _Event:
    """Holds a question with its answer; the answer to a question that was skipped is None.

    Attributes:
        question: Names of the items.
        answer: "left", "right" or "tie" of two items; else a tuple of names, the best first.
        prob: Probability of the answer before it was given.
        score: Score of the question.
    """

    question: tuple
    answer: str | tuple | None
    prob: float | None
    score: float

    def name_answer(self) -> Hashable:
        """Names the preferred item, "tie", or the order of the items."""
        if isinstance(self.answer, str):
            places = {"left": self.question[0], "right": self.question[1]}
            return places.get(self.answer, self.answer)
        return self.answer[0] if len(self.answer) == 1 else self.answer

    def to_json(self) -> dict[str, Any]:
        """Returns the event as JSON holds it."""
        answer = self.answer
        if isinstance(answer, tuple):
            answer = names_to_json(answer)
        question = names_to_json(self.question)
        return {"question": question, "answer": answer, "prob": self.prob, "score": self.score}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Reads what :meth:`to_json` returned."""
        question = tuple(names_from_json("question", saved["question"]).tolist())
        answer = saved["answer"]
        if isinstance(answer, list):
            answer = tuple(names_from_json("answer", answer).tolist())
        return cls(question, answer, saved["prob"], saved["score"])


@dataclass
class _Step:
    """Holds what is known after some answers, and what follows from it, each computed once.

    Attributes:
        context: The answers.
        skipped: The questions that were skipped.
        event: The answer or skip that led here; None at the beginning.
        posterior: The posterior of the answers.
        verdict: Whether to stop.
        prob_best: Its probability.
        proposal: The best question left, and its score.
        is_open: Whether this question was asked.
    """

    context: Preferences
    skipped: tuple[tuple, ...] = ()
    event: _Event | None = None
    posterior: Posterior | None = None
    verdict: Verdict | None = None
    prob_best: float | None = None
    proposal: tuple[tuple, float] | None = None
    is_open: bool = False

    def follow(self, event: _Event, prob_best: float | None = None) -> _Step:
        """Returns the step after an answer or a skip."""
        if event.answer is None:
            skipped = (*self.skipped, event.question)
            return _Step(self.context, skipped, event, self.posterior, prob_best=prob_best)
        context = add_answer(self.context, event.question, event.answer)
        return _Step(context, self.skipped, event, prob_best=prob_best)


def read_person(
    model: HeterogeneousBTL,
    context: Preferences | pd.DataFrame | Sequence | None,
    user: Hashable | None,
) -> Preferences:
    """Returns what is known of one person, in the items, features and covariates of the model.

    Arguments are those of :class:`Interview`.
    """
    if context is None:
        if model.feature_names is None or model.is_standardised:
            raise ValueError(
                "context must tell the items and their features, such as a table of features "
                "indexed by name, got None: the model knows no items by name"
            )
        context = model.feature_names
    if not isinstance(context, Preferences):
        if model.feature_names is not None and not isinstance(context, pd.DataFrame):
            positions("items of context", context, model.feature_names)
        ties = "keep" if model.has_ties else "half"
        context = Preferences.empty(["person" if user is None else user], context, ties=ties)
    if user is None:
        if len(context) > 1:
            raise ValueError(
                f"user must name the person to ask where context has several, {len(context)} here, "
                "got None"
            )
        user = context.user_names.tolist()[0]
    name = canonical_names("user", [user])
    position = find_names(name, context.user_names)
    if position[0] >= 0:
        return align(model, context.subset(position))
    none = np.zeros(context.subset([0]).num_comparisons, dtype=bool)
    parts = {"user_names": name, "weights": None, "covariates": None}
    return align(model, select_where(context.subset([0]), none, **parts))


def read_answer(
    question: tuple, choice: Hashable | Sequence, kind: str, has_ties: bool
) -> str | tuple:
    """Reads an answer: "left", "right" or "tie" of two items; else names, the best first.

    Args:
        question: Names of the items.
        choice: The answer, as :meth:`Interview.answer` takes it.
        kind: What is asked of more than two items.
        has_ties: Whether a tie is an answer.
    """
    if len(question) == 2:
        return read_comparison(question, choice, has_ties)
    if kind == "choice":
        if not is_among(choice, question):
            raise ValueError(f"choice must be one of the items {question}, got {choice!r}")
        return (choice,)
    ranked = () if isinstance(choice, str) or not np.iterable(choice) else tuple(choice)
    if len(ranked) != len(question) or not all(is_among(item, ranked) for item in question):
        raise ValueError(
            f"choice must rank the items {question}, each once, the best first, got {choice!r}"
        )
    return ranked


def read_comparison(question: tuple, choice: Hashable, has_ties: bool) -> str:
    """Reads an answer to two items as "left", "right" or "tie"."""
    named = {"left": question[0], "right": question[1]}
    words = ["left", "right", *(["tie"] if has_ties else [])]
    meanings = {word for word in words if isinstance(choice, str) and choice == word}
    if is_among(choice, question):
        meanings |= {word for word, item in named.items() if item == choice}
    if len(meanings) > 1:
        raise ValueError(f"choice is ambiguous: {choice!r} is an item and a place")
    if not meanings:
        has = "" if has_ties or choice != "tie" else ": the model has no ties"
        raise ValueError(
            f"choice must be one of the items {question} or of the words "
            f"{', '.join(map(repr, words))}, got {choice!r}{has}"
        )
    return meanings.pop()


def is_among(name: object, names: tuple) -> bool:
    """Says whether a value is one of some names; True is not the name 1."""
    if isinstance(name, bool) or not pd.api.types.is_hashable(name):
        return False
    return name in names


def add_answer(data: Preferences, question: tuple, answer: str | tuple) -> Preferences:
    """Adds one answer, as :func:`read_answer` returns it, to the data of one person."""
    user = data.user_names.tolist()[0]
    if isinstance(answer, tuple):
        return data.append_ranking(user, list(answer), choice_set=list(question))
    # A word or number might be the name of an item, and a Boolean is none.
    return data.append(user, *question, {"left": True, "right": False}.get(answer, answer))
