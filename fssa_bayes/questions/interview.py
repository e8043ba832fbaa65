"""An interview: one person is asked, question by question, until enough is known."""

from __future__ import annotations

import copy
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
    names_from_json,
    names_to_json,
)
from fssa_bayes.data.comparisons import select_where
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL, positions
from fssa_bayes.posterior import PopulationDraws, Posterior
from fssa_bayes.questions.answers import add_answer, read_answer, read_person
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
    def candidates(self) -> list[tuple]:
        """The questions that may be asked now, each a tuple of names of items."""
        return self._find_candidates().questions

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

    def propose(self) -> tuple[tuple, float] | None:
        """Returns the best question left and its score, without a judgement whether to stop.

        No question is open after it: :meth:`record` takes the answer. None if no question is left.
        """
        return self._propose() if len(self._find_candidates()) else None

    def answer(self, choice: Hashable | Sequence) -> None:
        """Takes the answer to the question that is open.

        Args:
            choice: Of two items the name of the preferred one, `"left"`, `"right"` or, where the
                model has ties, `"tie"`; the name of the best of more items; or their names, the
                best first, for a ranking.

        Raises:
            ValueError: If no question is open, or the answer is none to it.
        """
        self._take(*self._open_question("answer()"), choice)

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

    def record(self, question: Sequence, choice: Hashable | Sequence | None) -> None:
        """Takes the answer to a question that the caller chose, in place of :meth:`ask`.

        Args:
            question: Names of the items, of any question over the items.
            choice: As in :meth:`answer`; None for a skip.

        Raises:
            ValueError: If an item is unknown, or the answer is none to the question.
        """
        question = tuple(question)
        positions("question", question, self._unanswered.item_names)
        now = self._steps[-1]
        known = now.proposal is not None and now.proposal[0] == question
        score = now.proposal[1] if known else None
        if choice is None:
            self._steps.append(now.follow(_Event(question, None, None, score)))
        else:
            self._take(question, score, choice)

    def predict(self, question: Sequence, choice: Hashable | Sequence) -> float:
        """Returns the posterior probability of an answer, which is not taken.

        Args:
            question: Names of the items.
            choice: As in :meth:`answer`.
        """
        question = tuple(question)
        answer = read_answer(question, choice, self.kind, self.model.has_ties)
        said = add_answer(self._unanswered, question, answer)
        return math.exp(self.posterior.log_score(said).item())

    def events(self) -> list[dict[str, Any]]:
        """Lists answers and skips as JSON holds them, for :meth:`replay`."""
        return [step.event.to_json() for step in self._steps[1:]]

    def replay(self, events: Sequence[dict[str, Any]]) -> None:
        """Takes answers and skips that :meth:`events` listed, without computing them again.

        Args:
            events: What :meth:`events` returned, of the same model, items and kind of questions.

        Raises:
            ValueError: If an event is damaged.
        """
        for number, saved in enumerate(events):
            try:
                event = _Event.from_json(saved)
                self._steps.append(self._steps[-1].follow(event, saved.get("prob_best")))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"event {number}: {error}") from error

    def restart(self) -> Self:
        """Returns the interview before its first answer; what was computed for it is shared."""
        other = copy.copy(self)
        other._steps = [dataclasses.replace(self._steps[0], is_open=False)]
        return other

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
            the answer, NaN where answers were recorded without a verdict.
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
        content = {"settings": settings, "digests": self.digests(), "events": events}
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
        for name, digest in interview.digests().items():
            if content["digests"][name] != digest:
                raise ValueError(
                    f"{name} must be as in the interview that {str(path)!r} holds, got another one"
                )
        try:
            interview.replay(content["events"])
        except ValueError as error:
            raise damaged(path, str(error)) from error
        return interview

    def digests(self) -> dict[str, str]:
        """Digests what a question depends on besides the settings and the answers.

        Returns:
            A SHA-256 of each of `model` (with the guide), `context`, `pool`, `items`, `goal` and
            `population`.
        """
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

    def _take(self, question: tuple, score: float | None, choice: Hashable | Sequence) -> None:
        """Takes an answer, with the probability that the posterior gave to it."""
        answer = read_answer(question, choice, self.kind, self.model.has_ties)
        prob = self.predict(question, choice)
        self._steps.append(self._steps[-1].follow(_Event(question, answer, prob, score)))

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


@dataclass(frozen=True)
class _Event:
    """Holds a question with its answer; the answer to a question that was skipped is None.

    Attributes:
        question: Names of the items.
        answer: "left", "right" or "tie" of two items; else a tuple of names, the best first.
        prob: Probability of the answer before it was given.
        score: Score of the question; None where the caller chose it.
    """

    question: tuple
    answer: str | tuple | None
    prob: float | None
    score: float | None

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
