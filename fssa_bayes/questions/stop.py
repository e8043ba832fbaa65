"""When a person has been asked enough, judged on draws that chose no question."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from fssa_bayes._random import Streams
from fssa_bayes.posterior import Posterior

__all__ = ["Stop", "Verdict", "draw_afresh", "recommend"]

_MORE = 4  # Fresh draws are so many times as many: a noisy number crosses a limit too early.


@dataclass(frozen=True)
class Verdict:
    """Says whether a person has been asked enough, and what is to be recommended.

    Attributes:
        stop: Whether to stop.
        reason: The criterion that is met, as a sentence; empty while none is.
        item: The item to recommend, that of the highest posterior mean utility.
        prob: Posterior probability, on fresh draws, that the utility of this item is the highest,
            or within `Stop.within` nats of the highest.
        mc_error: Monte-Carlo standard error of `prob`, by the effective number of draws; draws of
            a linear model are stratified, and err less.
    """

    stop: bool
    reason: str
    item: Hashable
    prob: float
    mc_error: float


@dataclass(frozen=True)
class Stop:
    """Stops asking at the first criterion that is met; None switches a criterion off.

    The item to recommend is chosen by the posterior, and its probability is judged by fresh draws,
    four times as many and of another seed: the maximum of noisy numbers at its first crossing of a
    limit is optimistic. The probability is the model's: it accounts for ties, position bias, lapses
    and draws of the population where model and posterior have these.

    Args:
        best: Stop when the recommended item is good enough with at least this probability.
        within: How far below the best item, in nats, an item is good enough; None for not at all.
        value: Stop when the best question is expected to raise the utility of the recommended item
            by no more than this, in nats.
        max_questions: Stop after this many answers.

    Raises:
        ValueError: If a criterion is out of range.
    """

    best: float | None = 0.9
    within: float | None = 0.5
    value: float | None = None
    max_questions: int | None = 12

    def __post_init__(self) -> None:
        for name in ("best", "within", "value", "max_questions"):
            number = getattr(self, name)
            if number is None:
                continue
            whole = name == "max_questions"
            if isinstance(number, bool) or not isinstance(number, Integral if whole else Real):
                kind = "an integer of at least 0" if whole else "a number"
                raise ValueError(f"{name} must be {kind}, or None, got {number!r}")
            object.__setattr__(self, name, int(number) if whole else float(number))
        if self.best is not None and not 0 < self.best <= 1:
            raise ValueError(f"best must lie above 0 and not above 1, or be None, got {self.best}")
        for name, number in (("within", self.within), ("value", self.value)):
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, or None, got {number}")
        if self.max_questions is not None and self.max_questions < 0:
            raise ValueError(
                f"max_questions must be an integer of at least 0, or None, got {self.max_questions}"
            )

    def judge(
        self,
        posterior: Posterior,
        items: Sequence | None = None,
        num_asked: int = 0,
        value: float | None = None,
    ) -> Verdict:
        """Judges whether one person has been asked enough.

        Args:
            posterior: The posterior of one person, which chose the questions.
            items: Names of the items that may be recommended; all items if None.
            num_asked: Number of answers so far.
            value: Value of the best question left, in nats, from draws that did not choose it; None
                where it is not known, and the criterion `value` is not judged.

        Returns:
            The verdict.

        Raises:
            ValueError: If the posterior is of several people, an item is unknown, or the model
                knows utilities by their distribution alone.
        """
        best, fresh = recommend(posterior, items), draw_afresh(posterior)
        utility = fresh.utility(items)[:, 0]
        good = utility[:, best] >= utility.amax(-1) - (self.within or 0.0)
        prob = good.double().mean().item()
        names = posterior.context.item_names.tolist() if items is None else list(items)
        reason = self._find_reason(names[best], prob, num_asked, value)
        share = fresh.relative_ess.nan_to_num(1.0).item()  # NaN where draws have no weights.
        error = math.sqrt(prob * (1 - prob) / max(share * len(utility), 1.0))
        return Verdict(bool(reason), reason, names[best], prob, error)

    def _find_reason(self, item: Hashable, prob: float, num_asked: int, value: float | None) -> str:
        if self.best is not None and prob >= self.best:
            near = f" or within {self.within:g} nats of the best" if self.within else ""
            return f"{item!r} is the best{near} with probability {prob:.3f}"
        if None not in (self.value, value) and value <= self.value:
            return f"no question is worth more than {self.value:g} nats"
        if self.max_questions is not None and num_asked >= self.max_questions:
            return f"max_questions={self.max_questions} are answered"
        return ""


def recommend(posterior: Posterior, items: Sequence | None = None) -> int:
    """Finds the position, among `items`, of the item of the highest posterior mean utility.

    Args:
        posterior: The posterior of one person.
        items: Names of the items; all items if None.
    """
    if len(posterior.context) != 1:
        raise ValueError(f"posterior must be of one person, got {len(posterior.context)} people")
    return int(posterior.utility(items)[:, 0].mean(0).argmax())


def draw_afresh(posterior: Posterior) -> Posterior:
    """Draws a posterior again, from other random numbers and four times as often.

    Args:
        posterior: The posterior.

    Returns:
        A posterior of the same context; a gold standard, whose draws come from elsewhere, is
        returned as it is.
    """
    if posterior.correct not in ("psis", None) or not posterior.model.latent_dim:
        return posterior
    seed = int(Streams(posterior.seed, "fresh draws").of(0).integers(2**31))
    return Posterior(
        posterior.model,
        posterior.guide,
        posterior.context,
        _MORE * posterior.num_samples,
        seed=seed,
        correct=posterior.correct,
        population="fixed" if posterior.population is None else posterior.population,
        fallback=posterior.fallback,
    )
