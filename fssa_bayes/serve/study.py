"""What is asked next, and what the answers say: the statistics behind the page."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from fssa_bayes._random import Streams
from fssa_bayes.data import Preferences, names_from_json, names_to_json
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import Posterior
from fssa_bayes.questions import Goal, Interview, Stop
from fssa_bayes.serve.content import Items
from fssa_bayes.serve.store import Invited, Question

__all__ = ["ARMS", "CHOOSE", "HELD_OUT", "Proposal", "Study"]

ARMS = ("adaptive", "random")
"""Who chooses the questions of a person."""

CHOOSE, HELD_OUT = "choose", "held-out"

_MOST_LIVE = 300  # Interviews whose posteriors are kept in memory.
_LEVELS = (0.05, 0.95)
_BLOCK = 4  # People among whom the arms are balanced.
_LEAST_SKIPS = 3  # That end an interview; as many as answers at most if these are more.
_SKIPS = 12  # Where the number of answers is open.


@dataclass(frozen=True)
class Proposal:
    """Holds the next question of a person.

    Attributes:
        purpose: "choose" or "held-out".
        items: Names of the items, in the order in which they are shown.
        score: Its score; None where nothing was scored.
        prob_best: Probability that the item to recommend is good enough; None if not computed.
    """

    purpose: str
    items: tuple
    score: float | None
    prob_best: float | None


class Study:
    """Chooses questions for people, and says what their answers tell.

    One lock guards the interviews that are kept in memory, which are nothing but a memory: they are
    made again from the answers in the database. Posteriors for results are computed beside them.

    Args:
        model: A fitted model.
        guide: Its guide; None where :class:`fssa_bayes.Posterior` allows it.
        items: The items.
        goal: What a question is to tell.
        stop: When to stop. As many skips as `max_questions` stop too, 12 if it is None, but no
            fewer than 3: held-out questions then follow at once.
        pool: The questions that may be asked, each a sequence of names; all pairs of items if None.
        num_held_out: Questions, drawn at random, that every person is asked at the end and that
            judge predictions from the answers before. They are the same for both arms in
            distribution, and none of them is asked otherwise.
        control: Whether half of the people, drawn at random, are asked random questions.
        num_samples: Number of draws of each posterior.
        seed: Seed of arms, orders, held-out questions and draws.

    Attributes:
        digests: What all answers of a study have in common, for :meth:`Store.claim`: digests of
            model and questions, and the settings of the study as text.

    Raises:
        ValueError: If the model does not fit the items or an option is out of range.
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        items: Items,
        *,
        goal: Goal | None = None,
        stop: Stop | None = None,
        pool: Sequence | None = None,
        num_held_out: int = 0,
        control: bool = False,
        num_samples: int = 1000,
        seed: int = 0,
    ) -> None:
        stop = Stop() if stop is None else stop
        if num_held_out < 0:
            raise ValueError(f"num_held_out must be at least 0, got {num_held_out}")
        if control and not num_held_out:
            raise ValueError("control needs questions that compare the arms: num_held_out above 0")
        if control and (stop.best is not None or stop.value is not None):
            raise ValueError(
                "control compares people after the same number of questions: stop must be "
                "Stop(best=None, max_questions=…)"
            )
        self.items, self.stop, self.control = items, stop, control
        self.num_held_out, self.num_samples, self.seed = num_held_out, num_samples, seed
        if pool is None and not model.is_standardised and len(items.names) < model.num_features:
            # Of the model's items those of the study alone.
            pool = list(itertools.combinations(items.names, 2))
        self._start = Interview(
            model,
            guide,
            pool,
            items=items.names,
            goal=goal,
            stop=stop,
            context=items.context,
            num_samples=num_samples,
            seed=seed,
        )
        self._questions = self._start.candidates
        if len(self._questions) <= num_held_out:
            raise ValueError(
                f"num_held_out must leave questions to choose from, got {num_held_out} of "
                f"{len(self._questions)}"
            )
        self.model, self.guide, self.has_ties = model, guide, model.has_ties
        self.goal = repr(self._start.goal)
        settings = {"stop": stop, "held_out": num_held_out, "control": control}
        settings |= {"samples": num_samples, "seed": seed}
        self.digests = self._start.digests() | {name: repr(v) for name, v in settings.items()}
        self._live: OrderedDict[int, tuple[tuple[int, ...], Interview]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def most_questions(self) -> int | None:
        """Number of answers after which an interview ends; None if that is open."""
        most = self.stop.max_questions
        return None if most is None else most + self.num_held_out

    @property
    def most_skips(self) -> int:
        """Number of questions, held-out ones aside, after whose skipping no more are chosen."""
        most = self.stop.max_questions
        return _SKIPS if most is None else max(_LEAST_SKIPS, most)

    def arm(self, interview: int) -> str:
        """Returns the arm of an interview: of four people who come in turn, two in each."""
        if not self.control:
            return ARMS[0]
        block, place = divmod(interview - 1, _BLOCK)
        order = Streams(self.seed, "arms").of(block).permutation(_BLOCK)
        return ARMS[int(order[place]) % 2]

    def advance(
        self, who: Invited, asked: Sequence[Question]
    ) -> tuple[Proposal | None, dict[int, float]]:
        """Finds the next question of a person.

        Args:
            who: The person's interview.
            asked: The person's questions that count, answered or skipped, in order.

        Returns:
            The question, None at the end; and the probabilities that were given to answers which
            the database does not know them of, by number of the question.
        """
        chosen = [question for question in asked if question.purpose == CHOOSE]
        held = [question for question in asked if question.purpose == HELD_OUT]
        with self._lock:
            live, probs = self._catch_up(who, chosen)
            for question in held:
                if question.prob is None and question.side != "skip":
                    items, choice = _read_names(question.items), _read_choice(question)
                    probs[question.number] = live.predict(items, choice)
            skips = sum(question.side == "skip" for question in chosen)
            if not held and skips < self.most_skips:
                proposal = self._choose(who, live)
                if proposal is not None:
                    return self._order(who, proposal, len(asked)), probs
            if len(held) < self.num_held_out:
                items = self._held_out(who.id)[len(held)]
                return self._order(who, Proposal(HELD_OUT, items, None, None), len(asked)), probs
        return None, probs

    def forget(self, interview: int) -> None:
        """Drops what is kept in memory of a person, who has withdrawn."""
        with self._lock:
            self._live.pop(interview, None)

    def posterior(self, answers: Mapping[str, Sequence[Question]]) -> Posterior | None:
        """Returns the posterior of people given all their answers, held-out ones too.

        Args:
            answers: The questions of each person, by the name the person has in exports.

        Returns:
            The posterior of those who answered a question; None if nobody did.
        """
        said = {
            name: [
                question for question in asked if question.answer is not None or _is_tie(question)
            ]
            for name, asked in answers.items()
        }
        said = {name: asked for name, asked in said.items() if asked}
        if not said:
            return None
        ties = "keep" if self.has_ties else "half"
        data = Preferences.empty(list(said), self.items.context, ties=ties)
        pairs = [(name, q) for name, asked in said.items() for q in asked if len(q.items) == 2]
        if pairs:
            left, right = zip(*(_read_names(q.items) for _, q in pairs), strict=True)
            numbers = {"left": 1.0, "right": 0.0, "tie": 0.5}
            choice = [numbers[q.side] for _, q in pairs]
            data = data.append([name for name, _ in pairs], list(left), list(right), choice)
        for name, asked in said.items():
            for question in asked:
                if len(question.items) > 2:
                    items = list(_read_names(question.items))
                    data = data.append_ranking(name, [_read_choice(question)], choice_set=items)
        return Posterior(self.model, self.guide, data, self.num_samples, seed=self.seed)

    def describe(self, posterior: Posterior, user: str) -> pd.DataFrame:
        """Describes what a person prefers.

        Args:
            posterior: The posterior.
            user: The person.

        Returns:
            One row an item (index `item`), the likeliest favourite first. Columns: `prob_best`, the
            probability that its utility is the highest; `wins`, the posterior mean share of the
            other items that the person would choose it over, with `lower` and `upper`, its 5 % and
            95 % quantiles; `mean`, `mean_lower` and `mean_upper`, of its utility in nats.
        """
        return self._tabulate(posterior.utility(self.items.names, [user])[:, 0])

    def find_favourites(self, posterior: Posterior) -> pd.DataFrame:
        """Finds each person's likeliest favourite.

        Args:
            posterior: The posterior.

        Returns:
            One row a person (index `user`): `item`, the first row of :meth:`describe`, and that
            row's other columns.
        """
        users = posterior.context.user_names.tolist()
        utility = posterior.utility(self.items.names)
        best = utility.mean(0).argmax(-1)
        own = utility.gather(-1, best.expand(len(utility), -1).unsqueeze(-1))
        shares = torch.cat([_win_share(*pair).mT for pair in zip(own, utility, strict=True)])
        columns = _summarise(own.squeeze(-1), shares, (utility.argmax(-1) == best).double().mean(0))
        table = pd.DataFrame(columns, index=pd.Index(users, name="user"))
        table.insert(0, "item", [self.items.names[place] for place in best.tolist()])
        return table

    def describe_all(self, posterior: Posterior) -> pd.DataFrame:
        """Describes what people prefer on average; columns as :meth:`describe`.

        The intervals tell how sure the average of these people is, with the model as it is: not
        how much people differ, nor how the average of other people may be.
        """
        return self._tabulate(posterior.utility(self.items.names))

    def _tabulate(self, utility: torch.Tensor) -> pd.DataFrame:
        """Summarises draws of utilities (S, M) of a person, or (S, U, M) of people."""
        average = utility if utility.ndim == 2 else utility.mean(1)
        best = torch.bincount(average.argmax(-1), minlength=average.shape[-1]) / len(average)
        columns = _summarise(average, _win_shares(utility), best)
        table = pd.DataFrame(columns, index=pd.Index(self.items.names, name="item"))
        return table.sort_values(["mean"], ascending=False, kind="stable")

    def compare_arms(self, people: Sequence[tuple[Invited, Sequence[Question]]]) -> pd.DataFrame:
        """Compares the held-out log scores of both arms.

        Args:
            people: Interviews with their questions that count.

        Returns:
            Rows `adaptive`, `random` and `difference`, adaptive less random. Columns: `people`;
            `log_score`, the mean over people of a person's mean log-probability of the held-out
            answers, in nats; and `se`, its standard error, between people.
        """
        scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for who, asked in people:
            own = [q.prob for q in asked if q.purpose == HELD_OUT and q.prob is not None]
            if who.finished_at is not None and own:
                scores[who.arm].append(float(np.log(own).mean()))
        rows = {}
        for arm, own in scores.items():
            error = np.std(own, ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
            rows[arm] = (len(own), np.mean(own) if own else np.nan, error)
        (_, first, error), (_, second, other) = rows["adaptive"], rows["random"]
        total = sum(len(own) for own in scores.values())
        rows["difference"] = (total, first - second, np.hypot(error, other))
        columns = ["people", "log_score", "se"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def _catch_up(
        self, who: Invited, chosen: Sequence[Question]
    ) -> tuple[Interview, dict[int, float]]:
        """Returns a person's interview after some answers, and their new probabilities."""
        numbers = tuple(question.number for question in chosen)
        taken, live = self._live.pop(who.id, ((), None))
        if live is None or numbers[: len(taken)] != taken:
            taken, live = (), self._start.restart()
            for items in self._held_out(who.id):
                live.record(items, None)  # What is skipped is not asked.
        probs = {}
        for question in chosen[len(taken) :]:
            if question.prob is not None or question.side == "skip":
                live.replay([_as_event(question)])
                continue
            live.record(_read_names(question.items), _read_choice(question))
            probs[question.number] = live.events()[-1]["prob"]
        self._live[who.id] = numbers, live
        if len(self._live) > _MOST_LIVE:
            self._live.popitem(last=False)
        return live, probs

    def _choose(self, who: Invited, live: Interview) -> Proposal | None:
        """Chooses the next question for a person; None when it is time to stop."""
        prob_best = None
        if self.stop.best is not None or self.stop.value is not None:
            if live.verdict.stop:
                return None
            prob_best = live.verdict.prob
        elif self.stop.max_questions is not None and live.num_answered >= self.stop.max_questions:
            return None
        if who.arm == "random":
            left = live.candidates
            if not left:
                return None
            rng = Streams(self.seed, "random questions").of(who.id * 10_000 + len(left))
            return Proposal(CHOOSE, left[int(rng.integers(len(left)))], None, prob_best)
        found = live.propose()
        return None if found is None else Proposal(CHOOSE, *found, prob_best)

    def _order(self, who: Invited, proposal: Proposal, number: int) -> Proposal:
        """Shows the items in an order that is drawn for every question."""
        rng = Streams(self.seed, "orders").of(who.id * 10_000 + number)
        order = rng.permutation(len(proposal.items))
        return replace(proposal, items=tuple(proposal.items[place] for place in order))

    def _held_out(self, interview: int) -> list[tuple]:
        """Returns the questions that judge predictions for a person."""
        rng = Streams(self.seed, "held out").of(interview)
        places = rng.choice(len(self._questions), self.num_held_out, replace=False)
        return [self._questions[place] for place in places]


def _summarise(
    utility: torch.Tensor, shares: torch.Tensor, prob_best: torch.Tensor
) -> dict[str, np.ndarray]:
    """Summarises draws of utilities and of shares, both (S, M): see :meth:`Study.describe`."""
    levels = torch.tensor(_LEVELS, dtype=utility.dtype)
    lower, upper = shares.quantile(levels, 0)
    mean_lower, mean_upper = utility.quantile(levels, 0)
    columns = {"prob_best": prob_best, "wins": shares.mean(0), "lower": lower, "upper": upper}
    columns |= {"mean": utility.mean(0), "mean_lower": mean_lower, "mean_upper": mean_upper}
    return {name: value.double().numpy() for name, value in columns.items()}


def _win_shares(utility: torch.Tensor) -> torch.Tensor:
    """Returns the mean probability, over other items and people, to choose each item: (S, M)."""
    shares = []
    for draw in utility.split(max(1, 2**20 // (utility[0].numel() * utility.shape[-1]))):
        share = _win_share(draw, draw)
        shares.append(share if share.ndim == 2 else share.mean(1))
    return torch.cat(shares)


def _win_share(own: torch.Tensor, utility: torch.Tensor) -> torch.Tensor:
    """Returns the mean probability, over the other items, to choose an item.

    Args:
        own: Utilities (*, I) of some items.
        utility: Utilities (*, M) of all items, of which these are some.
    """
    prob = (own.unsqueeze(-1) - utility.unsqueeze(-2)).sigmoid()
    return (prob.sum(-1) - 0.5) / (utility.shape[-1] - 1)  # Without itself.


def _read_names(saved: list) -> tuple:
    return tuple(names_from_json("items", saved).tolist())


def _is_tie(question: Question) -> bool:
    return question.side == "tie"


def _read_choice(question: Question) -> object:
    """Returns an answer as :meth:`Interview.record` takes it."""
    if len(question.items) == 2:
        return question.side
    return _read_names(question.items)[int(question.side) - 1]


def _as_event(question: Question) -> dict[str, object]:
    """Returns an answer, or a skip, as :meth:`Interview.replay` takes it."""
    answer: object = question.side
    if question.side == "skip":
        answer = None
    elif len(question.items) > 2:
        answer = names_to_json([_read_choice(question)])
    return {"question": question.items, "answer": answer, "prob": question.prob, "score": None}
